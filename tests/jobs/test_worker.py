"""Worker: killed and restarted processes, recovery of jobs without a process, and the command line."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.crash_recovery import find_process
from common.files import acquire_lock, is_locked
from jobs.__main__ import main
from jobs.api import JobService, WorkerLauncher, worker_lock_path
from jobs.job import Job
from jobs.queue import open_queue
from jobs.store import JobFolder, JobState, exclusive, last_step
from jobs.worker import (
    MAX_CRASHES,
    has_pending_jobs,
    recover_job,
    recover_jobs,
    remove_stale_folders,
    run_worker,
)
from tests import messages
from tests.jobs.service import ServiceWithoutWorker, submit_named, tiny_job, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def real_service(jobs_home: Path) -> Iterator[JobService]:
    """Yield a service that starts its worker; end the worker after the test."""
    yield JobService(jobs_home)
    worker = find_process(jobs_home, "work")
    if worker is not None:
        job = find_process(jobs_home, "run")
        worker.terminate()
        psutil.wait_procs([each for each in (worker, job) if each], timeout=30)


def find(home: Path, what: str) -> psutil.Process:
    return wait_for(lambda: find_process(home, what), f"the process that does `jobs {what}`")


def test_kills_during_training_and_scoring_change_no_result(
    real_service: JobService, base: Path, jobs_home: Path
) -> None:
    config, serving = tiny_job(base, "lora-killed", num_train_epochs=4.0, max_eval_samples=3)
    job = real_service.submit(config, serving)
    queued_job = real_service.submit({**config, "adapter_name": "lora-queued"}, serving)
    log = jobs_home / "adapters" / ".lora-killed.run" / "log.jsonl"
    first = find(jobs_home, "work")
    wait_for(lambda: last_step(log) >= 3, "three steps")
    os.kill(find(jobs_home, "run").pid, signal.SIGKILL)
    wait_for(lambda: real_service.get_job(job.id).attempts == 2, "the worker to begin the job again")
    assert first.is_running()
    wait_for(lambda: real_service.get_job(job.id).stage == "scoring", "the scoring")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    real_service = JobService(jobs_home)  # another program, which starts a worker while the job's process still runs
    real_service.ensure_worker()
    assert {each.id for each in real_service.list_jobs()} == {job.id, queued_job.id}
    wait_for(lambda: real_service.get_job(queued_job.id).is_ended, "both jobs")
    assert [real_service.get_job(each.id).state for each in (job, queued_job)] == ["done", "done"]
    store = jobs_home / "adapters"
    assert sorted(path.name for path in store.iterdir()) == ["lora-killed", "lora-queued"]
    assert (store / "lora-killed" / WEIGHTS).read_bytes() == (store / "lora-queued" / WEIGHTS).read_bytes()
    interrupted, undisturbed = real_service.verdict(job.id), real_service.verdict(queued_job.id)
    assert interrupted is not None
    assert undisturbed is not None
    assert interrupted.compared == undisturbed.compared
    assert any("ended by signal 9" in line for line in real_service.log_lines(job.id))
    second = find(jobs_home, "work")
    assert second.pid != first.pid
    second.terminate()
    wait_for(lambda: not psutil.pid_exists(second.pid), "no zombie", 10)


@contextmanager
def worker_in_thread(home: Path, idle_seconds: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Thread]:
    """Run a worker in a thread, where it receives no signals."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    thread = threading.Thread(target=run_worker, args=(home, idle_seconds))
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()


