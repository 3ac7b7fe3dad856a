"""The program of one job, run in the test's process: training, scoring, stopping, continuing and failing."""

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
from jobs.job import Job
from jobs.queue import open_queue
from jobs.runner import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, StopWatcher, run_job
from jobs.store import JobFolder, exclusive, last_step
from jobs.worker import recover_job
from tests import messages
from tests.jobs.service import ServiceWithoutWorker, tiny_job, wait_for

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceWithoutWorker, Job]]:
    """Run a job without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("undisturbed") / "home"
        patch.setenv("PROMPT_OR_TUNE_HOME", str(home))
        service = ServiceWithoutWorker(home)
        config, serving = tiny_job(base, "lora-undisturbed")
        job = service.submit(config, serving)
        assert run_job(home, job.id) == EXIT_DONE
        yield service, service.get_job(job.id)


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the scoring, which takes several seconds."""
    monkeypatch.setattr(runner._JobRunner, "_score", lambda *_: (None, []))


def begin(service: ServiceWithoutWorker, base: Path, name: str, **changes: Any) -> Job:
    config, serving = tiny_job(base, name, **changes)
    return service.submit(config, serving)


def log_of(service: ServiceWithoutWorker, job: Job) -> Path:
    return service.home / "adapters" / f".{job.adapter}.run" / "log.jsonl"


@contextmanager
def at_step(service: ServiceWithoutWorker, job: Job, step: int, act: Any) -> Iterator[None]:
    """Call `act` when the training in the block has finished that step."""

    def watch() -> None:
        wait_for(lambda: last_step(log_of(service, job)) >= step, f"step {step}")
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def test_job_is_trained_and_scored(undisturbed: tuple[ServiceWithoutWorker, Job]) -> None:
    service, job = undisturbed
    assert (job.state, job.stage, job.attempts) == ("done", "", 1)
    assert job.started <= job.ended
    folder = service.adapter_folder(job.id)
    assert folder == service.home / "adapters" / "lora-undisturbed"
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
    assert [len(run.results(name)) for name in ("zero-shot", "rag-8", "lora-undisturbed")] == [6, 6, 6]
    assert "8 of 8 examples" in run.results("rag-8")[0].notes[0], "the examples are too long for this base"


def test_curve_and_log_remain_after_the_adapter_is_deleted(undisturbed: tuple[ServiceWithoutWorker, Job]) -> None:
    service, job = undisturbed
    progress = service.progress(job.id)
    assert (progress.step, progress.steps) == (6, 6)
    assert [step for step, _ in progress.losses] == [1, 2, 3, 4, 5, 6]
    assert len(progress.validation) == 6
    assert progress.memory_bytes > 1e6
    assert any("held-out rows" in line for line in service.log_lines(job.id))
    assert not any(str(service.home) in line for line in service.log_lines(job.id)), (
        "the log names no folder of this machine"
    )
    folder = service.adapter_folder(job.id)
    assert folder is not None
    moved = folder.rename(folder.parent / ".moved")
    try:
        assert service.adapter_folder(job.id) is None
        assert service.progress(job.id) == progress
    finally:
        moved.rename(folder)


def test_adapter_of_the_same_name_does_not_belong_to_the_job(undisturbed: tuple[ServiceWithoutWorker, Job]) -> None:
    service, job = undisturbed
    folder = service.adapter_folder(job.id)
    assert folder is not None
    manifest = Manifest.read(folder)
    replace(manifest, config={**manifest.config, "learning_rate": 0.5}).write(folder)
    try:
        assert service.adapter_folder(job.id) is None
        (folder / "manifest.json").write_text("{")
        assert service.adapter_folder(job.id) is None
    finally:
        manifest.write(folder)
    assert service.adapter_folder(job.id) == folder


def test_anchor_is_the_first_step_of_the_attempt(service: ServiceWithoutWorker, base: Path) -> None:
    job = begin(service, base, "lora-pace")
    attempt = runner._JobRunner(service.home, JobFolder(service.root, job.id), attached=True)
    log = log_of(service, job)
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 3, "loss": 1.0}\n')
    os.utime(log, (1.0, 1.0))  # written by an earlier attempt
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
    assert JobFolder(service.root, job.id).read_state().anchor == (4, later), "the anchor does not change"


def test_finished_job_is_not_run_again(undisturbed: tuple[ServiceWithoutWorker, Job]) -> None:
    service, job = undisturbed
    with pytest.raises(PromptOrTuneError, match=messages.NOT_QUEUED):
        run_job(service.home, job.id)


