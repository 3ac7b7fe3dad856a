"""The queue of jobs: Huey on SQLite, with messages in JSON, so that nothing that lies on the disk is ever unpickled.

A message names a job and a ticket. How a job stands is in its folder; a message whose ticket is no longer the job's is
passed over, so that one too many does no harm. Huey forgets what a killed worker had taken: see jobs.worker.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from huey import SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from errors import PromptOrTuneError
from jobs.job import ComputeTarget, Job

_BUSY_TIMEOUT_SECONDS = 30
_CORRUPT_MESSAGES = ("malformed", "not a database")

WorkFn = Callable[[str, int], None]


class JsonSerializer(Serializer):
    """Huey's messages as JSON. Ours carry an id and a number, and use no other of Huey's features."""

    def _serialize(self, data: Message) -> bytes:
        return json.dumps(data._asdict()).encode()

    def _deserialize(self, data: bytes) -> Message:
        values = json.loads(bytes(data))
        return Message(**{**values, "args": tuple(values["args"])})


@contextmanager
def open_queue(root: Path, work: WorkFn | None = None) -> Iterator[JobQueue]:
    """The queue of `<home>/jobs`, closed at the end of the block; `work` is what a consumer does with each message.

    A file that is no database is put aside: what waits stands in the jobs' folders, and is put into a new one.
    """
    path = root / "queue.sqlite"
    try:
        queue = _open_or_replace(path, work)
    except sqlite3.DatabaseError as error:
        if not any(words in str(error) for words in _CORRUPT_MESSAGES):
            raise _queue_error(path, error) from error
        for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            if name.exists():
                name.replace(name.with_name(name.name + ".broken"))
        queue = _open_or_replace(path, work)
    try:
        yield queue
    except sqlite3.Error as error:
        raise _queue_error(path, error) from error
    finally:
        queue.close()


class JobQueue:
    """What Huey is asked for here. A job elsewhere only waits for another machine, so it keeps no job here waiting:
    each place has a queue of its own, in the same file.
    """

    def __init__(self, path: Path, work: WorkFn | None) -> None:
        self.hueys: dict[ComputeTarget, SqliteHuey] = {
            where: _make_huey(path, where) for where in get_args(ComputeTarget)
        }
        self._tasks = {where: huey.task(name="run")(_make_task(work)) for where, huey in self.hueys.items()}

    def put(self, job: Job, generation: int, at_front: bool = False) -> None:
        """Puts the job behind all that wait, or before them."""
        self.hueys[job.where].enqueue(self._tasks[job.where].s(job.id, generation, priority=1 if at_front else 0))

    def pending(self) -> set[tuple[str, int]]:
        """Jobs and tickets of all messages."""
        return {(str(task.args[0]), int(task.args[1])) for huey in self.hueys.values() for task in huey.pending()}

    def close(self) -> None:
        """Closes the file."""
        for huey in self.hueys.values():
            huey.storage.close()


def _open_or_replace(path: Path, work: WorkFn | None) -> JobQueue:
    queue = JobQueue(path, work)
    queue.pending()  # a broken file shows here at the latest
    return queue


def _make_huey(path: Path, where: ComputeTarget) -> SqliteHuey:
    return SqliteHuey(
        where, filename=str(path), timeout=_BUSY_TIMEOUT_SECONDS, results=False, serializer=JsonSerializer()
    )


def _make_task(work: WorkFn | None) -> WorkFn:
    # Huey names a task by its function's module, so the function is one of this module in every program.
    def run(id: str, ticket: int) -> None:
        if work is not None:
            work(id, ticket)

    return run


def _queue_error(path: Path, error: sqlite3.Error) -> PromptOrTuneError:
    return PromptOrTuneError(
        f"The queue of jobs, {path}, cannot be used ({error}): check the disk's room and its rights."
    )
