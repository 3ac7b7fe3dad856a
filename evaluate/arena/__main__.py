"""Command line of the arena: prints the ratings, or exports the votes to a file.

    python -m evaluate.arena
    python -m evaluate.arena --export votes.jsonl
    python -m evaluate.arena --votes other/votes.sqlite --export votes.csv

It needs no model. The votes are in PROMPT_OR_TUNE_HOME unless --votes names their file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.command import run_command
from common.files import atomic_write, cache_dir
from errors import PromptOrTuneError
from evaluate.arena.ratings import compute_ratings, ratings_text
from evaluate.arena.votes import EXPORTERS, VOTES_FILE, VoteStore


def arena_main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _arena_parser().parse_args(argv)
    return run_command(lambda: _run_arena(options))


def _run_arena(options: argparse.Namespace) -> int:
    path = options.votes or cache_dir() / VOTES_FILE
    if not path.exists():
        raise PromptOrTuneError(f"There are no votes in {path} yet: vote on the Arena page, or name the file.")
    if options.export:
        return _export_votes(VoteStore(path), options.export)
    return _arena_report(VoteStore(path), options.seed)


def _arena_report(votes: VoteStore, seed: int) -> int:
    reports = [
        ratings_text(base, compute_ratings([vote for _, vote in votes.comparisons(base)], seed))
        for base, _ in votes.bases()
    ]
    print("\n".join(reports) or "There are no votes yet.", end="")
    return 0


def _export_votes(votes: VoteStore, path: Path) -> int:
    kind = path.suffix.removeprefix(".")
    if kind not in EXPORTERS:
        raise PromptOrTuneError(f"{path} ends in neither .jsonl nor .csv: the name's ending says what is written.")
    atomic_write(path, EXPORTERS[kind](votes))
    count = votes.count()
    print(f"{count} vote{'' if count == 1 else 's'} written to {path}.")
    return 0


def _arena_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.arena", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--votes", type=Path, help=f"the file of votes (by default {VOTES_FILE} in PROMPT_OR_TUNE_HOME)"
    )
    parser.add_argument("--export", type=Path, metavar="FILE", help="write all votes to FILE.jsonl or FILE.csv")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    return parser


if __name__ == "__main__":
    sys.exit(arena_main())
