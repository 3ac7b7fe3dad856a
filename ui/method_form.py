"""The methods of a comparison: chips to remove, and a small form that adds one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from errors import PromptOrTuneError
from tasks.methods import MAX_EXAMPLES, Method, NoExamples, parse_method
from ui import components
from ui.compare.run import MAX_COLUMNS
from ui.labels import method_label

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

METHODS_WITHOUT_ADAPTER = ("zero-shot", "icl-8", "rag-8")
PREFERRED_ADAPTER = "lora-starter"
METHOD_KINDS = [
    ("Zero-shot", "zero-shot"),
    ("ICL: fixed examples", "icl"),
    ("RAG: nearest examples", "rag"),
    ("Adapter", "adapter"),
]
EXAMPLE_CHOICES = [("none", "none"), ("ICL: fixed", "icl"), ("RAG: nearest", "rag")]
_log = logging.getLogger(__name__)
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class MethodForm:
    """The components that others read or change."""

    chips: gr.HTML
    adapter: gr.Dropdown
    reasons: gr.State


class AdapterChoices(NamedTuple):
    """The form's choices, the names that can be used on this base and engine, and why the others cannot."""

    choices: list[tuple[str, str]]
    usable: list[str]
    reasons: dict[str, str]


def list_adapter_choices(engine: LLMEngine) -> AdapterChoices:
    """All adapters. One that cannot be used stays a choice: its reason is shown, which a missing name would not be."""
    try:
        known = engine.store.status(engine.base)
    except PromptOrTuneError as error:
        _log.warning("%s", error)
        return AdapterChoices([], [], {})
    reasons: dict[str, str] = {}
    for entry in known:
        method = Method(entry.name, NoExamples(), entry.name)
        reason = engine.unsupported_reason(method) if entry.usable else entry.reason
        if reason is not None:
            reasons[entry.name] = reason
    names = [entry.name for entry in known]
    choices = [(f"{name} (cannot be used here)" if name in reasons else name, name) for name in names]
    return AdapterChoices(choices, [name for name in names if name not in reasons], reasons)


def default_methods(usable: Sequence[str]) -> list[str]:
    """Zero-shot, ICL, RAG, and one adapter where there is one."""
    chosen = [PREFERRED_ADAPTER] if PREFERRED_ADAPTER in usable else list(usable[:1])
    return [*METHODS_WITHOUT_ADAPTER, *chosen]


def method_name(kind: str, k: float | None, adapter: str | None, examples: str) -> str:
    """The name that a filled form means; PromptOrTuneError where a field is missing."""
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
    """`names` with one more; PromptOrTuneError in one kind sentence when it is there already or there is no room."""
    canonical = parse_method(name, adapters).name
    if canonical in names:
        raise PromptOrTuneError(f"{method_label(canonical)} is already in the comparison.")
    if len(names) >= MAX_COLUMNS:
        raise PromptOrTuneError(f"{MAX_COLUMNS} columns are the most that fit: remove one first.")
    return [*names, canonical]


def add_adapter_updates(engine: LLMEngine, chips: Any, adapter: str) -> list[Any]:
    """Updates for [form.chips, form.adapter, form.reasons] that put this adapter among the compared methods.

    Other pages use it for 'Open in Compare', followed by `window.promptOrTune.openTab("compare")` in the browser.
    """
    known = list_adapter_choices(engine)
    names = components.chip_names(chips)
    if adapter in known.usable and adapter not in names:
        names = [*names[: MAX_COLUMNS - 1], adapter]
    return [components.chip_values(names), gr.Dropdown(choices=known.choices), known.reasons]


def build_method_form() -> MethodForm:
    """Draws the chips and the form, and wires them; adapters come once the engine is ready."""
    with gr.Row(elem_id="methods"):
        chips = components.method_chips(METHODS_WITHOUT_ADAPTER)
        opener = gr.Button("Add a method", size="sm", scale=0, min_width=120, elem_id="add-method")
    with gr.Row(visible=False, elem_id="method-form") as form:
        kind = gr.Dropdown(METHOD_KINDS, value="icl", label="Kind", scale=2, min_width=170, elem_id="method-kind")
        adapter = gr.Dropdown(
            [], value=None, label="Adapter", visible=False, scale=2, min_width=150, elem_id="method-adapter"
        )
        examples = gr.Dropdown(
            EXAMPLE_CHOICES,
            value="none",
            label="Examples",
            visible=False,
            scale=2,
            min_width=140,
            elem_id="method-examples",
        )
        count = gr.Number(
            4,
            label="Number of examples",
            minimum=1,
            maximum=MAX_EXAMPLES,
            precision=0,
            min_width=140,
            elem_id="method-k",
        )
        add = gr.Button("Add", size="md", scale=0, min_width=88, elem_id="method-add")
    note = components.live_region("", elem_id="method-note")
    is_open, reasons = gr.State(False), gr.State({})

    opener.click(_toggle_form, is_open, [is_open, form, opener, note], **_EVENT_OPTIONS)
    gr.on(
        [kind.input, examples.input], _field_visibility, [kind, examples], [adapter, examples, count], **_EVENT_OPTIONS
    )
    gr.on([adapter.input, kind.input], _unavailable_message, [kind, adapter, reasons], note, **_EVENT_OPTIONS)
    add.click(_add_chip, [chips, kind, count, adapter, examples], [chips, note], **_EVENT_OPTIONS)
    return MethodForm(chips, adapter, reasons)


def _toggle_form(is_open: bool) -> tuple[Any, ...]:
    label = "Add a method" if is_open else "Close"
    return not is_open, gr.Row(visible=not is_open), gr.Button(label), ""


def _field_visibility(kind: str, examples: str) -> tuple[Any, ...]:
    """Which fields a kind needs."""
    is_adapter = kind == "adapter"
    needs_count = kind in ("icl", "rag") or (is_adapter and examples != "none")
    return gr.Dropdown(visible=is_adapter), gr.Dropdown(visible=is_adapter), gr.Number(visible=needs_count)


def _unavailable_message(kind: str, adapter: str | None, reasons: dict[str, str]) -> str:
    """Why the chosen adapter cannot be used; '' where it can."""
    reason = reasons.get(adapter or "") if kind == "adapter" else None
    return f'<p class="error-message">{escape(reason)}</p>' if reason else ""


def _add_chip(value: Any, kind: str, k: float | None, adapter: str | None, examples: str) -> tuple[Any, str]:
    try:
        name = method_name(kind, k, adapter, examples)
        names = add_method(components.chip_names(value), name, [adapter] if adapter else [])
    except PromptOrTuneError as error:
        return gr.skip(), f'<p class="error-message">{escape(str(error))}</p>'
    return components.chip_values(names), ""
