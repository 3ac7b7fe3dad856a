"""What goes into the sandbox and what comes out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from errors import PromptOrTuneError

ExecutionStatus = Literal["ok", "error", "timeout", "memory", "output", "killed", "refused"]
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """What one program may use. Raises PromptOrTuneError for a limit that is no positive number."""

    wall_seconds: float = 10.0
    """From the program's first line to its end; what the sandbox itself needs to start is not counted."""
    cpu_seconds: float = 10.0
    """Over all its threads; the kernel counts whole seconds, so this is rounded up."""
    memory_bytes: int = 512 * MEBIBYTE
    """Address space (RLIMIT_AS). numpy needs about half of the default."""
    processes: int = 32
    """Threads, the first included: a program cannot start processes at all."""
    output_bytes: int = MEBIBYTE
    """Of stdout and stderr together."""
    file_bytes: int = 8 * MEBIBYTE
    """Of any file it writes, and of all of them together."""
    files: int = 256
    """Files and folders that it makes."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not (value > 0 and math.isfinite(value)):
                raise PromptOrTuneError(f"The sandbox's limit {each.name} is {value}: give a number above 0.")


@dataclass(frozen=True)
class Program:
    """Python source and what it reads from stdin."""

    code: str
    stdin: str = ""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ExecutionResult:
    """How a program ended.

    `status` is one of: ok (it ended by itself with exit status 0), error (an exception or another exit status),
    timeout, memory, output (it printed or wrote too much), killed (it died of a signal: a crash, its own kill, too many
    threads), refused (it was never started; `stderr` says why). `stdout` and `stderr` hold what was printed until then,
    at most `Limits.output_bytes` together, undecodable bytes replaced. `seconds` is wall time from the program's first
    line. `limit` says in words which limit was hit or which signal ended it, '' otherwise.
    """

    status: ExecutionStatus
    stdout: str
    stderr: str
    layer: str
    seconds: float
    limit: str = ""
