"""Arena votes: types, win counts, the SQLite store, and export as JSONL or CSV.

The database enforces the rules for any number of threads, windows and processes: a UNIQUE constraint allows one vote
per person, base, problem and unordered pair, a CHECK constraint the four possible votes. With `synchronous=FULL` a
commit returns once the vote is on disk.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from common.format import records_csv
from errors import PromptOrTuneError
from tasks.problem import Problem

SCHEMA = 1
Winner = Literal["left", "right", "tie", "both bad"]
WINNERS: tuple[Winner, ...] = get_args(Winner)
Pair = tuple["Player", "Player"]


@dataclass(frozen=True, order=True)
class Base:
    """The base model that answered. Votes on different bases are never counted together."""

    id: str
    revision: str
    quantization: str


@dataclass(frozen=True, order=True)
class Player:
    """What is rated: a method by its canonical name, and the digest of its adapter's weights ('' without one).

    An adapter that was trained again under the same name is a different player.
    """

    method: str
    digest: str = ""


@dataclass(frozen=True)
class Side:
    """One of the two answers. `details` are plain values for JSON: prompt, examples, style, tokens, scores, tests."""

    player: Player
    text: str
    code: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Vote:
    """One person's choice between two answers to one problem, in display order.

    `visitor` is an anonymous id. `data` is the data set of the problem, '' for the person's own question. `seconds` is
    the time between the answers and the vote. `settings` is everything else that the answers depend on: decoding with
    its seed, pool of examples, device, versions.
    """

    id: str
    created: str
    visitor: str
    base: Base
    data: str
    problem: Problem
    left: Side
    right: Side
    winner: Winner
    seconds: float
    tests_run: bool = False
    reference_seen: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.winner not in WINNERS:
            raise PromptOrTuneError(f"'{self.winner}' is no vote: choose one of {', '.join(WINNERS)}.")
        if self.left.player == self.right.player:
            raise PromptOrTuneError(f"{self.left.player.method} cannot be compared with itself: choose two methods.")

    @property
    def pair(self) -> Pair:
        """The two players in an order that does not depend on how they were displayed."""
        return unordered_pair(self.left.player, self.right.player)

    def details(self) -> dict[str, Any]:
        """Return the values that no query filters by, as JSON types: the problem, both answers, the settings."""
        values = {
            "problem": asdict(self.problem),
            "left": _side_record(self.left),
            "right": _side_record(self.right),
            "settings": dict(self.settings),
        }
        return dict(json.loads(json.dumps(values)))


def unordered_pair(one: Player, other: Player) -> Pair:
    """Return the unordered pair as a sorted tuple."""
    return (one, other) if one <= other else (other, one)


def problem_digest(problem: Problem) -> str:
    """Return 16 hex digits of the SHA-256 of the intent's words, independent of spacing.

    Reference and tests are not included: they change no answer, and a person has one vote per question.
    """
    return hashlib.sha256(" ".join(problem.intent.split()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _side_record(side: Side) -> dict[str, Any]:
    return {"text": side.text, "code": side.code, **side.details}


MIN_VOTES = 10  # among all rated methods
MIN_VOTES_IN_GROUP = 3  # of each method, with other rated methods


@dataclass(frozen=True)
class PairwiseComparison:
    """A vote as ratings need it: both players, the winner, and the voter."""

    left: Player
    right: Player
    winner: Winner
    person: str


@dataclass(frozen=True)
class WinCounts:
    """Votes from one player's view: wins, losses, ties, and 'both bad', which also counts as a tie."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    both_bad: int = 0

    @property
    def votes(self) -> int:
        return self.wins + self.losses + self.ties + self.both_bad

    @property
    def win_rate(self) -> float | None:
        """The share of votes won, with ties as half; None without votes."""
        return (self.wins + (self.ties + self.both_bad) / 2) / self.votes if self.votes else None

    def add(self, other: WinCounts) -> WinCounts:
        return WinCounts(
            self.wins + other.wins, self.losses + other.losses, self.ties + other.ties, self.both_bad + other.both_bad
        )


def count_wins(comparisons: Sequence[PairwiseComparison]) -> dict[Pair, WinCounts]:
    """Count votes by ordered pair, in both orders: the first player's results against the second."""
    votes = Counter((comparison.left, comparison.right, comparison.winner) for comparison in comparisons)
    pair_counts: dict[Pair, WinCounts] = {}
    for (left, right, winner), number in votes.items():
        for one, other, won in ((left, right, "left"), (right, left, "right")):
            counts = {
                won: WinCounts(wins=number), "tie": WinCounts(ties=number), "both bad": WinCounts(both_bad=number),
            }.get(winner, WinCounts(losses=number))  # fmt: skip
            pair_counts[one, other] = pair_counts.get((one, other), WinCounts()).add(counts)
    return pair_counts


