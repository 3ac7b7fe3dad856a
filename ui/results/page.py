"""Results page layout and events: choose runs, read tables and plots, filter problems, open one, download.

The URL holds the runs, the filters and the open problem, so that it can be bookmarked and sent; js/page.js reads and
writes it. It is untrusted: unknown names in it are ignored.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from evaluate.report import json_report, markdown_report, metrics_csv, plot_report_png
from evaluate.results import Run
from ui import components
from ui.access.guard import action
from ui.compare.view import ComparisonView
from ui.results.runs import (
    FILTERS,
    ProblemRow,
    ProblemTable,
    RunLibrary,
    filter_rows,
    make_problem_table,
    problem_list_component,
    problem_list_value,
    summary_component,
    without_folders,
)
from ui.results.view import choose_html, empty_html, loading_html, problem_view, summary_html

URL_PARAMETERS = ("run", "method", "show", "words", "problem")
MAX_URL_RUNS = 50
_MAX_VALUE_LENGTH = 500
# The open problem is the selected one of the list. Before the list has a value, the URL stays as it was opened.
WRITE_URL_JS = (
    "(runs, method, show, words, problems) => { if (problems) window.promptOrTune.writeUrlState("
    f'{json.dumps(URL_PARAMETERS)}, [runs, method, show === "all" ? "" : show, words, problems.shown]); }}'
)
READ_URL_JS = f"(runs) => [runs, window.promptOrTune.readUrlState({json.dumps(URL_PARAMETERS)})]"


@dataclass(frozen=True)
class UrlState:
    """State of the page in the URL. `method` is a column's key; '' means all methods, no words, no problem."""

    runs: tuple[str, ...] = ()
    method: str = ""
    show: str = "all"
    query: str = ""
    problem: str = ""

    def restrict_to(self, table: ProblemTable) -> UrlState:
        """Return the state without a method or a problem that the table does not have."""
        method = self.method if self.method in {column.key for column in table.columns} else ""
        return UrlState(
            self.runs, method, self.show, self.query, self.problem if self.problem in table.row_index else ""
        )


def parse_url_state(value: Any, known_runs: Collection[str]) -> UrlState:
    """Parse {parameter: values} of the browser; without a known run the filters are ignored."""
    parameters = value if isinstance(value, dict) else {}

    def texts(name: str) -> Sequence[str]:
        values = parameters.get(name)
        return [text for text in values if isinstance(text, str)] if isinstance(values, list) else []

    def text(name: str) -> str:
        return next(iter(texts(name)), "")[:_MAX_VALUE_LENGTH]

    runs = tuple(run for run in dict.fromkeys(texts("run")[:MAX_URL_RUNS]) if run in known_runs)
    if not runs:
        return UrlState()
    show = text("show") if text("show") in FILTERS else "all"
    return UrlState(runs, text("method"), show, text("words"), text("problem"))


def url_component() -> gr.HTML:
    """Return a component that carries the result of READ_URL_JS to the server."""
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
    """Return the file that js/download.js saves. Raises PromptOrTuneError without runs.

    `kind` is a key of EXPORT_KINDS and the suffix of the file.
    """
    if not runs:
        raise PromptOrTuneError("Choose a run first: there is nothing to save yet.")
    # The file goes to the browser: it must not contain paths of this machine.
    command = f"python -m evaluate report {' '.join(run.path.name for _, run in runs)}"
    make: dict[str, Callable[[Sequence[Run]], str | bytes]] = {
        "csv": metrics_csv,
        "json": lambda selected: json_report(selected, command),
        "md": lambda selected: markdown_report(selected, command),
        "png": plot_report_png,
        "jsonl.gz": _candidates_jsonl_gz,
    }
    chosen = [run for _, run in runs]
    try:
        content = make[kind](chosen)
    except PromptOrTuneError as error:
        raise PromptOrTuneError(without_folders(str(error), chosen)) from error
    if isinstance(content, str):
        content = without_folders(content, chosen)
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    prefix = "-".join(run.path.name.removesuffix(".gz").removesuffix(".jsonl") for _, run in runs)[:_MAX_NAME_LENGTH]
    return {
        "name": f"{prefix}.{kind}",
        "type": _MEDIA_TYPES.get(kind, "application/gzip"),
        "base64": base64.b64encode(data).decode("ascii"),
        "number": number,
    }


def _candidates_jsonl_gz(runs: Sequence[Run]) -> bytes:
    """Return gzipped JSON lines, one per problem and method: all candidates with their scores and test results."""
    lines = (
        json.dumps({"run": run.path.name, **asdict(result)}) + "\n"
        for run in runs
        for method in run.methods
        for result in run.results(method)
    )
    return gzip.compress("".join(lines).encode("ascii"), mtime=0)


SeesOwn = Callable[[gr.Request], bool]
TITLE = "Results"
ALL_METHODS = ("All methods", "")
INTERNAL_ERROR = "Something went wrong on our side; the log has the details."
NO_ANSWERS_VIEW: ComparisonView = {"run": "", "head": "", "cards": [], "reference": None}
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
    pending_url_state: gr.State  # from the URL, until it is applied
    loaded_runs: gr.State  # names


