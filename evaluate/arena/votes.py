"""Where votes lie: one SQLite file. A vote that was confirmed outlives any crash, and nobody votes twice.

The database itself keeps the rules, so that they hold for any number of threads, windows and processes: UNIQUE for one
vote a person, base, problem and unordered pair, CALL_HELPERS for what a vote may be. `synchronous=FULL` makes a commit wait
until the disk has it.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from errors import PromptOrTuneError
from evaluate.arena.tallies import Comparison
from evaluate.arena.vote import SCHEMA, Base, Pair, Player, Vote, problem_digest, unordered_pair

VOTES_FILE = "votes.sqlite"
_BUSY_TIMEOUT_SECONDS = 20.0
_CREATE_TABLE = """
CREATE TABLE votes (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL,
    visitor TEXT NOT NULL,
    base TEXT NOT NULL,
    data TEXT NOT NULL,
    problem_key TEXT NOT NULL,
    pair TEXT NOT NULL,
    left_method TEXT NOT NULL, left_digest TEXT NOT NULL,
    right_method TEXT NOT NULL, right_digest TEXT NOT NULL,
    winner TEXT NOT NULL CHECK (winner IN ('left', 'right', 'tie', 'both bad')),
    seconds REAL NOT NULL,
    tests_run INTEGER NOT NULL, reference_seen INTEGER NOT NULL,
    details TEXT NOT NULL,
    UNIQUE (visitor, base, problem_key, pair)
) STRICT
"""
_COLUMNS = (
    "id", "created", "visitor", "base", "data", "problem_key", "pair", "left_method", "left_digest", "right_method",
    "right_digest", "winner", "seconds", "tests_run", "reference_seen", "details",
)  # fmt: skip
T = TypeVar("T")


class VotesError(PromptOrTuneError):
    """The file of votes cannot be read or written."""


class AlreadyVotedError(PromptOrTuneError):
    """This person has voted on this pair and problem before: that vote stands."""


class VoteStore:
    """The votes in one file, which is made when the first vote comes. Thread-safe, and safe among processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, vote: Vote) -> None:
        """Keeps the vote; when this returns it is on the disk.

        Adding the very same vote again (a retry that did not hear the answer) changes nothing. AlreadyVotedError where
        the person has voted on this pair and problem with this base, VotesError where the file cannot be written.
        """
        insert = f"INSERT INTO votes ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
        try:
            self._with_connection(lambda database: database.execute(insert, _vote_row(vote)), writes=True)
        except sqlite3.IntegrityError as fault:
            if self._read("SELECT 1 FROM votes WHERE id = ? AND winner = ?", (vote.id, vote.winner)):
                return
            raise AlreadyVotedError(
                "You have voted on this pair and problem already, and that vote stands: go on to the next one."
            ) from fault

    def count(self) -> int:
        """All votes, of all bases."""
        found: list[tuple[Any, ...]] = self._read("SELECT COUNT(*) FROM votes")
        return int(found[0][0]) if found else 0

    def bases(self) -> list[tuple[Base, int]]:
        """Bases that have votes, and how many; the one with most votes first."""
        rows = self._read("SELECT base, COUNT(*) AS n FROM votes GROUP BY base ORDER BY n DESC, base")
        return [(Base(*json.loads(base)), int(number)) for base, number in rows]

    def comparisons(self, base: Base) -> list[tuple[str, Comparison]]:
        """The votes of a base as ratings need them, oldest first, each with its data set."""
        rows = self._read(
            "SELECT data, left_method, left_digest, right_method, right_digest, winner, visitor "
            "FROM votes WHERE base = ? ORDER BY number",
            (_base_json(base),),
        )
        return [(row[0], Comparison(Player(row[1], row[2]), Player(row[3], row[4]), row[5], row[6])) for row in rows]

    def count_by_pair(self, base: Base) -> Counter[Pair]:
        """How many votes each pair has."""
        rows = self._read(
            "SELECT left_method, left_digest, right_method, right_digest, COUNT(*) FROM votes WHERE base = ? "
            "GROUP BY 1, 2, 3, 4",
            (_base_json(base),),
        )
        counts = Counter[Pair]()
        for *names, number in rows:
            counts[unordered_pair(Player(*names[:2]), Player(*names[2:]))] += number
        return counts

    def voted_pairs(self, visitor: str, base: Base) -> set[tuple[str, Pair]]:
        """What this person has voted on: (problem key, pair)."""
        rows = self._read(
            "SELECT problem_key, left_method, left_digest, right_method, right_digest "
            "FROM votes WHERE visitor = ? AND base = ?",
            (visitor, _base_json(base)),
        )
        return {(row[0], unordered_pair(Player(*row[1:3]), Player(*row[3:5]))) for row in rows}

    def export(self) -> Iterator[dict[str, Any]]:
        """Every vote with all that is kept of it, oldest first, for `evaluate.arena.export`.

        People appear as numbers in the order of their first vote: even the hash of a login's name could be guessed.
        """
        people: dict[str, int] = {}
        for row in self._read("SELECT * FROM votes ORDER BY number"):
            record = dict(zip(("number", *_COLUMNS), row, strict=True))
            person = people.setdefault(record.pop("visitor"), len(people) + 1)
            base, details = json.loads(record.pop("base")), json.loads(record.pop("details"))
            del record["pair"]
            record |= {name: bool(record[name]) for name in ("tests_run", "reference_seen")}
            named = dict(zip(("base_id", "base_revision", "quantization"), base, strict=True))
            yield {"schema": SCHEMA, **record, "person": person, **named, **details}

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows; none where there is no file yet."""
        if not self.path.exists():
            return []
        return self._with_connection(lambda database: database.execute(query, values).fetchall())

    def _with_connection(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """`work` on a connection of its own; sqlite3.IntegrityError goes through.

        What writes is one transaction, and takes its lock at the start: to take it later could meet another's.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None)) as database:
                self._create_table(database)
                if writes:
                    database.execute("BEGIN IMMEDIATE")
                with database:
                    return work(database)
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.Error, OSError) as fault:
            raise VotesError(
                f"The votes in {self.path} cannot be read or written ({fault}): check the disk and its permissions, or "
                "move the file away to begin with a new one."
            ) from fault

    def _create_table(self, database: sqlite3.Connection) -> None:
        """The table, made once; VotesError for the file of a newer version."""
        database.execute("PRAGMA journal_mode=WAL")  # where the disk cannot, SQLite stays with its own journal
        database.execute("PRAGMA synchronous=FULL")
        if self._schema_version(database):
            return
        database.execute("BEGIN IMMEDIATE")
        with database:
            if not self._schema_version(database):
                database.execute(_CREATE_TABLE)
                database.execute(f"PRAGMA user_version={SCHEMA}")

    def _schema_version(self, database: sqlite3.Connection) -> int:
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA:
            raise VotesError(
                f"The votes in {self.path} were written by a newer Peft Arena (version {version} of the file, this "
                f"program knows {SCHEMA}): update Peft Arena, or move the file away."
            )
        return version


def _vote_row(vote: Vote) -> tuple[Any, ...]:
    left, right = vote.left.player, vote.right.player
    return (
        vote.id, vote.created, vote.visitor, _base_json(vote.base), vote.data, problem_digest(vote.problem),
        _pair_json(vote.pair), left.method, left.digest, right.method, right.digest, vote.winner, vote.seconds,
        int(vote.tests_run), int(vote.reference_seen), json.dumps(vote.details()),
    )  # fmt: skip


def _base_json(base: Base) -> str:
    return json.dumps([base.id, base.revision, base.quantization])


def _pair_json(pair: Pair) -> str:
    return json.dumps([[player.method, player.digest] for player in pair])
