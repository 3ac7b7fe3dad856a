"""Runs code that nobody has read: in layers of the kernel's own fences, or not at all.

    with open_sandbox() as sandbox:
        outcome = sandbox.run(Program("print(input()[::-1])", stdin="abc"))

GroupT program may read Python's library, compute, start threads, print, and write small files into a folder of its own that
is empty at its start and gone at its end. All else (network, other files, processes, programs, signals to others) the
kernel denies. It does not protect against faults of the kernel itself, nor against what a program learns from its own
timing; under the Landlock layer a program also learns which paths exist and how large they are, not what they hold.
"""

from evaluate.sandbox.outcome import ExecutionResult, Limits, Program
from evaluate.sandbox.sandbox import Sandbox, SandboxUnavailableError, open_sandbox

__all__ = ["ExecutionResult", "Limits", "Program", "Sandbox", "SandboxUnavailableError", "open_sandbox"]