def build_results(library: RunLibrary, tab: gr.Tab, sees_own: SeesOwn) -> None:
    """Add the page to the current Blocks. Runs are read when the tab is opened.

    `sees_own` says whether the visitor of a request may see runs over the data sets of the owner of the app.
    """
    with gr.Column(elem_id="results"):
        with gr.Row(elem_id="results-title"):
            gr.HTML("<h1>What do the numbers say?</h1>", apply_default_css=False, js_on_load=None, elem_classes="title")
            runs = gr.Dropdown(
                [], value=[], multiselect=True, label="Runs", show_label=False, elem_id="runs", min_width=260
            )
            refresh = gr.Button("Look again", size="md", scale=0, min_width=110, elem_id="refresh-runs")
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
            query = gr.Textbox(
                label="Words in the question, the reference or an answer", lines=1, max_lines=1, min_width=220, scale=2,
                elem_id="filter-words",
            )  # fmt: skip
        problems = problem_list_component()
        answers = components.comparison_view(NO_ANSWERS_VIEW, elem_id="answers")
    page = ResultsPage(
        runs, note, summary, downloads, filters, method, show, query, problems, answers,
        selected_problem=gr.State(""), pending_url_state=gr.State(UrlState()), loaded_runs=gr.State([]),
    )  # fmt: skip
    download, number = components.file_download(), gr.State(0)
    runs_of = VisitorRuns(library, sees_own)
    _wire(page, runs_of)
    _wire_url(page, runs_of, tab)

    @action("view pages")
    def look_again(request: gr.Request) -> Any:
        return gr.Dropdown(choices=[(name, name) for name in runs_of.names(request)])

    refresh.click(look_again, None, runs, **components.EVENT_OPTIONS)
    for kind, button in buttons.items():
        button.click(
            _export_handler(runs_of, kind), [runs, number], [download, number, note], **components.EVENT_OPTIONS
        )


@dataclass(frozen=True)
class VisitorRuns:
    """The runs of a library that the visitor of a request may see."""

    library: RunLibrary
    sees_own: SeesOwn

    def names(self, request: gr.Request) -> list[str]:
        """Return the names of the runs that are in the folders now."""
        return [entry.name for entry in self.library.list_runs(own=self.sees_own(request))]

    def read(self, request: gr.Request, names: Sequence[str]) -> tuple[list[tuple[str, Run]], list[str]]:
        """Read the runs of these names as `read_runs` does."""
        return read_runs(self.library, names, own=self.sees_own(request))


def read_runs(
    library: RunLibrary, names: Sequence[str], *, own: bool = True
) -> tuple[list[tuple[str, Run]], list[str]]:
    """Read the runs of these names; return them, and an error message for each that cannot be read."""
    runs, errors = [], []
    for name in dict.fromkeys(names):
        try:
            runs.append((name, library.load_run(name, own=own)))
        except PromptOrTuneError as error:
            errors.append(str(error))
    return runs, errors


def _wire(page: ResultsPage, runs_of: VisitorRuns) -> None:
    inputs = [page.runs, page.method, page.show, page.query, page.selected_problem]

    def read_table(request: gr.Request, names: Sequence[str]) -> ProblemTable:
        return make_problem_table(runs_of.read(request, names)[0])

    @action("view pages")
    def load_runs(
        request: gr.Request, names: list[str], url_state: UrlState, loaded: list[str]
    ) -> Iterator[dict[Any, Any]]:
        if names and names == loaded:
            # The dropdown was only rendered again: filters and the open problem stay.
            yield {page.loaded_runs: gr.skip()}
            return
        try:
            yield {page.loaded_runs: names}
            yield from _loaded_updates(page, runs_of, request, names, url_state)
        except Exception:  # noqa: BLE001 - the page stays usable; the error is logged with its traceback
            _log.exception("The runs %s could not be shown.", names)
            yield {page.note: components.error_html(INTERNAL_ERROR)}

    @action("view pages")
    def apply_filters(
        request: gr.Request, names: list[str], method: str, show: str, query: str, selected: str
    ) -> dict[Any, Any]:
        table = read_table(request, names)
        return {page.problems: problem_list_value(table, filter_rows(table, show, method, query), selected=selected)}

    @action("view pages")
    def select_problem(
        request: gr.Request,
        names: list[str],
        method: str,
        show: str,
        query: str,
        selected: str,
        event: gr.EventData,
    ) -> dict[Any, Any]:
        data = event._data if isinstance(event._data, dict) else {}
        table = read_table(request, names)
        rows = filter_rows(table, show, method, query)
        if isinstance(data.get("from"), int):
            return {page.problems: problem_list_value(table, rows, data["from"], selected)}
        index = table.row_index.get(str(data.get("id")))
        if index is None:
            return {page.problems: gr.skip()}  # Gradio takes an empty dict for one value
        row = table.rows[index]
        return {
            page.problems: problem_list_value(table, rows, _row_position(rows, row), row.id),
            page.answers_view: problem_view(table, row, method),
            page.selected_problem: row.id,
        }

    @action("view pages")
    def show_failures(request: gr.Request, names: list[str], selected: str, event: gr.EventData) -> dict[Any, Any]:
        data = event._data if isinstance(event._data, dict) else {}
        table = read_table(request, names)
        key = str(data.get("method"))
        if key not in {column.key for column in table.columns}:
            return {page.problems: gr.skip()}  # Gradio takes an empty dict for one value
        problems = problem_list_value(table, filter_rows(table, "failures", key, ""), selected=selected)
        return {page.method: key, page.show: "failures", page.query: "", page.problems: problems}

    outputs = [
        page.note, page.summary, page.downloads, page.filters, page.method, page.show, page.query, page.problems,
        page.answers_view, page.selected_problem, page.pending_url_state, page.loaded_runs,
    ]  # fmt: skip
    # Queued, because it yields several updates; of choices made while it computes only the last one counts.
    page.runs.change(
        load_runs, [page.runs, page.pending_url_state, page.loaded_runs], outputs, show_progress="hidden",
        api_visibility="private", trigger_mode="always_last",
    )  # fmt: skip
    filter_events = [page.method.input, page.show.input, page.query.change]
    gr.on(filter_events, apply_filters, inputs, [page.problems], **components.EVENT_OPTIONS)
    page.summary.select(
        show_failures,
        [page.runs, page.selected_problem],
        [page.method, page.show, page.query, page.problems],
        **components.EVENT_OPTIONS,
    )
    page.problems.select(
        select_problem,
        inputs,
        [page.problems, page.answers_view, page.selected_problem],
        **components.EVENT_OPTIONS,
    )