def rated_players(pair_counts: Mapping[Pair, WinCounts]) -> frozenset[Player]:
    """Return the players that can be rated together; empty if none can.

    It is the connected group with the most votes in which each player has at least MIN_VOTES_IN_GROUP votes against the
    others and which has at least MIN_VOTES votes in all.
    """
    remaining = {player for player, _ in pair_counts}
    while True:
        votes = Counter[Player]()
        for (player, other), counts in pair_counts.items():
            votes[player] += counts.votes if player in remaining and other in remaining else 0
        too_few = {player for player in remaining if votes[player] < MIN_VOTES_IN_GROUP}
        if not too_few:
            break
        remaining -= too_few
    groups = [
        group
        for group in _connected_groups(remaining, pair_counts)
        if sum(votes[player] for player in group) >= 2 * MIN_VOTES
    ]
    return max(groups, key=lambda group: (sum(votes[player] for player in group), sorted(group)), default=frozenset())


def _connected_groups(
    players: Collection[Player], pair_counts: Mapping[Pair, WinCounts]
) -> Iterator[frozenset[Player]]:
    """Yield the connected components of the players, with votes between two of them as edges."""
    remaining = set(players)
    while remaining:
        group, frontier = set[Player](), {min(remaining)}
        while frontier:
            group |= frontier
            frontier = {other for player, other in pair_counts if player in frontier and other in remaining} - group
        remaining -= group
        yield frozenset(group)


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
    """This person has voted on this pair and problem before; that vote is unchanged."""


class VoteStore:
    """The votes in one SQLite file, created with the first vote. Safe for several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, vote: Vote) -> None:
        """Store the vote; it is on disk when this returns.

        Adding the same vote again (a retry after a lost response) changes nothing. Raises AlreadyVotedError if the
        person has voted on this pair and problem with this base, and VotesError if the file cannot be written.
        """
        insert = f"INSERT INTO votes ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
        try:
            self._with_connection(lambda database: database.execute(insert, _vote_row(vote)), writes=True)
        except sqlite3.IntegrityError as error:
            if self._read("SELECT 1 FROM votes WHERE id = ? AND winner = ?", (vote.id, vote.winner)):
                return
            raise AlreadyVotedError(
                "You have voted on this pair and problem already, and that vote stands: go on to the next one."
            ) from error

    def count(self) -> int:
        """Count all votes of all bases."""
        rows: list[tuple[Any, ...]] = self._read("SELECT COUNT(*) FROM votes")
        return int(rows[0][0]) if rows else 0

    def bases(self) -> list[tuple[Base, int]]:
        """Return the bases that have votes with their numbers of votes, in descending order."""
        rows = self._read("SELECT base, COUNT(*) AS n FROM votes GROUP BY base ORDER BY n DESC, base")
        return [(Base(*json.loads(base)), int(number)) for base, number in rows]

    def comparisons(self, base: Base) -> list[tuple[str, PairwiseComparison]]:
        """Return a base's votes as comparisons, oldest first, each with its data set."""
        rows = self._read(
            "SELECT data, left_method, left_digest, right_method, right_digest, winner, visitor "
            "FROM votes WHERE base = ? ORDER BY number",
            (_base_json(base),),
        )
        return [
            (row[0], PairwiseComparison(Player(row[1], row[2]), Player(row[3], row[4]), row[5], row[6])) for row in rows
        ]

    def count_by_pair(self, base: Base) -> Counter[Pair]:
        """Count the votes of each unordered pair."""
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
        """Return what this person has voted on: (problem digest, pair)."""
        rows = self._read(
            "SELECT problem_key, left_method, left_digest, right_method, right_digest "
            "FROM votes WHERE visitor = ? AND base = ?",
            (visitor, _base_json(base)),
        )
        return {(row[0], unordered_pair(Player(*row[1:3]), Player(*row[3:5]))) for row in rows}

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield every vote with all its data, oldest first.

        People are numbered in the order of their first vote, because even the hash of a login name could be guessed.
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
        """Return all rows of a query; none if there is no file yet."""
        if not self.path.exists():
            return []
        return self._with_connection(lambda database: database.execute(query, values).fetchall())

    def _with_connection(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """Run `work` on a new connection. Raises VotesError, or sqlite3.IntegrityError for a violated constraint.

        A write is one transaction that locks at its start: upgrading a read lock later could fail on another's lock.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(0o600)
            with closing(sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None)) as database:
                self._create_table(database)
                if writes:
                    database.execute("BEGIN IMMEDIATE")
                with database:
                    return work(database)
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise VotesError(
                f"The votes in {self.path} cannot be read or written ({error}): check the disk and its permissions, or "
                "move the file away to begin with a new one."
            ) from error

    def _create_table(self, database: sqlite3.Connection) -> None:
        """Create the table if there is none. Raises VotesError for a file of a newer version."""
        database.execute(
            "PRAGMA journal_mode=WAL"
        )  # SQLite keeps its default journal if the file system does not support WAL
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
                f"The votes in {self.path} were written by a newer Prompt or Tune (version {version} of the file, this "
                f"program knows {SCHEMA}): update Prompt or Tune, or move the file away."
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


def votes_to_jsonl(votes: VoteStore) -> str:
    """Return one JSON line per vote, oldest first."""
    return "".join(json.dumps(record) + "\n" for record in votes.export())


def votes_to_csv(votes: VoteStore) -> str:
    """Return CSV with one row per vote, oldest first; nested values as JSON, formulas quoted."""
    return records_csv({name: _flatten(value) for name, value in record.items()} for record in votes.export())


EXPORTERS: dict[str, Callable[[VoteStore], str]] = {"jsonl": votes_to_jsonl, "csv": votes_to_csv}


def _flatten(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
