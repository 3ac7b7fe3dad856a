"""Queue of jobs: Huey on SQLite, with messages in JSON, so that nothing on the disk is ever unpickled.

A message holds a job's id and generation. The state of a job is in its folder (jobs.store); a message with another
generation than the state's is ignored, so a duplicate message does no harm. Huey loses the message that a killed worker
had taken; jobs.worker puts it back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    """Huey's messages as JSON. The arguments are an id and a number; no other feature of Huey is used."""

    def _serialize(self, data: Message) -> bytes:
        return json.dumps(data._asdict()).encode()

    def _deserialize(self, data: bytes) -> Message:
        values = json.loads(bytes(data))
        return Message(**{**values, "args": tuple(values["args"])})


@contextmanager
def open_queue(root: Path, work: WorkFn | None = None) -> Iterator[JobQueue]:
    """Open the queue of `<home>/jobs` for the block. `work` is called by a consumer with each message.

    A file that is not a database is renamed to `queue.sqlite.broken`, and jobs.worker fills a new one from the jobs'
    folders. Raises PromptOrTuneError when the file cannot be used.
    """
    path = root / "queue.sqlite"
    with suppress(OSError):  # opening it gives the error
        path.touch(0o600)
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
    """One Huey queue for each compute target, in one file, so that a remote job never delays a local one."""

    def __init__(self, path: Path, work: WorkFn | None) -> None:
        self.hueys: dict[ComputeTarget, SqliteHuey] = {
            where: _make_huey(path, where) for where in get_args(ComputeTarget)
        }
        self._tasks = {where: huey.task(name="run")(_make_task(work)) for where, huey in self.hueys.items()}

    def put(self, job: Job, generation: int, at_front: bool = False) -> None:
        """Add a message for the job behind all others, or before them."""
        self.hueys[job.where].enqueue(self._tasks[job.where].s(job.id, generation, priority=1 if at_front else 0))

    def pending(self) -> set[tuple[str, int]]:
        """Return (job id, generation) of all messages."""
        return {(str(task.args[0]), int(task.args[1])) for huey in self.hueys.values() for task in huey.pending()}

    def close(self) -> None:
        """Close the file."""
        for huey in self.hueys.values():
            huey.storage.close()


def _open_or_replace(path: Path, work: WorkFn | None) -> JobQueue:
    queue = JobQueue(path, work)
    queue.pending()  # raises here if the file is broken
    return queue


def _make_huey(path: Path, where: ComputeTarget) -> SqliteHuey:
    return SqliteHuey(
        where, filename=str(path), timeout=_BUSY_TIMEOUT_SECONDS, results=False, serializer=JsonSerializer()
    )


def _make_task(work: WorkFn | None) -> WorkFn:
    # Huey names a task after its function's module, so every program must define the function in this module.
    def run(id: str, generation: int) -> None:
        if work is not None:
            work(id, generation)

    return run


def _queue_error(path: Path, error: sqlite3.Error) -> PromptOrTuneError:
    return PromptOrTuneError(
        f"The queue of jobs, {path}, cannot be used ({error}): check the free disk space and the file's permissions."
    )
