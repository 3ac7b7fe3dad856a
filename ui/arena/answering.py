"""From a draw to two answers. Nothing is shown before both stand, so that neither speed nor length tells a name."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING

from errors import PeftArenaError
from evaluate.arena.votes import Votes
from ui.arena.drawing import Wish, base_of, draw_duel
from ui.arena.duels import Duel, Duels
from ui.compare_run import Ask, Column, compare
from ui.context import Context
from ui.live import now
from ui.records import make_record
from ui.visitors import Visitor

if TYPE_CHECKING:
    from serve.engine import Engine

ATTEMPTS = 4
ELSEWHERE = "Another window of yours is being answered."
NOBODY = "No two of the chosen methods gave an answer. One of them said: {error}"
_WAIT_SECONDS = 0.25
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A line of status; the duel once it is drawn, and with its records once both have answered."""

    status: str
    duel: Duel | None = None


class Arena:
    """What the page's events share: the app, the votes and the open duels."""

    def __init__(self, context: Context, votes: Votes, duels: Duels) -> None:
        self.context = context
        self.votes = votes
        self.duels = duels

    def next_duel(self, visitor: Visitor, session: str, wish: Wish, known: str, cancel: Event) -> Iterator[Step]:
        """Draws a duel and answers it; the last step has its records. PeftArenaError in one sentence.

        `known` is the id of the duel that the page shows: one that was drawn in another window comes first.
        """
        for duel in self._turn(visitor, session, cancel):
            if isinstance(duel, Step):
                yield duel
            elif duel is not None and not duel.voted and duel.id != known:
                yield from self._finish(duel, visitor, session, cancel)
            else:
                yield from self._draw(wish, visitor, session, cancel)

    def open_duel(self, visitor: Visitor, session: str, cancel: Event) -> Iterator[Step]:
        """The visitor's duel as it stands, answered first where that had not come to its end; nothing without one."""
        for duel in self._turn(visitor, session, cancel):
            if isinstance(duel, Step):
                yield duel
            elif duel is not None:
                yield from self._finish(duel, visitor, session, cancel)

    def _turn(self, visitor: Visitor, session: str, cancel: Event) -> Iterator[Step | Duel | None]:
        """Steps while another window has its turn; then, once, the open duel or None, with the turn held."""
        while not cancel.is_set():
            with self.duels.turn(visitor.id, session, _WAIT_SECONDS) as held:
                if held:
                    yield self.duels.open(visitor.id)
                    return
            yield Step(ELSEWHERE)

    def _finish(self, duel: Duel, visitor: Visitor, session: str, cancel: Event) -> Iterator[Step]:
        """A duel that is there already; one that was never answered is answered now."""
        if duel.records:
            yield Step("", duel)
            return
        engine = yield from self._engine(cancel)
        if engine is None:
            return
        if duel.base != base_of(engine):
            self.duels.drop(visitor.id)
            return
        failed = yield from self._answer(engine, duel, visitor, session, cancel)
        if failed:
            self.duels.drop(visitor.id)
            raise PeftArenaError(NOBODY.format(error=failed[0].error))

    def _draw(self, wish: Wish, visitor: Visitor, session: str, cancel: Event) -> Iterator[Step]:
        """A new duel; where a method fails it is left out, and others meet."""
        engine = yield from self._engine(cancel)
        if engine is None:
            return
        failed: list[Column] = []
        avoid: set[str] = set()
        for _ in range(ATTEMPTS):
            try:
                duel = draw_duel(engine, self.votes, visitor.id, wish, self.context.data_dir, avoid)
            except PeftArenaError as fault:
                raise PeftArenaError(NOBODY.format(error=failed[0].error)) if failed else fault from fault
            self.duels.save(visitor.id, duel)
            try:
                failed = yield from self._answer(engine, duel, visitor, session, cancel)
            except PeftArenaError:
                self.duels.drop(visitor.id)
                raise
            if not failed:
                return
            self.duels.drop(visitor.id)
            avoid |= {column.method for column in failed}
        raise PeftArenaError(NOBODY.format(error=failed[0].error))

    def _answer(
        self, engine: Engine, duel: Duel, visitor: Visitor, session: str, cancel: Event
    ) -> Generator[Step, None, list[Column]]:
        """Both answers, kept and shown together; the columns that failed. Nothing where `cancel` came first."""
        created = now()
        ask = Ask(duel.problem, duel.methods, pool=duel.pool, owner=session)
        yield Step("Two methods were drawn.", duel)
        with self.context.visitors.quota.rows(visitor.id, len(duel.methods)), self.context.line.join() as place:
            while before := place.wait(_WAIT_SECONDS):
                if cancel.is_set():
                    return []
                yield Step(f"Waiting: {before} run{'' if before == 1 else 's'} before yours.", duel)
            yield Step("Both are answering. You see them when both are done, so that speed gives no hint.", duel)
            (columns,) = deque(compare(engine, ask, cancel, self.context.score), maxlen=1)
        if cancel.is_set() or any(column.state == "stopped" for column in columns):
            return []
        failed = [column for column in columns if column.state == "failed"]
        for column in failed:
            _log.warning("%s gave no answer (%s): others meet.", column.method, column.error)
        if not failed:
            records = tuple(make_record(column, ask, engine.base, created) for column in columns)
            duel = replace(duel, records=records, answered=now())
            self.duels.save(visitor.id, duel)
            yield Step("", duel)
        return failed

    def _engine(self, cancel: Event) -> Generator[Step, None, Engine | None]:
        """The engine once it is loaded; None where `cancel` came first."""
        while not cancel.is_set():
            engine = self.context.source.poll(_WAIT_SECONDS)
            if engine is not None:
                return engine
            state = self.context.source.state()
            yield Step(f"Waiting for the model ({state.message.rstrip('.')}). The duel then starts by itself.")
        return None
