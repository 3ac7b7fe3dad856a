"""Real processes: a worker that works jobs off, both killed in the middle, and everything comes to its end."""

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
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.kills import find_process
from common.files import is_locked
from jobs.__main__ import main
from jobs.api import JobService, WorkerLauncher, worker_lock_path
from jobs.store import JobFolder, last_step
from jobs.worker import run_worker
from tests.jobs.service import ServiceWithoutWorker, submit_named, tiny_job, wait_for

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def real(jobs_home: Path) -> Iterator[JobService]:
    """A service that does start its worker, which is ended with the test."""
    yield JobService(jobs_home)
    worker = find_process(jobs_home, "work")
    if worker is not None:
        job = find_process(jobs_home, "run")
        worker.terminate()
        psutil.wait_procs([each for each in (worker, job) if each], timeout=30)


def the(home: Path, what: str) -> psutil.Process:
    return wait_for(lambda: find_process(home, what), f"the process that does `jobs {what}`")


def test_killed_while_it_trains_and_while_it_scores_it_ends_as_if_nothing_had_been(
    real: JobService, base: Path, jobs_home: Path
) -> None:
    config, serving = tiny_job(base, "lora-killed", num_train_epochs=4.0, max_eval_samples=3)
    job = real.submit(config, serving)
    behind = real.submit({**config, "adapter_name": "lora-behind"}, serving)
    log = jobs_home / "adapters" / ".lora-killed.run" / "log.jsonl"
    first = the(jobs_home, "work")
    wait_for(lambda: last_step(log) >= 3, "three steps")
    os.kill(the(jobs_home, "run").pid, signal.SIGKILL)
    wait_for(lambda: real.get_job(job.id).attempts == 2, "the worker to begin the job again")
    assert first.is_running()
    wait_for(lambda: real.get_job(job.id).stage == "scoring", "the scoring")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    real = JobService(jobs_home)  # another program, which begins a worker while the job's process still lives
    real.ensure_worker()
    assert {each.id for each in real.list_jobs()} == {job.id, behind.id}
    wait_for(lambda: real.get_job(behind.id).is_ended, "both jobs")
    assert [real.get_job(each.id).state for each in (job, behind)] == ["done", "done"]
    store = jobs_home / "adapters"
    assert sorted(path.name for path in store.iterdir()) == ["lora-behind", "lora-killed"]
    assert (store / "lora-killed" / WEIGHTS).read_bytes() == (store / "lora-behind" / WEIGHTS).read_bytes()
    killed, calm = real.verdict(job.id), real.verdict(behind.id)
    assert killed is not None
    assert calm is not None
    assert killed.compared == calm.compared
    assert any("ended by signal 9" in line for line in real.log_lines(job.id))
    second = the(jobs_home, "work")
    assert second.pid != first.pid
    second.terminate()
    wait_for(lambda: not psutil.pid_exists(second.pid), "no zombie", 10)


@contextmanager
def in_a_thread(home: Path, idle_seconds: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Thread]:
    """A worker without a process of its own; it can take no signals there."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    thread = threading.Thread(target=run_worker, args=(home, idle_seconds))
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()


def fake_process(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """In place of `python -m jobs run ID`, with the folder of the job as its argument."""
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        folder = Path(os.environ["PROMPT_OR_TUNE_HOME"]) / "jobs" / command[4]
        return start([sys.executable, "-c", script, str(folder)], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


def test_a_worker_ends_by_itself_when_there_is_nothing_left(
    service: ServiceWithoutWorker, jobs_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = "import sys, pathlib as p; f = p.Path(sys.argv[1]) / 'state.json'; f.write_text('{\"state\": \"done\"}')"
    fake_process(monkeypatch, done)
    jobs = [
        submit_named(service, "lora-1"),
        submit_named(service, "lora-2", where="hub", flavor="cpu-basic"),
        submit_named(service, "lora-3"),
    ]
    with in_a_thread(jobs_home, 0.1, monkeypatch):
        wait_for(lambda: all(service.get_job(job.id).state == "done" for job in jobs), "all jobs", 30)
        wait_for(lambda: not is_locked(worker_lock_path(jobs_home)), "the worker's end", 30)


def test_a_second_worker_leaves_the_first_alone(
    service: ServiceWithoutWorker, jobs_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jobs.worker")
    with in_a_thread(jobs_home, 1.5, monkeypatch):
        wait_for(lambda: is_locked(worker_lock_path(jobs_home)), "the worker", 10)
        began = time.monotonic()
        run_worker(jobs_home)
        assert time.monotonic() - began < 5
    assert "Another worker lives" in caplog.text


def test_a_process_that_dies_before_it_begins_fails_the_job_in_the_end(
    service: ServiceWithoutWorker, jobs_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import worker as recovery

    fake_process(monkeypatch, "raise SystemExit('nothing works here')")
    monkeypatch.setattr(recovery, "MAX_CRASHES", 2)
    job = submit_named(service, "lora-1")
    with in_a_thread(jobs_home, 0.1, monkeypatch):
        wait_for(lambda: service.get_job(job.id).is_ended, "the job's failure", 30)
    assert service.get_job(job.id).state == "failed"
    assert any("nothing works here" in line for line in service.log_lines(job.id))


def test_a_worker_is_started_only_where_there_is_work_and_none_lives(
    jobs_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert started == [1], "one that ends at once is not started again and again"
    service.cancel(job.id)
    service._launcher._last_start = float("-inf")
    service.ensure_worker()
    assert started == [1]


def test_the_commands_say_what_there_is_and_what_is_wrong(
    service: ServiceWithoutWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list"]) == 0
    assert "There are no jobs" in capsys.readouterr().out
    job = submit_named(service, "lora-1")
    JobFolder(service.root, job.id).log_path.write_text("one line\n")
    for command, said in (
        (["list"], "lora-1"),
        (["show", job.id], "lora-1: queued. Waits for its turn."),
        (["log", job.id], "one line"),
    ):
        assert main(command) == 0
        assert said in capsys.readouterr().out
    for command, said in (
        (["show", "nonsense"], "There is no job 'nonsense'"),
        (["resume", job.id], "only one that was stopped goes on"),
        (["delete", job.id], "stop it before you delete it"),
        (["finish", job.id], "no checkpoint"),
        (["run", "../../etc"], "There is no job"),
    ):
        assert main(command) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith("jobs: ")
        assert complaint.count("\n") == 1
        assert said in complaint