def _wire_url(page: ResultsPage, runs_of: VisitorRuns, tab: gr.Tab) -> None:
    """Write the choices into the URL; opening the tab applies the URL, or selects the first run."""

    @action("view pages")
    def open_tab(request: gr.Request, selected: list[str], parameters: Any) -> dict[Any, Any]:
        if selected:
            return {page.pending_url_state: gr.skip()}
        names = runs_of.names(request)
        url_state = parse_url_state(parameters, names)
        value = list(url_state.runs) or names[:1]
        return {
            page.runs: gr.Dropdown(choices=[(name, name) for name in names], value=value),
            page.pending_url_state: url_state,
        }

    tab.select(
        open_tab,
        [page.runs, url_component()],
        [page.runs, page.pending_url_state],
        js=READ_URL_JS,
        **components.EVENT_OPTIONS,
    )
    fields = [page.runs, page.method, page.show, page.query, page.problems]
    gr.on([field.change for field in fields], None, fields, None, js=WRITE_URL_JS, **components.EVENT_OPTIONS)


def _loaded_updates(
    page: ResultsPage, runs_of: VisitorRuns, request: gr.Request, names: Sequence[str], url_state: UrlState
) -> Iterator[dict[Any, Any]]:
    """Yield the problems at once, then the score tables and the plots, then the comparisons."""
    runs, messages = runs_of.read(request, names)
    table = make_problem_table(runs)
    if table.excluded_runs:
        others = ", ".join(f"'{name}'" for name in table.excluded_runs)
        messages.append(f"The plots and problems below leave out {others}: these are over other problems.")
    summary = choose_html() if runs_of.names(request) else empty_html(str(runs_of.library.folders[-1][1]))
    methods = [ALL_METHODS, *((column.label, column.key) for column in table.columns)]
    url_state = url_state.restrict_to(table)
    row = table.rows[table.row_index[url_state.problem]] if url_state.problem else None
    rows = filter_rows(table, url_state.show, url_state.method, url_state.query)
    yield {
        page.note: components.error_html(*messages),
        page.summary: loading_html(runs) if runs else summary,
        page.downloads: gr.Row(visible=bool(runs)),
        page.filters: gr.Row(visible=bool(table.rows)),
        page.method: gr.Dropdown(choices=methods, value=url_state.method),
        page.show: url_state.show,
        page.query: url_state.query,
        page.problems: problem_list_value(table, rows, _row_position(rows, row), url_state.problem),
        page.answers_view: problem_view(table, row, url_state.method) if row else NO_ANSWERS_VIEW,
        page.selected_problem: url_state.problem,
        page.pending_url_state: UrlState() if names else gr.skip(),
    }
    for with_comparisons in (False, True):
        if runs:
            yield {page.summary: summary_html(runs, table, with_comparisons=with_comparisons)}


def _row_position(rows: Sequence[ProblemRow], row: ProblemRow | None) -> int:
    """Return the position of a problem among the filtered rows; 0 if it is not among them."""
    return next((i for i, other in enumerate(rows) if row and other.id == row.id), 0)


def _export_handler(runs_of: VisitorRuns, kind: str) -> Any:
    @action("view pages")
    def save(request: gr.Request, names: list[str], number: int) -> tuple[Any, int, Any]:
        try:
            runs, _ = runs_of.read(request, names)
            return export_runs(runs, kind, number + 1), number + 1, gr.skip()
        except PromptOrTuneError as error:
            return gr.skip(), number, components.error_html(error)

    return save
