"""The same program has the same status and output on every layer, and, where nothing is denied, without a sandbox."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evaluate.sandbox.sandbox import open_sandbox
from evaluate.sandbox.spec import ExecutionResult, Program
from tests.evaluate.sandbox.programs import LIMITS, PROGRAMS, STDIN, SandboxedProgram

pytestmark = pytest.mark.slow

PLAIN = [program for program in PROGRAMS if program.plain]


@pytest.fixture(scope="module")
def results(layer: str) -> dict[str, ExecutionResult]:
    with open_sandbox(layer) as sandbox:
        found = dict(sandbox.run_many([Program(each.code, STDIN, LIMITS) for each in PROGRAMS], 3))
    return {each.name: found[at] for at, each in enumerate(PROGRAMS)}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_status_and_output_are_the_same_on_every_layer(
    program: SandboxedProgram, results: dict[str, ExecutionResult]
) -> None:
    result = results[program.name]
    assert (result.status, result.limit, result.stdout) == (program.status, program.limit, program.stdout), result


@pytest.mark.parametrize("program", PLAIN, ids=lambda program: program.name)
def test_status_and_output_are_those_of_python(program: SandboxedProgram, tmp_path: Path) -> None:
    stdin, folder = tmp_path / "stdin", tmp_path / "folder"
    stdin.write_text(STDIN)
    folder.mkdir()
    with stdin.open() as file:
        ended = subprocess.run(
            [sys.executable, "-c", program.code], stdin=file, capture_output=True, text=True, cwd=folder, timeout=60
        )
    status = "killed" if ended.returncode < 0 else "ok" if ended.returncode == 0 else "error"
    assert (status, ended.stdout) == (program.status, program.stdout), ended


def test_the_number_of_programs_is_large_enough() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS) >= 100
