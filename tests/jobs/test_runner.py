"""One job's own process, here within the test's: trains, scores, stops, goes on, fails in one sentence."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.manifest import Manifest
from common.files import acquire_lock
from errors import PromptOrTuneError
from evaluate.results import read_run
from jobs import runner
from jobs import runner as training
from jobs.job import Job
from jobs.runner import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, StopWatcher, run_job
from jobs.store import JobFolder, exclusive, last_step
from tests.jobs.service import ServiceWithoutWorker, tiny_job, wait_for

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def calm(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceWithoutWorker, Job]]:
    """A job that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("calm") / "home"
        patch.setenv("PROMPT_OR_TUNE_HOME", str(home))
        service = ServiceWithoutWorker(home)
        config, serving = tiny_job(base, "lora-calm")
        job = service.submit(config, serving)
        assert run_job(home, job.id) == EXIT_DONE
        yield service, service.get_job(job.id)


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring takes seconds, and is not what these tests are about."""
    monkeypatch.setattr(runner._JobRunner, "_score", lambda *_: (None, []))


def begin(service: ServiceWithoutWorker, base: Path, name: str, **changes: Any) -> Job:
    config, serving = tiny_job(base, name, **changes)
    return service.submit(config, serving)


def log_of(service: ServiceWithoutWorker, job: Job) -> Path:
    return service.home / "adapters" / f".{job.adapter}.run" / "log.jsonl"


@contextmanager
def at_step(service: ServiceWithoutWorker, job: Job, step: int, act: Any) -> Iterator[None]:
    """Acts as soon as the training of the block has done that step."""

    def look() -> None:
        wait_for(lambda: last_step(log_of(service, job)) >= step, f"step {step}")
        act()

    thread = threading.Thread(target=look)
    thread.start()
    yield
    thread.join()


def test_a_job_trains_is_scored_and_stands_in_the_store(calm: tuple[ServiceWithoutWorker, Job]) -> None:
    service, job = calm
    assert (job.state, job.stage, job.attempts) == ("done", "", 1)
    assert job.started <= job.ended
    folder = service.adapter_folder(job.id)
    assert folder == service.home / "adapters" / "lora-calm"
    verdict = service.verdict(job.id)
    assert verdict is not None
    assert verdict.n == 6
    assert job.message == verdict.sentence
    assert "LoRA" in verdict.sentence
    scores = {score["metric"]: score for score in Manifest.read(folder).scores}
    assert scores["EM@1"]["n"] == 6
    assert scores["CodeBLEU"]["value"] == pytest.approx(verdict.compared[1].adapter_score, abs=1e-4)
    assert "held-out rows" in (folder / "README.md").read_text()
    run = read_run(service.root / job.id / "scores.jsonl")
    assert [len(run.results(name)) for name in ("zero-shot", "rag-8", "lora-calm")] == [6, 6, 6]
    assert "8 of 8 examples" in run.results("rag-8")[0].notes[0], "were chosen, and too long for this base"


def test_its_curve_and_log_stay_when_its_adapter_goes(calm: tuple[ServiceWithoutWorker, Job]) -> None:
    service, job = calm
    progress = service.progress(job.id)
    assert (progress.step, progress.steps) == (6, 6)
    assert [step for step, _ in progress.losses] == [1, 2, 3, 4, 5, 6]
    assert len(progress.validation) == 6
    assert progress.memory_bytes > 1e6
    assert any("held-out rows" in line for line in service.log_lines(job.id))
    assert not any(str(service.home) in line for line in service.log_lines(job.id)), (
        "folders of this machine are nobody's news"
    )
    folder = service.adapter_folder(job.id)
    assert folder is not None
    aside = folder.rename(folder.parent / ".aside")
    try:
        assert service.adapter_folder(job.id) is None
        assert service.progress(job.id) == progress
    finally:
        aside.rename(folder)


def test_an_adapter_of_the_same_name_is_not_taken_for_the_jobs_own(calm: tuple[ServiceWithoutWorker, Job]) -> None:
    service, job = calm
    folder = service.adapter_folder(job.id)
    assert folder is not None
    ours = Manifest.read(folder)
    replace(ours, config={**ours.config, "learning_rate": 0.5}).write(folder)
    try:
        assert service.adapter_folder(job.id) is None
        (folder / "manifest.json").write_text("{")
        assert service.adapter_folder(job.id) is None
    finally:
        ours.write(folder)
    assert service.adapter_folder(job.id) == folder


def test_the_pace_is_counted_from_the_first_step_of_an_attempt(service: ServiceWithoutWorker, base: Path) -> None:
    job = begin(service, base, "lora-pace")
    attempt = runner._JobRunner(service.home, JobFolder(service.root, job.id), attached=True)
    log = log_of(service, job)
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 3, "loss": 1.0}\n')
    os.utime(log, (1.0, 1.0))  # what the attempt before it wrote
    attempt._start()
    attempt._set_stage("training")
    attempt._record_first_step()
    assert JobFolder(service.root, job.id).read_state().anchor == (0, 0.0)
    later = attempt._started_at + 20.0
    log.write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "loss": 1.0}\n')
    os.utime(log, (later, later))
    attempt._record_first_step()
    assert JobFolder(service.root, job.id).read_state().anchor == (4, later)
    log.write_text(log.read_text() + '{"step": 5, "loss": 1.0}\n')
    attempt._record_first_step()
    assert JobFolder(service.root, job.id).read_state().anchor == (4, later), "the first one is kept"


def test_a_finished_job_is_not_run_again(calm: tuple[ServiceWithoutWorker, Job]) -> None:
    service, job = calm
    with pytest.raises(PromptOrTuneError, match="does not wait to be run: it is done"):
        run_job(service.home, job.id)


@pytest.mark.usefixtures("unscored")
def test_stopped_and_resumed_it_has_the_bytes_of_the_undisturbed(
    service: ServiceWithoutWorker, base: Path, calm: tuple[ServiceWithoutWorker, Job]
) -> None:
    job = begin(service, base, "lora-stopped")
    with at_step(service, job, 2, lambda: service.cancel(job.id)):
        assert run_job(service.home, job.id) == EXIT_STOPPED
    stopped = service.get_job(job.id)
    assert stopped.state == "stopped"
    assert "the checkpoint of step" in stopped.message
    assert service.has_checkpoint(job.id)
    assert 2 <= service.progress(job.id).step < 6
    torn = log_of(service, job).parent / "checkpoints" / "checkpoint-999"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"log_history": [')  # as a power cut leaves it
    assert service.resume(job.id).state == "queued"
    assert run_job(service.home, job.id) == EXIT_DONE
    assert service.get_job(job.id).attempts == 2
    ours, calms = service.home / "adapters" / "lora-stopped", calm[0].home / "adapters" / "lora-calm"
    assert (ours / WEIGHTS).read_bytes() == (calms / WEIGHTS).read_bytes()
    assert service.progress(job.id).losses == calm[0].progress(calm[1].id).losses
    assert [path.name for path in (service.home / "adapters").iterdir()] == ["lora-stopped"]


@pytest.mark.usefixtures("unscored")
def test_a_stopped_job_can_become_an_adapter_at_once(service: ServiceWithoutWorker, base: Path) -> None:
    job = begin(service, base, "lora-early")
    with at_step(service, job, 2, lambda: service.cancel(job.id)):
        run_job(service.home, job.id)
    step = service.progress(job.id).step
    service.finish_from_checkpoint(job.id)
    assert run_job(service.home, job.id) == EXIT_DONE
    assert service.progress(job.id).step == step, "nothing was learned since"
    assert service.adapter_folder(job.id) is not None


@pytest.mark.usefixtures("unscored")
def test_the_end_of_the_system_is_no_wish_of_a_person(service: ServiceWithoutWorker, base: Path) -> None:
    job = begin(service, base, "lora-shutdown")
    before = signal.getsignal(signal.SIGTERM)
    with at_step(service, job, 2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        # As under a worker, which leaves the test's standard input alone.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopWatcher, "_wait_for_worker_exit", lambda _: None)
            assert run_job(service.home, job.id, attached=True) == EXIT_STOPPED
    assert service.get_job(job.id).state == "running", "the next worker finds it so, and goes on"
    assert service.has_checkpoint(job.id)
    assert signal.getsignal(signal.SIGTERM) is before


def test_cancelled_before_it_learns_anything_it_has_no_checkpoint(
    service: ServiceWithoutWorker, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begin(service, base, "lora-none")

    def slow(*_: object) -> Path:
        service.cancel(job.id)
        threading.Event().wait(30)
        raise AssertionError("the wait should have been ended")

    monkeypatch.setattr(runner, "train_job", slow)
    assert run_job(service.home, job.id) == EXIT_STOPPED
    assert service.get_job(job.id).message == "Stopped before the first checkpoint."
    assert not service.has_checkpoint(job.id)


def test_a_fault_is_one_sentence_and_an_unforeseen_one_is_in_the_log(
    service: ServiceWithoutWorker, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begin(service, base, "lora-wrong", per_device_train_batch_size=64)
    assert run_job(service.home, job.id) == EXIT_FAILED
    assert "fewer than one batch of 64" in service.get_job(job.id).message
    monkeypatch.setattr(training, "_train_locally", lambda *_, **__: json.loads("{"))
    service.resume(job.id)
    assert run_job(service.home, job.id) == EXIT_FAILED
    assert "nobody foresaw (JSONDecodeError" in service.get_job(job.id).message
    assert any("Traceback" in line for line in service.log_lines(job.id))


@pytest.mark.usefixtures("unscored")
def test_a_full_disk_while_it_trains_is_a_failure_that_goes_on(
    service: ServiceWithoutWorker, base: Path, calm: tuple[ServiceWithoutWorker, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    job, write = begin(service, base, "lora-full"), Trainer._save_optimizer_and_scheduler

    def fail_later(self: Trainer, output_dir: str) -> None:
        if self.state.global_step > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", fail_later)
    assert run_job(service.home, job.id) == EXIT_FAILED
    assert "is full, so the checkpoint of step 3" in service.get_job(job.id).message
    monkeypatch.undo()
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(service.home))
    monkeypatch.setattr(runner._JobRunner, "_score", lambda *_: (None, []))
    service.resume(job.id)
    assert run_job(service.home, job.id) == EXIT_DONE
    ours, calms = service.home / "adapters" / "lora-full", calm[0].home / "adapters" / "lora-calm"
    assert (ours / WEIGHTS).read_bytes() == (calms / WEIGHTS).read_bytes()


def test_killed_between_the_adapter_and_its_note_it_is_not_trained_twice(
    calm: tuple[ServiceWithoutWorker, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, job = calm
    folder = JobFolder(service.root, job.id)
    finished = folder.read_state()
    left = service.home / "adapters" / ".lora-calm.new"
    left.mkdir()
    (left / "half").write_text("written")
    with exclusive(service.root):
        folder.write_state(replace(finished, state="queued", trained=False))
    monkeypatch.setattr(training, "_train_locally", lambda *_, **__: pytest.fail("it is trained already"))
    monkeypatch.setattr(runner._JobRunner, "_score", lambda *_: (None, []))
    try:
        assert run_job(service.home, job.id) == EXIT_DONE
        assert folder.read_state().trained
        assert not left.exists()
    finally:
        with exclusive(service.root):
            folder.write_state(finished)


def test_two_processes_never_work_on_one_job(service: ServiceWithoutWorker, base: Path) -> None:
    job = begin(service, base, "lora-one")
    lock = acquire_lock(JobFolder(service.root, job.id).lock_path)
    assert lock is not None
    with lock, pytest.raises(PromptOrTuneError, match="Another process works on the job 'lora-one'"):
        run_job(service.home, job.id)
    assert service.get_job(job.id).state == "queued"
