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
from tests.jobs.board import QuietBoard, named


def stand(board: QuietBoard, job: Job, standing: JobState) -> JobFolder:
    folder = JobFolder(board.root, job.id)
    with exclusive(board.root):
        folder.write_state(standing)
    return folder


def emptied(board: QuietBoard) -> None:
    """As after a worker has taken everything from the queue and was killed."""
    with open_queue(board.root) as queue:
        for huey in queue.hueys.values():
            huey.storage.flush_queue()


def test_what_ran_goes_on_and_what_waited_waits_on_exactly_once(board: QuietBoard) -> None:
    ran, waited, ended, asked = (named(board, name) for name in ("ran", "waited", "ended", "asked"))
    emptied(board)
    stand(board, ran, JobState(state="running", generation=1, queued="2025"))
    stand(board, ended, JobState(state="done", generation=1))
    stand(board, asked, JobState(state="stopping", generation=1)).stop_path.touch()
    with open_queue(board.root) as queue:
        for _ in range(3):
            recover_jobs(board.root, queue)
        assert queue.pending() == {(ran.id, 2), (waited.id, 1)}
        assert len(queue.hueys["here"]) == 2
        assert queue.hueys["here"].dequeue().args[0] == ran.id, "what was interrupted goes on first"
    assert [board.get_job(job.id).state for job in (ran, waited, ended, asked)] == [
        "queued",
        "queued",
        "done",
        "stopped",
    ]
    assert [board.get_job(ran.id).queue_position, board.get_job(waited.id).queue_position] == [0, 1]
    assert not JobFolder(board.root, asked.id).stop_path.exists()


def test_a_living_process_is_left_alone(board: QuietBoard) -> None:
    job = named(board, "ran")
    folder = stand(board, job, JobState(state="running", generation=1))
    lock = acquire_lock(folder.lock_path)
    assert lock is not None
    with lock, open_queue(board.root) as queue:
        recover_jobs(board.root, queue)
        recover_job(folder, queue, 1)
    assert folder.read_state().state == "running"


def test_a_process_that_keeps_ending_is_not_begun_for_ever(board: QuietBoard) -> None:
    job = named(board, "ran")
    folder = JobFolder(board.root, job.id)
    with open_queue(board.root) as queue:
        for attempt in range(MAX_CRASHES):
            assert folder.read_state().state == "queued", f"attempt {attempt}"
            stand(board, job, replace(folder.read_state(), state="running"))
            recover_job(folder, queue)
    assert folder.read_state().state == "failed"
    assert "without getting any further" in board.get_job(job.id).message
    assert board.resume(job.id).state == "queued"
    assert folder.read_state().crashes == 0


def test_a_process_that_ends_before_it_begins_is_a_crash_too(board: QuietBoard) -> None:
    job = named(board, "ran")
    folder = JobFolder(board.root, job.id)
    with open_queue(board.root) as queue:
        recover_job(folder, queue)
        assert folder.read_state().crashes == 0, "it simply waits"
        recover_job(folder, queue, 1)
        assert (folder.read_state().crashes, folder.read_state().generation) == (1, 2)
        recover_job(folder, queue, 1)
        assert folder.read_state().generation == 2, "that message was an old one"


def test_a_deleted_job_is_no_trouble(board: QuietBoard) -> None:
    job = named(board, "gone")
    board.cancel(job.id)
    board.delete(job.id)
    with open_queue(board.root) as queue:
        recover_job(JobFolder(board.root, job.id), queue, 1)
        recover_jobs(board.root, queue)
    assert not has_pending_jobs(board.root)


def test_only_old_folders_in_the_making_are_removed(board: QuietBoard) -> None:
    job = named(board, "kept")
    old, young, other = (board.root / f".{job.id}.new", board.root / f".{job.id[:-1]}0.new", board.root / ".mine")
    for folder in (old, young, other):
        folder.mkdir()
        os.utime(folder, (0, 0))
    os.utime(young, (time.time(), time.time()))
    remove_stale_folders(board.root)
    assert [old.exists(), young.exists(), other.exists()] == [False, True, True]
    assert board.get_job(job.id).state == "queued"


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
