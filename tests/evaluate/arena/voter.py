"""Adds votes until killed and prints confirmed ones: python -m tests.evaluate.arena.voter FILE WHO."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from evaluate.arena.votes import VoteStore
from tests.evaluate.arena.votes import make_vote


def main() -> None:
    votes, who = VoteStore(Path(sys.argv[1])), sys.argv[2]
    for number in count():
        name = f"{who}-{number}"
        votes.add(make_vote(number, id=name, visitor=who))
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
