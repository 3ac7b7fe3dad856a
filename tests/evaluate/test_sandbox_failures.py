"""Failures of the sandbox: tried again, never stored as failed tests, and run again by the next scoring."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from errors import PromptOrTuneError, SandboxClosedError, SandboxError
from evaluate import __main__ as command
from evaluate.failures import RetryPolicy, count_unscored
from evaluate.generate import ProgressBar
from evaluate.journal import read_records
from evaluate.report import metrics_csv, text_report
from evaluate.results import Run, is_sandbox_failure, read_run, scores_path
from evaluate.sandbox.sandbox import Sandbox, SandboxUnavailableError, open_sandbox
from evaluate.sandbox.spec import Program, require_run
from evaluate.scoring import score_run
from evaluate.table import compare_methods, compare_runs
from evaluate.test_runner.result import TestResult
from evaluate.test_runner.runner import run_tests
from tasks.problem import AssertTest, StdioTest
from tests import messages
from tests.conftest import ROOT
from tests.evaluate.test_scoring import RIGHT, TESTS, candidate, made_run, result

pytestmark = pytest.mark.slow

Break = Callable[[pytest.MonkeyPatch], None]


def raising(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def no_descriptors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "memfd_create", raising(OSError(errno.EMFILE, "Too many open files")))


def no_pipe(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "pipe", raising(OSError(errno.ENFILE, "Too many open files in system")))


def no_process(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subprocess, "Popen", raising(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")))


def no_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subprocess, "Popen", raising(OSError(errno.ENOMEM, "Cannot allocate memory")))


def no_thread(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ThreadPoolExecutor, "submit", raising(RuntimeError("can't start new thread")))


def no_program(patch: pytest.MonkeyPatch) -> None:
    """The sandbox ends before the program begins, as where the child cannot be confined."""
    patch.setattr("evaluate.sandbox.spec.BOOTSTRAP", "import os; os.write(2, b'no room'); os._exit(1)")


FAILURES: list[Break] = [no_descriptors, no_pipe, no_process, no_memory, no_thread, no_program]


def score(run: Run, sandbox: Sandbox, *, sleep: Callable[[float], object] | None = None) -> list[float]:
    """Score the run; return the waits between tries."""
    waits: list[float] = []
    policy = RetryPolicy(sleep=sleep or waits.append)
    score_run(run, lambda total: ProgressBar(total, io.StringIO()), sandbox, 1, policy)
    return waits


def five(problem: str = "p0") -> Any:
    return replace(result(candidate(RIGHT, 5)), problem=problem)


@pytest.mark.parametrize("failing", FAILURES, ids=lambda failing: failing.__name__)
def test_a_right_answer_stays_unscored_until_the_sandbox_works(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, failing: Break
) -> None:
    path = tmp_path / "run.jsonl"
    run = made_run(path, [five()])
    with monkeypatch.context() as patch:
        failing(patch)
        with pytest.raises(SandboxError, match=messages.ANSWERS_WITHOUT_TEST_RESULTS) as caught:
            score(run, sandbox)
    assert "\n" not in str(caught.value)
    stored = read_run(path).results("zero-shot")[0]
    assert (stored.scores["em@1"], "tests" in stored.scores, stored.checks) == (1, False, ())
    assert score(read_run(path), sandbox) == []
    assert read_run(path).results("zero-shot")[0].scores["pass@1"] == 1


@pytest.mark.parametrize("failing", FAILURES, ids=lambda failing: failing.__name__)
def test_a_failure_that_passes_is_no_score(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, failing: Break
) -> None:
    run = made_run(tmp_path / "run.jsonl", [five()])
    waits: list[float] = []
    with monkeypatch.context() as patch:
        failing(patch)

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                patch.undo()

        score(run, sandbox, sleep=sleep)
    assert waits == [1.0, 5.0]
    assert run.results("zero-shot")[0].scores["pass@5"] == 1


def test_a_closed_sandbox_stops_at_once(tmp_path: Path, sandbox: Sandbox) -> None:
    run = made_run(tmp_path / "run.jsonl", [five()])
    closed = Sandbox(sandbox.layer)
    closed.close()
    with pytest.raises(SandboxError, match=messages.SANDBOX_CLOSED_ONE_ANSWER):
        score(run, closed, sleep=raising(AssertionError("waited")))
    assert "tests" not in run.results("zero-shot")[0].scores


def test_a_program_that_is_stopped_from_outside_gives_no_result(sandbox: Sandbox) -> None:
    closing = Sandbox(sandbox.layer)
    timer = threading.Timer(0.5, closing.close)
    timer.start()
    code = "import time\ndef f(x):\n    time.sleep(9)\n    return x + 1"
    with pytest.raises(SandboxClosedError):
        run_tests(code, TESTS, closing)
    timer.join()


def test_the_scores_before_a_failure_are_saved(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer is tested only after the first one's results are there."""
    path = tmp_path / "run.jsonl"
    run = made_run(path, [five()])
    run.problems.append({**run.problems[0], "id": "p2"})
    run.add([five("p2")])
    run.save()
    run.close()
    ran: list[Program] = []

    class Dying(Sandbox):
        def run(self, program: Program) -> Any:
            ran.append(program)
            if len(ran) > 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().run(program)

    with pytest.raises(SandboxError, match=r"OSError: .*\(tried 4 times\); answers without test results: 1"):
        score(run, Dying(sandbox.layer))
    assert [("tests" in each.scores) for each in run.results("zero-shot")] == [True, False]


