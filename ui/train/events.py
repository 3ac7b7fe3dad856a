"""Event handlers of the Train form: load rows, preview them, change settings, start a job.

Each handler reads the visitor's draft and the fields as the browser sent them, and yields updates by component. The
browser is not trusted: fields are parsed here, and rights and limits are checked here.
"""

from __future__ import annotations

import csv
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from adapters.manifest import Owner
from common.hub import HubAccess
from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import ServingOptions, resolve_settings
from tasks.datasets.registry import STARTER, is_dataset, load_examples
from ui.access.guard import action, login_token, may_use_own, own_names
from ui.access.policy import Visitor
from ui.components import error_html
from ui.context import Context, hub_access
from ui.train.drafts import (
    Draft,
    DraftStore,
    check_dataset_name,
    column_label,
    cost_html,
    examples_html,
    facts_html,
    progress_html,
    report_html,
    title_html,
)
from ui.train.form import NO_LOCAL_BASE, TrainForm, command_updates, denied_reason
from ui.train.preview import Event, PreviewClient, PreviewRequest
from ui.train.settings import (
    ALL_SETTINGS,
    apply_technique,
    error_updates,
    find_unused_name,
    locate_error,
    parse_settings,
    recommended_technique,
    settings_for_technique,
    settings_updates,
    suggest_adapter_name,
    technique_choices,
    training_quantization,
)

