"""Section of the runs: what the page has of a stopped and of a complete run, and that nothing else is opened."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from errors import PromptOrTuneError
from evaluate.results import open_run, read_run
from evaluate.scoring import score_run
from serve.engine.llm_engine import EngineLoader
from tests.fakes import FakeEngine
from tests.ui.data.test_batch import no_sandbox
from tests.ui.own_rows import NAME, add_rows
from tests.ui.runs import write_run
from ui.context import Context
from ui.data.batch import BatchRequest
from ui.data.run_section import RunEvents, build_run_section
from ui.results.runs import RunLibrary, failures_first, make_problem_table
from ui.test_bench import TestBench

REQUEST: Any = SimpleNamespace(request=None, username="")


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunEvents:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))
    add_rows(tmp_path)
    engine = FakeEngine({"zero-shot": "one two three", "icl-8": "one two"}, delay=0.03)
    loader = EngineLoader(lambda report: engine).start()
    loader.engine()
    bench = TestBench(open=no_sandbox)  # type: ignore[arg-type]
    context = Context(loader, home=tmp_path, test_bench=bench)
    with gr.Blocks():
        section = build_run_section(context)
    return RunEvents(context, section, RunLibrary([("docs/results", tmp_path / "none"), ("runs", tmp_path / "runs")]))


def chips(*names: str) -> list[dict[str, str]]:
    return [{"name": name} for name in names]


def test_run_is_started_stopped_and_continued(events: RunEvents) -> None:
    section, runner = events.section, events.runner
    started = events.start(REQUEST, NAME, chips("zero-shot", "icl-8"), 64, 0)
    assert (started[section.run].visible, started[section.stop].visible) == (False, True)
    assert started[section.timer].active
    while not runner.status().done:
        assert runner.status().is_running, runner.status().message
    assert "Answers:" in events.tick(None)[section.status]
    assert events.stop()[section.stop].interactive is False
    assert runner.join(20)
    stopped = events.tick(None)
    name = stopped[section.runs].value
    assert name.startswith(f"runs/{NAME}-")
    assert (stopped[section.timer].active, stopped[section.resume].visible) == (False, True)
    assert "Stopped." in stopped[section.status]
    assert "not scored yet" in stopped[section.summary]
    assert events.resume(REQUEST, name)[section.run].visible is False
    assert runner.join(20)
    done = events.tick(name)
    assert (done[section.resume].visible, done[section.problems]["total"]) == (False, 6)
    assert "Nothing is recommended" in done[section.advice]
    problem = done[section.problems]["rows"][0]["id"]
    opened = events.select_problem(name, "", "", SimpleNamespace(_data={"id": problem}))
    assert len(opened[section.answers]["cards"]) == 2
    assert opened[section.problem] == problem


def test_errors_of_the_form_are_in_the_status(events: RunEvents) -> None:
    section = events.section
    for answer, message in (
        (events.start(REQUEST, NAME, [], 64, 0), "at least one method"),
        (events.start(REQUEST, "nine", chips("zero-shot"), 64, 0), "Unknown data set"),
        (events.resume(REQUEST, "../x"), "Choose a run first"),
        (events.resume(REQUEST, None), "Choose a run first"),
    ):
        assert "error-message" in answer[section.status]
        assert message in answer[section.status]


def test_runs_of_other_folders_are_not_opened(events: RunEvents, tmp_path: Path) -> None:
    write_run(tmp_path / "none" / "public.jsonl", scored=False)
    write_run(tmp_path / "runs" / "command.jsonl", scored=False)
    assert events.select_run("docs/results/public.jsonl")[events.section.summary] == ""
    selected = events.select_run("runs/command.jsonl")
    assert "not scored yet" in selected[events.section.summary]
    assert selected[events.section.resume].visible is False, "a command continues it"
    with pytest.raises(PromptOrTuneError):
        events.select_method("docs/results/public.jsonl", SimpleNamespace(_data={}))


def test_failures_come_first(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.jsonl", scored=False)
    run = read_run(path)
    with open_run(path, run.settings, run.problems, run.provenance) as opened:
        score_run(opened, lambda count: SimpleNamespace(update=lambda *_: None, close=lambda: None))
    table = make_problem_table([("run", read_run(path))])
    assert [row.id for row in failures_first(table)] == ["p1", "p2", "p3"]
    column = next(column for column in table.columns if column.method == "lora-starter")
    assert [row.id for row in failures_first(table, column.key)] == ["p1", "p2", "p3"]
    assert BatchRequest("x", ("zero-shot",), 1).limit is None
