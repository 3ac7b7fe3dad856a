"""Form handlers, config from fields.

What happens on the upper half of the Train page: rows are taken and looked at, and a job begins.

Everything is decided here on the server, from the visitor's draft and the fields; each event yields what changed.

From what a visitor filled in to the settings of a job: read, named, put together.

The report on a visitor's rows, painted step by step as the look at them goes on.
"""

from __future__ import annotations

import csv
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job, ServingOptions, check_name, resolve_settings
from tasks.datasets.registry import DATASETS, STARTER, load_examples
from ui.context import Context
from ui.train import preview_view, settings
from ui.train import settings as cards
from ui.train import settings as settings_form
from ui.train.drafts import Draft, DraftStore
from ui.train.form import NO_LOCAL_BASE, TrainForm, command_updates, denied_reason
from ui.train.preview import Event, PreviewClient, PreviewRequest
from ui.visitors import Visitor

_FLAG_PATTERN = re.compile(r"--([a-z][a-z-]+)")
_MAX_NAME_ATTEMPTS = 1000


@dataclass(frozen=True)
class FormValues:
    """The fields as a browser sent them, in the order of Form.filled."""

    intent: str
    code: str
    technique: str
    location: str
    flavor: str
    settings: Mapping[str, Any]

    @classmethod
    def parse(cls, values: Sequence[Any]) -> FormValues:
        """Reads them; anything that is no text counts as empty."""
        first, fields = values[:5], values[5:]
        intent, code, technique, place, flavor = (each if isinstance(each, str) else "" for each in first)
        return cls(intent, code, technique, place, flavor, settings_form.parse_settings(fields))


def train_config_fields(draft: Draft, serving: ServingOptions) -> dict[str, Any]:
    """TrainConfig's fields of this draft, but for those that a job takes from the base that is served."""
    technique = draft.technique or cards.recommended_technique(serving)
    if technique not in cards.technique_choices(serving):
        raise PromptOrTuneError("This technique is not offered here: choose one of those on the page.")
    settings = settings_form.settings_for_technique(draft.settings, technique)
    intent, code = draft.columns or (None, None)
    return {
        "dataset_name": draft.name,
        "technique": technique,
        "quantization": cards.training_quantization(technique, serving, str(settings.get("preset", "default"))),
        "intent_column": intent,
        "code_column": code,
        **settings,
    }


def suggest_adapter_name(technique: str, rows: str) -> str:
    """'lora-my-pairs' for LoRA on my_pairs.csv or someone/my-pairs."""
    kind = technique.split("-", maxsplit=1)[0] or "lora"
    last = re.split(r"[@:]", rows)[0].rsplit("/", 1)[-1]
    stem = re.sub(r"\.(jsonl?|ndjson|[ct]sv|parquet)$", "", last.casefold())
    slug = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40].strip("-")
    return f"{kind}-{slug or 'mine'}"


def find_unused_name(name: str, home: Path, jobs: Iterable[Job]) -> str:
    """The name, or one with a number that no adapter and no job has yet."""
    others, stem = list(jobs), re.sub(r"-\d+$", "", name)[:58]
    for number in range(1, _MAX_NAME_ATTEMPTS):
        wanted = name if number == 1 else f"{stem}-{number}"
        try:
            check_name(wanted, home, others)
        except PromptOrTuneError:
            continue
        return wanted
    return name


def flags_to_setting_names(message: str) -> str:
    """The sentence with settings' own names where it speaks of a command's flags."""
    return _FLAG_PATTERN.sub(lambda found: found[1].replace("-", "_"), message)


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
            form.progress: preview_view.progress_html(READING_ROWS),
            form.draft_key: draft_key(draft),
        }
        if fresh:
            begin |= {form.report: preview_view.title_html(draft), form.examples: "", form.cost: ""}
        yield begin
        try:
            path = self.drafts.path(visitor, draft) if draft.is_file else None
            values = resolve_settings(train_config_fields(draft, self.context.serving), self.context.serving, path)
            yield self.settings_updates(settings.error_updates("", "")) | self.commands(draft)
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
        except PromptOrTuneError as error:
            yield {form.progress: "", **self.error_updates(error, form.note)}
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("The rows could not be looked at.")
            yield {form.progress: "", form.note: preview_view.error_html(INTERNAL_ERROR)}

    def error_updates(self, error: PromptOrTuneError, note: gr.HTML) -> Updates:
        """The sentence in the note, and at its field where it is about one."""
        name, sentence = settings.locate_error(flags_to_setting_names(str(error)))
        return {
            **self.settings_updates(settings.error_updates(name, sentence)),
            note: preview_view.error_html(sentence),
        }

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
            return {form.progress: preview_view.progress_html(event["line"]) if event["line"] else ""}
        if "table" in event:
            heading = {form.report: preview_view.title_html(draft, columns=True)} if fresh else {}
            return self._column_updates(draft, event["table"]) | heading
        if "facts" in event:
            return {form.report: preview_view.facts_html(draft, event["facts"])} if fresh else {}
        if "preflight" in event:
            found = event["preflight"]
            return {
                form.progress: "",
                form.report: preview_view.report_html(draft, facts, found),
                form.examples: preview_view.examples_html(found),
                form.cost: preview_view.cost_html(found),
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
        choices = [(preview_view.column_label(name), name) for name in table["columns"]]
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
        except PromptOrTuneError as error:
            return self.reporter.error_updates(error, form.start_note)
        free = find_unused_name(job.adapter, self.context.home, self.job_service.list_jobs())
        self.drafts.save(visitor.id, replace(draft, settings={**draft.settings, "adapter_name": free}))
        return {
            **self.reporter.settings_updates(settings_form.error_updates("", "")),
            form.fields[0]: gr.update(value=free, info=settings_form.ALL_SETTINGS[0].help, elem_classes=[]),
            form.start_note: f'<p class="started">{preview_view.escape_visible(job.adapter)} has its place below.</p>',
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
        except PromptOrTuneError as error:
            yield {form.note: _error_html(str(error)), form.file: None}
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
    return preview_view.error_html(text) if text else ""
