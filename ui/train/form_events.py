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

from errors import PromptOrTuneError
from jobs.board import JobService
from tasks.datasets import STARTER, load_examples
from ui.context import Context
from ui.train import cards, report, settings_form
from ui.train.drafts import Draft, DraftStore
from ui.train.filled import FormValues, find_unused_name, suggest_adapter_name, train_config_fields
from ui.train.form import NO_LOCAL_BASE, TrainForm
from ui.train.form_report import PreviewReporter, Updates, draft_key
from ui.train.where import denied_reason
from ui.visitors import Visitor

NO_ROWS = "There is nothing to learn from yet: drop a file, name a data set, or try the example rows."
EXAMPLE_ROWS = 60
# Fields are looked at when nobody has typed for so many seconds.
DEBOUNCE_SECONDS = 0.6


class TrainFormHandlers:
    """Behind the form, for all visitors."""

    def __init__(self, context: Context, form: TrainForm, job_service: JobService) -> None:
        self.context, self.form, self.job_service = context, form, job_service
        self.drafts = DraftStore(context.home)
        self.reporter = PreviewReporter(context, form, self.drafts)
        self._submit_lock = threading.Lock()

    def restore_draft(self, request: gr.Request, rendered_key: str, *values: Any) -> Iterator[Updates]:
        """The page is looked at: what this visitor may do, and the draft that a refresh would have lost."""
        form, visitor = self.form, self.context.visitors.identify(request)
        refused = self._denied_reason(visitor, "here")
        yield {form.start: gr.Button(interactive=refused is None), form.start_note: _error_html(refused)}
        draft = self.drafts.get(visitor.id)
        if draft is None or rendered_key == draft_key(draft):
            return
        technique = draft.technique or FormValues.parse(values).technique
        yield {
            **self.reporter.settings_updates(settings_form.settings_updates(technique, draft.settings)),
            form.technique: technique,
            form.dataset_name: gr.skip() if draft.is_file else draft.name,
        }
        yield from self._report(request, visitor, draft, fresh=True)

    def close_session(self, request: gr.Request) -> None:
        """The page is closed: nobody waits for a report."""
        self.reporter.preview_client.cancel_session(request.session_hash or "")

    def upload(self, request: gr.Request, path: str | None, *values: Any) -> Iterator[Updates]:
        """A file came."""
        yield self._no_change
        if path:
            limit = self.context.visitors.policy.limits.upload_bytes
            yield from self._load_rows(
                request, values, lambda visitor: self.drafts.save_upload(visitor, Path(path), limit)
            )

    def select_dataset(self, request: gr.Request, name: str, *values: Any) -> Iterator[Updates]:
        """A data set was named."""
        yield from self._load_rows(request, values, lambda visitor: self.drafts.select_dataset(visitor, name or ""))

    def load_example(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """The example rows, as a file that the visitor might have."""

        def take(visitor: str) -> Draft:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"example-{EXAMPLE_ROWS}.csv"
                with path.open("w", encoding="utf-8", newline="") as file:
                    rows = [(each.intent, each.code) for each in load_examples(STARTER)[:EXAMPLE_ROWS]]
                    csv.writer(file).writerows([("intent", "snippet"), *rows])
                return self.drafts.save_upload(visitor, path, 0)

        yield from self._load_rows(request, values, take)

    def change_columns(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Other columns were chosen."""
        yield self._no_change
        visitor, filled = self.context.visitors.identify(request), FormValues.parse(values)
        draft = self.drafts.get(visitor.id)
        if draft is None or not (filled.intent and filled.code):
            return
        chosen = (filled.intent, filled.code)
        draft = replace(draft, columns=None if chosen == draft.recognised else chosen)
        self.drafts.save(visitor.id, draft)
        yield from self._report(request, visitor, draft, fresh=True)

    def change_setting(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """A setting was changed."""
        yield from self._settings_changed(request, FormValues.parse(values))

    def change_technique(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Another technique or preset was chosen, which decides some of the settings."""
        yield self._no_change
        filled = FormValues.parse(values)
        if filled.technique not in cards.technique_choices(self.context.serving):
            return
        settings = settings_form.apply_technique(filled.technique, filled.settings)
        draft = self.drafts.get(self.context.visitors.identify(request).id)
        if draft and settings.get("adapter_name", "").startswith(suggest_adapter_name(draft.technique, draft.name)):
            settings["adapter_name"] = self._unused_adapter_name(filled.technique, draft)
        yield self.reporter.settings_updates(settings_form.settings_updates(filled.technique, settings))
        yield from self._settings_changed(request, replace(filled, settings=settings))

    def change_location(self, request: gr.Request, *values: Any) -> Updates:
        """Another machine was chosen: whether this visitor may use it, and the command for it."""
        visitor, filled = self.context.visitors.identify(request), FormValues.parse(values)
        updates: Updates = {self.form.start_note: _error_html(self._denied_reason(visitor, filled.location))}
        draft = self.drafts.get(visitor.id)
        if draft is not None:
            draft = replace(draft, technique=filled.technique, settings=filled.settings)
            updates |= self.reporter.commands(draft, filled.flavor)
        return updates

    def clear(self, request: gr.Request) -> Updates:
        """The visitor wants nothing of theirs kept."""
        self.close_session(request)
        self.drafts.delete(self.context.visitors.identify(request).id)
        form = self.form
        empty = dict.fromkeys(
            (form.note, form.progress, form.report, form.examples, form.cost, form.dataset_name, form.draft_key), ""
        )
        return {**empty, form.file: None}

    def start(self, request: gr.Request, *values: Any) -> Updates:
        """Begins a job; the panel below shows it."""
        form, visitor, filled = self.form, self.context.visitors.identify(request), FormValues.parse(values)
        draft = self.drafts.get(visitor.id)
        refused = self._denied_reason(visitor, filled.location) or (NO_ROWS if draft is None else None)
        if refused or draft is None:
            return {form.start_note: _error_html(refused)}
        draft = replace(draft, technique=filled.technique, settings=filled.settings)
        hub = filled.location == "hub"
        try:
            with self._submit_lock:
                self._check_job_limit(visitor)
                job = self.job_service.submit(
                    train_config_fields(draft, self.context.serving),
                    self.context.serving,
                    owner=visitor.id,
                    data_name=draft.name,
                    data=self.drafts.path(visitor.id, draft) if draft.is_file else None,
                    where="hub" if hub else "here",
                    flavor=filled.flavor if hub else "",
                )
        except PromptOrTuneError as fault:
            return self.reporter.error_updates(fault, form.start_note)
        free = find_unused_name(job.adapter, self.context.home, self.job_service.list_jobs())
        self.drafts.save(visitor.id, replace(draft, settings={**draft.settings, "adapter_name": free}))
        return {
            **self.reporter.settings_updates(settings_form.error_updates("", "")),
            form.fields[0]: gr.update(value=free, info=settings_form.ALL_SETTINGS[0].help, elem_classes=[]),
            form.start_note: f'<p class="started">{report.escape_visible(job.adapter)} has its place below.</p>',
            form.selected_job: job.id,
        }

    @property
    def _no_change(self) -> Updates:
        """No change: Gradio empties all outputs of a generator that ends without a word."""
        return {self.form.draft_key: gr.skip()}

    def _denied_reason(self, visitor: Visitor, location: str) -> str | None:
        return denied_reason(self.context, visitor, location) or (None if self.context.serving.base else NO_LOCAL_BASE)

    def _check_job_limit(self, visitor: Visitor) -> None:
        most = self.context.visitors.policy.limits.jobs_at_once
        going = sum(job.owner == visitor.id and not job.is_ended for job in self.job_service.list_jobs())
        if 0 < most <= going:
            raise PromptOrTuneError(
                f"You have {going} job{'' if going == 1 else 's'} under way, and {most} is the limit for one person: "
                "wait until one has ended, or cancel one."
            )

    def _unused_adapter_name(self, technique: str, draft: Draft) -> str:
        """A name for an adapter of these rows that is free now."""
        return find_unused_name(
            suggest_adapter_name(technique, draft.name), self.context.home, self.job_service.list_jobs()
        )

    def _load_rows(self, request: gr.Request, values: Sequence[Any], load: Callable[[str], Draft]) -> Iterator[Updates]:
        """New rows: they are kept, get a name, and are looked at."""
        form, visitor, filled = self.form, self.context.visitors.identify(request), FormValues.parse(values)
        try:
            draft = load(visitor.id)
        except PromptOrTuneError as fault:
            yield {form.note: _error_html(str(fault)), form.file: None}
            return
        name = self._unused_adapter_name(filled.technique, draft)
        settings = {**settings_form.apply_technique(filled.technique, filled.settings), "adapter_name": name}
        draft = replace(draft, technique=filled.technique, settings=settings)
        self.drafts.save(visitor.id, draft)
        yield {
            **self.reporter.settings_updates(settings_form.settings_updates(filled.technique, settings)),
            form.file: None,
            form.dataset_name: "" if draft.is_file else draft.name,
        }
        yield from self._report(request, visitor, draft, fresh=True)

    def _settings_changed(self, request: gr.Request, form_values: FormValues) -> Iterator[Updates]:
        """Settings are kept with the rows when nobody types any more, and the rows are looked at again."""
        yield self._no_change
        visitor = self.context.visitors.identify(request)
        turn = self.reporter.preview_client.new_request(request.session_hash or "")
        draft = self.drafts.get(visitor.id)
        if draft is None or not turn.debounce(DEBOUNCE_SECONDS):
            return
        draft = replace(draft, technique=form_values.technique, settings=form_values.settings)
        self.drafts.save(visitor.id, draft)
        yield from self._report(request, visitor, draft, fresh=False)

    def _report(self, request: gr.Request, visitor: Visitor, draft: Draft, *, fresh: bool) -> Iterator[Updates]:
        return self.reporter.report(request.session_hash or "", visitor.id, draft, fresh=fresh)


def _error_html(text: str | None) -> str:
    return report.error_html(text) if text else ""
