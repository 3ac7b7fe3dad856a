"""Method form: chips of the chosen methods, and fields that add one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from errors import PromptOrTuneError
from tasks.methods import MAX_EXAMPLES, Method, NoExamples, parse_method
from ui import components
from ui.access.guard import action
from ui.compare.comparison import MAX_COLUMNS
from ui.labels import method_label

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
