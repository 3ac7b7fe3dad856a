"""Control of GNU OpenMP's thread pools, so that other threads do not slow down the thread that runs the model.

torch's CPU kernels use a pool of OpenMP threads, and each thread that calls kernels has its own pool. Between two
kernels the pool's threads spin for a moment, ready for the next one. But once a process has more pool threads than
cores, libgomp lets none of them spin (`gomp_throttled_spin_count_var`), and each kernel starts with waking up sleeping
threads. A step of a small model has hundreds of kernels, and waking takes longer than the kernels do. An
idle pool of another thread is enough for that. So code that runs beside the model uses a single thread
(`single_thread`) or frees its pool afterwards (`release_thread_pool`).
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
    """Run the calling thread's kernels on one core within this context, without making a thread pool."""
    runtime = _runtime()
    if runtime is None:
        yield
        return
    num_threads = _threads()
    runtime.omp_set_num_threads(1)
    try:
        yield
    finally:
        runtime.omp_set_num_threads(num_threads)


def release_thread_pool() -> None:
    """Free the calling thread's pool, if it has one; its next kernel makes a new one."""
    runtime = _runtime()
    if runtime is not None:
        runtime.omp_pause_resource_all(_PAUSE_SOFT)


def _threads() -> int:
    """Return the size of the calling thread's pool, which torch sets when it is first called."""
    import torch

    return torch.get_num_threads()


@cache
def _runtime() -> Any:
    """Return the libgomp that torch has loaded from its package; None if it uses another OpenMP."""
    import torch

    package = Path(torch.__file__).parent
    for library in (*package.glob("lib/libgomp*.so*"), *package.parent.glob("torch.libs/libgomp*.so*")):
        try:
            runtime: Any = ctypes.CDLL(str(library))
            runtime.omp_pause_resource_all.restype = ctypes.c_int
        except (OSError, AttributeError):  # a libgomp from before OpenMP 5
            continue
        return runtime
    return None
