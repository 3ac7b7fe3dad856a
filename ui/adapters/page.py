"""The AdapterChoices page: what is there, what it scored and whether it can be used here; adding and removing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from ui import components
from ui.adapters.actions import AdapterActions, InstallProgress, checks_html, install_from_hub, install_from_zip
from ui.adapters.catalog import AdapterCatalog
from ui.adapters.view import FILTERS, adapter_list_component, adapter_list_value, page_start
from ui.context import Context
from ui.method_form import MethodForm, add_adapter_updates
from ui.visitors import resolve_token

TITLE = "Adapters"
INTERNAL_ERROR = "Something went wrong on our side, and the log says what."
LOADING_POLL_SECONDS = 1.5
# A pull and its checks take a core and much of the line: others wait their turn.
MAX_CONCURRENT_INSTALLS = 2
INTRO_HTML = (
    "<h1>Which adapters are there?</h1><p>An adapter is a small file of extra weights, trained for one kind of "
    "snippet. The model that answers here puts it on for one answer and takes it off again.</p>"
)
_AFTER_ACTION_JS = """(list, file) => {
  if (list?.after === "compare") window.promptOrTune.openTab("compare");
  if (list?.after === "save" && file) window.promptOrTune.downloadFile(file);
}"""
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptersPage:
    """The components that events read and change."""

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
    """Draws the page inside `tab` and wires it. `form` is Compare's, for 'Open in Compare'."""
    shelf = AdapterCatalog(context)
    page = _build_page(shelf)
    # Pages serve files from Gradio's own folder: a zip that is made there is not copied once more.
    desk = AdapterActions(context, shelf, Path(page.download.GRADIO_CACHE) / "adapter-zips")
    _wire_list(context, shelf, page, tab)
    _wire_actions(context, shelf, page, desk, form)
    _wire_install(context, shelf, page, desk)


