"""The Python that runs inside: its executable, what it must be able to read, and its environment."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

# The dynamic linker and the libraries that Python and numpy's wheels link against; time zones for zoneinfo.
SYSTEM_PATHS = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/usr/share/zoneinfo",
)

# -P and -s keep the current folder and the user's packages off the path, -S the start-up files of packages, -B bytecode
# off the disk. Not -I: it would also ignore PYTHONHASHSEED, and what a program prints of a set would differ by the run.
PYTHON_FLAGS = ("-P", "-s", "-S", "-B")


@cache
def python_executable() -> str:
    """The interpreter beneath the virtual environment, whose own folder may lie in the checkout."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


@cache
def package_dirs() -> tuple[str, ...]:
    """The folders with installed packages, numpy's among them."""
    return tuple(
        path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"} and Path(path).is_dir()
    )


@cache
def readable_paths() -> tuple[str, ...]:
    """Every path that the program may read, symlinks both as they are named and as they lead; none lies in another."""
    wanted = [
        *SYSTEM_PATHS,
        f"{sys.base_prefix}/lib",
        sysconfig.get_path("stdlib"),
        sysconfig.get_config_var("LIBDIR") or "",
        *package_dirs(),
    ]
    found = {path for path in wanted if path and Path(path).exists()}
    found |= {os.path.realpath(path) for path in found}
    kept: list[str] = []
    for path in sorted(found, key=len):
        if not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return tuple(kept)


def child_environment(scratch: str) -> dict[str, str]:
    """The whole environment of the program: nothing of ours is handed on."""
    return {
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
