"""Commands that probe the sandbox's layers on this machine, and run one program in the sandbox.

    python -m evaluate.sandbox probe [--json]
    python -m evaluate.sandbox run program.py [--stdin FILE] [--layer NAME] [--wall SECONDS] [--memory MB]

The second prints one JSON object with `status`, `stdout`, `stderr`, `layer`, `seconds` and `limit`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common.command import run_command
from common.files import read_utf8
from evaluate.sandbox import sandbox
from evaluate.sandbox.sandbox import SandboxUnavailableError, open_sandbox
from evaluate.sandbox.spec import MEBIBYTE, ExecutionResult, Limits, Program

DEFAULT_LIMITS = Limits()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if a program ran, 1 if it was refused, 2 for bad arguments."""
    options = _parser().parse_args(argv)
    return run_command(lambda: _probe_command(options) if options.command == "probe" else _run_command(options))


def _probe_command(options: argparse.Namespace) -> int:
    found = sandbox.probe_all_layers()
    print(json.dumps([asdict(result) for result in found], indent=2) if options.json else sandbox.probe_table(found))
    return 0 if any(result.works for result in found) else 1


def _run_command(options: argparse.Namespace) -> int:
    limits = Limits(
        wall_seconds=options.wall,
        cpu_seconds=max(options.wall, DEFAULT_LIMITS.cpu_seconds),
        memory_bytes=int(options.memory * MEBIBYTE),
    )
    program = Program(read_utf8(options.program), read_utf8(options.stdin) if options.stdin else "", limits)
    try:
        with open_sandbox(options.layer, options.unsafe) as sandbox:
            result = sandbox.run(program)
            for reason in sandbox.unavailable_layers:
                print(f"{reason[0].upper()}{reason[1:]}.", file=sys.stderr)
    except SandboxUnavailableError as error:
        result = ExecutionResult("refused", "", str(error), options.layer or "none", 0.0)
    print(json.dumps(asdict(result)))
    return 1 if result.status == "refused" else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evaluate.sandbox", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("probe", help="attack every layer and print what it stops")
    look.add_argument("--json", action="store_true", help="print the results as JSON")
    run = commands.add_parser("run", help="run one program")
    run.add_argument("program", type=Path, help="a Python file")
    run.add_argument("--stdin", type=Path, help="the file that it reads as stdin; empty without it")
    run.add_argument("--layer", help="bubblewrap, landlock or rlimits; by default the best that works")
    run.add_argument("--unsafe", action="store_true", help="allow --layer rlimits, which hardly protects")
    run.add_argument("--wall", type=float, default=DEFAULT_LIMITS.wall_seconds, help="seconds (%(default)s)")
    run.add_argument("--memory", type=float, default=DEFAULT_LIMITS.memory_bytes / MEBIBYTE, help="MB (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
