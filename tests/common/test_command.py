"""Command lines: a reader that leaves ends the command quietly."""

from __future__ import annotations

import os
import subprocess
import sys

from common.command import EXIT_NO_READER

PROGRAM = """
import sys
from common.command import run_command
sys.exit(run_command(lambda: [print("a line of a table") for _ in range(100_000)] and 0))
"""


def test_reader_that_leaves_ends_the_command_without_a_trace() -> None:
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert os.read(reading, 6) == b"a line"
        os.close(reading)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert (process.returncode, errors) == (EXIT_NO_READER, b"")
