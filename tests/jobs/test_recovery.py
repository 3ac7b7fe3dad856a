"""What ended processes leave: jobs that nobody works on wait again, once each, and no living one is touched."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.folder import JobFolder, Standing, changing
from jobs.job import Job
from jobs.locks import is_held, take
from jobs.queue import opened
from jobs.recovery import MOST_CRASHES, anything_to_do, remove_stale, settle, sweep
from tests.jobs.board import QuietBoard, named


def stand(board: QuietBoard, job: Job, standing: Standing) -> JobFolder:
    folder = JobFolder(board.root, job.id)
    with changing(board.root):
        folder.write_standing(standing)
    return folder


def emptied(board: QuietBoard) -> None:
    """As after a worker has taken everything from the queue and was killed."""
    with opened(board.root) as queue:
        for huey in queue.hueys.values():
            huey.storage.flush_queue()


def test_what_ran_goes_on_and_what_waited_waits_on_exactly_once(board: QuietBoard) -> None:
    ran, waited, ended, asked = (named(board, name) for name in ("ran", "waited", "ended", "asked"))
    emptied(board)
    stand(board, ran, Standing(state="running", ticket=1, queued="2025"))
    stand(board, ended, Standing(state="done", ticket=1))
    stand(board, asked, Standing(state="stopping", ticket=1)).stop.touch()
    with opened(board.root) as queue:
        for _ in range(3):
            sweep(board.root, queue)
        assert queue.waiting() == {(ran.id, 2), (waited.id, 1)}
        assert len(queue.hueys["here"]) == 2
        assert queue.hueys["here"].dequeue().args[0] == ran.id, "what was interrupted goes on first"
    assert [board.get(job.id).state for job in (ran, waited, ended, asked)] == ["queued", "queued", "done", "stopped"]
    assert [board.get(ran.id).before, board.get(waited.id).before] == [0, 1]
    assert not JobFolder(board.root, asked.id).stop.exists()


def test_a_living_process_is_left_alone(board: QuietBoard) -> None:
    job = named(board, "ran")
    folder = stand(board, job, Standing(state="running", ticket=1))
    lock = take(folder.running)
    assert lock is not None
    with lock, opened(board.root) as queue:
        sweep(board.root, queue)
        settle(folder, queue, 1)
    assert folder.standing().state == "running"


def test_a_process_that_keeps_ending_is_not_begun_for_ever(board: QuietBoard) -> None:
    job = named(board, "ran")
    folder = JobFolder(board.root, job.id)
    with opened(board.root) as queue:
        for attempt in range(MOST_CRASHES):
            assert folder.standing().state == "queued", f"attempt {attempt}"
            stand(board, job, replace(folder.standing(), state="running"))
            settle(folder, queue)
    assert folder.standing().state == "failed"
    assert "without getting any further" in board.get(job.id).message
    assert board.resume(job.id).state == "queued"
    assert folder.standing().crashes == 0


def test_a_process_that_ends_before_it_begins_is_a_crash_too(board: QuietBoard) -> None:
    job = named(board, "ran")
    folder = JobFolder(board.root, job.id)
    with opened(board.root) as queue:
        settle(folder, queue)
        assert folder.standing().crashes == 0, "it simply waits"
        settle(folder, queue, 1)
        assert (folder.standing().crashes, folder.standing().ticket) == (1, 2)
        settle(folder, queue, 1)
        assert folder.standing().ticket == 2, "that message was an old one"


def test_a_deleted_job_is_no_trouble(board: QuietBoard) -> None:
    job = named(board, "gone")
    board.cancel(job.id)
    board.delete(job.id)
    with opened(board.root) as queue:
        settle(JobFolder(board.root, job.id), queue, 1)
        sweep(board.root, queue)
    assert not anything_to_do(board.root)


def test_only_old_folders_in_the_making_are_removed(board: QuietBoard) -> None:
    job = named(board, "kept")
    old, young, other = (board.root / f".{job.id}.new", board.root / f".{job.id[:-1]}0.new", board.root / ".mine")
    for folder in (old, young, other):
        folder.mkdir()
        os.utime(folder, (0, 0))
    os.utime(young, (time.time(), time.time()))
    remove_stale(board.root)
    assert [old.exists(), young.exists(), other.exists()] == [False, True, True]
    assert board.get(job.id).state == "queued"


def test_a_lock_is_taken_once_and_free_when_its_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    first = take(path)
    assert first is not None
    assert is_held(path)
    assert take(path, patience=0.05) is None
    first.close()
    assert not is_held(path)
    with pytest.raises(Exception, match="Cannot write"):
        take(tmp_path / "nowhere" / "lock")
