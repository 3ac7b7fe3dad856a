"""Generation with fake engines: resuming, reuse of answers between questions, and one open engine at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from errors import EngineError, PromptOrTuneError
from evaluate.failures import RetryPolicy
from evaluate.results import read_run
from evaluate.study.config import StudyConfig
from evaluate.study.generate import EngineOpener, check_base_revisions, generate_missing, missing_jobs
from evaluate.study.jobs import StudyJob, collect_jobs, limit_problems, read_runs, run_path, study_jobs
from evaluate.study.read_config import read_study_config, resolve_config_path
from evaluate.study.report import write_report
from models.source import BaseIdentity
from serve.types import RequestOutput
from tests import messages
from tests.evaluate.fakes import BASE, FakeEngine
from tests.evaluate.study.conftest import add_adapter

N = 5


class FakeStudyEngine(FakeEngine):
    def __init__(self, job: StudyJob, interrupt_at: int | None = None) -> None:
        super().__init__(interrupt_at)
        self._job = job

    @property
    def base(self) -> BaseIdentity:
        return replace(BASE, id=self._job.base_id, quantization=self._job.quantization)

    def adapters(self) -> list[str]:
        return ["lora-conala", "qlora-4bit-conala"]


class EngineRecorder:
    """Opens fake engines and records how many were open at once and the methods requested of them."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.opened: list[tuple[str, str]] = []
        self.max_open = self.open = 0
        self.methods: list[str] = []
        self._interrupt_at = interrupt_at

    @property
    def opener(self) -> EngineOpener:
        @contextmanager
        def opened(job: StudyJob) -> Iterator[FakeStudyEngine]:
            engine = FakeStudyEngine(job, self._interrupt_at)
            self.opened.append((job.base, job.quantization))
            self.open += 1
            self.max_open = max(self.max_open, self.open)
            try:
                yield engine
            finally:
                self.open -= 1
                self.methods += [request.method.name for call in engine.calls for request in call]

        return opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "conala"
    folder.mkdir(parents=True)
    for split, count in (("train", 12), ("validation", 3), ("test", 8)):
        rows = [{"id": f"{split}-{index}", "nl": f"add {index} to x", "cmd": f"x + {index}"} for index in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def run(config: StudyConfig, rq: str, folder: Path, data: Path, recorder: EngineRecorder) -> list[StudyJob]:
    jobs = limit_problems(study_jobs(config, rq), N)
    generate_missing(config, missing_jobs(jobs, folder), data, "the command", recorder.opener)
    return jobs


def test_question_generates_and_scores_its_run_file(config: StudyConfig, tmp_path: Path, data: Path) -> None:
    recorder = EngineRecorder()
    jobs = run(config, "rq1", tmp_path / "out", data, recorder)
    found = collect_jobs(jobs, read_runs(tmp_path / "out"), tmp_path / "out")
    assert list(found.finished) == jobs
    assert [found.finished[job].mean("em@1") for job in jobs] == [0.0, 0.0, 0.0]
    assert [found.finished[job].mean("em@3") for job in jobs] == [0.0, 1.0, 1.0]
    assert recorder.opened == [("tiny", "nf4")]


def test_second_question_reuses_answers(config: StudyConfig, tmp_path: Path, data: Path) -> None:
    folder, first, second = tmp_path / "out", EngineRecorder(), EngineRecorder()
    run(config, "rq1", folder, data, first)
    run(config, "rq3", folder, data, second)
    assert set(first.methods) == {"zero-shot", "icl-1", "icl-4"}
    assert set(second.methods) == {"rag-2"}
    third = EngineRecorder()
    run(config, "rq3", folder, data, third)
    assert third.opened == []


def test_one_engine_is_open_at_a_time_and_missing_adapters_are_skipped(
    config: StudyConfig, tmp_path: Path, data: Path, home: Path
) -> None:
    add_adapter(home, "lora-conala", "lora", "none")
    recorder = EngineRecorder()
    jobs = run(config, "rq3", tmp_path / "out", data, recorder)
    assert recorder.opened == [("tiny", "nf4"), ("tiny", "none")]
    assert recorder.max_open == 1
    found = collect_jobs(jobs, read_runs(tmp_path / "out"), tmp_path / "out")
    assert {job.adapter for job in found.finished} == {"", "lora-conala"}
    tuned = next(item for job, item in found.finished.items() if job.kind == "lora")
    assert tuned.training_facts["train_seconds"] == 60.5
    assert tuned.training_facts["trainable_parameters"] == 1234


def test_interrupted_run_continues(config: StudyConfig, tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config, "rq1", folder, data, EngineRecorder(interrupt_at=3))
    path = run_path(folder, limit_problems(study_jobs(config, "rq1"), N)[0])
    before = {method: len(read_run(path).results(method)) for method in read_run(path).methods}
    assert 0 < sum(before.values()) < 3 * N
    again = EngineRecorder()
    jobs = run(config, "rq1", folder, data, again)
    assert len(again.methods) == 3 * N - sum(before.values())
    uninterrupted = EngineRecorder()
    run(config, "rq1", tmp_path / "complete", data, uninterrupted)
    for job in jobs:
        pair = [read_run(run_path(each, job)).results(job.method) for each in (folder, tmp_path / "complete")]
        assert [each.scores for each in pair[0]] == [each.scores for each in pair[1]]


def test_engine_that_fails_stops_the_study_and_the_same_command_continues(
    config: StudyConfig, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, waits = tmp_path / "out", list[float]()
    jobs = limit_problems(study_jobs(config, "rq1"), N)
    whole = EngineRecorder()
    run(config, "rq1", tmp_path / "complete", data, whole)
    answer = FakeStudyEngine.answer

    def dying(self: FakeStudyEngine, *args: object, **kwargs: object) -> list[RequestOutput]:
        if len(self.calls) == 3:
            raise RuntimeError("the GPU has fallen off the bus")
        return answer(self, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(FakeStudyEngine, "answer", dying)
        with pytest.raises(EngineError, match=messages.FALLEN_OFF_THE_BUS):
            generate_missing(
                config, missing_jobs(jobs, folder), data, "the command", EngineRecorder().opener,
                retries=RetryPolicy(sleep=waits.append),
            )  # fmt: skip
    assert waits == [1.0, 5.0, 20.0]
    found = collect_jobs(jobs, read_runs(folder), folder)
    assert (len(found.finished), [done for done, _ in found.unfinished.values()]) == (1, [4])
    with pytest.raises(PromptOrTuneError, match=messages.ANSWERS_WITHOUT_SCORES):
        write_report(config, "rq1", found, folder, "the command")
    run(config, "rq1", folder, data, EngineRecorder())
    for job in jobs:
        pair = [read_run(run_path(each, job)).results(job.method) for each in (folder, tmp_path / "complete")]
        assert [each.scores for each in pair[0]] == [each.scores for each in pair[1]]


def test_remote_code_of_a_base_requires_a_pinned_commit() -> None:
    config = read_study_config(resolve_config_path("paper"))
    jobs = [job for job in study_jobs(config, "rq1") if job.model.name == "CodeGen2-1B"]
    with pytest.raises(PromptOrTuneError, match=messages.CODEGEN2_NOT_PINNED):
        check_base_revisions(jobs)
    pinned = replace(jobs[0].model, base=f"{jobs[0].model.base}@{'0' * 40}")
    check_base_revisions([replace(jobs[0], model=pinned)])