@pytest.mark.usefixtures("unscored")
def test_job_stopped_by_signals_and_by_the_user_gives_the_same_bytes(
    service: ServiceWithoutWorker,
    base: Path,
    undisturbed: tuple[ServiceWithoutWorker, Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = begin(service, base, "lora-stopped")
    handler = signal.getsignal(signal.SIGTERM)
    # As under a worker, without reading the standard input of the tests.
    monkeypatch.setattr(StopWatcher, "_wait_for_worker_exit", lambda _: None)
    with at_step(service, job, 1, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert run_job(service.home, job.id, attached=True) == EXIT_STOPPED
    assert signal.getsignal(signal.SIGTERM) is handler
    assert service.get_job(job.id).state == "running", "the next worker continues it"
    assert service.has_checkpoint(job.id)
    with open_queue(service.root) as queue:
        recover_job(JobFolder(service.root, job.id), queue)
    step = service.progress(job.id).step
    with at_step(service, job, step + 1, lambda: service.cancel(job.id)):
        assert run_job(service.home, job.id) == EXIT_STOPPED
    stopped = service.get_job(job.id)
    assert stopped.state == "stopped"
    assert "the checkpoint of step" in stopped.message
    assert service.has_checkpoint(job.id)
    assert step < service.progress(job.id).step < 6
    incomplete = log_of(service, job).parent / "checkpoints" / "checkpoint-999"
    incomplete.mkdir()
    (incomplete / "trainer_state.json").write_text('{"log_history": [')  # as a power cut leaves it
    assert service.resume(job.id).state == "queued"
    assert run_job(service.home, job.id) == EXIT_DONE
    assert service.get_job(job.id).attempts == 3
    adapter = service.home / "adapters" / "lora-stopped"
    expected = undisturbed[0].home / "adapters" / "lora-undisturbed"
    assert (adapter / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    assert service.progress(job.id).losses == undisturbed[0].progress(undisturbed[1].id).losses
    assert [path.name for path in (service.home / "adapters").iterdir()] == ["lora-stopped"]


@pytest.mark.usefixtures("unscored")
def test_stopped_job_can_be_finished_from_checkpoint(service: ServiceWithoutWorker, base: Path) -> None:
    job = begin(service, base, "lora-early")
    with at_step(service, job, 2, lambda: service.cancel(job.id)):
        run_job(service.home, job.id)
    step = service.progress(job.id).step
    service.finish_from_checkpoint(job.id)
    assert run_job(service.home, job.id) == EXIT_DONE
    assert service.progress(job.id).step == step, "no further training"
    assert service.adapter_folder(job.id) is not None


def test_job_cancelled_before_its_first_checkpoint_is_stopped(
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


def test_unexpected_error_is_in_the_log(
    service: ServiceWithoutWorker, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begin(service, base, "lora-wrong", per_device_train_batch_size=64)
    assert run_job(service.home, job.id) == EXIT_FAILED
    assert "fewer than one batch of 64" in service.get_job(job.id).message
    monkeypatch.setattr(runner, "_train_locally", lambda *_, **__: json.loads("{"))
    service.resume(job.id)
    assert run_job(service.home, job.id) == EXIT_FAILED
    assert "unexpected error (JSONDecodeError" in service.get_job(job.id).message
    assert any("Traceback" in line for line in service.log_lines(job.id))


@pytest.mark.usefixtures("unscored")
def test_job_continues_after_full_disk(
    service: ServiceWithoutWorker,
    base: Path,
    undisturbed: tuple[ServiceWithoutWorker, Job],
    monkeypatch: pytest.MonkeyPatch,
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
    adapter, expected = service.home / "adapters" / "lora-full", undisturbed[0].home / "adapters" / "lora-undisturbed"
    assert (adapter / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()


def test_trained_job_is_not_trained_twice(
    undisturbed: tuple[ServiceWithoutWorker, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, job = undisturbed
    folder = JobFolder(service.root, job.id)
    finished = folder.read_state()
    leftover = service.home / "adapters" / ".lora-undisturbed.new"
    leftover.mkdir()
    (leftover / "half").write_text("written")
    with exclusive(service.root):
        folder.write_state(replace(finished, state="queued", trained=False))
    monkeypatch.setattr(runner, "_train_locally", lambda *_, **__: pytest.fail("it is trained already"))
    monkeypatch.setattr(runner._JobRunner, "_score", lambda *_: (None, []))
    try:
        assert run_job(service.home, job.id) == EXIT_DONE
        assert folder.read_state().trained
        assert not leftover.exists()
    finally:
        with exclusive(service.root):
            folder.write_state(finished)


def test_second_process_is_refused(service: ServiceWithoutWorker, base: Path) -> None:
    job = begin(service, base, "lora-one")
    lock = acquire_lock(JobFolder(service.root, job.id).lock_path)
    assert lock is not None
    with lock, pytest.raises(PromptOrTuneError, match=messages.JOB_RUNS_ALREADY):
        run_job(service.home, job.id)
    assert service.get_job(job.id).state == "queued"
