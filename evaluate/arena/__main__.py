"""Prints the arena's ratings, or writes its votes to a file.

    python -m evaluate.arena
    python -m evaluate.arena --export votes.jsonl
    python -m evaluate.arena --votes other/votes.sqlite --export votes.csv

Needs no model. The votes lie in PEFT_ARENA_HOME unless --votes names their file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import PeftArenaError
from evaluate.arena.export import EXPORTS
from evaluate.arena.ratings import rate
from evaluate.arena.report import text_report
from evaluate.arena.votes import FILE, Votes
from evaluate.files import write_atomically
from serve.home import home


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = _parser().parse_args(argv)
    try:
        path = options.votes or home() / FILE
        if not path.exists():
            raise PeftArenaError(f"There are no votes in {path} yet: vote on the Arena page, or name the file.")
        if options.export:
            return _export(Votes(path), options.export)
        return _report(Votes(path), options.seed)
    except PeftArenaError as fault:
        print(fault, file=sys.stderr)
        return 2


def _report(votes: Votes, seed: int) -> int:
    reports = [text_report(base, rate([bout for _, bout in votes.bouts(base)], seed)) for base, _ in votes.bases()]
    print("\n".join(reports) or "There are no votes yet.", end="")
    return 0


def _export(votes: Votes, path: Path) -> int:
    kind = path.suffix.removeprefix(".")
    if kind not in EXPORTS:
        raise PeftArenaError(f"{path} ends in neither .jsonl nor .csv: the name's ending says what is written.")
    write_atomically(path, EXPORTS[kind](votes))
    count = votes.count()
    print(f"{count} vote{'' if count == 1 else 's'} written to {path}.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.arena", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--votes", type=Path, help=f"the file of votes (by default {FILE} in PEFT_ARENA_HOME)")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write all votes to FILE.jsonl or FILE.csv")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap's draws")
    return parser


if __name__ == "__main__":
    sys.exit(main())