def fake_process(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Replace `python -m jobs run ID` by a script, which gets the folder of the job as its argument."""
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        folder = Path(os.environ["PROMPT_OR_TUNE_HOME"]) / "jobs" / command[4]
        return start([sys.executable, "-c", script, str(folder)], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


def test_worker_exits_when_there_are_no_jobs(
    service: ServiceWithoutWorker, jobs_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = "import sys, pathlib as p; f = p.Path(sys.argv[1]) / 'state.json'; f.write_text('{\"state\": \"done\"}')"
    fake_process(monkeypatch, done)
    jobs = [
        submit_named(service, "lora-1"),
        submit_named(service, "lora-2", where="hub", flavor="cpu-basic"),
        submit_named(service, "lora-3"),
    ]
    with worker_in_thread(jobs_home, 0.1, monkeypatch):
        wait_for(lambda: all(service.get_job(job.id).state == "done" for job in jobs), "all jobs", 30)
        wait_for(lambda: not is_locked(worker_lock_path(jobs_home)), "the worker's end", 30)


def test_second_worker_exits_immediately(
    service: ServiceWithoutWorker, jobs_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jobs.worker")
    with worker_in_thread(jobs_home, 1.5, monkeypatch):
        wait_for(lambda: is_locked(worker_lock_path(jobs_home)), "the worker", 10)
        began = time.monotonic()
        run_worker(jobs_home)
        assert time.monotonic() - began < 5
    assert "Another worker is running" in caplog.text


def test_process_that_cannot_start_fails_the_job(
    service: ServiceWithoutWorker, jobs_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_process(monkeypatch, "raise SystemExit('nothing works here')")
    monkeypatch.setattr("jobs.worker.MAX_CRASHES", 2)
    job = submit_named(service, "lora-1")
    with worker_in_thread(jobs_home, 0.1, monkeypatch):
        wait_for(lambda: service.get_job(job.id).is_ended, "the job's failure", 30)
    assert service.get_job(job.id).state == "failed"
    assert any("nothing works here" in line for line in service.log_lines(job.id))


def test_worker_is_started_only_when_needed(jobs_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, started = JobService(jobs_home), list[int]()

    def launch(_: WorkerLauncher) -> subprocess.Popen[bytes]:
        started.append(1)
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(WorkerLauncher, "_spawn", launch)
    service.ensure_worker()
    assert started == []
    job = submit_named(service, "lora-1")
    assert started == [1]
    service.ensure_worker()
    assert started == [1], "a worker that ends immediately is not restarted repeatedly"
    service.cancel(job.id)
    service._launcher._last_start = float("-inf")
    service.ensure_worker()
    assert started == [1]


def test_command_line_prints_jobs_or_one_error(
    service: ServiceWithoutWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list"]) == 0
    assert "There are no jobs" in capsys.readouterr().out
    job = submit_named(service, "lora-1")
    JobFolder(service.root, job.id).log_path.write_text("one line\n")
    for command, expected in (
        (["list"], "lora-1"),
        (["show", job.id], "lora-1: queued. Waits for its turn."),
        (["log", job.id], "one line"),
    ):
        assert main(command) == 0
        assert expected in capsys.readouterr().out
    for command, expected in (
        (["show", "nonsense"], "There is no job 'nonsense'"),
        (["resume", job.id], "only a stopped or failed one can be resumed"),
        (["delete", job.id], "stop it before you delete it"),
        (["finish", job.id], "no checkpoint"),
        (["run", "../../etc"], "There is no job"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("jobs: ")
        assert error.count("\n") == 1
        assert expected in error


def set_state(service: ServiceWithoutWorker, job: Job, state: JobState) -> JobFolder:
    folder = JobFolder(service.root, job.id)
    with exclusive(service.root):
        folder.write_state(state)
    return folder


def empty_queue(service: ServiceWithoutWorker) -> None:
    """Empty the queue, as after a worker received all messages and was killed."""
    with open_queue(service.root) as queue:
        for huey in queue.hueys.values():
            huey.storage.flush_queue()


def test_recovery_queues_each_job_once(service: ServiceWithoutWorker) -> None:
    running, queued, ended, stopping = (submit_named(service, name) for name in ("one", "two", "three", "four"))
    empty_queue(service)
    set_state(service, running, JobState(state="running", generation=1, queued="2025"))
    set_state(service, ended, JobState(state="done", generation=1))
    set_state(service, stopping, JobState(state="stopping", generation=1)).stop_path.touch()
    with open_queue(service.root) as queue:
        for _ in range(3):
            recover_jobs(service.root, queue)
        assert queue.pending() == {(running.id, 2), (queued.id, 1)}
        assert len(queue.hueys["here"]) == 2
        assert queue.hueys["here"].dequeue().args[0] == running.id, "the interrupted job is first"
    assert [service.get_job(job.id).state for job in (running, queued, ended, stopping)] == [
        "queued",
        "queued",
        "done",
        "stopped",
    ]
    assert [service.get_job(running.id).queue_position, service.get_job(queued.id).queue_position] == [0, 1]
    assert not JobFolder(service.root, stopping.id).stop_path.exists()


def test_job_with_a_running_process_is_not_changed(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "ran")
    folder = set_state(service, job, JobState(state="running", generation=1))
    lock = acquire_lock(folder.lock_path)
    assert lock is not None
    with lock, open_queue(service.root) as queue:
        recover_jobs(service.root, queue)
        recover_job(folder, queue, 1)
    assert folder.read_state().state == "running"


def test_job_fails_after_repeated_crashes(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "ran")
    folder = JobFolder(service.root, job.id)
    with open_queue(service.root) as queue:
        for attempt in range(MAX_CRASHES):
            assert folder.read_state().state == "queued", f"attempt {attempt}"
            set_state(service, job, replace(folder.read_state(), state="running"))
            recover_job(folder, queue)
    assert folder.read_state().state == "failed"
    assert "without getting any further" in service.get_job(job.id).message
    assert service.resume(job.id).state == "queued"
    assert folder.read_state().crashes == 0


def test_process_that_ends_before_it_starts_the_job_counts_as_a_crash(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "ran")
    folder = JobFolder(service.root, job.id)
    with open_queue(service.root) as queue:
        recover_job(folder, queue)
        assert folder.read_state().crashes == 0, "a waiting job has not crashed"
        recover_job(folder, queue, 1)
        assert (folder.read_state().crashes, folder.read_state().generation) == (1, 2)
        recover_job(folder, queue, 1)
        assert folder.read_state().generation == 2, "an old message is ignored"


def test_deleted_job_is_ignored(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "gone")
    service.cancel(job.id)
    service.delete(job.id)
    with open_queue(service.root) as queue:
        recover_job(JobFolder(service.root, job.id), queue, 1)
        recover_jobs(service.root, queue)
    assert not has_pending_jobs(service.root)


def test_only_old_temporary_folders_are_removed(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "kept")
    other_id = job.id[:-1] + ("1" if job.id.endswith("0") else "0")
    old, young, other = (service.root / f".{job.id}.new", service.root / f".{other_id}.new", service.root / ".mine")
    for folder in (old, young, other):
        folder.mkdir()
        os.utime(folder, (0, 0))
    os.utime(young, (time.time(), time.time()))
    remove_stale_folders(service.root)
    assert [old.exists(), young.exists(), other.exists()] == [False, True, True]
    assert service.get_job(job.id).state == "queued"


def test_lock_is_held_once_and_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    first = acquire_lock(path)
    assert first is not None
    assert is_locked(path)
    assert acquire_lock(path, timeout=0.05) is None
    first.lock.release()
    assert not is_locked(path)
    with pytest.raises(Exception, match=messages.CANNOT_WRITE):
        acquire_lock(tmp_path / "nowhere" / "lock")
