"""Results layout, URL state.

The Results page: pick runs, read tables and plots, filter problems, open one, download.

The Results page in the address: its runs, filters and open problem. It can be kept, sent, and come back to.

js/page.js reads and writes it. It comes from outside: a name that is none of ours is left out.

What the Results page saves: numbers as CSV, JSON, Markdown and PNG, and the candidates with what was scored.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from evaluate.report import json_report, markdown_report, metrics_csv, plot_report_png
from evaluate.results import Run
from ui import components
from ui.compare.view import ComparisonView
from ui.results.runs import (
    FILTERS,
    ProblemTable,
    RunLibrary,
    filter_rows,
    make_problem_table,
    problem_list_component,
    problem_list_value,
    summary_component,
)
from ui.results.view import choose_html, empty_html, loading_html, problem_view, summary_html

URL_PARAMETERS = ("run", "method", "show", "words", "problem")
MAX_URL_RUNS = 50
_MAX_VALUE_LENGTH = 500
# The open problem is the one that the list of problems marks. Before there is a list nothing was shown yet, and what
# the address asks for stands.
WRITE_URL_JS = (
    "(runs, method, show, words, problems) => { if (problems) window.promptOrTune.writeUrlState("
    f'{json.dumps(URL_PARAMETERS)}, [runs, method, show === "all" ? "" : show, words, problems.shown]); }}'
)
READ_URL_JS = f"(runs) => [runs, window.promptOrTune.readUrlState({json.dumps(URL_PARAMETERS)})]"


@dataclass(frozen=True)
class UrlState:
    """What an address asks for. `method` is a side's key; '' stands for all methods, no words, no problem."""

    runs: tuple[str, ...] = ()
    method: str = ""
    show: str = "all"
    query: str = ""
    problem: str = ""

    def restrict_to(self, table: ProblemTable) -> UrlState:
        """The same without a method and a problem that these runs do not have."""
        method = self.method if self.method in {side.key for side in table.columns} else ""
        return UrlState(
            self.runs, method, self.show, self.query, self.problem if self.problem in table.row_index else ""
        )


def parse_url_state(value: Any, known: Collection[str]) -> UrlState:
    """From the browser's {parameter: values}; the filters count only together with runs that are there."""
    given = value if isinstance(value, dict) else {}

    def texts(name: str) -> Sequence[str]:
        values = given.get(name)
        return [text for text in values if isinstance(text, str)] if isinstance(values, list) else []

    def text(name: str) -> str:
        return next(iter(texts(name)), "")[:_MAX_VALUE_LENGTH]

    runs = tuple(run for run in dict.fromkeys(texts("run")[:MAX_URL_RUNS]) if run in known)
    if not runs:
        return UrlState()
    show = text("show") if text("show") in FILTERS else "all"
    return UrlState(runs, text("method"), show, text("words"), text("problem"))


def url_component() -> gr.HTML:
    """Brings what the address says to the server: its value is what READ_URL_JS makes."""
    return gr.HTML(None, html_template="", js_on_load=None, visible="hidden")


EXPORT_KINDS = {
    "csv": "Save CSV",
    "json": "Save JSON",
    "md": "Save Markdown",
    "png": "Save PNG",
    "jsonl.gz": "Save candidates",
}
_MEDIA_TYPES = {"csv": "text/csv", "json": "application/json", "md": "text/markdown", "png": "image/png"}
_MAX_NAME_LENGTH = 80


def export_runs(runs: Sequence[tuple[str, Run]], kind: str, number: int) -> dict[str, Any]:
    """The file that js/download.js saves; PromptOrTuneError in one sentence where there is nothing to save.

    `kind` is one of KINDS, and the ending of the file's name.
    """
    if not runs:
        raise PromptOrTuneError("Choose a run first: there is nothing to save yet.")
    # Names of files alone: where they lie is this machine's business.
    command = f"python -m evaluate report {' '.join(run.path.name for _, run in runs)}"
    make: dict[str, Callable[[Sequence[Run]], str | bytes]] = {
        "csv": metrics_csv,
        "json": lambda chosen: json_report(chosen, command),
        "md": lambda chosen: markdown_report(chosen, command),
        "png": plot_report_png,
        "jsonl.gz": _candidates_jsonl_gz,
    }
    content = make[kind]([run for _, run in runs])
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    stem = "-".join(run.path.name.removesuffix(".gz").removesuffix(".jsonl") for _, run in runs)[:_MAX_NAME_LENGTH]
    return {
        "name": f"{stem}.{kind}",
        "type": _MEDIA_TYPES.get(kind, "application/gzip"),
        "base64": base64.b64encode(data).decode("ascii"),
        "number": number,
    }


def _candidates_jsonl_gz(runs: Sequence[Run]) -> bytes:
    """One line a problem and method: every candidate, its scores and what the tests said of it; packed."""
    lines = (
        json.dumps({"run": run.path.name, **asdict(result)}) + "\n"
        for run in runs
        for method in run.methods
        for result in run.results(method)
    )
    return gzip.compress("".join(lines).encode("ascii"), mtime=0)


