"""Section of the Data page that asks all held-out rows of a data set, and shows what a run found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from evaluate.failures import count_unscored, missing_counts
from evaluate.results import Run
from evaluate.table import ADVICE
from ui import components
from ui.access.guard import action, data_choices
from ui.compare.decoding_form import MAX_NEW_TOKENS
from ui.components import render
from ui.context import Context
from ui.data.batch import COMMAND, BatchRequest, BatchRunner, BatchStatus
from ui.form_fields import (
    DEFAULT_DATA,
    METHODS_WITHOUT_ADAPTER,
    MethodForm,
    build_method_form,
    default_methods,
    list_adapter_choices,
)
from ui.results.runs import (
    ProblemTable,
    RunFile,
    RunLibrary,
    cached_recommendation,
    failures_first,
    make_problem_table,
    problem_list_component,
    problem_list_value,
    summary_component,
)
from ui.results.view import problem_view, summary_html

Update = dict[Any, Any]
POLL_SECONDS = 1.0
DEFAULT_TOKENS = 128
INTERNAL_ERROR = "Something went wrong on our side; the log has the details."
NO_RUN = "Choose a run first."
NO_ANSWERS_VIEW: Any = {"run": "", "head": "", "cards": [], "reference": None}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSection:
    """The components that events read and change. `method` and `problem` are the selected ones of the results."""

    data: gr.Dropdown
    form: MethodForm
    tokens: gr.Slider
    limit: gr.Number
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    runs: gr.Dropdown
    resume: gr.Button
    advice: gr.HTML
    summary: gr.HTML
    problems: gr.HTML
    answers: gr.HTML
    timer: gr.Timer
    method: gr.State
    problem: gr.State

    @property
    def state_outputs(self) -> list[Any]:
        """The components that a change of the run under way updates."""
        return [self.run, self.stop, self.status, self.resume, self.timer, self.runs, *self.result_outputs]

    @property
    def result_outputs(self) -> list[Any]:
        """The components that show the selected run."""
        return [self.advice, self.summary, self.problems, self.answers, self.method, self.problem]


def build_run_section(context: Context) -> RunSection:
    """Add the section to the current Blocks."""
    gr.HTML(
        "<h2>Ask all held-out rows</h2><p class='muted'>Every method answers every held-out row, and the answers are "
        "compared with the rows' code and tests. You may close the page meanwhile.</p>",
        apply_default_css=False, js_on_load=None, elem_id="data-run-title",
    )  # fmt: skip
    with gr.Row(elem_id="data-run-fields"):
        data = gr.Dropdown(
            data_choices(context.data_dir), value=DEFAULT_DATA, label="Rows of", min_width=200, elem_id="data-run-set"
        )
        tokens = gr.Slider(
            16, MAX_NEW_TOKENS, DEFAULT_TOKENS, step=16, label="Longest answer in tokens", min_width=220,
            elem_id="data-run-tokens",
        )  # fmt: skip
        limit = gr.Number(0, label="Rows at most (0: all)", precision=0, min_width=150, elem_id="data-run-limit")
    form = build_method_form("data-")
    with gr.Row(elem_id="data-run-actions"):
        run = gr.Button("Run", variant="primary", size="lg", scale=0, min_width=132, elem_id="data-run")
        stop = gr.Button("Stop", variant="stop", size="lg", scale=0, min_width=132, visible=False, elem_id="data-stop")
        status = components.live_region("", elem_id="data-run-status")
    with gr.Row(elem_id="data-run-results"):
        runs = gr.Dropdown(
            [], value=None, label="Results of the run", visible=False, min_width=260, elem_id="data-runs"
        )
        resume = gr.Button("Continue it", size="md", scale=0, min_width=130, visible=False, elem_id="data-resume")
    advice = gr.HTML("", apply_default_css=False, js_on_load=None, elem_id="data-advice")
    summary = summary_component("", elem_id="data-summary")
    problems = problem_list_component(elem_id="data-problems")
    answers = components.comparison_view(NO_ANSWERS_VIEW, elem_id="data-answers")
    return RunSection(
        data, form, tokens, limit, run, stop, status, runs, resume, advice, summary, problems, answers,
        gr.Timer(POLL_SECONDS, active=False), gr.State(""), gr.State(""),
    )  # fmt: skip


class RunEvents:
    """Handlers of the section's events; the runs are those in the folder of the user's own runs."""

    def __init__(self, context: Context, section: RunSection, library: RunLibrary) -> None:
        self.context, self.section, self.library = context, section, library
        self.label, folder = library.folders[-1]
        self.runner = BatchRunner(context, folder)

    def opened(self) -> Update:
        """The tab was opened: update the data sets, the adapters, the runs, and the state of the run under way."""
        section, loader = self.section, self.context.engine_loader
        changes: Update = {section.data: gr.Dropdown(choices=data_choices(self.context.data_dir, own=True))}
        if loader.state().phase == "ready":
            adapters = list_adapter_choices(loader.engine())
            changes |= {section.form.adapter: gr.Dropdown(choices=adapters.choices)}
            changes |= {section.form.reasons: adapters.reasons}
        return changes | self._state_updates(self.runner.status())

    @action("use own data sets")
    def default_chips(self, chips: Any) -> Any:
        """Return the chips with an adapter, once the model is ready and if they were not changed."""
        loader = self.context.engine_loader
        unchanged = components.chip_names(chips) == list(METHODS_WITHOUT_ADAPTER)
        if loader.state().phase != "ready" or not unchanged:
            return gr.skip()
        return components.chip_values(default_methods(list_adapter_choices(loader.engine()).usable))

    @action("use own data sets")
    def start(self, request: gr.Request, data: str, chips: Any, tokens: float, limit: float | None) -> Update:
        """Begin a run."""
        visitor = self.context.visitors.identify(request)
        try:
            rows = int(limit) if limit else None
            wanted = BatchRequest(str(data), tuple(components.chip_names(chips)), int(tokens), rows)
            self.runner.start(visitor, wanted)
        except PromptOrTuneError as error:
            return {self.section.status: components.error_html(error)}
        return self._state_updates(self.runner.status())

    @action("use own data sets")
    def stop(self) -> Update:
        """Stop the run."""
        self.runner.stop()
        return self._state_updates(self.runner.status())

    @action("use own data sets")
    def resume(self, request: gr.Request, name: str | None) -> Update:
        """Continue the selected run."""
        visitor = self.context.visitors.identify(request)
        try:
            self.runner.resume(visitor, self._file(name).path)
        except PromptOrTuneError as error:
            return {self.section.status: components.error_html(error)}
        return self._state_updates(self.runner.status())

    @action("use own data sets")
    def tick(self, selected: str | None) -> Update:
        """Show the progress; at the end of a run its results."""
        status = self.runner.status()
        if status.is_running:
            return {self.section.status: components.paragraph_html(status.describe())}
        name = self._name(status.path) if status.path else selected
        return self._state_updates(status) | self._result_updates(name)

    @action("use own data sets")
    def select_run(self, name: str | None) -> Update:
        """Show another run."""
        return self._result_updates(name)

    @action("use own data sets")
    def select_method(self, name: str | None, event: gr.EventData) -> Update:
        """List the failures of a method first."""
        table, method = self._table(name), str(_event_data(event).get("method") or "")
        return {
            self.section.method: method,
            self.section.problems: problem_list_value(table, failures_first(table, method)),
        }

    @action("use own data sets")
    def select_problem(self, name: str | None, method: str, problem: str, event: gr.EventData) -> Update:
        """Open a problem, or turn to another page of the list."""
        data, table = _event_data(event), self._table(name)
        rows = failures_first(table, method)
        if isinstance(data.get("from"), int):
            return {self.section.problems: problem_list_value(table, rows, data["from"], problem)}
        index = table.row_index.get(str(data.get("id")))
        if index is None:
            return {self.section.problems: gr.skip()}  # Gradio takes an empty dict for one value
        row = table.rows[index]
        position = next(position for position, other in enumerate(rows) if other.id == row.id)
        return {
            self.section.problems: problem_list_value(table, rows, position, row.id),
            self.section.answers: problem_view(table, row, method),
            self.section.problem: row.id,
        }

    def _state_updates(self, status: BatchStatus) -> Update:
        """Return the updates for the state of the run under way, and the list of runs."""
        section, running = self.section, status.is_running
        make_html = components.error_html if status.phase == "failed" else components.paragraph_html
        text = status.describe()
        files = self._files()
        changes: Update = {
            section.run: gr.Button(visible=not running),
            section.stop: gr.Button(visible=running, interactive=status.phase == "running"),
            section.status: make_html(text) if text else "",
            section.timer: gr.Timer(active=running),
        }
        name = self._name(status.path) if status.path else next((file.name for file in files), None)
        changes[section.runs] = gr.Dropdown(
            choices=[(_short_name(file.name), file.name) for file in files],
            value=name if name in {file.name for file in files} else None,
            visible=bool(files),
        )
        if running:
            changes[section.resume] = gr.Button(visible=False)
        return changes

    def _result_updates(self, name: str | None) -> Update:
        """Return the updates that show a run: table, recommendation and problems, with the failures first."""
        section = self.section
        empty = {
            section.advice: "", section.summary: "", section.problems: problem_list_value(ProblemTable(), []),
            section.answers: NO_ANSWERS_VIEW, section.method: "", section.problem: "",
            section.resume: gr.Button(visible=False),
        }  # fmt: skip
        if not name:
            return empty
        try:
            run = self.library.load_run(self._file(name).name)
            table = make_problem_table([(name, run)])
            return empty | {
                section.advice: advice_html(run),
                section.summary: summary_html([(name, run)], table, with_comparisons=False),
                section.problems: problem_list_value(table, failures_first(table)),
                section.resume: gr.Button(visible=self._can_continue(run)),
            }
        except PromptOrTuneError as error:
            return empty | {section.advice: components.error_html(error)}
        except Exception:  # noqa: BLE001 - the page stays usable; the error is logged with its traceback
            _log.exception("The run %s could not be shown.", name)
            return empty | {section.advice: components.error_html(INTERNAL_ERROR)}

    def _can_continue(self, run: Run) -> bool:
        """Whether the page made the run and it lacks answers or scores."""
        if run.provenance.get("command") != COMMAND or self.runner.status().is_running:
            return False
        wanted = set(run.provenance.get("methods", ())) - set(run.methods)
        return bool(wanted or missing_counts(run) or count_unscored(run))

    def _table(self, name: str | None) -> ProblemTable:
        run = self.library.load_run(self._file(name).name)
        return make_problem_table([(str(name), run)])

    def _files(self) -> list[RunFile]:
        """Return the runs in the folder of the user's own runs, newest first."""
        files = [file for file in self.library.list_runs() if file.name.startswith(f"{self.label}/") and file.data]
        return sorted(files, key=lambda file: _modified(file.path), reverse=True)

    def _file(self, name: str | None) -> RunFile:
        """Return the run of this name; raises PromptOrTuneError if there is none."""
        found = next((file for file in self._files() if file.name == name), None)
        if found is None:
            raise PromptOrTuneError(NO_RUN)
        return found

    def _name(self, path: Path) -> str:
        return f"{self.label}/{path.name}"


