"""Runs with an engine that has no model: resumption, sharing between questions, one engine at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from evaluate.results import read_run
from evaluate.study.cells import collect_jobs, read_runs
from evaluate.study.config import StudyConfig
from evaluate.study.generate import EngineOpener, check_base_revisions, generate_missing, missing_jobs
from evaluate.study.jobs import StudyJob, limit_problems, run_path, study_jobs
from evaluate.study.read_config import read_study_config, resolve_config_path
from models.identity import BaseIdentity
from tests.evaluate.fakes import BASE, FakeEngine
from tests.evaluate.study.conftest import add_adapter

N = 5


class Fake(FakeEngine):
    def __init__(self, job: StudyJob, interrupt_at: int | None = None) -> None:
        super().__init__(interrupt_at)
        self._job = job

    @property
    def base(self) -> BaseIdentity:
        return replace(BASE, id=self._job.base_id, quantization=self._job.quantization)

    def adapters(self) -> list[str]:
        return ["lora-conala", "qlora-4bit-conala"]


class Bench:
    """Opens fakes and remembers how many were open at once, and what they were asked."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.opened: list[tuple[str, str]] = []
        self.most = self.now = 0
        self.asked: list[str] = []
        self._interrupt_at = interrupt_at

    @property
    def opener(self) -> EngineOpener:
        @contextmanager
        def opened(job: StudyJob) -> Iterator[Fake]:
            engine = Fake(job, self._interrupt_at)
            self.opened.append((job.base, job.quantization))
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                yield engine
            finally:
                self.now -= 1
                self.asked += [request.method.name for call in engine.calls for request in call]

        return opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "conala"
    folder.mkdir(parents=True)
    for split, count in (("train", 12), ("validation", 3), ("test", 8)):
        rows = [{"id": f"{split}-{at}", "nl": f"add {at} to x", "cmd": f"x + {at}"} for at in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def run(config: StudyConfig, rq: str, folder: Path, data: Path, bench: Bench) -> list[StudyJob]:
    wanted = limit_problems(study_jobs(config, rq), N)
    generate_missing(config, missing_jobs(wanted, folder), data, "the command", bench.opener)
    return wanted


def test_a_question_fills_its_file_and_scores_it(config: StudyConfig, tmp_path: Path, data: Path) -> None:
    bench = Bench()
    wanted = run(config, "rq1", tmp_path / "out", data, bench)
    found = collect_jobs(wanted, read_runs(tmp_path / "out"), tmp_path / "out")
    assert list(found.finished) == wanted
    assert [found.finished[job].mean("em@1") for job in wanted] == [0.0, 0.0, 0.0]
    assert [found.finished[job].mean("em@3") for job in wanted] == [0.0, 1.0, 1.0]
    assert bench.opened == [("tiny", "nf4")]


def test_a_second_question_reuses_what_the_first_has_answered(config: StudyConfig, tmp_path: Path, data: Path) -> None:
    folder, first, second = tmp_path / "out", Bench(), Bench()
    run(config, "rq1", folder, data, first)
    run(config, "rq3", folder, data, second)
    assert set(first.asked) == {"zero-shot", "icl-1", "icl-4"}
    assert set(second.asked) == {"rag-2"}
    third = Bench()
    run(config, "rq3", folder, data, third)
    assert third.opened == []


def test_one_engine_is_open_at_a_time_and_adapters_that_are_missing_are_left_out(
    config: StudyConfig, tmp_path: Path, data: Path, home: Path
) -> None:
    add_adapter(home, "lora-conala", "lora", "none")
    bench = Bench()
    wanted = run(config, "rq3", tmp_path / "out", data, bench)
    assert bench.opened == [("tiny", "nf4"), ("tiny", "none")]
    assert bench.most == 1
    found = collect_jobs(wanted, read_runs(tmp_path / "out"), tmp_path / "out")
    assert {job.adapter for job in found.finished} == {"", "lora-conala"}
    tuned = next(cell for job, cell in found.finished.items() if job.kind == "lora")
    assert tuned.training_facts["train_seconds"] == 60.5
    assert tuned.training_facts["trainable_parameters"] == 1234


def test_what_was_answered_before_an_interruption_is_not_asked_again(
    config: StudyConfig, tmp_path: Path, data: Path
) -> None:
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config, "rq1", folder, data, Bench(interrupt_at=3))
    path = run_path(folder, limit_problems(study_jobs(config, "rq1"), N)[0])
    before = {method: len(read_run(path).results(method)) for method in read_run(path).methods}
    assert 0 < sum(before.values()) < 3 * N
    again = Bench()
    wanted = run(config, "rq1", folder, data, again)
    assert len(again.asked) == 3 * N - sum(before.values())
    unbroken = Bench()
    run(config, "rq1", tmp_path / "whole", data, unbroken)
    for job in wanted:
        pair = [read_run(run_path(each, job)).results(job.method) for each in (folder, tmp_path / "whole")]
        assert [each.scores for each in pair[0]] == [each.scores for each in pair[1]]


def test_code_of_a_base_runs_from_a_pinned_commit_alone() -> None:
    config = read_study_config(resolve_config_path("paper"))
    wanted = [job for job in study_jobs(config, "rq1") if job.model.name == "CodeGen2-1B"]
    with pytest.raises(
        PromptOrTuneError, match="CodeGen2-1B brings code of its own, which runs only from a pinned commit"
    ):
        check_base_revisions(wanted)
    pinned = replace(wanted[0].model, base=f"{wanted[0].model.base}@{'0' * 40}")
    check_base_revisions([replace(wanted[0], model=pinned)])
