"""Match drawing, storage, answering.

The open duel of each visitor, on disk: who reloads the page finds the same two answers, and their names stay hidden.

Everything that would tell the names lies here and in the engine, never in the browser, until the vote is kept.

Which two methods meet over which problem: a draw that no visitor can repeat to find out who is who.

From a draw to two answers. Nothing is shown before both stand, so that neither speed nor length tells a name.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from common.files import atomic_write
from errors import PromptOrTuneError
from evaluate.arena.ratings import sample_pair
from evaluate.arena.votes import Base, Player, VoteStore, problem_digest, unordered_pair
from tasks.methods import parse_method
from tasks.problem import AssertTest, Problem, StdioTest
from ui.compare.run import CUSTOM_PROBLEM_ID, Column, Comparison, compare
from ui.compare.steps import utc_timestamp
from ui.context import Context
from ui.method_form import METHODS_WITHOUT_ADAPTER, list_adapter_choices
from ui.problem_picker import DEFAULT_DATA, load_split_problems
from ui.records import Record, make_record
from ui.visitors import Visitor

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine


MATCH_FOLDER = "arena"
_MAX_AGE_SECONDS = 30 * 24 * 3600
_VISITOR_ID = re.compile(r"[a-z]+-[0-9a-f]{16}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """Two methods and one problem. Without `records` it is drawn but not answered yet.

    `data` is the problem's data set, '' for a question of the person's own. `answered` is when both answers stood, in
    ISO 8601. After the vote `voted` is set, and `said` is the HTML of what came of it.
    """

    id: str
    data: str
    pool: str
    problem: Problem
    base: Base
    left: Player
    right: Player
    records: tuple[Record, ...] = ()
    answered: str = ""
    tests_run: bool = False
    reference_seen: bool = False
    voted: bool = False
    winner: str = ""
    said: str = ""

    @property
    def methods(self) -> tuple[str, str]:
        return self.left.method, self.right.method


@dataclass
class MatchLock:
    """Serializes what one visitor does with a match, and names the session that holds it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    session: str = ""


