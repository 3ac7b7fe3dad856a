"""Gradio app: theme, all pages as tabs, the header with the state of the model, and the launch.

The app serves its pages before the model is loaded; the header shows the progress of the loading.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import colors, sizes
from markupsafe import Markup
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from serve.api.auth import WebAccess
from serve.api.server import connection_limits
from serve.engine.llm_engine import EngineLoader
from ui import components
from ui.access.bodies import StoredUploads
from ui.access.guard import CheckedBlocks, EventErrorMiddleware, action, own_allowed, protect
from ui.access.logins import LoginGuard, build_login, is_login_available
from ui.access.middleware import AccessSettings, access_lifespan
from ui.access.policy import Visitor
from ui.access.quota import VisitorLimits
from ui.adapters import page as adapters
from ui.advise import page as advise
from ui.arena import page as arena
from ui.compare import page
from ui.components import base_label, render
from ui.context import CancelRegistry, Context
from ui.data import page as data
from ui.form_fields import METHODS_WITHOUT_ADAPTER, MethodForm, default_methods, list_adapter_choices
from ui.results import page as results
from ui.results.runs import BUNDLED_RUNS_DIR, RunLibrary, default_runs_dir
from ui.train import page as train

_HERE = Path(__file__).parent
CSS_PATHS = (
    _HERE / "style.css",
    *(_HERE / page / f"{page}.css" for page in ("advise", "arena", "train", "data", "results", "adapters")),
    _HERE.parent / "advise" / "report.css",
    _HERE / "train" / "jobs.css",
    _HERE / "train" / "publish.css",
)
SANS_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "Arial", "sans-serif")
MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Cascadia Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

_NEUTRAL_HUE = colors.Color(
    name="ink",
    c50="#f7f8f8", c100="#eef0f1", c200="#dfe3e5", c300="#c6ccd0", c400="#939ca3", c500="#69737b",
    c600="#505a62", c700="#39424a", c800="#242b32", c900="#171c21", c950="#0f1317",
)  # fmt: skip
LOADING_POLL_SECONDS = 0.7


def make_theme() -> gr.themes.Base:
    """Return the theme: teal on white, a brighter teal on near-black; text has AA contrast on every background."""
    theme = gr.themes.Base(
        primary_hue=colors.teal,
        secondary_hue=colors.teal,
        neutral_hue=_NEUTRAL_HUE,
        text_size=sizes.text_md,
        radius_size=sizes.radius_md,
        font=SANS_FONTS,
        font_mono=MONO_FONTS,
    )
    return theme.set(
        body_background_fill="white",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_300",
        block_title_text_weight="500",
        block_title_text_size="14px",
        block_info_text_size="14px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_600",
        input_border_width="1px",
        input_border_color_focus="*primary_700",
        input_border_color_focus_dark="*primary_400",
        input_shadow="none",
        input_shadow_focus="0 0 0 2px *primary_200",
        input_shadow_focus_dark="0 0 0 2px *primary_800",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color="white",
        button_primary_text_color_dark="*neutral_950",
        button_primary_text_color_hover_dark="*neutral_950",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_900",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        button_medium_text_weight="500",
        button_small_text_weight="400",
        button_small_text_size="14px",
        button_large_text_size="16px",
        slider_color="*primary_700",
        slider_color_dark="*primary_400",
    )


def header_html(context: Context) -> str:
    """Return the header: the product, and the model or the progress of its loading."""
    state = context.engine_loader.state()
    ready = state.phase == "ready"
    return render(
        "header.html.jinja",
        product=PRODUCT,
        phase=state.phase,
        text=base_label(context.engine_loader.engine().base) if ready else state.message,
        width=f"{state.fraction:.0%}" if state.fraction is not None else "",
    )


def account_html(visitor: Visitor) -> str:
    """Return the name of the login with a link to log out; '' without a login."""
    if not visitor.name or is_login_available():  # the login button of a Space shows both
        return ""
    line = Markup('<p class="account">Logged in as {} · <a href="logout">Log out</a></p>')
    return line.format(visitor.name)


def build_header(context: Context) -> tuple[gr.HTML, gr.HTML, gr.Timer]:
    """Add the header, the line of the login, and the timer that ticks while the model is loading."""
    header = gr.HTML(header_html(context), elem_id="top", apply_default_css=False, js_on_load=None)
    account = gr.HTML("", elem_id="account", apply_default_css=False, js_on_load=None)
    build_login("top-login")
    timer = gr.Timer(LOADING_POLL_SECONDS)
    return header, account, timer


# No usage data is sent. Gradio reads this when it is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# uvicorn would believe X-Forwarded-For of any program on this machine; serve/api/auth.py reads it where it may.
os.environ.setdefault("FORWARDED_ALLOW_IPS", "")


PRODUCT = "Prompt or Tune"
PAGES = (
    ("compare", page.TITLE),
    ("advise", advise.TITLE),
    ("arena", arena.TITLE),
    ("train", train.TITLE),
    ("data", data.TITLE),
    ("results", results.TITLE),
    ("adapters", adapters.TITLE),
)
FOOTER = '<p>The same comparison for programs: <a href="?view=api">endpoints /compare and /stream</a>.</p>'
EPHEMERAL_STORAGE_NOTE = (
    '<p class="passing">This Space has no storage of its own: adapters, uploads, jobs and votes are gone when it '
    "restarts. Save what you want to keep.</p>"
)
LOGIN_MESSAGE = "After five wrong passwords the next try has to wait, longer each time."
MAX_QUEUED = 256
# A run holds one thread while it waits in the queue; events of other pages need free ones.
MAX_THREADS = 128
# Gradio deletes its copies of uploads and downloads after a day (checked every hour); jobs and adapters are elsewhere.
CACHE_SECONDS = (3600, 24 * 3600)


def build_pages(
    engine_loader: EngineLoader,
    data_dir: Path | None = None,
    context: Context | None = None,
    run_library: RunLibrary | None = None,
) -> gr.Blocks:
    """Build the app for `launch`. `run_library` holds the runs of the Results page (default: `make_run_library()`)."""
    context = context or Context(engine_loader, data_dir)
    run_library = run_library or make_run_library()
    with CheckedBlocks(title=PRODUCT, fill_width=True, analytics_enabled=False, delete_cache=CACHE_SECONDS) as pages:
        header, account, timer = build_header(context)
        with gr.Tabs(selected=PAGES[0][0], overflow_behavior="wrap", elem_id="pages"):
            tabs = {name: gr.Tab(title, id=name, elem_id=f"tab-{name}") for name, title in PAGES}
            with tabs["compare"]:
                form, restore = page.build_compare(context, tabs["compare"])
            with tabs["advise"]:
                advise.build_advise(context, tabs["advise"], form)
            with tabs["arena"]:
                arena.build_arena(context, tabs["arena"])
            with tabs["train"]:
                train.build_train(context, tabs["train"], form)
            with tabs["data"]:
                data.build_data(context, run_library, tabs["data"])
            with tabs["results"]:
                results.build_results(run_library, tabs["results"], partial(own_allowed, context))
            with tabs["adapters"]:
                adapters.build_adapters(context, tabs["adapters"], form)
        gr.HTML(
            FOOTER + ("" if context.persistent else EPHEMERAL_STORAGE_NOTE),
            apply_default_css=False,
            js_on_load=None,
            elem_id="footer",
        )
        # The state of the browser is restored after the default chips, which it replaces.
        restore(_wire_loading(pages, context, header, timer, form))
        pages.load(_account_handler(context), None, account, **components.EVENT_OPTIONS)
        _wire_pages(pages, context, tabs, form)
        pages.unload(_unload_handler(context))
    protect(pages, context.visitors)
    return pages.queue(default_concurrency_limit=8, max_size=MAX_QUEUED)


def make_run_library(runs_dir: Path | None = None) -> RunLibrary:
    """Return the bundled runs and those in `runs_dir` (default: `runs` in PROMPT_OR_TUNE_HOME)."""
    return RunLibrary([("docs/results", BUNDLED_RUNS_DIR), ("runs", runs_dir or default_runs_dir())])


def launch(
    pages: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    *,
    limits: VisitorLimits | None = None,
    accounts: Sequence[tuple[str, str]] = (),
    web: WebAccess | None = None,
    runs: CancelRegistry | None = None,
    routes: Sequence[BaseRoute] = (),
    **options: Any,
) -> Any:
    """Serve the app, on any free port if `port` is None. `options` are passed to Gradio's `launch`.

    `limits` bounds the size of an upload, `accounts` are the (name, password) of the logins, `web` has the names under
    which the pages are reached, `routes` are served beside the pages. `runs` are cancelled when nobody reads them.
    """
    limits = limits or VisitorLimits()
    largest = max(limits.upload_bytes, limits.archive_bytes) if limits.upload_bytes * limits.archive_bytes > 0 else 0
    stored = StoredUploads(limits.stored_bytes, limits.total_stored_bytes)
    web = web or WebAccess(hosts=frozenset({host.lower()}))
    settings = AccessSettings(web, largest, limits.requests_per_second, stored)
    if runs is not None:
        runs.is_watched = True
        settings = replace(settings, reading=runs.reading)
    with connection_limits(behind_proxy=web.trust_proxy):
        return pages.launch(
            server_name=host,
            server_port=port,
            theme=make_theme(),
            css_paths=list(CSS_PATHS),
            head=f"<script>{components.load_script('page')}</script>",
            footer_links=[],
            ssr_mode=False,
            run_history=False,  # the Compare page has its own
            quiet=True,
            auth=LoginGuard(accounts) if accounts else None,
            auth_message=LOGIN_MESSAGE if accounts else None,
            max_file_size=largest or None,
            max_threads=MAX_THREADS,
            app_kwargs={
                "routes": list(routes),
                "middleware": [Middleware(EventErrorMiddleware)],
                "lifespan": access_lifespan(settings),
                "openapi_url": None,
            },
            **options,
        )


def _account_handler(context: Context) -> Any:
    @action("view pages")
    def account(request: gr.Request) -> str:
        return account_html(context.visitors.identify(request))

    return account


def _unload_handler(context: Context) -> Any:
    """Return the handler that cancels the runs of a page when it is closed."""

    @action("view pages")
    def unload(request: gr.Request) -> None:
        context.cancel_registry.cancel(request.session_hash or "")

    return unload


def _wire_pages(pages: gr.Blocks, context: Context, tabs: Mapping[str, gr.Tab], form: MethodForm) -> None:
    """Open the tab that the URL names (`?tab=results`), and write the selected tab into the URL.

    The parameter is not `page`, because Gradio uses that one itself.
    """

    @action("view pages")
    def refresh_adapters() -> list[Any]:
        if context.engine_loader.state().phase != "ready":
            return [gr.skip(), gr.skip()]
        adapters = list_adapter_choices(context.engine_loader.engine())
        return [gr.Dropdown(choices=adapters.choices), adapters.reasons]

    pages.load(None, None, None, js="() => window.promptOrTune.openTabFromUrl()", **components.EVENT_OPTIONS)
    # An adapter may have been trained, added or removed since the page was loaded.
    tabs["compare"].select(refresh_adapters, None, [form.adapter, form.reasons], **components.EVENT_OPTIONS)
    for tab in tabs.values():
        tab.select(None, None, None, js="() => window.promptOrTune.onTabSelected()", **components.EVENT_OPTIONS)


def _wire_loading(pages: gr.Blocks, context: Context, header: gr.HTML, timer: gr.Timer, form: MethodForm) -> Any:
    """Update the header while the model loads; when it is ready, fill the choice of adapters and the chips.

    Returns the load event of the page.
    """

    @action("view pages")
    def tick(chips: Any) -> list[Any]:
        state = context.engine_loader.state()
        html = header_html(context)
        if state.phase == "loading":
            return [html, gr.Timer(active=True), gr.skip(), gr.skip(), gr.skip()]
        if state.phase == "failed":
            return [html, gr.Timer(active=False), gr.skip(), gr.skip(), gr.skip()]
        adapters = list_adapter_choices(context.engine_loader.engine())
        # Chips that the visitor has changed stay as they are.
        unchanged = components.chip_names(chips) == list(METHODS_WITHOUT_ADAPTER)
        names = components.chip_values(default_methods(adapters.usable)) if unchanged else gr.skip()
        return [html, gr.Timer(active=False), names, gr.Dropdown(choices=adapters.choices), adapters.reasons]

    outputs = [header, timer, form.chips, form.adapter, form.reasons]
    timer.tick(tick, form.chips, outputs, **components.EVENT_OPTIONS)
    return pages.load(tick, form.chips, outputs, **components.EVENT_OPTIONS)
