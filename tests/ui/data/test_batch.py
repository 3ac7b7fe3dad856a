"""Batch runs on a fake engine: the file of the run, stop and continue, replaced rows, limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from evaluate.results import read_run
from evaluate.sandbox.sandbox import SandboxUnavailableError
from serve.engine.llm_engine import EngineLoader
from tests.fakes import FakeEngine
from tests.ui.own_rows import NAME, add_rows
from ui.access.guard import VisitorRegistry
from ui.access.policy import AccessPolicy, Visitor
from ui.access.quota import VisitorLimits
from ui.context import Context
from ui.data.batch import ALREADY_RUNNING, BATCH_SIZE, BatchRequest, BatchRunner
from ui.results.runs import RunLibrary
from ui.test_bench import TestBench

OWNER, OTHER = Visitor("user-0123456789abcdef", owner=True), Visitor("user-00000000000000bb")
REQUEST = BatchRequest(NAME, ("zero-shot", "icl-2"), 64)
RIGHT = "def number_{}():\n    return {}"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))
    add_rows(tmp_path)


def no_sandbox() -> None:
    raise SandboxUnavailableError("there is no sandbox in this test.")


def make_runner(home: Path, engine: FakeEngine | None = None, limits: VisitorLimits | None = None) -> BatchRunner:
    engine = engine or FakeEngine({"zero-shot": "pass", "icl-2": RIGHT.format(7, 7)})
    loader = EngineLoader(lambda report: engine).start()
    loader.engine()
    visitors = VisitorRegistry(AccessPolicy(limits=limits or VisitorLimits()))
    bench = TestBench(open=no_sandbox)  # type: ignore[arg-type]
    context = Context(loader, home=home, visitors=visitors, test_bench=bench)
    return BatchRunner(context, home / "runs")


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not true in time"
        time.sleep(0.01)


def test_run_answers_and_scores_all_held_out_rows(tmp_path: Path) -> None:
    engine = FakeEngine({"zero-shot": "pass", "icl-2": RIGHT.format(7, 7)})
    runner = make_runner(tmp_path, engine, VisitorLimits(rows_per_hour=3))
    path = runner.start(OWNER, REQUEST)
    assert runner.join(30)
    status = runner.status()
    assert (status.phase, status.path) == ("done", path), status.message
    assert "Without tests: there is no sandbox in this test." in status.message
    run = read_run(path)
    assert (run.settings["data"], run.settings["n"], list(run.methods)) == (NAME, 6, ["zero-shot", "icl-2"])
    assert [len(run.results(name)) for name in run.methods] == [6, 6]
    assert all(result.scores["parses"] == 1 for result in run.results("icl-2"))
    assert all(len(batch) <= BATCH_SIZE for batch in engine.received), "rows are asked in small batches"
    assert {request.pool for batch in engine.received for request in batch} == {NAME}
    assert (tmp_path / "runs").stat().st_mode & 0o077 == 0
    (listed,) = RunLibrary([("runs", tmp_path / "runs")]).list_runs()
    assert (listed.data, RunLibrary([("runs", tmp_path / "runs")]).list_runs(own=False)) == (NAME, [])


def test_stopped_run_continues_where_it_was(tmp_path: Path) -> None:
    engine = FakeEngine({"zero-shot": "one two three", "icl-2": "one two"}, delay=0.02)
    runner = make_runner(tmp_path, engine)
    path = runner.start(OWNER, REQUEST)
    until(lambda: runner.status().done)
    assert "left" in runner.status().describe()
    with pytest.raises(PromptOrTuneError, match=ALREADY_RUNNING):
        runner.start(OWNER, REQUEST)
    runner.stop()
    assert runner.join(30)
    assert runner.status().phase == "stopped"
    before = read_run(path)
    answered = sum(len(before.results(name)) for name in before.methods)
    assert 0 < answered < 12
    again = make_runner(tmp_path, engine)  # after a restart of the app
    assert again.resume(OWNER, path) == path
    assert again.join(30)
    assert again.status().phase == "done", again.status().message
    run = read_run(path)
    assert [len(run.results(name)) for name in run.methods] == [6, 6]
    measured = {result.problem: result.seconds for result in run.results("zero-shot")}
    assert {result.problem: measured[result.problem] for result in before.results("zero-shot")} == {
        result.problem: result.seconds for result in before.results("zero-shot")
    }
    assert sum(len(batch) for batch in engine.received) <= 12 + BATCH_SIZE, "answers of before are not asked again"


def test_replaced_rows_end_a_run_and_do_not_continue_it(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, FakeEngine({"zero-shot": "one two three", "icl-2": "one two"}, delay=0.05))
    path = runner.start(OWNER, REQUEST)
    until(lambda: runner.status().done)
    add_rows(tmp_path, "figure")
    assert runner.join(30)
    assert runner.status().phase == "failed"
    assert "were replaced or deleted" in runner.status().message
    assert str(tmp_path) not in runner.status().message
    runner.resume(OWNER, path)
    assert runner.join(30)
    assert "data_digest" in runner.status().message, runner.status().message


def test_comparison_of_the_owner_is_answered_beside_a_run(tmp_path: Path) -> None:
    """All answers that the owner may have at once are taken: the run waits, and goes on after them."""
    runner = make_runner(tmp_path)
    context = runner._context
    with context.visitors.quota.reserve(OWNER.id, 16):
        runner.start(OWNER, REQUEST)
        time.sleep(0.3)
        assert (runner.status().done, runner.status().phase) == (0, "running")
    assert runner.join(30)
    assert runner.status().phase == "done"


def test_run_waits_for_its_turn_in_the_queue(tmp_path: Path) -> None:
    runner, released = make_runner(tmp_path), threading.Event()
    queue = runner._context.run_queue
    for number in range(12):
        threading.Thread(target=_hold, args=(queue, f"visitor {number}", released), daemon=True).start()
    until(lambda: len(queue._tickets) == 12)
    runner.start(OWNER, REQUEST)
    time.sleep(0.3)
    assert runner.status().done == 0
    released.set()
    assert runner.join(30)
    assert runner.status().phase == "done"


def _hold(queue: object, name: str, released: threading.Event) -> None:
    with queue.enqueue(name):  # type: ignore[attr-defined]
        released.wait(20)


@pytest.mark.parametrize(
    ("visitor", "request_", "message"),
    [
        (OTHER, REQUEST, "Only the owner of this app may use own data sets"),
        (OWNER, BatchRequest("nine", ("zero-shot",), 64), "Unknown data set 'nine'"),
        (OWNER, BatchRequest(NAME, (), 64), "at least one method"),
        (OWNER, BatchRequest(NAME, tuple(f"icl-{k}" for k in range(1, 10)), 64), "at most 8"),
        (OWNER, BatchRequest(NAME, ("zero-shot",), 4096), "choose 1 to 1024"),
    ],
)
def test_bad_requests_are_refused_before_a_run(
    tmp_path: Path, visitor: Visitor, request_: BatchRequest, message: str
) -> None:
    runner = make_runner(tmp_path)
    with pytest.raises(PromptOrTuneError, match=message):
        runner.start(visitor, request_)
    assert runner.status().phase == "none"
    assert not (tmp_path / "runs").exists()


def test_errors_of_a_run_are_its_message(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    runner.start(OWNER, BatchRequest(NAME, ("nonsense",), 64))
    assert runner.join(30)
    assert runner.status().phase == "failed"
    assert "'nonsense'" in runner.status().message


def test_run_of_a_command_is_not_continued_here(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    path = runner.start(OWNER, REQUEST)
    assert runner.join(30)
    path.write_text(path.read_text().replace('"Data page"', '"python -m evaluate"'))
    with pytest.raises(PromptOrTuneError, match="made by a command"):
        runner.resume(OWNER, path)
