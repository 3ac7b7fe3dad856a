"""A program that has used an engine exits with status 0, also without references to the engine at its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.tiny import make_base

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from serve.engine.build import build_engine
from tasks.methods import parse_method
from serve.options import ModelOptions
from serve.types import Request, SamplingParams
from tasks.problem import Problem

def ask():
    engine = build_engine(ModelOptions(sys.argv[1], "none", "cpu"))
    if sys.argv[2] == "asked":
        requests = [Request(Problem("p", "x"), parse_method("zero-shot", ()))]
        output, = engine.answer(requests, SamplingParams(max_new_tokens=2))
        assert not output.error, output.error

ask()
"""


@pytest.mark.parametrize("what", ["asked", "only built"])
def test_program_without_engine_references_exits_with_0(what: str, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PROMPT_OR_TUNE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(base), what]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