TITLE = "Results"
ALL_METHODS = ("All methods", "")
INTERNAL_ERROR = "Something went wrong on our side, and the log says what."
NO_ANSWERS_VIEW: ComparisonView = {"run": "", "head": "", "cards": [], "reference": None}
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResultsPage:
    """The components that events read and change."""

    runs: gr.Dropdown
    note: gr.HTML
    summary: gr.HTML
    downloads: gr.Row
    filters: gr.Row
    method: gr.Dropdown
    show: gr.Dropdown
    query: gr.Textbox
    problems: gr.HTML
    answers_view: gr.HTML
    selected_problem: gr.State
    pending_url_state: gr.State  # what the address asked for and is not shown yet
    loaded_runs: gr.State  # the runs that are shown


def build_results(library: RunLibrary, tab: gr.Tab) -> None:
    """Draws the page inside the current Blocks and wires it. Runs are read when somebody looks at the tab."""
    with gr.Column(elem_id="results"):
        with gr.Row(elem_id="results-title"):
            gr.HTML("<h1>What do the numbers say?</h1>", apply_default_css=False, js_on_load=None, elem_classes="title")
            runs = gr.Dropdown(
                [], value=[], multiselect=True, label="Runs", show_label=False, elem_id="runs", min_width=260
            )
            again = gr.Button("Look again", size="md", scale=0, min_width=110, elem_id="refresh-runs")
        note = components.live_region("", elem_id="results-note", role="alert")
        summary = summary_component(choose_html())
        with gr.Row(visible=False, elem_id="downloads") as downloads:
            buttons = {kind: gr.Button(label, size="sm", scale=0, min_width=92) for kind, label in EXPORT_KINDS.items()}
        with gr.Row(visible=False, elem_id="filters") as filters:
            method = gr.Dropdown([ALL_METHODS], value="", label="Method", min_width=180, elem_id="filter-method")
            show = gr.Dropdown(
                [(label, name) for name, label in FILTERS.items()], value="all", label="Problems", min_width=180,
                elem_id="filter-show",
            )  # fmt: skip
            words = gr.Textbox(
                label="Words in the question, the reference or an answer", lines=1, max_lines=1, min_width=220, scale=2,
                elem_id="filter-words",
            )  # fmt: skip
        problems = problem_list_component()
        board = components.comparison_view(NO_ANSWERS_VIEW, elem_id="answers")
    shown, asked, picked = gr.State(""), gr.State(UrlState()), gr.State([])
    page = ResultsPage(
        runs, note, summary, downloads, filters, method, show, words, problems, board, shown, asked, picked
    )
    saved, number = components.file_download(), gr.State(0)
    _wire(page, library)
    _wire_url(page, library, tab)
    again.click(lambda: run_choices(library), None, runs, **_EVENT_OPTIONS)
    for kind, button in buttons.items():
        button.click(_export_handler(library, kind), [runs, number], [saved, number, note], **_EVENT_OPTIONS)


def run_choices(library: RunLibrary) -> Any:
    """The runs that lie in the folders now, as the choice of them."""
    return gr.Dropdown(choices=[(entry.name, entry.name) for entry in library.list_runs()])


def read_runs(library: RunLibrary, names: Sequence[str]) -> tuple[list[tuple[str, Run]], list[str]]:
    """The runs of these names, and a sentence for each that cannot be read."""
    runs, sentences = [], []
    for name in dict.fromkeys(names):
        try:
            runs.append((name, library.load_run(name)))
        except PromptOrTuneError as error:
            sentences.append(str(error))
    return runs, sentences


