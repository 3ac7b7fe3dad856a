"""Fields of several pages: chips of the chosen methods, and the picker of a problem of a data set.

Problem picker: a data set, a searchable list of its test problems, a random one, and suggestions. The owner of the app
also picks held-out rows of their own data sets (ui/access/guard.py).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from errors import PromptOrTuneError
from tasks.datasets.registry import HOUSE, load_problems
from tasks.methods import MAX_EXAMPLES, Method, NoExamples, parse_method
from tasks.problem import Problem
from ui import components
from ui.access.guard import (
    action,
    data_choices,
    declare,
    has_examples,
    load_split_problems,
    own_allowed,
    own_names,
    pool_choices,
)
from ui.compare.comparison import MAX_COLUMNS, format_tests
from ui.components import method_label
from ui.context import Context

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

METHODS_WITHOUT_ADAPTER = ("zero-shot", "icl-8", "rag-8")
PREFERRED_ADAPTERS = ("qlora-4bit-house", "lora-starter")
METHOD_KINDS = [
    ("Zero-shot", "zero-shot"),
    ("ICL: fixed examples", "icl"),
    ("RAG: nearest examples", "rag"),
    ("Adapter", "adapter"),
]
EXAMPLE_CHOICES = [("none", "none"), ("ICL: fixed", "icl"), ("RAG: nearest", "rag")]
_log = logging.getLogger(__name__)
DEFAULT_DATA = "starter"
SUGGESTED_DATA = HOUSE  # of the Compare page: its first adapter is trained on it
_LABEL_LENGTH = 120
_BUTTON_LENGTH = 52
NO_CHOICE = ("Pick a test problem", "")


@dataclass(frozen=True)
class MethodForm:
    """The components that other pages read or change."""

    chips: gr.HTML
    adapter: gr.Dropdown
    reasons: gr.State


class AdapterChoices(NamedTuple):
    """Dropdown choices, the names usable with this base and engine, and the reason for each that is not."""

    choices: list[tuple[str, str]]
    usable: list[str]
    reasons: dict[str, str]


def list_adapter_choices(engine: LLMEngine) -> AdapterChoices:
    """List all adapters. One that cannot be used stays a choice, so that the form can show the reason."""
    try:
        entries = engine.store.status(engine.base)
    except PromptOrTuneError as error:
        _log.warning("%s", error)
        return AdapterChoices([], [], {})
    reasons: dict[str, str] = {}
    for entry in entries:
        method = Method(entry.name, NoExamples(), entry.name)
        reason = engine.unsupported_reason(method) if entry.usable else entry.reason
        if reason is not None:
            reasons[entry.name] = reason
    names = [entry.name for entry in entries]
    choices = [(f"{name} (cannot be used here)" if name in reasons else name, name) for name in names]
    return AdapterChoices(choices, [name for name in names if name not in reasons], reasons)


def default_methods(usable: Sequence[str]) -> list[str]:
    """Return zero-shot, ICL, RAG, and one adapter if any is usable."""
    adapters = [name for name in PREFERRED_ADAPTERS if name in usable] or list(usable)
    return [*METHODS_WITHOUT_ADAPTER, *adapters[:1]]


def method_name(kind: str, k: float | None, adapter: str | None, examples: str) -> str:
    """Return the method name of the filled form. Raises PromptOrTuneError if a field is missing."""
    if kind == "zero-shot":
        return kind
    if kind == "adapter" and not adapter:
        raise PromptOrTuneError("Choose the adapter first.")
    selection = examples if kind == "adapter" else kind
    if selection == "none":
        return adapter or ""
    name = f"{selection}-{int(k or 0)}"
    return f"{adapter}+{name}" if kind == "adapter" else name


def add_method(names: Sequence[str], name: str, adapters: Sequence[str]) -> list[str]:
    """Return `names` with one more. Raises PromptOrTuneError for a duplicate and beyond MAX_COLUMNS."""
    canonical = parse_method(name, adapters).name
    if canonical in names:
        raise PromptOrTuneError(f"{method_label(canonical)} is already in the comparison.")
    if len(names) >= MAX_COLUMNS:
        raise PromptOrTuneError(f"{MAX_COLUMNS} columns are the most that fit: remove one first.")
    return [*names, canonical]


def add_adapter_updates(engine: LLMEngine, chips: Any, adapter: str, method: str = "") -> list[Any]:
    """Return updates for [form.chips, form.adapter, form.reasons] that add the adapter to the compared methods.

    With `method` that method is added; its adapter is `adapter`, '' for none.

    Other pages use them for 'Open in Compare', followed by `window.promptOrTune.openTab("compare")` in the browser.
    """
    adapters = list_adapter_choices(engine)
    names = components.chip_names(chips)
    name = parse_method(method, [adapter]).name if method else adapter
    if (not adapter or adapter in adapters.usable) and name not in names:
        names = [*names[: MAX_COLUMNS - 1], name]
    return [components.chip_values(names), gr.Dropdown(choices=adapters.choices), adapters.reasons]


def build_method_form(prefix: str = "") -> MethodForm:
    """Add the chips and the form to the current Blocks; adapters become choices once the engine is ready.

    `prefix` begins the ids of the components of a page other than Compare.
    """
    with gr.Row(elem_id=f"{prefix}methods", elem_classes="methods"):
        chips = components.method_chips(METHODS_WITHOUT_ADAPTER, elem_id=f"{prefix}chips")
        opener = gr.Button(
            "Add a method", size="sm", scale=0, min_width=120, elem_id=f"{prefix}add-method", elem_classes="add-method"
        )
    with gr.Row(visible=False, elem_id=f"{prefix}method-form", elem_classes="method-form") as form:
        kind = gr.Dropdown(
            METHOD_KINDS, value="icl", label="Kind", scale=2, min_width=170, elem_id=f"{prefix}method-kind"
        )
        adapter = gr.Dropdown(
            [], value=None, label="Adapter", visible=False, scale=2, min_width=150, elem_id=f"{prefix}method-adapter"
        )
        examples = gr.Dropdown(
            EXAMPLE_CHOICES,
            value="none",
            label="Examples",
            visible=False,
            scale=2,
            min_width=140,
            elem_id=f"{prefix}method-examples",
        )
        count = gr.Number(
            4,
            label="Number of examples",
            minimum=1,
            maximum=MAX_EXAMPLES,
            precision=0,
            min_width=140,
            elem_id=f"{prefix}method-k",
        )
        add = gr.Button("Add", size="md", scale=0, min_width=88, elem_id=f"{prefix}method-add")
    note = components.live_region("", elem_id=f"{prefix}method-note")
    is_open, reasons = gr.State(False), gr.State({})

    opener.click(_toggle_form, is_open, [is_open, form, opener, note], **components.EVENT_OPTIONS)
    gr.on(
        [kind.input, examples.input],
        _field_visibility,
        [kind, examples],
        [adapter, examples, count],
        **components.EVENT_OPTIONS,
    )
    gr.on([adapter.input, kind.input], _unavailable_message, [kind, adapter, reasons], note, **components.EVENT_OPTIONS)
    add.click(_add_chip, [chips, kind, count, adapter, examples], [chips, note], **components.EVENT_OPTIONS)
    return MethodForm(chips, adapter, reasons)


@action("view pages")
def _toggle_form(is_open: bool) -> tuple[Any, ...]:
    label = "Add a method" if is_open else "Close"
    return not is_open, gr.Row(visible=not is_open), gr.Button(label), ""


@action("view pages")
def _field_visibility(kind: str, examples: str) -> tuple[Any, ...]:
    """Return updates that show the fields of this kind of method."""
    is_adapter = kind == "adapter"
    needs_count = kind in ("icl", "rag") or (is_adapter and examples != "none")
    return gr.Dropdown(visible=is_adapter), gr.Dropdown(visible=is_adapter), gr.Number(visible=needs_count)


@action("view pages")
def _unavailable_message(kind: str, adapter: str | None, reasons: dict[str, str]) -> str:
    """Return why the chosen adapter cannot be used; '' if it can."""
    reason = reasons.get(adapter or "") if kind == "adapter" else None
    return components.error_html(reason or "")


@action("view pages")
def _add_chip(value: Any, kind: str, k: float | None, adapter: str | None, examples: str) -> tuple[Any, str]:
    try:
        name = method_name(kind, k, adapter, examples)
        names = add_method(components.chip_names(value), name, [adapter] if adapter else [])
    except PromptOrTuneError as error:
        return gr.skip(), components.error_html(error)
    return components.chip_values(names), ""


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
