"""The queue of jobs: Huey on SQLite, with messages in JSON, so that nothing that lies on the disk is ever unpickled.

A message names a job and a ticket. How a job stands is in its folder; a message whose ticket is no longer the job's is
passed over, so that one too many does no harm. Huey forgets what a killed worker had taken: see jobs.recovery.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from errors import PeftArenaError

NAME = "jobs"
_BUSY_SECONDS = 30
_BROKEN = ("malformed", "not a database")

Work = Callable[[str, int], None]


class JsonMessages(Serializer):
    """Huey's messages as JSON. Ours carry an id and a number, and use no other of Huey's features."""

    def _serialize(self, data: Message) -> bytes:
        return json.dumps(data._asdict()).encode()

    def _deserialize(self, data: bytes) -> Message:
        values = json.loads(bytes(data))
        return Message(**{**values, "args": tuple(values["args"])})


@contextmanager
def opened(root: Path, work: Work | None = None) -> Iterator[Queue]:
    """The queue of `<home>/jobs`, closed at the end of the block; `work` is what a consumer does with each message.

    A file that is no database is put aside: what waits stands in the jobs' folders, and is put into a new one.
    """
    path = root / "queue.sqlite"
    try:
        queue = _open(path, work)
    except sqlite3.DatabaseError as fault:
        if not any(words in str(fault) for words in _BROKEN):
            raise _unusable(path, fault) from fault
        for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            if name.exists():
                name.replace(name.with_name(name.name + ".broken"))
        queue = _open(path, work)
    try:
        yield queue
    except sqlite3.Error as fault:
        raise _unusable(path, fault) from fault
    finally:
        queue.huey.storage.close()


class Queue:
    """What Huey is asked for here."""

    def __init__(self, huey: SqliteHuey, task: Any) -> None:
        self.huey = huey
        self._task = task

    def put(self, id: str, ticket: int, first: bool = False) -> None:
        """Puts the job behind all that wait, or before them."""
        self.huey.enqueue(self._task.s(id, ticket, priority=1 if first else 0))

    def waiting(self) -> set[tuple[str, int]]:
        """Jobs and tickets of all messages."""
        return {(str(task.args[0]), int(task.args[1])) for task in self.huey.pending()}


def _open(path: Path, work: Work | None) -> Queue:
    huey = SqliteHuey(NAME, filename=str(path), timeout=_BUSY_SECONDS, results=False, serializer=JsonMessages())
    huey.storage.sql("select count(*) from task")  # a broken file shows here at the latest

    # Huey names a task by its function's module, so the function is one of this module in every program.
    def run(id: str, ticket: int) -> None:
        if work is not None:
            work(id, ticket)

    return Queue(huey, huey.task(name="run")(run))


def _unusable(path: Path, fault: sqlite3.Error) -> PeftArenaError:
    return PeftArenaError(f"The queue of jobs, {path}, cannot be used ({fault}): check the disk's room and its rights.")
