"""Tabs, launch, header.

All pages in one Gradio app, a tab each. It stands before the model is loaded: the header shows how far that is.

The line above all pages: the product, and which model answers (or how far its loading is).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from serve.engine.llm_engine import EngineLoader
from ui import components
from ui.adapters import page as adapters
from ui.arena import page as arena
from ui.compare import page
from ui.context import Context
from ui.labels import base_label
from ui.method_form import METHODS_WITHOUT_ADAPTER, MethodForm, default_methods, list_adapter_choices
from ui.results import page as results
from ui.results.runs import BUNDLED_RUNS_DIR, RunLibrary, default_runs_dir
from ui.theme import CSS_PATHS, make_theme
from ui.train import page as train
from ui.visitors import Limits, UploadLimitMiddleware, Visitor, VisitorCookieMiddleware, build_login, is_login_available

LOADING_POLL_SECONDS = 0.7


def header_html(context: Context) -> str:
    """The header as it is now; everything that names the model is escaped."""
    state = context.engine_loader.state()
    if state.phase == "ready":
        text, bar = base_label(context.engine_loader.engine().base), ""
    elif state.phase == "failed":
        text, bar = state.message, ""
    else:
        text = state.message
        share = f' style="width:{state.fraction:.0%}"' if state.fraction is not None else ' class="unknown"'
        bar = f'<span class="progress" aria-hidden="true"><span{share}></span></span>'
    return (
        '<header class="top"><p class="product">Prompt or Tune</p>'
        f'<p class="model {state.phase}" role="status" aria-live="polite">'
        f'<span class="dot" aria-hidden="true"></span><span class="model-text">{escape(text)}</span>{bar}</p></header>'
    )


def account_html(visitor: Visitor) -> str:
    """Who is logged in, with the way out; '' for nobody."""
    if not visitor.name or is_login_available():  # the button of a Space says it itself
        return ""
    return f'<p class="account">Logged in as {escape(visitor.name)} · <a href="logout">Log out</a></p>'


def build_header(context: Context) -> tuple[gr.HTML, gr.HTML, gr.Timer]:
    """The header, the line for who is logged in, and the timer that ticks while the model is being loaded."""
    shown = gr.HTML(header_html(context), elem_id="top", apply_default_css=False, js_on_load=None)
    account = gr.HTML("", elem_id="account", apply_default_css=False, js_on_load=None)
    build_login("top-login")
    timer = gr.Timer(LOADING_POLL_SECONDS)
    return shown, account, timer


# Nothing leaves this machine: Gradio reads this when it is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


PRODUCT = "Prompt or Tune"
PAGES = (
    ("compare", page.TITLE),
    ("arena", arena.TITLE),
    ("train", train.TITLE),
    ("results", results.TITLE),
    ("adapters", adapters.TITLE),
)
FOOTER = '<p>The same comparison for programs: <a href="?view=api">endpoints /compare and /stream</a>.</p>'
EPHEMERAL_STORAGE_NOTE = (
    '<p class="passing">This Space has no storage of its own: adapters, uploads, jobs and votes are gone when it '
    "restarts. Save what you want to keep.</p>"
)
MAX_QUEUED = 256
# A run keeps one while it waits in our line, and ticks of other pages must still find one.
MAX_THREADS = 128
# Gradio's own copies of uploads and downloads go after a day, looked at every hour; what people made lies elsewhere.
CACHE_SECONDS = (3600, 24 * 3600)


def build_pages(
    engine_loader: EngineLoader,
    data_dir: Path | None = None,
    context: Context | None = None,
    run_library: RunLibrary | None = None,
) -> gr.Blocks:
    """The app, ready for `launch`. `shelf` holds the runs that Results shows: those of `make_shelf` by default."""
    context = context or Context(engine_loader, data_dir)
    run_library = run_library or make_run_library()
    with gr.Blocks(title=PRODUCT, fill_width=True, analytics_enabled=False, delete_cache=CACHE_SECONDS) as pages:
        header, account, timer = build_header(context)
        with gr.Tabs(selected=PAGES[0][0], overflow_behavior="wrap", elem_id="pages"):
            tabs = {name: gr.Tab(title, id=name, elem_id=f"tab-{name}") for name, title in PAGES}
            with tabs["compare"]:
                form, restore = page.build_compare(context)
            with tabs["arena"]:
                arena.build_arena(context, tabs["arena"])
            with tabs["train"]:
                train.build_train(context, tabs["train"], form)
            with tabs["results"]:
                results.build_results(run_library, tabs["results"])
            with tabs["adapters"]:
                adapters.build_adapters(context, tabs["adapters"], form)
        gr.HTML(
            FOOTER + ("" if context.persistent else EPHEMERAL_STORAGE_NOTE),
            apply_default_css=False,
            js_on_load=None,
            elem_id="footer",
        )
        # What the browser kept comes after the chips that the page begins with, and replaces them.
        restore(_wire_loading(pages, context, header, timer, form))
        pages.load(
            _account_handler(context), None, account, queue=False, show_progress="hidden", api_visibility="private"
        )
        _wire_pages(pages, context, tabs, form)
        pages.unload(_unload_handler(context))
    return pages.queue(default_concurrency_limit=8, max_size=MAX_QUEUED)


def make_run_library(runs_dir: Path | None = None) -> RunLibrary:
    """The runs that come along, and the user's own: those in `runs_dir`, or in PROMPT_OR_TUNE_HOME."""
    return RunLibrary([("docs/results", BUNDLED_RUNS_DIR), ("runs", runs_dir or default_runs_dir())])


