"""Adapters page: search the adapters, see their scores, load, delete and download them, and install others."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from errors import PromptOrTuneError
from ui import components
from ui.access.guard import guard
from ui.access.logins import resolve_token
from ui.access.policy import Visitor
from ui.adapters.catalog import (
    AdapterActions,
    AdapterCatalog,
    InstallProgress,
    checks_html,
    install_from_hub,
    install_from_zip,
)
from ui.adapters.view import FILTERS, adapter_list_component, adapter_list_value, page_start
from ui.context import Context, hub_access
from ui.form_fields import MethodForm, add_adapter_updates

TITLE = "Adapters"
INTERNAL_ERROR = "Something went wrong on our side; the log has the details."
LOADING_POLL_SECONDS = 1.5
# An installation takes a core and much of the network: others wait in the queue.
MAX_CONCURRENT_INSTALLS = 2
INTRO_HTML = (
    "<h1>Which adapters are there?</h1><p>An adapter is a small file of extra weights, trained for one kind of "
    "snippet. The model that answers here can use another one for each answer.</p>"
)
_AFTER_ACTION_JS = """(list, file) => {
  if (list?.after === "compare") window.promptOrTune.openTab("compare");
  if (list?.after === "save" && file) window.promptOrTune.downloadFile(file);
}"""
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptersPage:
    """Components that events read and change."""

    note: gr.HTML
    denied_note: gr.HTML
    install_form: gr.Accordion
    spec: gr.Textbox
    name: gr.Textbox
    pull: gr.Button
    file: gr.File
    add_note: gr.HTML
    checks: gr.HTML
    query: gr.Textbox
    show: gr.Dropdown
    refresh: gr.Button
    list: gr.HTML
    download: gr.DownloadButton
    timer: gr.Timer


def build_adapters(context: Context, tab: gr.Tab, form: MethodForm) -> None:
    """Build the page inside `tab` and wire its events. `form` is that of the Compare page, for 'Open in Compare'."""
    catalog = AdapterCatalog(context)
    page = _build_page(context, catalog)
    # Gradio copies files into this folder before it serves them, so a zip that is made there is not copied again.
    actions = AdapterActions(context, catalog, Path(page.download.GRADIO_CACHE) / "adapter-zips")
    _wire_list(context, catalog, page, tab)
    _wire_actions(context, catalog, page, actions, form)
    _wire_install(context, catalog, page)


def _build_page(context: Context, catalog: AdapterCatalog) -> AdaptersPage:
    with gr.Column(elem_id="adapters"):
        gr.HTML(INTRO_HTML, apply_default_css=False, js_on_load=None, elem_id="adapters-title")
        denied_note = components.live_region("", elem_id="adapters-denied")
        with gr.Accordion(
            "Add an adapter, from the Hub or from a zip", open=False, elem_id="adapters-add"
        ) as install_form:
            with gr.Row(elem_id="adapters-add-row"):
                with gr.Column(elem_id="adapters-hub", min_width=280):
                    spec = gr.Textbox(
                        label="Repository on the Hugging Face Hub",
                        placeholder="user/name or user/name@revision",
                        lines=1,
                        max_lines=1,
                        elem_id="adapters-spec",
                    )
                    name = gr.Textbox(
                        label="Name here, if it should have another (also for a zip)",
                        lines=1,
                        max_lines=1,
                        max_length=64,
                        elem_id="adapters-name",
                    )
                    pull = gr.Button("Add from the Hub", variant="primary", elem_id="adapters-pull")
                file = gr.File(
                    label="Or drop a zip of an adapter's folder",
                    file_types=[".zip"],
                    type="filepath",
                    height=176,
                    min_width=280,
                    elem_id="adapters-zip",
                )
            add_note = components.live_region("", elem_id="adapters-add-note", role="alert")
            checks = gr.HTML("", apply_default_css=False, js_on_load=None, elem_id="adapters-checks")
        with gr.Row(elem_id="adapters-filters"):
            query = gr.Textbox(
                label="Search: name, technique, data, base, licence",
                lines=1,
                max_lines=1,
                max_length=200,
                scale=3,
                min_width=220,
                elem_id="adapters-words",
            )
            show = gr.Dropdown(
                [(label, key) for key, label in FILTERS.items()],
                value="all",
                label="Show",
                scale=1,
                min_width=180,
                elem_id="adapters-show",
            )
            refresh = gr.Button("Look again", size="md", scale=0, min_width=110, elem_id="adapters-refresh")
        note = components.live_region("", elem_id="adapters-note")
        adapter_list = adapter_list_component(context, catalog)
        download = gr.DownloadButton("Save the zip", visible="hidden", elem_id="adapters-saved")
        timer = gr.Timer(LOADING_POLL_SECONDS, active=False)
    return AdaptersPage(
        note, denied_note, install_form, spec, name, pull, file, add_note, checks, query, show, refresh, adapter_list,
        download, timer,
    )  # fmt: skip


def _wire_list(context: Context, catalog: AdapterCatalog, page: AdaptersPage, tab: gr.Tab) -> None:
    def update(query: str, show: str, request: gr.Request) -> dict[Any, Any]:
        visitor = context.visitors.identify(request)
        try:
            value = adapter_list_value(context, catalog, visitor, query=query, show=show)
        except Exception as error:  # noqa: BLE001 - the page must survive any bug, which is logged
            return {page.note: _exception_html(error), page.timer: gr.Timer(active=False)}
        denied = context.visitors.policy.denied_reason(visitor, "add an adapter")
        return {
            page.note: "",
            page.list: value,
            page.denied_note: Markup('<p class="muted">{}</p>').format(denied) if denied else "",
            page.install_form: gr.Accordion(visible=denied is None),
            # Which adapters are usable is known only when the model is loaded, so the page polls until then.
            page.timer: gr.Timer(active=value["phase"] == "loading"),
        }

    def tick(query: str, show: str, request: gr.Request) -> Any:
        # Nothing changes before the model is loaded, and rendering the list again would lose the keyboard focus.
        loading = context.engine_loader.state().phase == "loading"
        return {page.note: gr.skip()} if loading else update(query, show, request)

    inputs, outputs = [page.query, page.show], [page.note, page.list, page.denied_note, page.install_form, page.timer]
    triggers = [tab.select, page.refresh.click, page.query.change, page.show.input]
    # always_last: of several changes while the list is rendered only the last one counts.
    updated = guard(context.visitors, "view pages", update)
    gr.on(triggers, updated, inputs, outputs, trigger_mode="always_last", **_EVENT_OPTIONS)
    page.timer.tick(guard(context.visitors, "view pages", tick), inputs, outputs, **_EVENT_OPTIONS)


def _wire_actions(
    context: Context, catalog: AdapterCatalog, page: AdaptersPage, actions: AdapterActions, form: MethodForm
) -> None:
    def act(query: str, show: str, chips: Any, request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        data = event._data if isinstance(event._data, dict) else {}
        action, name = str(data.get("do")), str(data.get("name"))
        visitor = context.visitors.identify(request)
        changes: dict[Any, Any] = {page.note: ""}
        next_action = ""
        try:
            if action in actions.handlers:
                changes[page.note] = _paragraph_html(actions.handlers[action](visitor, name))
            elif action == "save":
                changes[page.download] = gr.DownloadButton(value=str(actions.pack_zip(visitor, name)))
                next_action = action
            elif action == "open":
                updates = add_adapter_updates(actions.require_usable(name), chips, name)
                changes |= dict(zip((form.chips, form.adapter, form.reasons), updates, strict=True))
                next_action = "compare"
        except Exception as error:  # noqa: BLE001 - as above
            changes[page.note] = _exception_html(error)
        try:
            start = page_start(data)
            value = adapter_list_value(
                context, catalog, visitor, query=query, show=show, start=start, next_action=next_action
            )
        except Exception as error:  # noqa: BLE001 - as above
            return {page.note: _exception_html(error)}
        return {**changes, page.list: value}

    outputs = [page.note, page.list, page.download, form.chips, form.adapter, form.reasons]
    acted = page.list.select(
        guard(context.visitors, "view pages", act),
        [page.query, page.show, form.chips],
        outputs,
        show_progress="hidden",
        api_visibility="private",
    )
    acted.then(None, [page.list, page.download], None, js=_AFTER_ACTION_JS, **_EVENT_OPTIONS)


def _wire_install(context: Context, catalog: AdapterCatalog, page: AdaptersPage) -> None:
    def pull(spec: str, name: str, request: gr.Request, login: gr.OAuthToken | None = None) -> Iterator[dict[Any, Any]]:
        if not spec.strip():
            yield {page.add_note: _error_html("Write the repository first: user/name, as on the Hub.")}
            return
        visitor = context.visitors.identify(request)
        token = hub_access(context, visitor, resolve_token(login)).token
        yield from add(visitor, install_from_hub(catalog, spec, name, token, visitor))

    def upload(file: str | None, name: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        if not file:
            return
        limit, visitor = context.visitors.policy.limits.archive_bytes, context.visitors.identify(request)
        try:
            yield from add(visitor, install_from_zip(catalog, Path(file), name, limit, visitor))
        finally:
            Path(file).unlink(missing_ok=True)

    def refuse(reason: str, _: Sequence[Any]) -> dict[Any, Any]:
        return {page.add_note: _error_html(reason), page.checks: "", page.file: None}

    def refuse_upload(reason: str, values: Sequence[Any]) -> dict[Any, Any]:
        if values[0]:
            Path(values[0]).unlink(missing_ok=True)
        return refuse(reason, values)

    def add(visitor: Visitor, install: Iterator[InstallProgress]) -> Iterator[dict[Any, Any]]:
        for progress in install:
            updates: dict[Any, Any] = {
                page.add_note: _paragraph_html(progress.message),
                page.checks: checks_html(progress),
            }
            if progress.error:
                updates |= {page.add_note: _error_html(progress.error), page.file: None}
            elif progress.installed is not None:
                updates |= added(visitor, progress.installed.name)
            yield updates

    def added(visitor: Visitor, name: str) -> dict[Any, Any]:
        value = adapter_list_value(context, catalog, visitor, added=name)
        card = next((card for card in value["cards"] if card["name"] == name), None)
        if card is not None and card["usable"] == "no":
            message = f"'{name}' is added, but it cannot be used with the model here: {card['reason']}"
        else:
            message = f"'{name}' is added: it is a method in Compare now."
        return {
            page.add_note: _paragraph_html(message),
            page.list: value,
            page.query: "",
            page.show: "all",
            page.spec: "",
            page.name: "",
            page.file: None,
        }

    outputs = [
        page.add_note, page.checks, page.list, page.query, page.show, page.spec, page.name, page.file,
    ]  # fmt: skip
    options = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": MAX_CONCURRENT_INSTALLS}
    gr.on(
        [page.pull.click, page.spec.submit],
        guard(context.visitors, "add an adapter", pull, refuse),
        [page.spec, page.name],
        outputs,
        concurrency_id="add-adapter",
        **options,
    )
    uploaded = guard(context.visitors, "add an adapter", upload, refuse_upload)
    page.file.upload(uploaded, [page.file, page.name], outputs, concurrency_id="add-adapter", **options)


def _exception_html(error: Exception) -> str:
    """Return the error's message; for a bug a general one, and log the error."""
    if isinstance(error, PromptOrTuneError):
        return _error_html(str(error))
    _log.error("The adapters could not be shown or changed.", exc_info=error)
    return _error_html(INTERNAL_ERROR)


def _paragraph_html(message: str) -> Markup:
    return Markup("<p>{}</p>").format(message)


def _error_html(message: str) -> Markup:
    return Markup('<p class="error-message">{}</p>').format(message)
