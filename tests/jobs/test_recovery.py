"""What ended processes leave: jobs that nobody works on wait again, once each, and no living one is touched."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from common.files import acquire_lock, is_locked
from jobs.job import Job
from jobs.queue import open_queue
from jobs.store import JobFolder, JobState, exclusive
from jobs.worker import MAX_CRASHES, has_pending_jobs, recover_job, recover_jobs, remove_stale_folders
from tests.jobs.service import ServiceWithoutWorker, submit_named


def stand(service: ServiceWithoutWorker, job: Job, standing: JobState) -> JobFolder:
    folder = JobFolder(service.root, job.id)
    with exclusive(service.root):
        folder.write_state(standing)
    return folder


def emptied(service: ServiceWithoutWorker) -> None:
    """As after a worker has taken everything from the queue and was killed."""
    with open_queue(service.root) as queue:
        for huey in queue.hueys.values():
            huey.storage.flush_queue()


def test_what_ran_goes_on_and_what_waited_waits_on_exactly_once(service: ServiceWithoutWorker) -> None:
    ran, waited, ended, asked = (submit_named(service, name) for name in ("ran", "waited", "ended", "asked"))
    emptied(service)
    stand(service, ran, JobState(state="running", generation=1, queued="2025"))
    stand(service, ended, JobState(state="done", generation=1))
    stand(service, asked, JobState(state="stopping", generation=1)).stop_path.touch()
    with open_queue(service.root) as queue:
        for _ in range(3):
            recover_jobs(service.root, queue)
        assert queue.pending() == {(ran.id, 2), (waited.id, 1)}
        assert len(queue.hueys["here"]) == 2
        assert queue.hueys["here"].dequeue().args[0] == ran.id, "what was interrupted goes on first"
    assert [service.get_job(job.id).state for job in (ran, waited, ended, asked)] == [
        "queued",
        "queued",
        "done",
        "stopped",
    ]
    assert [service.get_job(ran.id).queue_position, service.get_job(waited.id).queue_position] == [0, 1]
    assert not JobFolder(service.root, asked.id).stop_path.exists()


def test_a_living_process_is_left_alone(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "ran")
    folder = stand(service, job, JobState(state="running", generation=1))
    lock = acquire_lock(folder.lock_path)
    assert lock is not None
    with lock, open_queue(service.root) as queue:
        recover_jobs(service.root, queue)
        recover_job(folder, queue, 1)
    assert folder.read_state().state == "running"


def test_a_process_that_keeps_ending_is_not_begun_for_ever(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "ran")
    folder = JobFolder(service.root, job.id)
    with open_queue(service.root) as queue:
        for attempt in range(MAX_CRASHES):
            assert folder.read_state().state == "queued", f"attempt {attempt}"
            stand(service, job, replace(folder.read_state(), state="running"))
            recover_job(folder, queue)
    assert folder.read_state().state == "failed"
    assert "without getting any further" in service.get_job(job.id).message
    assert service.resume(job.id).state == "queued"
    assert folder.read_state().crashes == 0


def test_a_process_that_ends_before_it_begins_is_a_crash_too(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "ran")
    folder = JobFolder(service.root, job.id)
    with open_queue(service.root) as queue:
        recover_job(folder, queue)
        assert folder.read_state().crashes == 0, "it simply waits"
        recover_job(folder, queue, 1)
        assert (folder.read_state().crashes, folder.read_state().generation) == (1, 2)
        recover_job(folder, queue, 1)
        assert folder.read_state().generation == 2, "that message was an old one"


def test_a_deleted_job_is_no_trouble(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "gone")
    service.cancel(job.id)
    service.delete(job.id)
    with open_queue(service.root) as queue:
        recover_job(JobFolder(service.root, job.id), queue, 1)
        recover_jobs(service.root, queue)
    assert not has_pending_jobs(service.root)


def test_only_old_folders_in_the_making_are_removed(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "kept")
    old, young, other = (service.root / f".{job.id}.new", service.root / f".{job.id[:-1]}0.new", service.root / ".mine")
    for folder in (old, young, other):
        folder.mkdir()
        os.utime(folder, (0, 0))
    os.utime(young, (time.time(), time.time()))
    remove_stale_folders(service.root)
    assert [old.exists(), young.exists(), other.exists()] == [False, True, True]
    assert service.get_job(job.id).state == "queued"


def test_a_lock_is_taken_once_and_free_when_its_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    first = acquire_lock(path)
    assert first is not None
    assert is_locked(path)
    assert acquire_lock(path, timeout=0.05) is None
    first.lock.release()
    assert not is_locked(path)
    with pytest.raises(Exception, match="Cannot write"):
        acquire_lock(tmp_path / "nowhere" / "lock")