def launch(
    pages: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    *,
    limits: Limits | None = None,
    accounts: Sequence[tuple[str, str]] = (),
    routes: Sequence[BaseRoute] = (),
    **options: Any,
) -> Any:
    """Serves the app with its own look, on any free port where `port` is None. `options` go to Gradio's `launch`.

    `limits` bounds what one request may upload, `accounts` are (name, password) of those who may come in, `routes`
    stand beside the pages.
    """
    limits = limits or Limits()
    largest = max(limits.upload_bytes, limits.archive_bytes) if limits.upload_bytes * limits.archive_bytes > 0 else 0
    layers = [
        Middleware(VisitorCookieMiddleware),
        *([Middleware(UploadLimitMiddleware, max_bytes=largest)] if largest else []),
    ]
    return pages.launch(
        server_name=host,
        server_port=port,
        theme=make_theme(),
        css_paths=list(CSS_PATHS),
        head=f"<script>{components.load_script('page')}</script>",
        footer_links=[],
        ssr_mode=False,
        run_history=False,  # the page keeps its own
        quiet=True,
        auth=list(accounts) or None,
        max_file_size=largest or None,
        max_threads=MAX_THREADS,
        app_kwargs={"routes": list(routes), "middleware": layers},
        **options,
    )


def _account_handler(context: Context) -> Any:
    def account(request: gr.Request) -> str:
        return account_html(context.visitors.identify(request))

    return account


def _unload_handler(context: Context) -> Any:
    """A closed page stops its runs: nobody is left to read them."""

    def leave(request: gr.Request) -> None:
        context.cancel_registry.cancel(request.session_hash or "")

    return leave


def _wire_pages(pages: gr.Blocks, context: Context, tabs: Mapping[str, gr.Tab], form: MethodForm) -> None:
    """`?tab=results` opens that page, and the address follows the tabs.

    Gradio itself understands `?page=`: it names one of its own pages there.
    """

    def adapters_now() -> list[Any]:
        if context.engine_loader.state().phase != "ready":
            return [gr.skip(), gr.skip()]
        known = list_adapter_choices(context.engine_loader.engine())
        return [gr.Dropdown(choices=known.choices), known.reasons]

    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    pages.load(None, None, None, js="() => window.promptOrTune.openTabFromUrl()", **quiet)
    # An adapter may have been trained, added or removed since the page came up.
    tabs["compare"].select(adapters_now, None, [form.adapter, form.reasons], **quiet)
    for name, tab in tabs.items():
        tab.select(None, None, None, js=f"() => window.promptOrTune.onTabSelected({name!r})", **quiet)


def _wire_loading(pages: gr.Blocks, context: Context, header: gr.HTML, timer: gr.Timer, form: MethodForm) -> Any:
    """Repaints the header while the model loads; when it is ready, adapters become choices and a column.

    Returns the event of a page that has come up.
    """

    def tick(chips: Any) -> list[Any]:
        state = context.engine_loader.state()
        shown = header_html(context)
        if state.phase == "loading":
            return [shown, gr.Timer(active=True), gr.skip(), gr.skip(), gr.skip()]
        if state.phase == "failed":
            return [shown, gr.Timer(active=False), gr.skip(), gr.skip(), gr.skip()]
        known = list_adapter_choices(context.engine_loader.engine())
        # Chips that a person has changed stay as they are.
        untouched = components.chip_names(chips) == list(METHODS_WITHOUT_ADAPTER)
        names = components.chip_values(default_methods(known.usable)) if untouched else gr.skip()
        return [shown, gr.Timer(active=False), names, gr.Dropdown(choices=known.choices), known.reasons]

    outputs = [header, timer, form.chips, form.adapter, form.reasons]
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    timer.tick(tick, form.chips, outputs, **quiet)
    return pages.load(tick, form.chips, outputs, **quiet)
