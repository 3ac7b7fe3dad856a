"""Process that adds votes until it is killed: python -m tests.evaluate.arena.voter FILE VISITOR.

Prints the id of each vote after it is stored.
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from evaluate.arena.votes import VoteStore
from tests.evaluate.arena.votes import make_vote


def main() -> None:
    votes, visitor = VoteStore(Path(sys.argv[1])), sys.argv[2]
    for number in count():
        vote_id = f"{visitor}-{number}"
        votes.add(make_vote(number, id=vote_id, visitor=visitor))
        sys.stdout.write(f"{vote_id}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
