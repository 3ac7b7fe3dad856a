"""The report on a visitor's rows, painted step by step as the look at them goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from errors import PeftArenaError
from jobs.request import settled
from tasks.datasets import DATASETS
from ui.context import Context
from ui.train import report, settings_form
from ui.train.drafts import Draft, Drafts
from ui.train.filled import config, without_flags
from ui.train.form import Form
from ui.train.looker import Event, Looker, Turn
from ui.train.where import shown

Updates = dict[Any, Any]
DEFECT = "Something went wrong on our side, and the log says what. Your rows are kept."
LOOKING = "Looking at your rows ..."
LOADING = "The model is still being loaded; what it makes of your rows is counted as soon as it is there ..."
_TICK = 0.3
# A dropdown that is still being drawn forgets its value (gradio 6.31); so it is told again so many seconds later.
_MOUNTED = 1.0
_log = logging.getLogger(__name__)


class Reporter:
    """Paints the form's report; it changes no rows and begins nothing."""

    def __init__(self, context: Context, form: Form, drafts: Drafts) -> None:
        self.context, self.form, self.drafts = context, form, drafts
        self.looker = Looker(context.home)

    def report(self, asker: str, visitor: str, draft: Draft, *, fresh: bool) -> Iterator[Updates]:
        """All updates; `fresh` where the rows are others than those that are shown. A newer report ends this one."""
        form, turn = self.form, self.looker.turn(asker)
        begin: Updates = {form.note: "", form.busy: report.progress(LOOKING), form.shown: key(draft)}
        if fresh:
            begin |= {form.report: report.title(draft), form.examples: "", form.cost: ""}
        yield begin
        try:
            path = self.drafts.path(visitor, draft) if draft.is_file else None
            values = settled(config(draft, self.context.serving), self.context.serving, path)
            yield self.fields(settings_form.marked("", "")) | self.commands(draft)
            facts: Mapping[str, Any] | None = None
            table: Mapping[str, Any] | None = None
            for event in self._events(turn, values):
                facts, table = event.get("facts", facts), event.get("table", table)
                if "table" in event:
                    draft = self._recognised(visitor, draft, event["table"])
                if updates := self._updates(draft, facts, event, fresh=fresh):
                    yield updates
            if fresh and table and (draft.columns or draft.recognised) and turn.settle(_MOUNTED):
                yield self._mapping(draft, table)
        except PeftArenaError as fault:
            yield {form.busy: "", **self.wrong(fault, form.note)}
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("The rows could not be looked at.")
            yield {form.busy: "", form.note: report.sentence(DEFECT)}

    def wrong(self, fault: PeftArenaError, note: gr.HTML) -> Updates:
        """The sentence in the note, and at its field where it is about one."""
        name, sentence = settings_form.wrong(without_flags(str(fault)))
        return {**self.fields(settings_form.marked(name, sentence)), note: report.sentence(sentence)}

    def fields(self, updates: Sequence[Any]) -> Updates:
        """Updates for all fields of settings, by component."""
        return dict(zip(self.form.fields, updates, strict=True))

    def _events(self, turn: Turn, values: Mapping[str, Any]) -> Iterator[Event]:
        """What the rows are at once, and what the base makes of them when it is loaded."""
        source, only_rows = self.context.source, {**values, "model_name_or_path": ""}
        if not self.context.serving.base:
            yield from self.looker.look(turn, only_rows)
            yield {"line": ""}
            return
        if source.state().phase == "loading":
            last: Event = {}
            for last in self.looker.look(turn, only_rows):
                yield last
            if "facts" not in last and values["dataset_name"] not in DATASETS:
                return
            yield {"line": LOADING}
            while source.state().phase == "loading":
                if not turn.settle(_TICK):
                    return
        if source.state().phase == "failed":
            yield {"refused": source.state().message}
            return
        yield from self.looker.look(turn, values)

    def _updates(self, draft: Draft, facts: Mapping[str, Any] | None, event: Event, *, fresh: bool) -> Updates:
        """What one event of the look changes on the page."""
        form = self.form
        if "line" in event:
            return {form.busy: report.progress(event["line"]) if event["line"] else ""}
        if "table" in event:
            heading = {form.report: report.title(draft, columns=True)} if fresh else {}
            return self._mapping(draft, event["table"]) | heading
        if "facts" in event:
            return {form.report: report.facts_html(draft, event["facts"])} if fresh else {}
        if "preflight" in event:
            found = event["preflight"]
            return {
                form.busy: "",
                form.report: report.report_html(draft, facts, found),
                form.examples: report.examples_html(found),
                form.cost: report.cost_html(found),
            }
        sentence = str(event.get("question") or event.get("refused") or event.get("defect") or DEFECT)
        return {form.busy: "", form.examples: "", form.cost: "", **self.wrong(PeftArenaError(sentence), form.note)}

    def _recognised(self, visitor: str, draft: Draft, table: Mapping[str, Any]) -> Draft:
        intent, code = table["recognised"] or ("", "")
        found = (intent, code) if intent else None
        if found != draft.recognised:
            draft = replace(draft, recognised=found)
            self.drafts.save(visitor, draft)
        return draft

    def _mapping(self, draft: Draft, table: Mapping[str, Any]) -> Updates:
        """The two dropdowns with the file's columns."""
        intent, code = draft.columns or draft.recognised or (None, None)
        choices = [(report.label(name), name) for name in table["columns"]]
        return {
            self.form.intent: gr.Dropdown(choices=choices, value=intent),
            self.form.code: gr.Dropdown(choices=choices, value=code),
        }

    def commands(self, draft: Draft, flavor: str = "") -> Updates:
        """The commands that do the same elsewhere."""
        serving = self.context.serving
        if not serving.base:
            return {}
        updates = shown(config(draft, serving), serving, draft.name if draft.is_file else "", flavor)
        return dict(zip(self.form.where.commands, updates, strict=True))


def key(draft: Draft) -> str:
    """Changes with the rows and the columns that are read of them."""
    return f"{draft.name}:{draft.digest}:{draft.columns}"
