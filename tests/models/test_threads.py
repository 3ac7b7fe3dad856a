"""OpenMP thread pools: only the thread that runs the model may have one, as others would slow down each step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.embedder import Embedder
from models.resources import _runtime, release_thread_pool, single_thread

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir() or _runtime() is None, reason="needs Linux, and a torch with GNU OpenMP"
)


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _settled() -> int:
    """Wait until the number of threads is stable and return it."""
    seen = [_threads()]
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        time.sleep(0.005)
        seen.append(_threads())
    return seen[-1]


def _in_a_thread(work: Callable[[], None]) -> int:
    """Return the number of additional threads while a thread that has run `work` still exists."""
    found: list[int] = []

    def run() -> None:
        torch.get_num_threads()  # sets this thread's number to that of tests/conftest.py, one
        _runtime().omp_set_num_threads(2)
        before = _settled()
        work()
        found.append(_settled() - before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def _multiply() -> None:
    torch.ones(512, 512) @ torch.ones(512, 512)


def test_thread_pool_stays_until_released() -> None:
    assert _in_a_thread(_multiply) >= 1, "torch started no thread pool, so this test checks nothing"

    def use_single_thread() -> None:
        with single_thread():
            assert torch.get_num_threads() == 1
            _multiply()
        assert torch.get_num_threads() > 1

    assert _in_a_thread(use_single_thread) == 0

    def release_after_use() -> None:
        _multiply()
        release_thread_pool()

    assert _in_a_thread(release_after_use) == 0


def test_embedding_leaves_no_thread_pool() -> None:
    embedder = Embedder()
    embedder.embed(["warm up"])

    def embed() -> None:
        embedder.embed(["sort a list"])
        embedder.embed(["sort a list"] * 70)

    assert _in_a_thread(embed) == 0
