"""The line in front of the engine keeps its order and lets people leave."""

from __future__ import annotations

import threading
from typing import Any

from ui.test_bench import AdmissionQueue


def test_first_come_first_served() -> None:
    line = AdmissionQueue()
    with line.enqueue() as first, line.enqueue() as second, line.enqueue() as third:
        assert [place.wait(0) for place in (first, second, third)] == [0, 1, 2]


def test_whoever_leaves_lets_the_next_one_go() -> None:
    line = AdmissionQueue()
    order: list[str] = []
    with line.enqueue() as first:
        assert first.wait(0) == 0

        def run(name: Any) -> None:
            with line.enqueue() as place:
                joined.set()
                while place.wait(5):
                    pass
                order.append(name)

        threads = []
        for name in "abc":
            joined = threading.Event()
            threads.append(threading.Thread(target=run, args=(name,)))
            threads[-1].start()
            assert joined.wait(5)
        assert order == []
    for thread in threads:
        thread.join(5)
    assert order == ["a", "b", "c"]


def test_leaving_from_the_middle_moves_the_others_up() -> None:
    line = AdmissionQueue()
    with line.enqueue():
        middle = line.enqueue()
        middle.__enter__()
        with line.enqueue() as last:
            assert last.wait(0) == 2
            middle.__exit__(None, None, None)
            assert last.wait(0) == 1


def test_several_are_first_at_once_and_the_next_counts_those_that_must_end() -> None:
    line = AdmissionQueue(max_concurrent=2)
    with line.enqueue() as first, line.enqueue() as second, line.enqueue() as third, line.enqueue() as fourth:
        assert [place.wait(0) for place in (first, second, third, fourth)] == [0, 0, 1, 2]
    with line.enqueue() as again:
        assert again.wait(0) == 0
