"""SQLite votes, export.

Where votes lie: one SQLite file. A vote that was confirmed outlives any crash, and nobody votes twice.

The database itself keeps the rules, so that they hold for any number of threads, windows and processes: UNIQUE for one
vote a person, base, problem and unordered pair, CALL_HELPERS for what a vote may be. `synchronous=FULL` makes a commit wait
until the disk has it.

Votes as files for other programs: JSONL with everything, CSV with nested values as JSON text.

One blind vote, with everything that is needed to ask the same again.

What votes come to for each pair, and whose are enough to be rated together.
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

from errors import PromptOrTuneError
from evaluate.report import to_csv
from tasks.problem import Problem

SCHEMA = 1
Winner = Literal["left", "right", "tie", "both bad"]
WINNERS: tuple[Winner, ...] = get_args(Winner)
Pair = tuple["Player", "Player"]


@dataclass(frozen=True, order=True)
class Base:
    """The base model that answered. Votes of different ones are never counted together."""

    id: str
    revision: str
    quantization: str


@dataclass(frozen=True, order=True)
class Player:
    """Who is rated: a method by its canonical name, and the digest of its adapter's weights ('' without one).

    An adapter that was trained anew under the same name is another player.
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
    """One person's choice between two answers to one problem, in the order in which they were shown.

    `visitor` is an id that says nothing of the person. `data` names the data set of the problem, '' for a question of
    the person's own. `seconds` went by between the answers and the vote. `settings` is all else that the answers depend
    on: decoding with its seed, pool of examples, device, versions.
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
        """The two players in an order that does not depend on how they were shown."""
        return unordered_pair(self.left.player, self.right.player)

    def details(self) -> dict[str, Any]:
        """What no query asks for, as plain values: the problem, both answers, the settings."""
        values = {
            "problem": asdict(self.problem),
            "left": _side_record(self.left),
            "right": _side_record(self.right),
            "settings": dict(self.settings),
        }
        return dict(json.loads(json.dumps(values)))


def unordered_pair(one: Player, other: Player) -> Pair:
    """The unordered pair, as a sorted tuple."""
    return (one, other) if one <= other else (other, one)


def problem_digest(problem: Problem) -> str:
    """The same for the same words, however they are spaced: 16 hex digits of their SHA-256.

    Reference and tests do not count: they change no answer, and a person has one vote on a question.
    """
    return hashlib.sha256(" ".join(problem.intent.split()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _side_record(side: Side) -> dict[str, Any]:
    return {"text": side.text, "code": side.code, **side.details}


MIN_VOTES = 10  # among the methods that are rated
MIN_VOTES_IN_GROUP = 3  # of a method, with others that have as many


@dataclass(frozen=True)
class Comparison:
    """A vote as ratings need it: who stood where, what was chosen, and who chose."""

    left: Player
    right: Player
    winner: Winner
    person: str


@dataclass(frozen=True)
class WinCounts:
    """Votes from the view of one side: its wins and losses, ties, and 'both bad', which also counts as a tie."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    both_bad: int = 0

    @property
    def votes(self) -> int:
        return self.wins + self.losses + self.ties + self.both_bad

    @property
    def win_rate(self) -> float | None:
        """Of the votes those won, ties as half; None without votes."""
        return (self.wins + (self.ties + self.both_bad) / 2) / self.votes if self.votes else None

    def add(self, other: WinCounts) -> WinCounts:
        return WinCounts(
            self.wins + other.wins, self.losses + other.losses, self.ties + other.ties, self.both_bad + other.both_bad
        )


def count_wins(comparisons: Sequence[Comparison]) -> dict[Pair, WinCounts]:
    """For each pair that met, in both orders: what the first of the two had against the second."""
    counted = Counter((bout.left, bout.right, bout.winner) for bout in comparisons)
    found: dict[Pair, WinCounts] = {}
    for (left, right, winner), number in counted.items():
        for one, other, won in ((left, right, "left"), (right, left, "right")):
            tally = {
                won: WinCounts(wins=number), "tie": WinCounts(ties=number), "both bad": WinCounts(both_bad=number),
            }.get(winner, WinCounts(losses=number))  # fmt: skip
            found[one, other] = found.get((one, other), WinCounts()).add(tally)
    return found


def rated_players(pair_counts: Mapping[Pair, WinCounts]) -> frozenset[Player]:
    """The largest group whose members have MIN_VOTES_IN_GROUP votes among themselves and MIN_VOTES in all; empty without one."""
    alive = {player for player, _ in pair_counts}
    while True:
        votes = Counter[Player]()
        for (player, other), tally in pair_counts.items():
            votes[player] += tally.votes if player in alive and other in alive else 0
        few = {player for player in alive if votes[player] < MIN_VOTES_IN_GROUP}
        if not few:
            break
        alive -= few
    groups = [
        group
        for group in _connected_groups(alive, pair_counts)
        if sum(votes[player] for player in group) >= 2 * MIN_VOTES
    ]
    return max(groups, key=lambda group: (sum(votes[player] for player in group), sorted(group)), default=frozenset())


def _connected_groups(
    players: Collection[Player], pair_counts: Mapping[Pair, WinCounts]
) -> Iterator[frozenset[Player]]:
    """The players in groups of those who met, directly or through others."""
    left = set(players)
    while left:
        group, edge = set[Player](), {min(left)}
        while edge:
            group |= edge
            edge = {other for player, other in pair_counts if player in edge and other in left} - group
        left -= group
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
        except sqlite3.IntegrityError as error:
            if self._read("SELECT 1 FROM votes WHERE id = ? AND winner = ?", (vote.id, vote.winner)):
                return
            raise AlreadyVotedError(
                "You have voted on this pair and problem already, and that vote stands: go on to the next one."
            ) from error

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
        """Every vote with all that is kept of it, oldest first, for `evaluate.arena.votes`.

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
        except (sqlite3.Error, OSError) as error:
            raise VotesError(
                f"The votes in {self.path} cannot be read or written ({error}): check the disk and its permissions, or "
                "move the file away to begin with a new one."
            ) from error

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
    """One line a vote, oldest first; '' where there is none."""
    return "".join(json.dumps(record) + "\n" for record in votes.export())


def votes_to_csv(votes: VoteStore) -> str:
    """One row a vote, oldest first; texts of people and models cannot become formulas of a spreadsheet."""
    return to_csv({name: _flatten(value) for name, value in record.items()} for record in votes.export())


EXPORTERS: dict[str, Callable[[VoteStore], str]] = {"jsonl": votes_to_jsonl, "csv": votes_to_csv}


def _flatten(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