def advice_html(run: Run) -> str:
    """Return the recommendation of a run as HTML, '' where there is none."""
    recommendation = cached_recommendation(run)
    if recommendation is None:
        return ""
    title = ADVICE[recommendation.family] if recommendation.family else ""
    return render("data/advice.html.jinja", title=title, text=recommendation.sentence)


def _event_data(event: gr.EventData) -> Mapping[str, Any]:
    return event._data if isinstance(event._data, dict) else {}


def _short_name(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".gz").removesuffix(".jsonl")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # deleted since it was listed


def wire_run_section(section: RunSection, events: RunEvents) -> None:
    """Wire the events of the section; the page wires what happens when its tab is opened."""
    options = components.EVENT_OPTIONS
    inputs = [section.data, section.form.chips, section.tokens, section.limit]
    section.run.click(events.start, inputs, section.state_outputs, **options)
    section.stop.click(events.stop, None, section.state_outputs, **options)
    section.resume.click(events.resume, section.runs, section.state_outputs, **options)
    # Queued: the intervals of many answers take seconds. A tick that comes meanwhile is dropped.
    slow = {"show_progress": "hidden", "api_visibility": "private"}
    section.timer.tick(events.tick, section.runs, section.state_outputs, **slow)
    section.runs.change(
        events.select_run, section.runs, [*section.result_outputs, section.resume], trigger_mode="always_last", **slow
    )
    section.summary.select(events.select_method, section.runs, [section.method, section.problems], **options)
    section.problems.select(
        events.select_problem,
        [section.runs, section.method, section.problem],
        [section.problems, section.answers, section.problem],
        **options,
    )
