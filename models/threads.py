"""How many threads GNU OpenMP keeps, so that the thread that runs the model is not slowed by those that do not.

torch's kernels for CPUs share their work among a team of OpenMP threads, and every thread that calls them keeps a team
of its own. Between two kernels a team spins for a moment, ready for the next; but once a process has more such threads
than there are cores, libgomp lets none of them spin (`gomp_throttled_spin_count_var`), and each kernel begins by waking
threads up. A step of a small model is hundreds of kernels: waking takes longer than they do, for as long as another
thread so much as keeps a team. So what runs beside the model works alone, or lets its team go.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_PAUSE_SOFT = 1


@contextmanager
def single_thread() -> Iterator[None]:
    """In this context the calling thread's kernels use one core, and no team is made for it."""
    runtime = _runtime()
    if runtime is None:
        yield
        return
    before = _threads()
    runtime.omp_set_num_threads(1)
    try:
        yield
    finally:
        runtime.omp_set_num_threads(before)


def release_thread_pool() -> None:
    """Ends the calling thread's team, if it has one; its next kernel would make another."""
    runtime = _runtime()
    if runtime is not None:
        runtime.omp_pause_resource_all(_PAUSE_SOFT)


def _threads() -> int:
    """How many threads the calling thread's team has or would have. torch sets that when it is first asked."""
    import torch

    return torch.get_num_threads()


@cache
def _runtime() -> Any:
    """The libgomp that torch brings along and has loaded; None where it has another OpenMP."""
    import torch

    package = Path(torch.__file__).parent
    for found in (*package.glob("lib/libgomp*.so*"), *package.parent.glob("torch.libs/libgomp*.so*")):
        try:
            runtime: Any = ctypes.CDLL(str(found))
            runtime.omp_pause_resource_all.restype = ctypes.c_int
        except (OSError, AttributeError):  # one from before OpenMP 5
            continue
        return runtime
    return None
