"""What a duel is about and who may take part: the fields above the two answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.arena.drawing import Wish, usable_methods
from ui.context import Context
from ui.labels import method_label
from ui.method_form import WITHOUT_ADAPTER
from ui.problem_picker import DEFAULT_DATA, data_choices

if TYPE_CHECKING:
    from serve.engine import Engine

# Of a store with very many adapters not all are asked by default: each pair would need its votes.
MOST_BY_DEFAULT = 8
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Form:
    """The components. `kept` is the browser's own copy of what they hold, which outlives a refresh."""

    question: gr.Textbox
    data: gr.Dropdown
    methods: gr.Dropdown
    fold: gr.Accordion
    kept: gr.BrowserState

    @property
    def fields(self) -> list[Any]:
        return [self.question, self.data, self.methods]


def wish_of(question: str | None, data: str | None, methods: list[str] | None) -> Wish:
    """What the fields ask for."""
    return Wish(question or "", data or DEFAULT_DATA, tuple(methods or ()))


def build_form(context: Context) -> Form:
    """Draws the fields and keeps them in the browser."""
    with gr.Row(elem_id="arena-form"):
        question = gr.Textbox(
            label="Your own question, or nothing for a test problem", lines=1, max_lines=6, scale=3, min_width=260,
            info="It is kept with your vote, and everyone who comes here can save the votes.",
            placeholder="reverse the words of a sentence", elem_id="arena-question",
        )  # fmt: skip
        data = gr.Dropdown(
            data_choices(context.data_dir), value=DEFAULT_DATA, label="Test problems from", scale=1, min_width=180,
            elem_id="arena-problems",
        )  # fmt: skip
    with gr.Accordion(_title(list(WITHOUT_ADAPTER)), open=False, elem_id="arena-fold") as fold:
        methods = gr.Dropdown(
            _choices(list(WITHOUT_ADAPTER)), value=list(WITHOUT_ADAPTER), multiselect=True,
            label="Methods that may be drawn", elem_id="arena-methods",
        )  # fmt: skip
    # The browser keeps it as it is: nothing in it is a secret.
    kept = gr.BrowserState(["", DEFAULT_DATA, None], storage_key="peft-arena-duel", secret="peft-arena")  # noqa: S106
    form = Form(question, data, methods, fold, kept)
    gr.on([question.change, data.input, methods.input], lambda *values: list(values), form.fields, kept, **_QUIET)
    methods.change(lambda names: gr.Accordion(label=_title(names)), methods, fold, **_QUIET)
    return form


def filled(engine: Engine | None, kept: Any) -> list[Any]:
    """Updates for `Form.fields`: what the browser kept, as far as it is possible still."""
    question, data, chosen = kept if isinstance(kept, list) and len(kept) == 3 else ("", DEFAULT_DATA, None)
    usable = usable_methods(engine) if engine is not None else list(WITHOUT_ADAPTER)
    names = [name for name in chosen if name in usable] if isinstance(chosen, list) and engine is not None else []
    names = names or usable[:MOST_BY_DEFAULT]
    return [
        str(question or ""),
        gr.skip() if not isinstance(data, str) else data,
        gr.Dropdown(choices=_choices(usable), value=names),
    ]


def _choices(names: list[str]) -> list[tuple[str, str]]:
    return [(method_label(name), name) for name in names]


def _title(names: list[str] | None) -> str:
    count = len(names or ())
    return f"Who takes part: {count} method{'' if count == 1 else 's'}"
