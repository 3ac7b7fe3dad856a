"""Command line of the Space: builds its files and publishes them.

python -m space build DIR                    writes the files of a Space, in a folder
python -m space publish user/prompt-or-tune  creates or updates the Space on the Hub and waits until it runs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.command import configure_environment, run_command
from common.format import format_bytes
from space.build import build_space


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 after an error that the user can correct, 130 after Ctrl-C."""
    configure_environment()
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = {"build": _build, "publish": _publish}.get(given[0] if given else "")
    if command is None:
        print(__doc__)
        is_help = bool(given) and given[0] in ("-h", "--help")
        return 0 if is_help else 2
    return run_command(
        lambda: command(given[1:]), "space", "\nStopped; a Space that was published goes on starting by itself."
    )


def _build(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m space build", description="Writes the files of a Space.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="an empty or new folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a Space that was built there before")
    options = parser.parse_args(arguments)
    built = build_space(options.folder.expanduser(), overwrite=options.overwrite)
    print(f"{built.folder}: {len(built.files)} files, {format_bytes(built.size)}; `python app.py` there starts it.")


def _publish(arguments: Sequence[str]) -> None:
    from space.publish import publish_command

    publish_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
