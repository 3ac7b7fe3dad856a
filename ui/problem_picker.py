"""Problem picker: a data set, a searchable list of its test problems, a random one, and suggestions.

The owner of the app also picks held-out rows of their own data sets (ui/own_data.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from tasks.datasets.registry import HOUSE, load_problems
from tasks.problem import Problem
from ui import components
from ui.access.guard import action, declare
from ui.compare.comparison import format_tests
from ui.context import Context
from ui.own_data import data_choices, has_examples, load_split_problems, own_allowed, own_names, pool_choices

DEFAULT_DATA = "starter"
SUGGESTED_DATA = HOUSE  # of the Compare page: its first adapter is trained on it
_LABEL_LENGTH = 120
_BUTTON_LENGTH = 52
NO_CHOICE = ("Pick a test problem", "")


@dataclass(frozen=True)
class ProblemPicker:
    """The components; `note` shows why a data set cannot be read."""

    data: gr.Dropdown
    problem: gr.Dropdown
    random_button: gr.Button
    note: gr.HTML

    def selection_updates(
        self, name: str, problem_id: str, data_dir: Path | None, *, own: bool = False
    ) -> tuple[Any, Any, str]:
        """Return updates for `data`, `problem` and `note` that select this data set and problem ('' for none).

        The choices of `data` are listed anew, with those of the owner if the visitor may use them (`own`).
        """
        choices, error = _problem_choices(name, data_dir, own=own)
        value = problem_id if problem_id in {known_id for _, known_id in choices} else ""
        data = gr.Dropdown(choices=data_choices(data_dir, own=own), value=name)
        return data, gr.Dropdown(choices=[NO_CHOICE, *choices], value=value), components.error_html(error)


def suggested_problems(ids: Sequence[str]) -> list[Problem]:
    """Return the validation rows of house with these ids, in this order (ui/compare/record_example.py chooses them)."""
    problems = {problem.id: problem for problem in load_problems(SUGGESTED_DATA, "validation")}
    return [problems[id] for id in ids if id in problems]


def build_picker(data_dir: Path | None) -> ProblemPicker:
    """Add the choice of a data set and of a problem, and the button for a random one, to the current Blocks."""
    choices, error = _problem_choices(SUGGESTED_DATA, data_dir, own=False)
    data = gr.Dropdown(
        data_choices(data_dir),
        value=SUGGESTED_DATA,
        label="Data set of test problems",
        show_label=False,
        scale=0,
        min_width=150,
        elem_id="data-set",
    )
    problem = gr.Dropdown(
        [NO_CHOICE, *choices], value="", label="Test problem", show_label=False, min_width=200, elem_id="problem"
    )
    random_button = gr.Button("Random", size="md", scale=0, min_width=96, elem_id="random")
    note = components.live_region(components.error_html(error), elem_id="picker-note")
    return ProblemPicker(data, problem, random_button, note)


def build_suggestions(problems: Sequence[Problem]) -> list[tuple[gr.Button, Problem]]:
    """Add a button for each suggested problem to the current Blocks."""
    with gr.Row(elem_id="suggestions", visible=bool(problems)):
        gr.HTML("<p>Try</p>", apply_default_css=False, js_on_load=None, elem_id="suggestions-label")
        return [
            (gr.Button(_shorten(problem.intent, _BUTTON_LENGTH), size="sm", scale=0), problem) for problem in problems
        ]


def wire_picker(
    picker: ProblemPicker,
    suggestions: Sequence[tuple[gr.Button, Problem]],
    context: Context,
    selected_problem: gr.State,
    outputs: Sequence[gr.components.Component],
) -> list[Any]:
    """Write a chosen problem to `selected_problem` and to `outputs`: intent, reference, tests, pool of examples.

    The pool becomes the data set of the problem, as ICL and RAG need examples of the same kind, or the starter set
    where that has no examples. Returns the events that choose a problem.
    """
    data_dir = context.data_dir

    @action("view pages")
    def show(name: str | None, request: gr.Request) -> tuple[Any, str]:
        own = own_allowed(context, request)
        _, problem, note = picker.selection_updates(name or SUGGESTED_DATA, "", data_dir, own=own)
        return problem, note

    @action("view pages")
    def pick(name: str | None, identity: str | None, request: gr.Request) -> list[object]:
        return values(name or SUGGESTED_DATA, identity, own=own_allowed(context, request))

    @action("view pages")
    def pick_random(name: str | None, request: gr.Request) -> list[object]:
        name, own = name or SUGGESTED_DATA, own_allowed(context, request)
        choices, _ = _problem_choices(name, data_dir, own=own)
        identity = random.choice(choices)[1] if choices else None
        return [identity or gr.skip(), *values(name, identity, own=own)]

    def values(name: str, identity: str | None, *, own: bool) -> list[object]:
        problem = _find_problem(name, identity, data_dir, own=own)
        return _field_values(problem, name) if problem else [gr.skip()] * 5

    picker.data.input(show, picker.data, [picker.problem, picker.note], **components.EVENT_OPTIONS)
    return [
        *(
            button.click(fill_handler(example), None, [selected_problem, *outputs], **components.EVENT_OPTIONS)
            for button, example in suggestions
        ),
        picker.problem.input(
            pick, [picker.data, picker.problem], [selected_problem, *outputs], **components.EVENT_OPTIONS
        ),
        picker.random_button.click(
            pick_random, picker.data, [picker.problem, selected_problem, *outputs], **components.EVENT_OPTIONS
        ),
    ]


def wire_own_data(picker: ProblemPicker, pool: gr.Dropdown, context: Context, tab: gr.Tab) -> None:
    """List the owner's data sets anew when the tab is opened: one may have been added, replaced or deleted."""

    @action("view pages")
    def refresh(name: str | None, problem_id: str | None, request: gr.Request) -> list[Any]:
        if not own_allowed(context, request):
            return [gr.skip()] * 4
        pools = gr.Dropdown(choices=pool_choices(context.data_dir, own=True))
        if name in own_names(own=True):
            return [*picker.selection_updates(name, problem_id or "", context.data_dir, own=True), pools]
        return [gr.Dropdown(choices=data_choices(context.data_dir, own=True)), gr.skip(), gr.skip(), pools]

    outputs = [picker.data, picker.problem, picker.note, pool]
    tab.select(refresh, [picker.data, picker.problem], outputs, **components.EVENT_OPTIONS)


def fill_handler(example: Problem) -> Callable[[], list[object]]:
    """Return an event handler that fills the outputs of `wire_picker` with this suggested problem."""
    return declare("view pages", partial(_field_values, example, SUGGESTED_DATA))


def _field_values(problem: Problem, data: str | None) -> list[object]:
    pool = data if data and has_examples(data) else DEFAULT_DATA
    return [problem, problem.intent, problem.reference or "", format_tests(problem.tests), pool]


def _problem_choices(name: str, data_dir: Path | None, *, own: bool) -> tuple[list[tuple[str, str]], str]:
    try:
        problems = load_split_problems(name, data_dir, own=own)
    except PromptOrTuneError as error:
        return [], str(error)
    return [(_shorten(problem.intent, _LABEL_LENGTH), problem.id) for problem in problems], ""


def _find_problem(name: str, problem_id: str | None, data_dir: Path | None, *, own: bool) -> Problem | None:
    try:
        problems = load_split_problems(name, data_dir, own=own)
    except PromptOrTuneError:
        return None
    return next((problem for problem in problems if problem.id == problem_id), None)


def _shorten(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit].rsplit(" ", 1)[0].rstrip(" ,.:;") + " …"
