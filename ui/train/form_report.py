"""The report on a visitor's rows, painted step by step as the look at them goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from jobs.request import resolve_settings
from tasks.datasets import DATASETS
from ui.context import Context
from ui.train import report, settings_form
from ui.train.drafts import Draft, DraftStore
from ui.train.filled import flags_to_setting_names, train_config_fields
from ui.train.form import TrainForm
from ui.train.looker import Event, PreviewClient, PreviewRequest
from ui.train.where import command_updates

Updates = dict[Any, Any]
INTERNAL_ERROR = "Something went wrong on our side, and the log says what. Your rows are kept."
READING_ROWS = "Looking at your rows ..."
MODEL_LOADING = "The model is still being loaded; what it makes of your rows is counted as soon as it is there ..."
_POLL_SECONDS = 0.3
# A dropdown that is still being drawn forgets its value (gradio 6.31); so it is told again so many seconds later.
_MOUNT_DELAY_SECONDS = 1.0
_log = logging.getLogger(__name__)


class PreviewReporter:
    """Paints the form's report; it changes no rows and begins nothing."""

    def __init__(self, context: Context, form: TrainForm, drafts: DraftStore) -> None:
        self.context, self.form, self.drafts = context, form, drafts
        self.preview_client = PreviewClient(context.home)

    def report(self, session: str, visitor: str, draft: Draft, *, fresh: bool) -> Iterator[Updates]:
        """All updates; `fresh` where the rows are others than those that are shown. A newer report ends this one."""
        form, turn = self.form, self.preview_client.new_request(session)
        begin: Updates = {
            form.note: "",
            form.progress: report.progress_html(READING_ROWS),
            form.draft_key: draft_key(draft),
        }
        if fresh:
            begin |= {form.report: report.title_html(draft), form.examples: "", form.cost: ""}
        yield begin
        try:
            path = self.drafts.path(visitor, draft) if draft.is_file else None
            values = resolve_settings(train_config_fields(draft, self.context.serving), self.context.serving, path)
            yield self.settings_updates(settings_form.error_updates("", "")) | self.commands(draft)
            facts: Mapping[str, Any] | None = None
            table: Mapping[str, Any] | None = None
            for event in self._preview_events(turn, values):
                facts, table = event.get("facts", facts), event.get("table", table)
                if "table" in event:
                    draft = self._save_recognised_columns(visitor, draft, event["table"])
                if updates := self._event_updates(draft, facts, event, fresh=fresh):
                    yield updates
            if fresh and table and (draft.columns or draft.recognised) and turn.debounce(_MOUNT_DELAY_SECONDS):
                yield self._column_updates(draft, table)
        except PromptOrTuneError as fault:
            yield {form.progress: "", **self.error_updates(fault, form.note)}
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("The rows could not be looked at.")
            yield {form.progress: "", form.note: report.error_html(INTERNAL_ERROR)}

    def error_updates(self, error: PromptOrTuneError, note: gr.HTML) -> Updates:
        """The sentence in the note, and at its field where it is about one."""
        name, sentence = settings_form.locate_error(flags_to_setting_names(str(error)))
        return {**self.settings_updates(settings_form.error_updates(name, sentence)), note: report.error_html(sentence)}

    def settings_updates(self, updates: Sequence[Any]) -> Updates:
        """Updates for all fields of settings, by component."""
        return dict(zip(self.form.fields, updates, strict=True))

    def _preview_events(self, request: PreviewRequest, values: Mapping[str, Any]) -> Iterator[Event]:
        """What the rows are at once, and what the base makes of them when it is loaded."""
        source, only_rows = self.context.engine_loader, {**values, "model_name_or_path": ""}
        if not self.context.serving.base:
            yield from self.preview_client.preview(request, only_rows)
            yield {"line": ""}
            return
        if source.state().phase == "loading":
            last: Event = {}
            for last in self.preview_client.preview(request, only_rows):
                yield last
            if "facts" not in last and values["dataset_name"] not in DATASETS:
                return
            yield {"line": MODEL_LOADING}
            while source.state().phase == "loading":
                if not request.debounce(_POLL_SECONDS):
                    return
        if source.state().phase == "failed":
            yield {"refused": source.state().message}
            return
        yield from self.preview_client.preview(request, values)

    def _event_updates(self, draft: Draft, facts: Mapping[str, Any] | None, event: Event, *, fresh: bool) -> Updates:
        """What one event of the look changes on the page."""
        form = self.form
        if "line" in event:
            return {form.progress: report.progress_html(event["line"]) if event["line"] else ""}
        if "table" in event:
            heading = {form.report: report.title_html(draft, columns=True)} if fresh else {}
            return self._column_updates(draft, event["table"]) | heading
        if "facts" in event:
            return {form.report: report.facts_html(draft, event["facts"])} if fresh else {}
        if "preflight" in event:
            found = event["preflight"]
            return {
                form.progress: "",
                form.report: report.report_html(draft, facts, found),
                form.examples: report.examples_html(found),
                form.cost: report.cost_html(found),
            }
        sentence = str(event.get("question") or event.get("refused") or event.get("defect") or INTERNAL_ERROR)
        return {
            form.progress: "",
            form.examples: "",
            form.cost: "",
            **self.error_updates(PromptOrTuneError(sentence), form.note),
        }

    def _save_recognised_columns(self, visitor: str, draft: Draft, table: Mapping[str, Any]) -> Draft:
        intent, code = table["recognised"] or ("", "")
        found = (intent, code) if intent else None
        if found != draft.recognised:
            draft = replace(draft, recognised=found)
            self.drafts.save(visitor, draft)
        return draft

    def _column_updates(self, draft: Draft, table: Mapping[str, Any]) -> Updates:
        """The two dropdowns with the file's columns."""
        intent, code = draft.columns or draft.recognised or (None, None)
        choices = [(report.column_label(name), name) for name in table["columns"]]
        return {
            self.form.intent: gr.Dropdown(choices=choices, value=intent),
            self.form.code: gr.Dropdown(choices=choices, value=code),
        }

    def commands(self, draft: Draft, flavor: str = "") -> Updates:
        """The commands that do the same elsewhere."""
        serving = self.context.serving
        if not serving.base:
            return {}
        updates = command_updates(
            train_config_fields(draft, serving), serving, draft.name if draft.is_file else "", flavor
        )
        return dict(zip(self.form.target.commands, updates, strict=True))


def draft_key(draft: Draft) -> str:
    """Changes with the rows and the columns that are read of them."""
    return f"{draft.name}:{draft.digest}:{draft.columns}"
