"""The queue: JSON messages, their order, messages of other programs, and damaged files."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
from pathlib import Path

import pytest
from huey.registry import Message

from jobs.queue import JsonSerializer, open_queue
from tests import messages
from tests.jobs.service import ServiceWithoutWorker, submit_named


class Exploit:
    """An object whose unpickling creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_messages_are_json() -> None:
    message = Message("1", "jobs.queue.run", args=("20250101-000000-000000-abcdef", 3), kwargs={}, priority=1)
    data = JsonSerializer().serialize(message)
    assert json.loads(data)["args"] == ["20250101-000000-000000-abcdef", 3]
    assert JsonSerializer().deserialize(data) == message


def test_no_message_is_unpickled(service: ServiceWithoutWorker, tmp_path: Path) -> None:
    submit_named(service, "lora-1")
    with sqlite3.connect(service.root / "queue.sqlite") as database:
        exploit = pickle.dumps(Exploit(tmp_path / "owned"))
        database.execute("insert into task (queue, data, priority) values ('here', ?, 9)", (exploit,))
    with open_queue(service.root) as queue:
        assert len(queue.pending()) == 1
        with pytest.raises(ValueError, match=messages.JSON_DECODE_ERROR):
            queue.hueys["here"].dequeue()
        valid_message = queue.hueys["here"].dequeue()
    assert valid_message.args == (service.list_jobs()[0].id, 1)
    assert not (tmp_path / "owned").exists()


def test_interrupted_jobs_come_first(service: ServiceWithoutWorker) -> None:
    jobs = [submit_named(service, f"lora-{number}") for number in range(3)]
    with open_queue(service.root) as queue:
        queue.put(jobs[2], 2, at_front=True)
        order = [queue.hueys["here"].dequeue().args for _ in range(4)]
        assert queue.hueys["hub"].dequeue() is None
    assert order == [(jobs[2].id, 2), (jobs[0].id, 1), (jobs[1].id, 1), (jobs[2].id, 1)]


def test_consumer_receives_messages_of_other_programs(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "lora-1", where="hub", flavor="a10g-small")
    done: list[tuple[str, int]] = []
    with open_queue(service.root, lambda id, generation: done.append((id, generation))) as queue:
        huey = queue.hueys["hub"]
        huey.execute(huey.dequeue())
    assert done == [(job.id, 1)]


@pytest.mark.parametrize(
    "content", [b"this is no database, but long enough to be read as one" * 10, b"SQLite format 3\0"]
)
def test_damaged_file_is_replaced(service: ServiceWithoutWorker, content: bytes) -> None:
    service.root.mkdir(parents=True)
    (service.root / "queue.sqlite").write_bytes(content)
    job = submit_named(service, "lora-1")
    with open_queue(service.root) as queue:
        assert queue.pending() == {(job.id, 1)}
    assert (service.root / "queue.sqlite.broken").read_bytes().startswith(content[:10])
