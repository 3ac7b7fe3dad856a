"""What happens on the upper half of the Train page: rows are taken and looked at, and a job begins.

Everything is decided here on the server, from the visitor's draft and the fields; each event yields what changed.
"""

from __future__ import annotations

import csv
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PeftArenaError
from jobs.board import JobBoard
from tasks.datasets import STARTER, load_examples
from ui.context import Context
from ui.train import cards, report, settings_form
from ui.train.drafts import Draft, Drafts
from ui.train.filled import Filled, config, free_name, suggested
from ui.train.form import OTHER_ENGINE, Form
from ui.train.form_report import Reporter, Updates, key
from ui.train.where import refusal
from ui.visitors import Visitor

NO_ROWS = "There is nothing to learn from yet: drop a file, name a data set, or try the example rows."
EXAMPLE_ROWS = 60
# Fields are looked at when nobody has typed for so many seconds.
SETTLE = 0.6


class FormDesk:
    """Behind the form, for all visitors."""

    def __init__(self, context: Context, form: Form, board: JobBoard) -> None:
        self.context, self.form, self.board = context, form, board
        self.drafts = Drafts(context.home)
        self.reporter = Reporter(context, form, self.drafts)
        self._starting = threading.Lock()

    def opened(self, request: gr.Request, seen: str, *values: Any) -> Iterator[Updates]:
        """The page is looked at: what this visitor may do, and the draft that a refresh would have lost."""
        form, visitor = self.form, self.context.visitors.of(request)
        refused = self._refused(visitor, "here")
        yield {form.start: gr.Button(interactive=refused is None), form.start_note: _sentence(refused)}
        draft = self.drafts.get(visitor.id)
        if draft is None or seen == key(draft):
            return
        technique = draft.technique or Filled.of(values).technique
        yield {
            **self.reporter.fields(settings_form.filled(technique, draft.settings)),
            form.technique: technique,
            form.named: gr.skip() if draft.is_file else draft.name,
        }
        yield from self._report(request, visitor, draft, fresh=True)

    def left(self, request: gr.Request) -> None:
        """The page is closed: nobody waits for a report."""
        self.reporter.looker.leave(request.session_hash or "")

    def upload(self, request: gr.Request, path: str | None, *values: Any) -> Iterator[Updates]:
        """A file came."""
        yield self._as_it_is
        if path:
            limit = self.context.visitors.policy.limits.upload_bytes
            yield from self._taken(request, values, lambda visitor: self.drafts.take(visitor, Path(path), limit))

    def name(self, request: gr.Request, name: str, *values: Any) -> Iterator[Updates]:
        """A data set was named."""
        yield from self._taken(request, values, lambda visitor: self.drafts.name(visitor, name or ""))

    def example(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """The example rows, as a file that the visitor might have."""

        def take(visitor: str) -> Draft:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"example-{EXAMPLE_ROWS}.csv"
                with path.open("w", encoding="utf-8", newline="") as file:
                    rows = [(each.intent, each.code) for each in load_examples(STARTER)[:EXAMPLE_ROWS]]
                    csv.writer(file).writerows([("intent", "snippet"), *rows])
                return self.drafts.take(visitor, path, 0)

        yield from self._taken(request, values, take)

    def remap(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Other columns were chosen."""
        yield self._as_it_is
        visitor, filled = self.context.visitors.of(request), Filled.of(values)
        draft = self.drafts.get(visitor.id)
        if draft is None or not (filled.intent and filled.code):
            return
        chosen = (filled.intent, filled.code)
        draft = replace(draft, columns=None if chosen == draft.recognised else chosen)
        self.drafts.save(visitor.id, draft)
        yield from self._report(request, visitor, draft, fresh=True)

    def retune(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """A setting was changed."""
        yield from self._changed(request, Filled.of(values))

    def rechoose(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Another technique or preset was chosen, which decides some of the settings."""
        yield self._as_it_is
        filled = Filled.of(values)
        if filled.technique not in cards.offered(self.context.serving):
            return
        settings = settings_form.decided(filled.technique, filled.settings)
        draft = self.drafts.get(self.context.visitors.of(request).id)
        if draft and settings.get("adapter_name", "").startswith(suggested(draft.technique, draft.name)):
            settings["adapter_name"] = self._named(filled.technique, draft)
        yield self.reporter.fields(settings_form.filled(filled.technique, settings))
        yield from self._changed(request, replace(filled, settings=settings))

    def place(self, request: gr.Request, *values: Any) -> Updates:
        """Another machine was chosen: whether this visitor may use it, and the command for it."""
        visitor, filled = self.context.visitors.of(request), Filled.of(values)
        updates: Updates = {self.form.start_note: _sentence(self._refused(visitor, filled.place))}
        draft = self.drafts.get(visitor.id)
        if draft is not None:
            draft = replace(draft, technique=filled.technique, settings=filled.settings)
            updates |= self.reporter.commands(draft, filled.flavor)
        return updates

    def forget(self, request: gr.Request) -> Updates:
        """The visitor wants nothing of theirs kept."""
        self.left(request)
        self.drafts.forget(self.context.visitors.of(request).id)
        form = self.form
        empty = dict.fromkeys((form.note, form.busy, form.report, form.examples, form.cost, form.named, form.shown), "")
        return {**empty, form.file: None}

    def start(self, request: gr.Request, *values: Any) -> Updates:
        """Begins a job; the panel below shows it."""
        form, visitor, filled = self.form, self.context.visitors.of(request), Filled.of(values)
        draft = self.drafts.get(visitor.id)
        refused = self._refused(visitor, filled.place) or (NO_ROWS if draft is None else None)
        if refused or draft is None:
            return {form.start_note: _sentence(refused)}
        draft = replace(draft, technique=filled.technique, settings=filled.settings)
        hub = filled.place == "hub"
        try:
            with self._starting:
                self._check_jobs(visitor)
                job = self.board.submit(
                    config(draft, self.context.serving),
                    self.context.serving,
                    owner=visitor.id,
                    data_name=draft.name,
                    data=self.drafts.path(visitor.id, draft) if draft.is_file else None,
                    where="hub" if hub else "here",
                    flavor=filled.flavor if hub else "",
                )
        except PeftArenaError as fault:
            return self.reporter.wrong(fault, form.start_note)
        free = free_name(job.adapter, self.context.home, self.board.jobs())
        self.drafts.save(visitor.id, replace(draft, settings={**draft.settings, "adapter_name": free}))
        return {
            **self.reporter.fields(settings_form.marked("", "")),
            form.fields[0]: gr.update(value=free, info=settings_form.ALL[0].help, elem_classes=[]),
            form.start_note: f'<p class="started">{report.visible(job.adapter)} has its place below.</p>',
            form.chosen: job.id,
        }

    @property
    def _as_it_is(self) -> Updates:
        """No change: Gradio empties all outputs of a generator that ends without a word."""
        return {self.form.shown: gr.skip()}

    def _refused(self, visitor: Visitor, place: str) -> str | None:
        return refusal(self.context, visitor, place) or (None if self.context.serving.base else OTHER_ENGINE)

    def _check_jobs(self, visitor: Visitor) -> None:
        most = self.context.visitors.policy.limits.jobs_at_once
        going = sum(job.owner == visitor.id and not job.over for job in self.board.jobs())
        if 0 < most <= going:
            raise PeftArenaError(
                f"You have {going} job{'' if going == 1 else 's'} under way, and {most} is the limit for one person: "
                "wait until one has ended, or cancel one."
            )

    def _named(self, technique: str, draft: Draft) -> str:
        """A name for an adapter of these rows that is free now."""
        return free_name(suggested(technique, draft.name), self.context.home, self.board.jobs())

    def _taken(self, request: gr.Request, values: Sequence[Any], take: Callable[[str], Draft]) -> Iterator[Updates]:
        """New rows: they are kept, get a name, and are looked at."""
        form, visitor, filled = self.form, self.context.visitors.of(request), Filled.of(values)
        try:
            draft = take(visitor.id)
        except PeftArenaError as fault:
            yield {form.note: _sentence(str(fault)), form.file: None}
            return
        name = self._named(filled.technique, draft)
        settings = {**settings_form.decided(filled.technique, filled.settings), "adapter_name": name}
        draft = replace(draft, technique=filled.technique, settings=settings)
        self.drafts.save(visitor.id, draft)
        yield {
            **self.reporter.fields(settings_form.filled(filled.technique, settings)),
            form.file: None,
            form.named: "" if draft.is_file else draft.name,
        }
        yield from self._report(request, visitor, draft, fresh=True)

    def _changed(self, request: gr.Request, filled: Filled) -> Iterator[Updates]:
        """Settings are kept with the rows when nobody types any more, and the rows are looked at again."""
        yield self._as_it_is
        visitor = self.context.visitors.of(request)
        turn = self.reporter.looker.turn(request.session_hash or "")
        draft = self.drafts.get(visitor.id)
        if draft is None or not turn.settle(SETTLE):
            return
        draft = replace(draft, technique=filled.technique, settings=filled.settings)
        self.drafts.save(visitor.id, draft)
        yield from self._report(request, visitor, draft, fresh=False)

    def _report(self, request: gr.Request, visitor: Visitor, draft: Draft, *, fresh: bool) -> Iterator[Updates]:
        return self.reporter.report(request.session_hash or "", visitor.id, draft, fresh=fresh)


def _sentence(text: str | None) -> str:
    return report.sentence(text) if text else ""