class MatchStore:
    """One file a visitor under `folder`; what is older than a month is forgotten. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._visitor_locks: dict[str, MatchLock] = {}
        self._delete_expired()

    def load(self, visitor: str) -> Match | None:
        """The visitor's duel; None where there is none, or its file cannot be read."""
        path = self._path(visitor)
        try:
            return _parse_match(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("The open duel of %s cannot be read (%s): a new one is drawn.", visitor, error)
            return None

    def save(self, visitor: str, match: Match) -> None:
        """Keeps it; PromptOrTuneError where the disk says no."""
        atomic_write(self._path(visitor), json.dumps(asdict(match)))

    def delete(self, visitor: str) -> None:
        """Forgets the visitor's duel."""
        self._path(visitor).unlink(missing_ok=True)

    @contextmanager
    def lock(self, visitor: str, session: str = "", timeout: float = -1) -> Iterator[bool]:
        """One at a time of a visitor's windows; False where the turn did not come within `seconds`."""
        turn = self._visitor_lock(visitor)
        held = turn.lock.acquire(timeout=timeout)
        if held:
            turn.session = session
        try:
            yield held
        finally:
            if held:
                turn.session = ""
                turn.lock.release()

    def locked_session(self, visitor: str) -> str:
        """The session whose turn it is, '' where nobody's."""
        return self._visitor_lock(visitor).session

    def _visitor_lock(self, visitor: str) -> MatchLock:
        with self._lock:
            return self._visitor_locks.setdefault(visitor, MatchLock())

    def _path(self, visitor: str) -> Path:
        if not _VISITOR_ID.fullmatch(visitor):
            raise ValueError(f"{visitor!r} is no visitor's id")
        return self._folder / f"{visitor}.json"

    def _delete_expired(self) -> None:
        with suppress(OSError):
            for path in self._folder.glob("*.json"):
                if path.stat().st_mtime < time.time() - _MAX_AGE_SECONDS:
                    path.unlink()


def _parse_match(values: dict[str, Any]) -> Match:
    tests = tuple(AssertTest(**test) if "code" in test else StdioTest(**test) for test in values["problem"]["tests"])
    known = {each.name: values[each.name] for each in fields(Match)}
    return Match(
        **{
            **known,
            "problem": Problem(**{**values["problem"], "tests": tests}),
            "base": Base(**values["base"]),
            "left": Player(**values["left"]),
            "right": Player(**values["right"]),
            "records": tuple(values["records"]),
        }
    )


TOO_FEW_METHODS = "A duel needs two methods: choose at least two that can be used here, under 'Who takes part'."
ALL_VOTED = (
    "You have voted on every pair of these methods for {what}: ask something else, or let more methods take part."
)


@dataclass(frozen=True)
class MatchRequest:
    """What the form says: an own question ('' for a problem of the data set), and the methods that take part."""

    question: str
    data: str
    methods: tuple[str, ...]


def usable_methods(engine: LLMEngine) -> list[str]:
    """The methods that can take part: zero-shot, ICL, RAG, and every adapter that this base can wear."""
    return [*METHODS_WITHOUT_ADAPTER, *list_adapter_choices(engine).usable]


def arena_base(engine: LLMEngine) -> Base:
    """The base as votes name it."""
    return Base(engine.base.id, engine.base.revision, engine.base.quantization)


def sample_match(
    engine: LLMEngine,
    votes: VoteStore,
    visitor: str,
    request: MatchRequest,
    data_dir: Path | None,
    exclude: Collection[str] = (),
) -> Match:
    """A new duel on which this visitor has not voted. PromptOrTuneError in one sentence where there is none.

    `avoid` are methods that have just failed.
    """
    base = arena_base(engine)
    players = [player for player in _available_players(engine, request.methods) if player.method not in exclude]
    if len(players) < 2:
        raise PromptOrTuneError(TOO_FEW_METHODS)
    voted = votes.voted_pairs(visitor, base)
    counts, chance = votes.count_by_pair(base), random.SystemRandom()
    if request.question.strip():
        problem = Problem(CUSTOM_PROBLEM_ID, request.question.strip())
        key = problem_digest(problem)
        pair = sample_pair(players, counts, chance, lambda pair: (key, pair) not in voted)
        what, data, pool = "this question", "", DEFAULT_DATA
    else:
        data = pool = request.data
        keyed = _problems_by_key(data, data_dir)
        done = {pair: {key for key, other in voted if other == pair} for _, pair in voted}
        pair = sample_pair(players, counts, chance, lambda pair: len(keyed) > len(done.get(pair, ()) & keyed.keys()))
        left = [each for key, each in keyed.items() if pair and key not in done.get(unordered_pair(*pair), ())]
        problem = chance.choice(left) if left else Problem(CUSTOM_PROBLEM_ID, "")
        what = f"all problems of '{data}'"
    if pair is None:
        raise PromptOrTuneError(ALL_VOTED.format(what=what))
    return Match(uuid.uuid4().hex, data, pool, problem, base, *pair)


def _available_players(engine: LLMEngine, methods: Sequence[str]) -> list[Player]:
    """The methods that can be asked now, each once, with the digest of its adapter as it is now."""
    names = engine.adapters()
    players = []
    for name in methods:
        try:
            method = parse_method(name, names)
            reason = engine.unsupported_reason(method)
            if reason is None:
                players.append(Player(method.name, engine.adapter_digest(method.adapter) if method.adapter else ""))
        except PromptOrTuneError as error:
            reason = str(error)
        if reason is not None:
            _log.warning("%s does not take part: %s", name, reason)
    return list(dict.fromkeys(players))


@lru_cache(maxsize=16)
def _problems_by_key(data: str, data_dir: Path | None) -> dict[str, Problem]:
    """The problems of a data set by the key under which votes know them."""
    return {problem_digest(problem): problem for problem in load_split_problems(data, data_dir)}


MAX_ATTEMPTS = 4
LOCKED_BY_OTHER_WINDOW = "Another window of yours is being answered."
NO_ANSWERS = "No two of the chosen methods gave an answer. One of them said: {error}"
_WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class MatchUpdate:
    """A line of status; the duel once it is drawn, and with its records once both have answered."""

    status: str
    match: Match | None = None


class MatchRunner:
    """What the page's events share: the app, the votes and the open duels."""

    def __init__(self, context: Context, votes: VoteStore, matches: MatchStore) -> None:
        self.context = context
        self.votes = votes
        self.matches = matches

    def next_match(
        self, visitor: Visitor, session: str, request: MatchRequest, current_id: str, cancel: Event
    ) -> Iterator[MatchUpdate]:
        """Draws a duel and answers it; the last step has its records. PromptOrTuneError in one sentence.

        `known` is the id of the duel that the page shows: one that was drawn in another window comes first.
        """
        for duel in self._locked_match(visitor, session, cancel):
            if isinstance(duel, MatchUpdate):
                yield duel
            elif duel is not None and not duel.voted and duel.id != current_id:
                yield from self._finish_match(duel, visitor, session, cancel)
            else:
                yield from self._new_match(request, visitor, session, cancel)

    def resume_match(self, visitor: Visitor, session: str, cancel: Event) -> Iterator[MatchUpdate]:
        """The visitor's duel as it stands, answered first where that had not come to its end; nothing without one."""
        for duel in self._locked_match(visitor, session, cancel):
            if isinstance(duel, MatchUpdate):
                yield duel
            elif duel is not None:
                yield from self._finish_match(duel, visitor, session, cancel)

    def _locked_match(self, visitor: Visitor, session: str, cancel: Event) -> Iterator[MatchUpdate | Match | None]:
        """Steps while another window has its turn; then, once, the open duel or None, with the turn held."""
        while not cancel.is_set():
            with self.matches.lock(visitor.id, session, _WAIT_SECONDS) as held:
                if held:
                    yield self.matches.load(visitor.id)
                    return
            yield MatchUpdate(LOCKED_BY_OTHER_WINDOW)

    def _finish_match(self, match: Match, visitor: Visitor, session: str, cancel: Event) -> Iterator[MatchUpdate]:
        """A duel that is there already; one that was never answered is answered now."""
        if match.records:
            yield MatchUpdate("", match)
            return
        engine = yield from self._wait_for_engine(cancel)
        if engine is None:
            return
        if match.base != arena_base(engine):
            self.matches.delete(visitor.id)
            return
        failed = yield from self._answer_match(engine, match, visitor, session, cancel)
        if failed:
            self.matches.delete(visitor.id)
            raise PromptOrTuneError(NO_ANSWERS.format(error=failed[0].error))

    def _new_match(self, request: MatchRequest, visitor: Visitor, session: str, cancel: Event) -> Iterator[MatchUpdate]:
        """A new duel; where a method fails it is left out, and others meet."""
        engine = yield from self._wait_for_engine(cancel)
        if engine is None:
            return
        failed: list[Column] = []
        avoid: set[str] = set()
        for _ in range(MAX_ATTEMPTS):
            try:
                duel = sample_match(engine, self.votes, visitor.id, request, self.context.data_dir, avoid)
            except PromptOrTuneError as fault:
                raise PromptOrTuneError(NO_ANSWERS.format(error=failed[0].error)) if failed else fault from fault
            self.matches.save(visitor.id, duel)
            try:
                failed = yield from self._answer_match(engine, duel, visitor, session, cancel)
            except PromptOrTuneError:
                self.matches.delete(visitor.id)
                raise
            if not failed:
                return
            self.matches.delete(visitor.id)
            avoid |= {column.method for column in failed}
        raise PromptOrTuneError(NO_ANSWERS.format(error=failed[0].error))

    def _answer_match(
        self, engine: LLMEngine, match: Match, visitor: Visitor, session: str, cancel: Event
    ) -> Generator[MatchUpdate, None, list[Column]]:
        """Both answers, kept and shown together; the columns that failed. Nothing where `cancel` came first."""
        created = utc_timestamp()
        ask = Comparison(match.problem, match.methods, pool=match.pool, owner=session)
        yield MatchUpdate("Two methods were drawn.", match)
        with (
            self.context.visitors.quota.reserve(visitor.id, len(match.methods)),
            self.context.run_queue.enqueue() as place,
        ):
            while before := place.wait(_WAIT_SECONDS):
                if cancel.is_set():
                    return []
                yield MatchUpdate(f"Waiting: {before} run{'' if before == 1 else 's'} before yours.", match)
            yield MatchUpdate(
                "Both are answering. You see them when both are done, so that speed gives no hint.", match
            )
            (columns,) = deque(compare(engine, ask, cancel, self.context.score), maxlen=1)
        if cancel.is_set() or any(column.state == "stopped" for column in columns):
            return []
        failed = [column for column in columns if column.state == "failed"]
        for column in failed:
            _log.warning("%s gave no answer (%s): others meet.", column.method, column.error)
        if not failed:
            records = tuple(make_record(column, ask, engine.base, created) for column in columns)
            match = replace(match, records=records, answered=utc_timestamp())
            self.matches.save(visitor.id, match)
            yield MatchUpdate("", match)
        return failed

    def _wait_for_engine(self, cancel: Event) -> Generator[MatchUpdate, None, LLMEngine | None]:
        """The engine once it is loaded; None where `cancel` came first."""
        while not cancel.is_set():
            engine = self.context.engine_loader.wait(_WAIT_SECONDS)
            if engine is not None:
                return engine
            state = self.context.engine_loader.state()
            yield MatchUpdate(f"Waiting for the model ({state.message.rstrip('.')}). The duel then starts by itself.")
        return None