Updates = dict[Any, Any]
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. Your rows are still there."
READING_ROWS = "Reading your rows ..."
MODEL_LOADING = "The model is still being loaded; the tokens of your rows are counted when it is ready ..."
NO_ROWS = "There is nothing to learn from yet: drop a file, name a data set, or try the example rows."
EXAMPLE_ROWS = 60
# Seconds after the last change of a field until the rows are previewed again.
DEBOUNCE_SECONDS = 0.6
_POLL_SECONDS = 0.3
# Gradio 6.31: a dropdown that is still being mounted loses its value, so it is sent again after so many seconds.
_MOUNT_DELAY_SECONDS = 1.0
_FLAG_PATTERN = re.compile(r"--([a-z][a-z-]+)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FormValues:
    """Values of the form's fields as a browser sent them, in the order of TrainForm.inputs."""

    intent: str
    code: str
    technique: str
    location: str
    flavor: str
    settings: Mapping[str, Any]

    @classmethod
    def parse(cls, values: Sequence[Any]) -> FormValues:
        """Parse the values; anything that is not a string counts as empty."""
        first, fields = values[:5], values[5:]
        intent, code, technique, location, flavor = (value if isinstance(value, str) else "" for value in first)
        return cls(intent, code, technique, location, flavor, parse_settings(fields))


def train_config_fields(draft: Draft, serving: ServingOptions) -> dict[str, Any]:
    """Return the fields of TrainConfig for a draft, without those that a job takes from the served base.

    Raises PromptOrTuneError for a technique that the page does not offer.
    """
    technique = draft.technique or recommended_technique(serving)
    if technique not in technique_choices(serving):
        raise PromptOrTuneError("This technique is not offered here: choose one of those on the page.")
    settings = settings_for_technique(draft.settings, technique)
    intent, code = draft.columns or (None, None)
    return {
        "dataset_name": draft.name,
        "technique": technique,
        "quantization": training_quantization(technique, serving, str(settings.get("preset", "default"))),
        "intent_column": intent,
        "code_column": code,
        **settings,
    }


def flags_to_setting_names(message: str) -> str:
    """Replace the command-line flags in a message by the names of the settings."""
    return _FLAG_PATTERN.sub(lambda match: match[1].replace("-", "_"), message)


class PreviewReporter:
    """Previews the rows of a draft and yields the updates of the report. It changes no rows and starts no job."""

    def __init__(self, context: Context, form: TrainForm, drafts: DraftStore) -> None:
        self.context, self.form, self.drafts = context, form, drafts
        self.preview_client = PreviewClient(context.home)

    def report(
        self, session: str, visitor: Visitor, draft: Draft, *, fresh: bool, access: HubAccess
    ) -> Iterator[Updates]:
        """Yield all updates of a report; a newer report of the same session ends this one.

        A data set of the Hub is fetched with `access`. `fresh` says that the rows or columns differ from those on the
        page; else the old report stays until the new one is complete.
        """
        form, request = self.form, self.preview_client.new_request(session, visitor.id, visitor.address)
        first: Updates = {
            form.note: "",
            form.progress: progress_html(READING_ROWS),
            form.draft_key: draft_key(draft),
        }
        if fresh:
            first |= {form.report: title_html(draft), form.examples: "", form.cost: ""}
        yield first
        try:
            check_draft(self.context, visitor, draft)
            path = self.drafts.path(visitor.id, draft) if draft.is_file else None
            values = resolve_settings(train_config_fields(draft, self.context.serving), self.context.serving, path)
            yield self.settings_updates(error_updates("", "")) | self.commands(draft)
            facts: Mapping[str, Any] | None = None
            table: Mapping[str, Any] | None = None
            for event in self._preview_events(request, values, access):
                facts, table = event.get("facts", facts), event.get("table", table)
                if "table" in event:
                    draft = self._save_recognised_columns(visitor.id, draft, event["table"])
                if updates := self._event_updates(draft, facts, event, fresh=fresh):
                    yield updates
            if request.refusal:
                yield {form.progress: "", form.note: error_html(request.refusal)}
            if fresh and table and (draft.columns or draft.recognised) and request.debounce(_MOUNT_DELAY_SECONDS):
                yield self._column_updates(draft, table)
        except PromptOrTuneError as error:
            yield {form.progress: "", **self.error_updates(error, form.note)}
        except Exception:  # noqa: BLE001 - the page must survive any bug, which is logged
            _log.exception("The preview of the rows failed.")
            yield {form.progress: "", form.note: error_html(INTERNAL_ERROR)}

    def error_updates(self, error: PromptOrTuneError, note: gr.HTML) -> Updates:
        """Return updates that show an error in `note`, and at the field of the setting that it names."""
        name, message = locate_error(flags_to_setting_names(str(error)))
        return {
            **self.settings_updates(error_updates(name, message)),
            note: error_html(message),
        }

    def settings_updates(self, updates: Sequence[Any]) -> Updates:
        """Return updates of all setting fields by component."""
        return dict(zip(self.form.fields, updates, strict=True))

    def _preview_events(self, request: PreviewRequest, values: Mapping[str, Any], access: HubAccess) -> Iterator[Event]:
        """Yield the events of the rows alone at once, and those that need the base when it is loaded."""
        loader, only_rows = self.context.engine_loader, {**values, "model_name_or_path": ""}
        if not self.context.serving.base:
            yield from self.preview_client.preview(request, only_rows, access)
            yield {"progress": ""}
            return
        if loader.state().phase == "loading":
            last: Event = {}
            for last in self.preview_client.preview(request, only_rows, access):
                yield last
            if "facts" not in last and not is_dataset(str(values["dataset_name"])):
                return
            yield {"progress": MODEL_LOADING}
            while loader.state().phase == "loading":
                if not request.debounce(_POLL_SECONDS):
                    return
        if loader.state().phase == "failed":
            yield {"error": loader.state().message}
            return
        yield from self.preview_client.preview(request, values, access)

    def _event_updates(self, draft: Draft, facts: Mapping[str, Any] | None, event: Event, *, fresh: bool) -> Updates:
        """Return the updates for one event of the preview."""
        form = self.form
        if "progress" in event:
            return {form.progress: progress_html(event["progress"]) if event["progress"] else ""}
        if "table" in event:
            heading = {form.report: title_html(draft, columns=True)} if fresh else {}
            return self._column_updates(draft, event["table"]) | heading
        if "facts" in event:
            return {form.report: facts_html(draft, event["facts"])} if fresh else {}
        if "preflight" in event:
            preflight = event["preflight"]
            return {
                form.progress: "",
                form.report: report_html(draft, facts, preflight),
                form.examples: examples_html(preflight),
                form.cost: cost_html(preflight),
            }
        message = str(event.get("question") or event.get("error") or event.get("internal_error") or INTERNAL_ERROR)
        return {
            form.progress: "",
            form.examples: "",
            form.cost: "",
            **self.error_updates(PromptOrTuneError(message), form.note),
        }

    def _save_recognised_columns(self, visitor: str, draft: Draft, table: Mapping[str, Any]) -> Draft:
        intent, code = table["recognised"] or ("", "")
        columns = (intent, code) if intent else None
        if columns != draft.recognised:
            draft = replace(draft, recognised=columns)
            self.drafts.save(visitor, draft)
        return draft

    def _column_updates(self, draft: Draft, table: Mapping[str, Any]) -> Updates:
        """Return updates of the two dropdowns with the file's columns."""
        intent, code = draft.columns or draft.recognised or (None, None)
        choices = [(column_label(name), name) for name in table["columns"]]
        return {
            self.form.intent: gr.Dropdown(choices=choices, value=intent),
            self.form.code: gr.Dropdown(choices=choices, value=code),
        }

    def commands(self, draft: Draft, flavor: str = "") -> Updates:
        """Return updates of the commands that train the same elsewhere."""
        serving = self.context.serving
        if not serving.base:
            return {}
        updates = command_updates(
            train_config_fields(draft, serving), serving, draft.name if draft.is_file else "", flavor
        )
        return dict(zip(self.form.target.commands, updates, strict=True))


def check_draft(context: Context, visitor: Visitor, draft: Draft) -> None:
    """Raise DataError for a draft of a data set that this visitor may not use (any more)."""
    if not draft.is_file:
        check_dataset_name(draft.name, own=may_use_own(context, visitor))


def draft_key(draft: Draft) -> str:
    """Return a key of the rows and the columns that are read."""
    return f"{draft.name}:{draft.digest}:{draft.columns}"


class TrainFormHandlers:
    """Handlers of the form's events, for all visitors."""

    def __init__(self, context: Context, form: TrainForm, job_service: JobService) -> None:
        self.context, self.form, self.job_service = context, form, job_service
        self.policy = context.visitors.policy
        self.drafts = DraftStore(context.home, self.policy.limits.drafts_bytes)
        self.reporter = PreviewReporter(context, form, self.drafts)
        self._submit_lock = threading.Lock()

    def refuse(self, reason: str, _: Sequence[Any]) -> Updates:
        """Return the updates for a visitor who may not have rows looked at."""
        return {self.form.note: _error_html(reason), self.form.progress: "", self.form.file: None}

    def refuse_start(self, reason: str, _: Sequence[Any]) -> Updates:
        """Return the updates for a visitor who may not train."""
        return {self.form.start_note: _error_html(reason)}

    @action("view pages")
    def restore_draft(self, request: gr.Request, rendered_key: str, *values: Any) -> Iterator[Updates]:
        """The tab was opened: yield what this visitor may do, and the draft that the page does not show yet."""
        form, visitor = self.form, self.context.visitors.identify(request)
        denied = self._denied_reason(visitor, "here")
        names = own_names(own=may_use_own(self.context, visitor))
        rights = {
            form.start: gr.Button(interactive=denied is None),
            form.start_note: _error_html(denied),
            form.own_data: gr.Dropdown(choices=[(name, name) for name in names], value=None, visible=bool(names)),
        }
        draft = self.drafts.get(visitor.id) if self.policy.may(visitor, "look at rows") else None
        if draft is None or rendered_key == draft_key(draft):
            yield rights
            return
        technique = draft.technique or FormValues.parse(values).technique
        # One update: Gradio loses values of a second one that comes while fields are mounted.
        yield {
            **rights,
            **self.reporter.settings_updates(settings_updates(technique, draft.settings)),
            form.technique: technique,
            form.dataset_name: gr.skip() if draft.is_file else draft.name,
        }
        yield from self._report(request, visitor, draft, fresh=True)

    @action("view pages")
    def close_session(self, request: gr.Request) -> None:
        """The page was closed: cancel its preview."""
        self.reporter.preview_client.cancel_session(request.session_hash or "")

    def upload(self, request: gr.Request, path: str | None, *values: Any) -> Iterator[Updates]:
        """A file was uploaded: make it the draft."""
        yield self._no_change
        if path:
            limit = self.context.visitors.policy.limits.upload_bytes
            yield from self._load_rows(
                request,
                values,
                lambda visitor: self.drafts.save_upload(visitor.id, Path(path), limit, visitor.address),
            )

    def select_dataset(self, request: gr.Request, name: str, *values: Any) -> Iterator[Updates]:
        """A data set was named: make it the draft."""

        def select(visitor: Visitor) -> Draft:
            own = may_use_own(self.context, visitor)
            return self.drafts.select_dataset(visitor.id, name or "", visitor.address, own=own)

        yield from self._load_rows(request, values, select)

    def load_example(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """The example rows were chosen: make a draft of them as a CSV file."""

        def load(visitor: Visitor) -> Draft:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"example-{EXAMPLE_ROWS}.csv"
                with path.open("w", encoding="utf-8", newline="") as file:
                    rows = [(example.intent, example.code) for example in load_examples(STARTER)[:EXAMPLE_ROWS]]
                    csv.writer(file).writerows([("intent", "snippet"), *rows])
                return self.drafts.save_upload(visitor.id, path, 0, visitor.address)

        yield from self._load_rows(request, values, load)

    def change_columns(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Other columns were chosen: preview the rows again."""
        yield self._no_change
        visitor, form_values = self.context.visitors.identify(request), FormValues.parse(values)
        draft = self.drafts.get(visitor.id)
        if draft is None or not (form_values.intent and form_values.code):
            return
        columns = (form_values.intent, form_values.code)
        draft = replace(draft, columns=None if columns == draft.recognised else columns)
        self.drafts.save(visitor.id, draft)
        yield from self._report(request, visitor, draft, fresh=True)

    def change_setting(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """A setting was changed: preview the rows again."""
        yield from self._settings_changed(request, FormValues.parse(values))

    def change_technique(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Another technique or preset was chosen: set the fields that depend on it."""
        yield self._no_change
        form_values = FormValues.parse(values)
        if form_values.technique not in technique_choices(self.context.serving):
            return
        settings = apply_technique(form_values.technique, form_values.settings)
        draft = self.drafts.get(self.context.visitors.identify(request).id)
        if draft and settings.get("adapter_name", "").startswith(suggest_adapter_name(draft.technique, draft.name)):
            settings["adapter_name"] = self._unused_adapter_name(form_values.technique, draft)
        yield self.reporter.settings_updates(settings_updates(form_values.technique, settings))
        yield from self._settings_changed(request, replace(form_values, settings=settings))

    @action("view pages")
    def change_location(self, request: gr.Request, *values: Any) -> Updates:
        """Another machine was chosen: return whether this visitor may use it, and the command for it."""
        visitor, form_values = self.context.visitors.identify(request), FormValues.parse(values)
        updates: Updates = {self.form.start_note: _error_html(self._denied_reason(visitor, form_values.location))}
        draft = self.drafts.get(visitor.id) if self.policy.may(visitor, "look at rows") else None
        if draft is not None:
            draft = replace(draft, technique=form_values.technique, settings=form_values.settings)
            updates |= self.reporter.commands(draft, form_values.flavor)
        return updates

    def clear(self, request: gr.Request) -> Updates:
        """Delete the visitor's draft and empty the form."""
        self.close_session(request)
        self.drafts.delete(self.context.visitors.identify(request).id)
        form = self.form
        empty = dict.fromkeys(
            (form.note, form.progress, form.report, form.examples, form.cost, form.dataset_name, form.draft_key), ""
        )
        return {**empty, form.file: None}

    def start(self, request: gr.Request, *values: Any) -> Updates:
        """Start a job and select it in the jobs panel."""
        form, visitor, form_values = self.form, self.context.visitors.identify(request), FormValues.parse(values)
        draft = self.drafts.get(visitor.id)
        denied = self._denied_reason(visitor, form_values.location) or (NO_ROWS if draft is None else None)
        if denied or draft is None:
            return {form.start_note: _error_html(denied)}
        draft = replace(draft, technique=form_values.technique, settings=form_values.settings)
        is_hub = form_values.location == "hub"
        try:
            check_draft(self.context, visitor, draft)
            with self._submit_lock:
                self._check_job_limit(visitor)
                job = self.job_service.submit(
                    train_config_fields(draft, self.context.serving),
                    self.context.serving,
                    owner=Owner(visitor.id, visitor.name),
                    visitor_data=not self.policy.may(visitor, "use the machine's Hub token"),
                    data_name=draft.name,
                    data=self.drafts.path(visitor.id, draft) if draft.is_file else None,
                    where="hub" if is_hub else "here",
                    flavor=form_values.flavor if is_hub else "",
                )
        except PromptOrTuneError as error:
            return self.reporter.error_updates(error, form.start_note)
        next_name = find_unused_name(job.adapter, self.context.home, self.job_service.list_jobs())
        self.drafts.save(visitor.id, replace(draft, settings={**draft.settings, "adapter_name": next_name}))
        return {
            **self.reporter.settings_updates(error_updates("", "")),
            form.fields[0]: gr.update(value=next_name, info=ALL_SETTINGS[0].help, elem_classes=[]),
            form.start_note: Markup('<p class="started">{} is queued below.</p>').format(job.adapter),
            form.selected_job: job.id,
        }

    @property
    def _no_change(self) -> Updates:
        """An update without effect: Gradio clears all outputs of a generator that yields nothing."""
        return {self.form.draft_key: gr.skip()}

    def _denied_reason(self, visitor: Visitor, location: str) -> str | None:
        return denied_reason(self.context, visitor, location) or (None if self.context.serving.base else NO_LOCAL_BASE)

    def _check_job_limit(self, visitor: Visitor) -> None:
        limit = self.context.visitors.policy.limits.jobs_at_once
        count = sum(job.owner == visitor.id and not job.is_ended for job in self.job_service.list_jobs())
        if 0 < limit <= count:
            raise PromptOrTuneError(
                f"You have {count} job{'' if count == 1 else 's'} under way, and {limit} is the limit for one person: "
                "wait until one has ended, or cancel one."
            )

    def _unused_adapter_name(self, technique: str, draft: Draft) -> str:
        """Return an unused name for an adapter of these rows."""
        return find_unused_name(
            suggest_adapter_name(technique, draft.name), self.context.home, self.job_service.list_jobs()
        )

    def _load_rows(
        self, request: gr.Request, values: Sequence[Any], load: Callable[[Visitor], Draft]
    ) -> Iterator[Updates]:
        """Save new rows as the draft, suggest an adapter name, and preview them."""
        form, visitor, form_values = self.form, self.context.visitors.identify(request), FormValues.parse(values)
        try:
            draft = load(visitor)
        except PromptOrTuneError as error:
            yield {form.note: _error_html(str(error)), form.file: None}
            return
        name = self._unused_adapter_name(form_values.technique, draft)
        settings = {**apply_technique(form_values.technique, form_values.settings), "adapter_name": name}
        draft = replace(draft, technique=form_values.technique, settings=settings)
        self.drafts.save(visitor.id, draft)
        yield {
            **self.reporter.settings_updates(settings_updates(form_values.technique, settings)),
            form.file: None,
            form.own_data: None,
            form.dataset_name: "" if draft.is_file else draft.name,
        }
        yield from self._report(request, visitor, draft, fresh=True)

    def _settings_changed(self, request: gr.Request, form_values: FormValues) -> Iterator[Updates]:
        """Save the settings in the draft once no field changes any more, and preview the rows again."""
        yield self._no_change
        visitor = self.context.visitors.identify(request)
        preview_request = self.reporter.preview_client.new_request(
            request.session_hash or "", visitor.id, visitor.address
        )
        draft = self.drafts.get(visitor.id)
        if draft is None or not preview_request.debounce(DEBOUNCE_SECONDS):
            return
        draft = replace(draft, technique=form_values.technique, settings=form_values.settings)
        self.drafts.save(visitor.id, draft)
        yield from self._report(request, visitor, draft, fresh=False)

    def _report(self, request: gr.Request, visitor: Visitor, draft: Draft, *, fresh: bool) -> Iterator[Updates]:
        access = hub_access(self.context, visitor, login_token(request))
        return self.reporter.report(request.session_hash or "", visitor, draft, fresh=fresh, access=access)


def _error_html(message: str | None) -> str:
    return error_html(message) if message else ""
