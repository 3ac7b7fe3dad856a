"""From a draw to two answers. Nothing is shown before both stand, so that neither speed nor length tells a name."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING

from errors import PromptOrTuneError
from evaluate.arena.votes import VoteStore
from ui.arena.drawing import MatchRequest, arena_base, sample_match
from ui.arena.duels import Match, MatchStore
from ui.compare_run import Column, Comparison, compare
from ui.context import Context
from ui.live import utc_timestamp
from ui.records import make_record
from ui.visitors import Visitor

if TYPE_CHECKING:
    from serve.engine import LLMEngine

MAX_ATTEMPTS = 4
LOCKED_BY_OTHER_WINDOW = "Another window of yours is being answered."
NO_ANSWERS = "No two of the chosen methods gave an answer. One of them said: {error}"
_WAIT_SECONDS = 0.25
_log = logging.getLogger(__name__)


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
