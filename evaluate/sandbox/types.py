"""Program, Limits and ExecutionResult: the input and output of the sandbox."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from errors import PromptOrTuneError, SandboxClosedError, SandboxError

ExecutionStatus = Literal["ok", "error", "timeout", "memory", "output", "killed", "refused"]
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program. Raises PromptOrTuneError for a limit that is not a positive number."""

    wall_seconds: float = 10.0
    """From the program's first line to its end, without the time for which it waits for a processor. On a busy machine
    the clock may show up to 10 times as much."""
    cpu_seconds: float = 10.0
    """Processor time of all its threads; rounded up, because the kernel counts whole seconds."""
    memory_bytes: int = 512 * MEBIBYTE
    """Address space (RLIMIT_AS). numpy needs about half of the default."""
    processes: int = 128
    """Threads, including the first: a program cannot start processes."""
    output_bytes: int = MEBIBYTE
    """Of stdout and stderr together."""
    file_bytes: int = 8 * MEBIBYTE
    """Of any file it writes, and of all of them together, deleted files included that it still uses."""
    files: int = 256
    """Files and folders that exist at a time."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not (value > 0 and math.isfinite(value)):
                raise PromptOrTuneError(f"The sandbox's limit {limit.name} is {value}: give a number above 0.")


@dataclass(frozen=True)
class Program:
    """Python source, its stdin, and its limits."""

    code: str
    stdin: str = ""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ExecutionResult:
    """How a program ended.

    `status` is one of: ok (exit status 0), error (an exception or another exit status), timeout, memory, output (it
    printed or wrote too much), killed (ended by a signal: a crash, its own kill, too many threads), refused (it was not
    started; `stderr` says why). `stdout` and `stderr` hold at most `Limits.output_bytes` together, with undecodable
    bytes replaced. `seconds` is wall time from the program's first line, waiting for a processor included. `limit`
    describes the limit that was exceeded or the signal that ended it, '' otherwise.
    """

    status: ExecutionStatus
    stdout: str
    stderr: str
    layer: str
    seconds: float
    limit: str = ""


def require_run(result: ExecutionResult) -> ExecutionResult:
    """Return the result of a program that ran; raise SandboxError if the sandbox did not start it or was closed."""
    reason = result.stderr.removeprefix("The program was not started: ").rstrip(".")
    if result.limit == "stopped from outside" or (result.status == "refused" and reason == "the sandbox is closed"):
        raise SandboxClosedError("The sandbox was closed before all tests had run.")
    if result.status == "refused":
        raise SandboxError(f"The sandbox could not start a program ({reason}).")
    return result