def _wire(page: ResultsPage, library: RunLibrary) -> None:
    chosen = [page.runs, page.method, page.show, page.query]

    def view_of(names: Sequence[str]) -> ProblemTable:
        return make_problem_table(read_runs(library, names)[0])

    def pick(names: list[str], asked: UrlState, picked: list[str]) -> Iterator[dict[Any, Any]]:
        if names and names == picked:
            # A choice that is only drawn anew has changed nothing: filters and an open problem stay.
            yield {page.loaded_runs: gr.skip()}
            return
        try:
            yield {page.loaded_runs: names}
            yield from _loaded_updates(page, library, names, asked)
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("The runs %s could not be shown.", names)
            yield {page.note: _errors_html([INTERNAL_ERROR])}

    def narrow(names: list[str], method: str, show: str, words: str, shown: str) -> dict[Any, Any]:
        view = view_of(names)
        return {page.problems: problem_list_value(view, filter_rows(view, show, method, words), selected=shown)}

    def click(names: list[str], method: str, show: str, words: str, shown: str, event: gr.EventData) -> dict[Any, Any]:
        asked = event._data if isinstance(event._data, dict) else {}
        view = view_of(names)
        rows = filter_rows(view, show, method, words)
        if isinstance(asked.get("from"), int):
            return {page.problems: problem_list_value(view, rows, asked["from"], shown)}
        place = view.row_index.get(str(asked.get("id")))
        if place is None:
            return {}
        row = view.rows[place]
        at = next((at for at, other in enumerate(rows) if other.id == row.id), 0)
        return {
            page.problems: problem_list_value(view, rows, at, row.id),
            page.answers_view: problem_view(view, row, method),
            page.selected_problem: row.id,
        }

    def failures(names: list[str], shown: str, event: gr.EventData) -> dict[Any, Any]:
        asked = event._data if isinstance(event._data, dict) else {}
        view = view_of(names)
        key = str(asked.get("method"))
        if key not in {side.key for side in view.columns}:
            return {}
        listed = problem_list_value(view, filter_rows(view, "failures", key, ""), selected=shown)
        return {page.method: key, page.show: "failures", page.query: "", page.problems: listed}

    outputs = [
        page.note, page.summary, page.downloads, page.filters, page.method, page.show, page.query, page.problems,
        page.answers_view, page.selected_problem, page.pending_url_state, page.loaded_runs,
    ]  # fmt: skip
    # In the queue, which its steps need; who chooses again while numbers are computed wants the last choice alone.
    page.runs.change(
        pick, [page.runs, page.pending_url_state, page.loaded_runs], outputs, show_progress="hidden", api_visibility="private",
        trigger_mode="always_last",
    )  # fmt: skip
    narrowing = [page.method.input, page.show.input, page.query.change]
    gr.on(narrowing, narrow, [*chosen, page.selected_problem], [page.problems], **_EVENT_OPTIONS)
    page.summary.select(
        failures,
        [page.runs, page.selected_problem],
        [page.method, page.show, page.query, page.problems],
        **_EVENT_OPTIONS,
    )
    page.problems.select(
        click,
        [*chosen, page.selected_problem],
        [page.problems, page.answers_view, page.selected_problem],
        **_EVENT_OPTIONS,
    )


def _wire_url(page: ResultsPage, library: RunLibrary, tab: gr.Tab) -> None:
    """The address follows the choices. Whoever opens the tab finds what it names, or the first run of all."""

    def look(chosen: list[str], address: Any) -> dict[Any, Any]:
        if chosen:
            return {page.pending_url_state: gr.skip()}
        names = [entry.name for entry in library.list_runs()]
        asked = parse_url_state(address, names)
        value = list(asked.runs) or names[:1]
        return {
            page.runs: gr.Dropdown(choices=[(name, name) for name in names], value=value),
            page.pending_url_state: asked,
        }

    tab.select(
        look, [page.runs, url_component()], [page.runs, page.pending_url_state], js=READ_URL_JS, **_EVENT_OPTIONS
    )
    fields = [page.runs, page.method, page.show, page.query, page.problems]
    gr.on([field.change for field in fields], None, fields, None, js=WRITE_URL_JS, **_EVENT_OPTIONS)


def _loaded_updates(
    page: ResultsPage, library: RunLibrary, names: Sequence[str], url_state: UrlState
) -> Iterator[dict[Any, Any]]:
    """The problems at once, then the table and the plots, then the comparisons."""
    runs, sentences = read_runs(library, names)
    view = make_problem_table(runs)
    if view.excluded_runs:
        others = ", ".join(f"'{name}'" for name in view.excluded_runs)
        sentences.append(f"The plots and problems below leave out {others}: these are over other problems.")
    summary = choose_html() if library.list_runs() else empty_html(str(library.folders[-1][1]))
    methods = [ALL_METHODS, *((side.label, side.key) for side in view.columns)]
    url_state = url_state.restrict_to(view)
    row = view.rows[view.row_index[url_state.problem]] if url_state.problem else None
    rows = filter_rows(view, url_state.show, url_state.method, url_state.query)
    at = next((at for at, other in enumerate(rows) if row and other.id == row.id), 0)
    yield {
        page.note: _errors_html(sentences),
        page.summary: loading_html(runs) if runs else summary,
        page.downloads: gr.Row(visible=bool(runs)),
        page.filters: gr.Row(visible=bool(view.rows)),
        page.method: gr.Dropdown(choices=methods, value=url_state.method),
        page.show: url_state.show,
        page.query: url_state.query,
        page.problems: problem_list_value(view, rows, at, url_state.problem),
        page.answers_view: problem_view(view, row, url_state.method) if row else NO_ANSWERS_VIEW,
        page.selected_problem: url_state.problem,
        page.pending_url_state: UrlState() if names else gr.skip(),
    }
    for compared in (False, True):
        if runs:
            yield {page.summary: summary_html(runs, view, with_comparisons=compared)}


def _export_handler(library: RunLibrary, kind: str) -> Any:
    def save(names: list[str], number: int) -> tuple[Any, int, Any]:
        try:
            runs, _ = read_runs(library, names)
            return export_runs(runs, kind, number + 1), number + 1, gr.skip()
        except PromptOrTuneError as error:
            return gr.skip(), number, _errors_html([str(error)])

    return save


def _errors_html(texts: Sequence[str]) -> str:
    return "".join(f'<p class="error-message">{escape(text)}</p>' for text in texts)
