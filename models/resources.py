"""Memory and threads: bytes of weights, peak and available memory, returning freed memory, OpenMP's thread pools.

Importing this module does not import torch, so that planning a study is quick.

torch's CPU kernels use a pool of OpenMP threads, and each thread that calls kernels has its own pool. Between two
kernels the pool's threads spin for a moment, ready for the next one. But once a process has more pool threads than
cores, libgomp lets none of them spin (`gomp_throttled_spin_count_var`), and each kernel starts with waking up sleeping
threads. A step of a small model has hundreds of kernels, and waking takes longer than the kernels do. An
idle pool of another thread is enough for that. So code that runs beside the model uses a single thread
(`single_thread`) or frees its pool afterwards (`release_thread_pool`).
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
# Writing 5 resets the peak to the current resident size: proc(5), /proc/pid/clear_refs, since Linux 4.0.
_CLEAR_REFS = Path("/proc/self/clear_refs")
_PAUSE_SOFT = 1


class PeakMemory:
    """The peak memory since `start`: torch's allocations on a GPU ("cuda"), this process's resident size on a CPU.

    The resident size includes Python and its libraries, the base, and mapped pages of files. On a GPU neither the CUDA
    context nor the allocator's reserve counts, as in torch's own statistics. 0 for other engines, which run elsewhere.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._is_supported = self._cuda or device == "cpu"
        self._device = device

    def start(self) -> bool:
        """Reset the peak. Returns False if the system cannot: then the peak includes loading the base."""
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            return True
        try:
            _CLEAR_REFS.write_text("5", encoding="ascii")
        except OSError:
            return False
        return True

    def bytes(self) -> int:
        """Return the peak in bytes; cheap enough to call at every step."""
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        return _peak_rss() if self._is_supported else 0


def trim_malloc() -> None:
    """Return freed memory to the system, which glibc would otherwise keep for later allocations."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _peak_rss() -> int:
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        match = None
    return int(match.group(1)) * 1024 if match else _peak_elsewhere()


def _peak_elsewhere() -> int:
    """Return the peak since the start of the process without /proc: from `getrusage`, on Windows from psutil."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def free_memory(device: str) -> int | None:
    """Return the bytes available for a run on `device` (auto, cpu, cuda); None if unknown."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


# Bytes of a weight. NF4 has blocks of 64 with an 8-bit scale each, and a 32-bit scale for 256 of these scales (QLoRA,
# arXiv 2305.14314, section 3); int8 has one scale a row, which is negligible; "none" are 16-bit floats.
WEIGHT_BYTES: Mapping[str, float] = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "none": 2.0}


def weight_bytes(linear: int, other: int, quantization: str) -> int:
    """Return the bytes of `linear` quantized parameters and `other` parameters, which stay in 16 bits."""
    return round(linear * WEIGHT_BYTES[quantization] + other * WEIGHT_BYTES["none"])


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
