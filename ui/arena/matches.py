"""Matches of the Arena: storage of each visitor's open match, sampling of a new one, and its two answers.

An open match is a file per visitor, so a reload shows the same two answers. The names of its methods stay on the
server until the vote is recorded. Both answers appear together, so that neither speed nor length of a stream reveals
a method.
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

from common.files import atomic_write, make_private_dir
from common.format import utc_timestamp
from errors import PromptOrTuneError
from evaluate.arena.ratings import sample_pair
from evaluate.arena.votes import Base, Player, VoteStore, problem_digest, unordered_pair
from tasks.datasets.registry import dataset_version
from tasks.methods import parse_method
from tasks.problem import Problem, parse_test
from ui.access.guard import check_dataset, has_examples, load_split_problems, may_use_own
from ui.access.policy import Visitor
from ui.compare.comparison import CUSTOM_PROBLEM_ID, Column, Comparison, compare
from ui.context import Context
from ui.form_fields import DEFAULT_DATA, METHODS_WITHOUT_ADAPTER, list_adapter_choices
from ui.test_bench import Record, make_record

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine


MATCH_FOLDER = "arena"
MAX_ATTEMPTS = 4
TOO_FEW_METHODS = "A duel needs two methods: choose at least two that can be used here, under 'Who takes part'."
ALL_VOTED = (
    "You have voted on every pair of these methods for {what}: ask something else, or let more methods take part."
)
LOCKED_BY_OTHER_WINDOW = "Another window of yours is being answered."
NO_ANSWERS = "No two of the chosen methods gave an answer. The error of one of them: {error}"
_WAIT_SECONDS = 0.25
_MAX_AGE_SECONDS = 30 * 24 * 3600
_VISITOR_ID = re.compile(r"[a-z]+-[0-9a-f]{16}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """Two methods and one problem. A match without `records` is not answered yet.

    `data` is the problem's data set, '' for the visitor's own question. `answered` is the time of both answers in ISO
    8601. After the vote `voted` is True and `said` is the HTML of its outcome.
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
    """Lock of one visitor's match, with the session that holds it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    session: str = ""


class MatchStore:
    """Open matches: one file per visitor in `folder`. Files older than 30 days are deleted. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._visitor_locks: dict[str, MatchLock] = {}
        self._delete_expired()

    def load(self, visitor: str) -> Match | None:
        """Return the visitor's match; None if there is none or its file cannot be read."""
        path = self._path(visitor)
        try:
            return _parse_match(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("The open match of %s cannot be read (%s): a new one is sampled.", visitor, error)
            return None

    def save(self, visitor: str, match: Match) -> None:
        """Write the visitor's match. Raises PromptOrTuneError if it cannot be written."""
        make_private_dir(self._folder)
        atomic_write(self._path(visitor), json.dumps(asdict(match)))

    def delete(self, visitor: str) -> None:
        """Delete the visitor's match."""
        self._path(visitor).unlink(missing_ok=True)

    @contextmanager
    def lock(self, visitor: str, session: str = "", timeout: float = -1) -> Iterator[bool]:
        """Hold the lock of a visitor's match, which serializes their windows; yields False after `timeout` seconds."""
        match_lock = self._visitor_lock(visitor)
        held = match_lock.lock.acquire(timeout=timeout)
        if held:
            match_lock.session = session
        try:
            yield held
        finally:
            if held:
                match_lock.session = ""
                match_lock.lock.release()

    def locked_session(self, visitor: str) -> str:
        """Return the session that holds the visitor's lock, '' for none."""
        return self._visitor_lock(visitor).session

    def _visitor_lock(self, visitor: str) -> MatchLock:
        with self._lock:
            return self._visitor_locks.setdefault(visitor, MatchLock())

    def _path(self, visitor: str) -> Path:
        if not _VISITOR_ID.fullmatch(visitor):
            raise ValueError(f"{visitor!r} is not a visitor's id")
        return self._folder / f"{visitor}.json"

    def _delete_expired(self) -> None:
        with suppress(OSError):
            for path in self._folder.glob("*.json"):
                if path.stat().st_mtime < time.time() - _MAX_AGE_SECONDS:
                    path.unlink()


def _parse_match(values: dict[str, Any]) -> Match:
    tests = tuple(parse_test(test) for test in values["problem"]["tests"])
    return Match(
        **{
            **{field.name: values[field.name] for field in fields(Match)},
            "problem": Problem(**{**values["problem"], "tests": tests}),
            "base": Base(**values["base"]),
            "left": Player(**values["left"]),
            "right": Player(**values["right"]),
            "records": tuple(values["records"]),
        }
    )


@dataclass(frozen=True)
class MatchRequest:
    """Values of the form: the visitor's own question ('' for a problem of `data`) and the methods that take part."""

    question: str
    data: str
    methods: tuple[str, ...]


def usable_methods(engine: LLMEngine) -> list[str]:
    """Return the methods that can take part: zero-shot, ICL, RAG, and every adapter that fits the base."""
    return [*METHODS_WITHOUT_ADAPTER, *list_adapter_choices(engine).usable]


def arena_base(engine: LLMEngine) -> Base:
    """Return the engine's base as votes identify it."""
    return Base(engine.base.id, engine.base.revision, engine.base.quantization)


def sample_match(
    engine: LLMEngine,
    votes: VoteStore,
    visitor: str,
    request: MatchRequest,
    data_dir: Path | None,
    exclude: Collection[str] = (),
    *,
    own: bool = False,
) -> Match:
    """Sample a match on which this visitor has not voted, without the methods in `exclude`.

    `own` says that the visitor may use the data sets of the owner of the app. Raises PromptOrTuneError if fewer than
    two methods can be used, if the visitor has voted on all their matches, and for a data set that they may not use.
    """
    base = arena_base(engine)
    players = [player for player in _available_players(engine, request.methods) if player.method not in exclude]
    if len(players) < 2:
        raise PromptOrTuneError(TOO_FEW_METHODS)
    voted = votes.voted_pairs(visitor, base)
    # SystemRandom: a visitor who knew the seed could find out the names.
    counts, rng = votes.count_by_pair(base), random.SystemRandom()
    if request.question.strip():
        problem = Problem(CUSTOM_PROBLEM_ID, request.question.strip())
        key = problem_digest(problem)
        pair = sample_pair(players, counts, rng, lambda pair: (key, pair) not in voted)
        what, data, pool = "this question", "", DEFAULT_DATA
    else:
        data = check_dataset(request.data, own=own)
        pool = data if has_examples(data) else DEFAULT_DATA
        problems = _problems_by_key(data, data_dir, dataset_version(data))
        voted_keys = {pair: {key for key, other in voted if other == pair} for _, pair in voted}

        def has_open_problem(pair: tuple[Player, Player]) -> bool:
            return len(problems) > len(voted_keys.get(pair, ()) & problems.keys())

        pair = sample_pair(players, counts, rng, has_open_problem)
        done: Collection[str] = voted_keys.get(unordered_pair(*pair), set()) if pair else problems.keys()
        open_problems = [problem for key, problem in problems.items() if key not in done]
        problem = rng.choice(open_problems) if open_problems else Problem(CUSTOM_PROBLEM_ID, "")
        what = f"all problems of '{data}'"
    if pair is None:
        raise PromptOrTuneError(ALL_VOTED.format(what=what))
    return Match(uuid.uuid4().hex, data, pool, problem, base, *pair)


def _available_players(engine: LLMEngine, methods: Sequence[str]) -> list[Player]:
    """Return the methods that can answer now, without repetitions, with the current digests of their adapters."""
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
def _problems_by_key(data: str, data_dir: Path | None, version: str) -> dict[str, Problem]:
    """Return the problems of a data set by their digest, which identifies them in votes; `version` is of its rows."""
    del version
    return {problem_digest(problem): problem for problem in load_split_problems(data, data_dir, own=True)}


@dataclass(frozen=True)
class MatchUpdate:
    """Progress of a match: a status message, and the match once it is sampled (with records once it is answered)."""

    status: str
    match: Match | None = None


class MatchRunner:
    """Samples matches and answers them. Shared by all events of the page."""

    def __init__(self, context: Context, votes: VoteStore, matches: MatchStore) -> None:
        self.context = context
        self.votes = votes
        self.matches = matches

    def next_match(
        self, visitor: Visitor, session: str, request: MatchRequest, current_id: str, cancel: Event
    ) -> Iterator[MatchUpdate]:
        """Sample a match and answer it; the last update has its records. Raises PromptOrTuneError if none is possible.

        `current_id` is the id of the match on the page; an open match from another window is returned first.
        """
        for match in self._locked_match(visitor, session, cancel):
            if isinstance(match, MatchUpdate):
                yield match
            elif match is not None and not match.voted and match.id != current_id:
                yield from self._finish_match(match, visitor, session, cancel)
            else:
                yield from self._new_match(request, visitor, session, cancel)

    def resume_match(self, visitor: Visitor, session: str, cancel: Event) -> Iterator[MatchUpdate]:
        """Return the visitor's open match, which is answered first if it was not; nothing without one."""
        for match in self._locked_match(visitor, session, cancel):
            if isinstance(match, MatchUpdate):
                yield match
            elif match is not None:
                yield from self._finish_match(match, visitor, session, cancel)

    def _locked_match(self, visitor: Visitor, session: str, cancel: Event) -> Iterator[MatchUpdate | Match | None]:
        """Wait for the visitor's lock; then yield, once, the open match or None while the lock is held."""
        while not cancel.is_set():
            with self.matches.lock(visitor.id, session, _WAIT_SECONDS) as held:
                if held:
                    yield self.matches.load(visitor.id)
                    return
            yield MatchUpdate(LOCKED_BY_OTHER_WINDOW)

    def _finish_match(self, match: Match, visitor: Visitor, session: str, cancel: Event) -> Iterator[MatchUpdate]:
        """Yield an open match; answer it first if it was not, unless the base has changed."""
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
        """Sample and answer a new match; methods that fail are excluded, up to MAX_ATTEMPTS times."""
        engine = yield from self._wait_for_engine(cancel)
        if engine is None:
            return
        failed: list[Column] = []
        excluded: set[str] = set()
        for _ in range(MAX_ATTEMPTS):
            try:
                data_dir, own = self.context.data_dir, may_use_own(self.context, visitor)
                match = sample_match(engine, self.votes, visitor.id, request, data_dir, excluded, own=own)
            except PromptOrTuneError as error:
                raise PromptOrTuneError(NO_ANSWERS.format(error=failed[0].error)) if failed else error from error
            self.matches.save(visitor.id, match)
            try:
                failed = yield from self._answer_match(engine, match, visitor, session, cancel)
            except PromptOrTuneError:
                self.matches.delete(visitor.id)
                raise
            if not failed:
                return
            self.matches.delete(visitor.id)
            excluded |= {column.method for column in failed}
        raise PromptOrTuneError(NO_ANSWERS.format(error=failed[0].error))

    def _answer_match(
        self, engine: LLMEngine, match: Match, visitor: Visitor, session: str, cancel: Event
    ) -> Generator[MatchUpdate, None, list[Column]]:
        """Answer a match and save it once both answers are complete; nothing is saved after `cancel`.

        Returns the columns that failed.
        """
        created = utc_timestamp()
        comparison = Comparison(match.problem, match.methods, pool=match.pool, owner=session)
        yield MatchUpdate("Two methods were drawn.", match)
        with (
            self.context.visitors.quota.reserve(visitor.id, len(match.methods), visitor.address),
            self.context.run_queue.enqueue(visitor.id, visitor.address) as ticket,
        ):
            while ahead := ticket.wait(_WAIT_SECONDS):
                if cancel.is_set():
                    return []
                yield MatchUpdate(f"Waiting: {ahead} run{'' if ahead == 1 else 's'} before yours.", match)
            yield MatchUpdate(
                "Both are answering. You see them when both are done, so that speed gives no hint.", match
            )
            (columns,) = deque(compare(engine, comparison, cancel, self.context.score), maxlen=1)
        if cancel.is_set() or any(column.state == "stopped" for column in columns):
            return []
        failed = [column for column in columns if column.state == "failed"]
        for column in failed:
            _log.warning("%s gave no answer (%s): other methods are sampled.", column.method, column.error)
        if not failed:
            records = tuple(make_record(column, comparison, engine.base, created) for column in columns)
            match = replace(match, records=records, answered=utc_timestamp())
            self.matches.save(visitor.id, match)
            yield MatchUpdate("", match)
        return failed

    def _wait_for_engine(self, cancel: Event) -> Generator[MatchUpdate, None, LLMEngine | None]:
        """Wait for the engine; None if `cancel` is set first."""
        while not cancel.is_set():
            engine = self.context.engine_loader.wait(_WAIT_SECONDS)
            if engine is not None:
                return engine
            state = self.context.engine_loader.state()
            yield MatchUpdate(f"Waiting for the model ({state.message.rstrip('.')}). The duel then starts by itself.")
        return None