def _build_page(catalog: AdapterCatalog) -> AdaptersPage:
    with gr.Column(elem_id="adapters"):
        gr.HTML(INTRO_HTML, apply_default_css=False, js_on_load=None, elem_id="adapters-title")
        may = components.live_region("", elem_id="adapters-denied")
        with gr.Accordion("Add an adapter, from the Hub or from a zip", open=False, elem_id="adapters-add") as adding:
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
                        label="Name here, if not its own (counts for a zip too)",
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
            words = gr.Textbox(
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
            again = gr.Button("Look again", size="md", scale=0, min_width=110, elem_id="adapters-refresh")
        note = components.live_region("", elem_id="adapters-note")
        listed = adapter_list_component(catalog)
        saved = gr.DownloadButton("Save the zip", visible="hidden", elem_id="adapters-saved")
        timer = gr.Timer(LOADING_POLL_SECONDS, active=False)
    return AdaptersPage(
        note, may, adding, spec, name, pull, file, add_note, checks, words, show, again, listed, saved, timer
    )  # fmt: skip


def _wire_list(context: Context, catalog: AdapterCatalog, page: AdaptersPage, tab: gr.Tab) -> None:
    def look(words: str, show: str, request: gr.Request) -> dict[Any, Any]:
        visitor = context.visitors.identify(request)
        try:
            listed = adapter_list_value(context, catalog, visitor, query=words, show=show)
        except Exception as error:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            return {page.note: _exception_html(error), page.timer: gr.Timer(active=False)}
        refused = context.visitors.training_denied_reason(visitor)
        return {
            page.note: "",
            page.list: listed,
            page.denied_note: f'<p class="muted">{escape(refused)}</p>' if refused else "",
            page.install_form: gr.Accordion(visible=refused is None),
            # While the model is being loaded the page asks on: then it is known what can be used.
            page.timer: gr.Timer(active=listed["phase"] == "loading"),
        }

    def tick(words: str, show: str, request: gr.Request) -> Any:
        # Nothing changes before the model is there, and a list that is painted anew takes the focus along.
        return {} if context.engine_loader.state().phase == "loading" else look(words, show, request)

    chosen, outputs = [page.query, page.show], [page.note, page.list, page.denied_note, page.install_form, page.timer]
    # Who types on while the list is being painted wants the last of it.
    looks = [tab.select, page.refresh.click, page.query.change, page.show.input]
    gr.on(looks, look, chosen, outputs, trigger_mode="always_last", **_EVENT_OPTIONS)
    page.timer.tick(tick, chosen, outputs, **_EVENT_OPTIONS)


def _wire_actions(
    context: Context, catalog: AdapterCatalog, page: AdaptersPage, actions: AdapterActions, form: MethodForm
) -> None:
    def act(words: str, show: str, chips: Any, request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        asked = event._data if isinstance(event._data, dict) else {}
        do, name = str(asked.get("do")), str(asked.get("name"))
        visitor = context.visitors.identify(request)
        changes: dict[Any, Any] = {page.note: ""}
        after = ""
        try:
            if do in actions.handlers:
                changes[page.note] = f"<p>{escape(actions.handlers[do](visitor, name))}</p>"
            elif do == "save":
                changes[page.download] = gr.DownloadButton(value=str(actions.pack_zip(name)))
                after = do
            elif do == "open":
                updates = add_adapter_updates(actions.require_usable(name), chips, name)
                changes |= dict(zip((form.chips, form.adapter, form.reasons), updates, strict=True))
                after = "compare"
        except Exception as error:  # noqa: BLE001 - as above
            changes[page.note] = _exception_html(error)
        try:
            start = page_start(asked)
            listed = adapter_list_value(
                context, catalog, visitor, query=words, show=show, start=start, next_action=after
            )
        except Exception as error:  # noqa: BLE001 - as above
            return {page.note: _exception_html(error)}
        return {**changes, page.list: listed}

    outputs = [page.note, page.list, page.download, form.chips, form.adapter, form.reasons]
    acting = page.list.select(
        act, [page.query, page.show, form.chips], outputs, show_progress="hidden", api_visibility="private"
    )
    acting.then(None, [page.list, page.download], None, js=_AFTER_ACTION_JS, **_EVENT_OPTIONS)


def _wire_install(context: Context, catalog: AdapterCatalog, page: AdaptersPage, actions: AdapterActions) -> None:
    def pull(spec: str, name: str, request: gr.Request, login: gr.OAuthToken | None = None) -> Iterator[dict[Any, Any]]:
        if not spec.strip():
            yield {page.add_note: _error_html("Write the repository first: user/name, as on the Hub.")}
            return
        yield from add(request, lambda: install_from_hub(catalog, spec, name, resolve_token(login)))

    def drop(file: str | None, name: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        if not file:
            return
        most = context.visitors.policy.limits.archive_bytes
        try:
            yield from add(request, lambda: install_from_zip(catalog, Path(file), name, most))
        finally:
            Path(file).unlink(missing_ok=True)

    def add(request: gr.Request, begin: Any) -> Iterator[dict[Any, Any]]:
        visitor = context.visitors.identify(request)
        try:
            actions.require_permission(visitor)
        except PromptOrTuneError as fault:
            yield {page.add_note: _error_html(str(fault)), page.checks: "", page.file: None}
            return
        adding: InstallProgress
        for adding in begin():
            painted = {page.add_note: f"<p>{escape(adding.message)}</p>", page.checks: checks_html(adding)}
            if adding.error:
                painted |= {page.add_note: _error_html(adding.error), page.file: None}
            elif adding.installed is not None:
                painted |= added(visitor, adding.installed.name)
            yield painted

    def added(visitor: Any, name: str) -> dict[Any, Any]:
        listed = adapter_list_value(context, catalog, visitor, added=name)
        card = next((each for each in listed["cards"] if each["name"] == name), None)
        if card is not None and card["usable"] == "no":
            said = f"'{name}' is added, but it cannot be used with the model here: {card['reason']}"
        else:
            said = f"'{name}' is added: it is a method in Compare now."
        return {
            page.add_note: f"<p>{escape(said)}</p>",
            page.list: listed,
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
        pull,
        [page.spec, page.name],
        outputs,
        concurrency_id="add-adapter",
        **options,
    )
    page.file.upload(drop, [page.file, page.name], outputs, concurrency_id="add-adapter", **options)


def _exception_html(error: Exception) -> str:
    """What a person is told of it: its own sentence, or that it is a defect of ours, which is logged."""
    if isinstance(error, PromptOrTuneError):
        return _error_html(str(error))
    _log.error("The adapters could not be shown or changed.", exc_info=error)
    return _error_html(INTERNAL_ERROR)


def _error_html(text: str) -> str:
    return f'<p class="error-message">{escape(text)}</p>'
