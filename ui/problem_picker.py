"""Problem picker: a data set, a searchable list of its test problems, a random one, and starter examples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PromptOrTuneError, unknown_name_error
from tasks.datasets.registry import DATASETS, TRAINING_DATASETS, available_datasets, load_problems
from tasks.problem import Problem
from ui import components
from ui.access.guard import action, declare
from ui.compare.comparison import format_tests

DEFAULT_DATA = "starter"
STARTER_PROBLEM_COUNT = 3
_LABEL_LENGTH = 120
_BUTTON_LENGTH = 52
_LOCAL_DATASETS = ("humaneval", "humanevalplus", "mbppplus", "leetcode")
NO_CHOICE = ("Pick a test problem", "")


@dataclass(frozen=True)
class ProblemPicker:
    """The components; `note` shows why a data set cannot be read."""

    data: gr.Dropdown
    problem: gr.Dropdown
    random_button: gr.Button
    note: gr.HTML

    def selection_updates(self, name: str, problem_id: str, data_dir: Path | None) -> tuple[Any, Any, str]:
        """Return updates for `data`, `problem` and `note` that select this data set and problem ('' for none)."""
        choices, error = _problem_choices(name, data_dir)
        value = problem_id if problem_id in {known_id for _, known_id in choices} else ""
        return name, gr.Dropdown(choices=[NO_CHOICE, *choices], value=value), components.error_html(error)


@lru_cache(maxsize=16)
def load_split_problems(name: str, data_dir: Path | None) -> tuple[Problem, ...]:
    """Return the test split of one of DATASETS, read once. Raises DataError if it cannot be read."""
    if name not in DATASETS:  # the owner's own data sets are not everybody's
        raise unknown_name_error("data set", name, DATASETS)
    return tuple(load_problems(name, "test", data_dir=data_dir))


def starter_problems(data_dir: Path | None) -> list[Problem]:
    """Return the three test problems of the starter set with the shortest intents; [] if it is missing."""
    try:
        return sorted(load_split_problems(DEFAULT_DATA, data_dir), key=lambda problem: len(problem.intent))[
            :STARTER_PROBLEM_COUNT
        ]
    except PromptOrTuneError:
        return []


def data_choices(data_dir: Path | None) -> list[tuple[str, str]]:
    """Return the data sets as dropdown choices; those that are not on this machine name the Hub.

    Of _LOCAL_DATASETS only those on this machine are listed: their files are large, and mostly for `evaluate`.
    """
    available = available_datasets(data_dir)
    return [
        (name if name in available else f"{name} (from the Hub)", name)
        for name in DATASETS
        if name in available or name not in _LOCAL_DATASETS
    ]


def pool_choices(data_dir: Path | None) -> list[tuple[str, str]]:
    """Return the data sets that examples can come from, as dropdown choices."""
    return [choice for choice in data_choices(data_dir) if choice[1] in TRAINING_DATASETS]


def build_picker(data_dir: Path | None) -> ProblemPicker:
    """Add the choice of a data set and of a problem, and the button for a random one, to the current Blocks."""
    choices, error = _problem_choices(DEFAULT_DATA, data_dir)
    data = gr.Dropdown(
        data_choices(data_dir),
        value=DEFAULT_DATA,
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


def build_starter_buttons(data_dir: Path | None) -> list[tuple[gr.Button, Problem]]:
    """Add a button for each starter example to the current Blocks; none if the starter set is missing."""
    problems = starter_problems(data_dir)
    with gr.Row(elem_id="starter-examples", visible=bool(problems)):
        gr.HTML("<p>Try</p>", apply_default_css=False, js_on_load=None, elem_id="starter-label")
        return [
            (
                gr.Button(_shorten(problem.intent, _BUTTON_LENGTH), size="sm", scale=0, elem_classes="starter-example"),
                problem,
            )
            for problem in problems
        ]


def wire_picker(
    picker: ProblemPicker,
    starter_buttons: Sequence[tuple[gr.Button, Problem]],
    data_dir: Path | None,
    selected_problem: gr.State,
    outputs: Sequence[gr.components.Component],
) -> list[Any]:
    """Write a chosen problem to `selected_problem` and to `outputs`: intent, reference, tests, pool of examples.

    The pool becomes the data set of the problem, as ICL and RAG need examples of the same kind, or the starter set
    where that has no examples. Returns the events that choose a problem.
    """

    @action("view pages")
    def show(name: str | None) -> tuple[Any, str]:
        _, problem, note = picker.selection_updates(name or DEFAULT_DATA, "", data_dir)
        return problem, note

    @action("view pages")
    def pick(name: str | None, identity: str | None) -> list[object]:
        name = name or DEFAULT_DATA
        problem = _find_problem(name, identity, data_dir)
        return _field_values(problem, name) if problem else [gr.skip()] * 5

    @action("view pages")
    def pick_random(name: str | None) -> list[object]:
        choices, _ = _problem_choices(name or DEFAULT_DATA, data_dir)
        identity = random.choice(choices)[1] if choices else None
        return [identity or gr.skip(), *pick(name, identity)]

    picker.data.input(show, picker.data, [picker.problem, picker.note], **components.EVENT_OPTIONS)
    return [
        *(
            button.click(fill_handler(example), None, [selected_problem, *outputs], **components.EVENT_OPTIONS)
            for button, example in starter_buttons
        ),
        picker.problem.input(
            pick, [picker.data, picker.problem], [selected_problem, *outputs], **components.EVENT_OPTIONS
        ),
        picker.random_button.click(
            pick_random, picker.data, [picker.problem, selected_problem, *outputs], **components.EVENT_OPTIONS
        ),
    ]


def fill_handler(example: Problem) -> Callable[[], list[object]]:
    """Return an event handler that fills the outputs of `wire_picker` with this problem of the starter set."""
    return declare("view pages", partial(_field_values, example, DEFAULT_DATA))


def _field_values(problem: Problem, data: str | None) -> list[object]:
    pool = data if data in TRAINING_DATASETS else DEFAULT_DATA
    return [problem, problem.intent, problem.reference or "", format_tests(problem.tests), pool]


def _problem_choices(name: str | None, data_dir: Path | None) -> tuple[list[tuple[str, str]], str]:
    try:
        return [
            (_shorten(problem.intent, _LABEL_LENGTH), problem.id)
            for problem in load_split_problems(name or "", data_dir)
        ], ""
    except PromptOrTuneError as error:
        return [], str(error)


def _find_problem(name: str | None, problem_id: str | None, data_dir: Path | None) -> Problem | None:
    try:
        return next(
            (problem for problem in load_split_problems(name or "", data_dir) if problem.id == problem_id), None
        )
    except PromptOrTuneError:
        return None


def _shorten(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit].rsplit(" ", 1)[0].rstrip(" ,.:;") + " …"
