"""Files of an advice: results of steps that are computed once, progress, curves, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest

from advise.folder import AdviceFolder, AdviseOptions, PlannedStep, ProgressWriter
from errors import DataError


def test_step_is_computed_once(tmp_path: Path) -> None:
    folder, calls = AdviceFolder(tmp_path), []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"a": len(calls)}

    assert folder.once("step", compute) == {"a": 1}
    assert AdviceFolder(tmp_path).once("step", compute) == {"a": 1}
    assert folder.is_done("step")
    assert not folder.is_done("other")


def test_step_without_a_value_is_done_too(tmp_path: Path) -> None:
    folder = AdviceFolder(tmp_path)
    assert folder.once("step", lambda: None) is None
    assert folder.once("step", lambda: 1) is None


def test_progress_is_read_as_it_was_written(tmp_path: Path) -> None:
    writer = ProgressWriter(AdviceFolder(tmp_path), lambda _: None, 600.0)
    writer.plan([PlannedStep("search", "Train", 100.0), PlannedStep("curve", "Curve", 50.0, False, "no time")], 100.0)
    writer.step("search", "running", "trial 1")
    writer.point("trial 1", 0.25, 1.5)
    writer.point("trial 1", 0.5, 1.2)
    writer.point("trial 1", 0.5, 1.1)  # the same validation again, after a restart
    writer.end_curve("trial 1", "stopped early")
    writer.flush()
    found = AdviceFolder(tmp_path).read_progress()
    assert [(step.id, step.state, step.detail) for step in found.steps] == [
        ("search", "running", "trial 1"),
        ("curve", "left out", "no time"),
    ]
    assert found.curves[0].points == ((0.25, 1.5), (0.5, 1.1))
    assert found.curves[0].state == "stopped early"
    assert (found.total_seconds, found.budget_seconds) == (100.0, 600.0)


def test_time_of_earlier_attempts_counts(tmp_path: Path) -> None:
    first = ProgressWriter(AdviceFolder(tmp_path), lambda _: None, 600.0)
    first._earlier_seconds = 400.0
    first.flush()
    assert 190 < ProgressWriter(AdviceFolder(tmp_path), lambda _: None, 600.0).left_seconds <= 200


def test_broken_files_read_as_missing(tmp_path: Path) -> None:
    for name in ("progress.json", "result.json", "plan.json"):
        (tmp_path / name).write_text('{"steps": [3', encoding="utf-8")
    folder = AdviceFolder(tmp_path)
    assert folder.read_progress().steps == []
    assert folder.read_result() is None
    assert folder.read_plan() is None


@pytest.mark.parametrize("minutes", [0, 1, 100_000, float("nan")])
def test_budget_out_of_range_is_refused(minutes: float) -> None:
    with pytest.raises(DataError, match="minutes are no budget"):
        AdviseOptions("mine", "mine-advised", minutes)


@pytest.mark.parametrize("memory", [-1, float("inf"), float("nan")])
def test_memory_that_is_no_limit_is_refused(memory: float) -> None:
    with pytest.raises(DataError, match="GB are no limit of memory"):
        AdviseOptions("mine", "mine-advised", memory_gb=memory)


def test_options_survive_json() -> None:
    options = AdviseOptions("mine", "mine-advised", 20, 7, 3.5)
    assert AdviseOptions.from_json(options.to_json()) == options
    with pytest.raises(DataError):
        AdviseOptions.from_json({"data": "mine"})
