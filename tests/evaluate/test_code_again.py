"""Code of stored answers is read again where an earlier version of the extraction read it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from evaluate.generate import ProgressBar
from evaluate.inspection import read_code_again
from evaluate.results import Result, open_run, problem_record, read_run
from evaluate.scoring import score_run
from tasks.extract import EXTRACTION_VERSION
from tasks.problem import Problem
from tests import messages
from tests.evaluate.fakes import BASE

TEXT = "Install:\n```bash\npip install x\n```\nThen:\n```python\nx = f(1)\n```\n"
OLD_CODE, CODE = "pip install x", "x = f(1)"
SETTINGS = {"base_id": BASE.id, "decoding": {"mode": "greedy", "candidates": 1, "max_new_tokens": 64}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a run of an earlier version with one answer each of two methods, one of raw text, and its scores."""
    path = tmp_path / "run.jsonl"
    with open_run(path, SETTINGS, [problem_record(Problem("p", "call f", CODE))], {}) as run:
        run.set_method("zero-shot", {"style": "chat", "fingerprint": "0"})
        run.set_method("raw", {})
        candidate = {"text": TEXT, "code": OLD_CODE, "logprob": -1.0, "tokens": 9, "times": 1}
        run.add(Result(method, "p", candidates=[candidate]) for method in ("zero-shot", "raw"))
        run.save()
        score_run(run, ProgressBar)
    return path


def test_code_is_read_again_stored_and_scored(path: Path) -> None:
    run = read_run(path)
    assert run.results("zero-shot")[0].scores["em@1"] == 0
    assert read_code_again(run) == 1
    assert run.results("zero-shot")[0].scores == {}
    score_run(run, ProgressBar)
    stored = read_run(path)
    assert stored.results("zero-shot")[0].candidates[0]["code"] == CODE
    assert stored.results("zero-shot")[0].scores["em@1"] == 1
    assert stored.methods["zero-shot"]["extraction"] == EXTRACTION_VERSION
    assert read_code_again(stored) == 0


def test_answers_of_raw_text_are_left_as_they_are(path: Path) -> None:
    run = read_run(path)
    read_code_again(run)
    assert run.results("raw")[0].candidates[0]["code"] == OLD_CODE
    assert "extraction" not in run.methods["raw"]


def test_a_packed_run_whose_code_changes_is_refused(path: Path) -> None:
    packed = path.with_name("packed.jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(PromptOrTuneError, match=messages.PACKED_FILE):
        read_code_again(read_run(packed))
