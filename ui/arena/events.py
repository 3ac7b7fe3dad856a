"""What happens on a click: every event asks the server whose duel it is, whatever the browser says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from errors import PeftArenaError
from evaluate.arena.vote import Winner
from ui.arena.answering import ELSEWHERE, Arena, Step
from ui.arena.blind import duel_board, empty_board
from ui.arena.duels import Duel
from ui.arena.form import filled, wish_of
from ui.arena.voting import cast
from ui.records import Record
from ui.testing import run_tests

if TYPE_CHECKING:
    from ui.arena.page import Page

DEFECT = "Something went wrong on our side, and the log says what. No vote was lost."
NOTHING_OPEN = "There is no duel to vote on: press n for one."
OTHER_WINDOW = "This is the duel that you opened in another window."
VOTED_BEFORE = "You have voted on this one: press n for the next."
STOPPED = "Stopped; nothing was voted."
CHOOSE = "Which answer would you rather use? Names follow after your vote."
_PATIENCE_SECONDS = 5.0
_log = logging.getLogger(__name__)
Update = dict[Any, Any]


class Events:
    """The functions behind the page's buttons, on one Arena."""

    def __init__(self, arena: Arena, page: Page) -> None:
        self._arena = arena
        self._page = page

    def fill(self, kept: Any) -> list[Any]:
        """The form, with what the browser kept and the methods that can be used now."""
        source = self._arena.context.source
        return filled(source.engine() if source.state().phase == "ready" else None, kept)

    def opened(self, request: gr.Request) -> Iterator[Update]:
        """The page is looked at: the visitor's duel stands there again."""
        visitor, session = self._arena.context.visitors.of(request), request.session_hash or ""
        if self._arena.duels.busy(visitor.id) == session:
            yield {self._page.status: gr.skip()}  # this very window is being answered
            return
        with self._arena.context.stops.running(session) as cancel:
            yield from self._steps(self._arena.open_duel(visitor, session, cancel), visitor.id)

    def following(
        self, request: gr.Request, shown: str, question: str, data: str, methods: list[str]
    ) -> Iterator[Update]:
        """Start, skip or next."""
        visitor, session = self._arena.context.visitors.of(request), request.session_hash or ""
        wish = wish_of(question, data, methods)
        with self._arena.context.stops.running(session) as cancel:
            yield from self._steps(self._arena.next_duel(visitor, session, wish, shown, cancel), visitor.id)

    def stop(self, request: gr.Request) -> None:
        """Ends this window's runs. A duel that was not answered yet is forgotten: no name was seen."""
        visitor = self._arena.context.visitors.of(request)
        self._arena.context.stops.stop(request.session_hash or "")
        with self._arena.duels.turn(visitor.id, seconds=5) as held:
            duel = self._arena.duels.open(visitor.id) if held else None
            if duel is not None and not duel.records:
                self._arena.duels.drop(visitor.id)

    def show_reference(self, request: gr.Request, shown: str) -> Update:
        """Before the vote on request, and the vote says so."""
        return self._changed(request, shown, lambda _, duel: replace(duel, reference_seen=True))

    def voter(self, winner: Winner) -> Callable[..., Update]:
        """The function behind one of the four buttons."""

        def keep(visitor: str, duel: Duel) -> Duel:
            if duel.voted:
                raise PeftArenaError(VOTED_BEFORE)
            return cast(self._arena.votes, visitor, duel, winner)

        def vote(request: gr.Request, shown: str) -> Update:
            return self._changed(request, shown, keep)

        return vote

    def run_tests(self, request: gr.Request, shown: str) -> Iterator[Update]:
        """Both answers against the problem's tests, in the sandbox; a vote that follows says so."""
        visitor, session = self._arena.context.visitors.of(request).id, request.session_hash or ""
        duel, sentence = self._open(visitor, shown)
        if sentence or duel is None or not duel.problem.tests:
            yield self._shown(duel, sentence)
            return
        records = duel.records
        with self._arena.context.stops.running(session) as cancel:
            for testing in run_tests(self._arena.context.bench, duel.records, duel.problem.tests, cancel):
                records = testing.records
                # Who votes meanwhile sees the names at once: what is painted is the duel as it stands now.
                now = self._arena.duels.open(visitor) or duel
                board = duel_board(replace(now, records=records), testing.pending)
                yield {
                    self._page.status: _line(testing.status), self._page.board: board,
                    self._page.run: gr.Button(visible=False), self._page.stop: gr.Button(visible=True),
                }  # fmt: skip
        with self._arena.duels.turn(visitor, session):
            now = self._arena.duels.open(visitor) or duel
            if now.id == duel.id:
                now = replace(now, records=records, tests_run=_ran(records))
                self._arena.duels.save(visitor, now)
        yield self._shown(now)

    def _changed(self, request: gr.Request, shown: str, change: Callable[[str, Duel], Duel]) -> Update:
        """The visitor's duel changed and kept, if it is the one that this window shows; else a sentence why not."""
        visitor = self._arena.context.visitors.of(request).id
        with self._arena.duels.turn(visitor, request.session_hash or "", _PATIENCE_SECONDS) as held:
            duel, sentence = self._open(visitor, shown)
            if not held or duel is None or sentence:
                return self._shown(duel, sentence or ELSEWHERE)
            try:
                changed = change(visitor, duel)
                self._arena.duels.save(visitor, changed)
            except PeftArenaError as fault:
                return self._shown(duel, str(fault))
            return self._shown(changed)

    def _open(self, visitor: str, shown: str) -> tuple[Duel | None, str]:
        """The visitor's duel, and why it is none that this window can vote on; '' where it is one."""
        duel = self._arena.duels.open(visitor)
        if duel is None or not duel.records:
            return None, NOTHING_OPEN
        return duel, OTHER_WINDOW if shown and shown != duel.id else ""

    def _steps(self, steps: Iterator[Step], visitor: str) -> Iterator[Update]:
        """The steps of a draw as updates, and what is there when they end, however that is."""
        last: Step | None = None
        try:
            for last in steps:
                yield self._painted(last)
        except PeftArenaError as fault:
            yield self._shown(self._arena.duels.open(visitor), str(fault))
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("A duel failed.")
            yield self._shown(self._arena.duels.open(visitor), DEFECT)
        else:
            # A generator that says nothing would empty the page.
            if last is None or last.duel is None or not last.duel.records:
                yield self._shown(None, STOPPED if last else "")

    def _painted(self, step: Step) -> Update:
        if step.duel is not None and step.duel.records:
            return self._shown(step.duel)
        page = self._page
        changes: Update = {
            page.status: _line(step.status), page.outcome: "", page.voting: gr.Row(visible=False),
            page.run: gr.Button(visible=False), page.reference: gr.Button(visible=False),
            page.next: gr.Button(visible=False), page.stop: gr.Button(visible=True),
        }  # fmt: skip
        return changes if step.duel is None else {**changes, page.board: duel_board(step.duel)}

    def _shown(self, duel: Duel | None, sentence: str = "") -> Update:
        """A duel with both answers, before the vote or after it; the introduction where there is none."""
        page, problem = self._page, duel.problem if duel else None
        blind = duel is not None and not duel.voted
        label = "Start (n)" if duel is None else "Skip (n)" if blind else "Next (n)"
        testable = duel is not None and problem is not None and bool(problem.tests) and not _ran(duel.records)
        unseen = duel is not None and blind and bool(duel.problem.reference) and not duel.reference_seen
        return {
            page.status: _sentence(sentence) if sentence else _line(CHOOSE) if blind else "",
            page.board: duel_board(duel) if duel else empty_board(),
            page.outcome: duel.said if duel else "",
            page.voting: gr.Row(visible=blind),
            page.run: gr.Button(visible=testable),
            page.reference: gr.Button(visible=unseen),
            page.next: gr.Button(label, visible=True, variant="secondary" if blind else "primary"),
            page.stop: gr.Button(visible=False),
            page.shown: duel.id if duel else "",
        }


def _ran(records: Sequence[Record]) -> bool:
    return any(record["tests"] for record in records)


def _line(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _sentence(text: object) -> str:
    return f'<p class="sentence">{escape(str(text))}</p>'