@pytest.mark.parametrize("tests", [TESTS, (StdioTest("", "1\n"),), (AssertTest("assert [f(x) for x in (1,)]"),)])
def test_no_runner_of_tests_hides_a_failure(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tests: tuple[Any, ...]
) -> None:
    no_process(monkeypatch)
    with pytest.raises(SandboxError, match=messages.COULD_NOT_START_A_PROGRAM):
        run_tests("print(1)\nf = abs", tests, sandbox)


def test_the_check_command_has_a_sentence_and_no_results(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.py").write_text("def f(x): return x")
    (tmp_path / "tests.txt").write_text("assert f(1) == 1")
    monkeypatch.setattr("evaluate.sandbox.sandbox._open_layer", lambda *_: Sandbox(sandbox.layer))
    no_process(monkeypatch)
    assert command.main(["check", str(tmp_path / "a.py"), str(tmp_path / "tests.txt")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("The sandbox could not start a program ([Errno 11] Resource temporarily unavailable)")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (no_descriptors, "Too many open files"),
        (lambda patch: patch.setattr(tempfile, "tempdir", "/nowhere/at/all"), "nowhere"),
        (
            lambda patch: patch.setattr(tempfile, "gettempdir", raising(FileNotFoundError(2, "No usable folder"))),
            "No us",
        ),
    ],
    ids=["descriptors", "temporary folder", "no temporary folder"],
)
def test_a_sandbox_that_cannot_be_opened_has_a_sentence(
    monkeypatch: pytest.MonkeyPatch, broken: Break, reason: str
) -> None:
    monkeypatch.setattr("evaluate.sandbox.sandbox._WORKING_LAYERS", {})
    broken(monkeypatch)
    with pytest.raises(SandboxUnavailableError) as caught:
        open_sandbox("landlock")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


EXHAUSTED = """
import os, resource, sys
from evaluate import __main__ as command
from evaluate.scoring import score_run
import evaluate.failures
from types import SimpleNamespace
evaluate.failures.time = SimpleNamespace(sleep=lambda _: None)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = []
def exhaust(*arguments, **options):
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        os.close(held.pop())  # for the score file
        os.close(held.pop())
    return score_run(*arguments, **options)
command.score_run = exhaust
sys.exit(command.main(["score", sys.argv[1]]))
"""


def test_a_process_without_descriptors_ends_with_one_sentence(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "run.jsonl"
    made_run(path, [five()])
    done = subprocess.run(
        [sys.executable, "-c", EXHAUSTED, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert "Too many open files" in sentence
    assert sentence.endswith(
        f"answers without test results: 1, and `python -m evaluate score {path}` runs their tests."
    )
    assert "Traceback" not in done.stderr
    assert "tests" not in read_run(path).results("zero-shot")[0].scores
    score(read_run(path), sandbox)
    assert read_run(path).results("zero-shot")[0].scores["pass@1"] == 1


# Scores that an earlier version stored: tests that the sandbox did not run are there as failed ones.
def check(reason: str, status: str = "refused") -> dict[str, Any]:
    return asdict(TestResult(False, "call", "f(1)", "2", "", reason, status))


OLD_CHECKS = [
    check("could not be run (The program was not started: [Errno 24] Too many open files.)"),
    check("could not be run (The program was not started: the sandbox is closed.)"),
    check("could not be run (its sandbox did not start within 60 s)"),
    check("could not be run"),
    check("f(1) ended by a signal (stopped from outside)", "killed"),
]
OTHER_CHECKS = [
    check("the test is not Python (invalid syntax)"),
    check("the test asserts nothing"),
    check("f(1) gave 3, expected 2", "ok"),
    check("f(1) raised RuntimeError: could not be run", "error"),
    check("f(1) ended by a signal (signal SIGKILL)", "killed"),
    check("stopped after 10 s (10 s of time)", "timeout"),
]


@pytest.mark.parametrize(
    ("record", "expected"), [(each, True) for each in OLD_CHECKS] + [(each, False) for each in OTHER_CHECKS]
)
def test_stored_failures_of_the_sandbox_are_recognised(record: dict[str, Any], expected: bool) -> None:
    assert is_sandbox_failure(record) is expected


@pytest.mark.parametrize("record", OLD_CHECKS, ids=lambda record: record["reason"])
def test_stored_failures_of_the_sandbox_are_run_again(tmp_path: Path, sandbox: Sandbox, record: dict[str, Any]) -> None:
    path = tmp_path / "run.jsonl"
    run = made_run(path, [five(), replace(five(), problem="p1")])
    score(run, sandbox)
    records, _ = read_records(scores_path(path))
    for stored in records:
        if stored["kind"] == "scores" and stored["of"] == "tests":
            stored["scores"] = dict.fromkeys(stored["scores"], 0.0)
            stored["checks"] = [[record, record]]
    scores_path(path).write_text("".join(json.dumps(stored) + "\n" for stored in records))
    old = read_run(path)
    assert "tests" not in old.results("zero-shot")[0].scores
    assert old.sandbox_failures == {("zero-shot", "p0")}
    score(old, sandbox)
    again = read_run(path)
    assert (again.results("zero-shot")[0].scores["pass@1"], again.sandbox_failures) == (1, set())


def test_a_run_with_tests_of_some_methods_only_is_not_compared(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "run.jsonl"
    run = made_run(path, [five(), five("p1")])
    score(run, sandbox)
    run = read_run(path)
    run.methods["rag-8"] = {}
    run.add(
        replace(each, method="rag-8", scores={"em@1": 1.0, "parses": 1.0}, checks=())
        for each in run.results("zero-shot")
    )
    assert count_unscored(run) == 1
    assert "1 answers without scores: run `python -m evaluate score" in text_report([run])
    for refuse in (lambda: metrics_csv([run]), lambda: compare_methods(run, [("rag-8", "zero-shot")])):
        with pytest.raises(PromptOrTuneError, match=messages.HOLDS_1_ANSWERS_WITHOUT):
            refuse()
    assert compare_methods(run) == []


def test_a_run_with_tests_is_not_compared_with_one_whose_tests_have_not_run(tmp_path: Path, sandbox: Sandbox) -> None:
    paths = [tmp_path / "tested.jsonl", tmp_path / "untested.jsonl"]
    for path, layer in zip(paths, (sandbox, None), strict=True):
        run = made_run(path, [five(), five("p1")])
        run.settings["data_digest"] = "sha256:d"
        score_run(run, lambda total: ProgressBar(total, io.StringIO()), layer)
    runs = [read_run(path) for path in paths]
    for run in runs:
        run.settings["data_digest"] = "sha256:d"
    with pytest.raises(PromptOrTuneError, match=messages.TESTED_AND_UNTESTED):
        compare_runs(runs)


def test_the_text_that_tells_a_closed_sandbox_is_that_of_the_launcher(sandbox: Sandbox) -> None:
    closing = Sandbox(sandbox.layer)
    threading.Timer(0.3, closing.close).start()
    with pytest.raises(SandboxClosedError):
        require_run(closing.run(Program("import time; time.sleep(9)")))
    with pytest.raises(SandboxClosedError):
        require_run(closing.run(Program("")))
