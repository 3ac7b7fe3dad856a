"""What a run really took: the peak of the memory that its device gave it."""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
# Writing 5 there sets the peak back to what is resident now: proc(5), /proc/pid/clear_refs, since Linux 4.0.
_CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """The peak since `start`: of what torch allocated on a GPU ("cuda"), of what this process holds resident on a CPU.

    What a process holds on a CPU includes Python and its libraries, the base, and pages of files that it reads; on a
    GPU neither the CUDA context nor what torch's allocator keeps in reserve counts, as in torch's own figures. Of
    another engine nothing is known: 0.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._is_supported = self._cuda or device == "cpu"
        self._device = device

    def start(self) -> bool:
        """Forgets the peak so far. False where the system cannot: then loading the base counts as well."""
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
        """The peak in bytes; cheap enough to ask at every step."""
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        return _peak_resident() if self._is_supported else 0


def trim_malloc() -> None:
    """Returns memory that was freed to the system, which glibc keeps otherwise for whoever asks next."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _peak_resident() -> int:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    return int(found.group(1)) * 1024 if found else _peak_elsewhere()


def _peak_elsewhere() -> int:
    """Since the process began, where there is no /proc: `getrusage` on macOS and the BSDs, Windows counts itself."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def free_memory(device: str) -> int | None:
    """Bytes that a run on `device` (auto, cpu, cuda) could take now; None where nobody can say."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
