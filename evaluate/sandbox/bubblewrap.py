"""bubblewrap: namespaces of its own (processes, network, mounts, ...) around the child, and little mounted in them.

What is mounted: Python's library and the system's shared libraries, read-only; five harmless devices; a small tmpfs,
which the child mounts itself because bubblewrap cannot limit the number of files in one. There is no /proc. Root needs
no user namespace, and does without: in one, it would be root still, for whom the number of threads has no limit.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from evaluate.sandbox import runtime

SCRATCH_MOUNT = "/sandbox"  # not /tmp, where the virtual environment may lie
BWRAP_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
NAMESPACE_FLAGS = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")


def find_bwrap() -> str | None:
    """Where bwrap is; None where it is not installed."""
    return shutil.which("bwrap")


def nproc_limit_is_per_program() -> bool:
    """Whether RLIMIT_NPROC counts a program's threads alone, for it has a user namespace of its own (Linux 5.14)."""
    release = platform.release().split(".")
    return os.geteuid() != 0 and (int(release[0]), int(release[1])) >= (5, 14)


def bwrap_command(bwrap: str, child_command: list[str]) -> list[str]:
    """The command that runs `inside` in the namespaces. Open descriptors are handed on."""
    words = [bwrap, *NAMESPACE_FLAGS, "--hostname", "sandbox", "--die-with-parent", "--cap-drop", "ALL"]
    # To mount the tmpfs and to become another user; the child gives up both before the program starts.
    needed = ["CAP_SYS_ADMIN"]
    if os.geteuid() == 0:
        needed += ["CAP_SETUID", "CAP_SETGID"]
    else:
        words.append("--unshare-user")
    for capability in needed:
        words += ["--cap-add", capability]
    mounted = dict.fromkeys([*runtime.readable_paths(), runtime.python_executable()])
    # Left to itself, bubblewrap makes the folders above a mount for root alone.
    above = {str(folder) for path in mounted for folder in Path(path).parents}
    for folder in sorted(above - {"/"}):
        words += ["--dir", folder]
    for path in mounted:
        words += ["--ro-bind", path, path]
    words += ["--perms", "0755", "--tmpfs", "/dev"]
    for path in BWRAP_DEVICES:
        words += ["--dev-bind", path, path]
    words += ["--dir", SCRATCH_MOUNT, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    return [*words, "--", *child_command]
