"""Form of the Arena: the question or data set, and the methods that take part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.access.guard import action
from ui.arena.matches import MatchRequest, usable_methods
from ui.context import Context
from ui.labels import method_label
from ui.method_form import METHODS_WITHOUT_ADAPTER
from ui.own_data import Choices, data_choices
from ui.problem_picker import DEFAULT_DATA

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

# With very many adapters only some take part by default, as each pair needs its own votes.
MAX_DEFAULT_METHODS = 8
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class ArenaForm:
    """Components of the form. `browser_state` stores their values in the browser over a refresh."""

    question: gr.Textbox
    data: gr.Dropdown
    methods: gr.Dropdown
    accordion: gr.Accordion
    browser_state: gr.BrowserState

    @property
    def fields(self) -> list[Any]:
        return [self.question, self.data, self.methods]


def make_match_request(question: str | None, data: str | None, methods: list[str] | None) -> MatchRequest:
    """Make the request of the fields' values, each method once."""
    return MatchRequest(question or "", data or DEFAULT_DATA, tuple(dict.fromkeys(methods or ())))


def build_form(context: Context) -> ArenaForm:
    """Build the fields and store their values in the browser."""
    with gr.Row(elem_id="arena-form"):
        question = gr.Textbox(
            label="Your own question, or nothing for a test problem", lines=1, max_lines=6, scale=3, min_width=260,
            info="It is stored with your vote, and everyone who comes here can download the votes.",
            placeholder="reverse the words of a sentence", elem_id="arena-question",
        )  # fmt: skip
        data = gr.Dropdown(
            data_choices(context.data_dir), value=DEFAULT_DATA, label="Test problems from", scale=1, min_width=180,
            elem_id="arena-problems",
        )  # fmt: skip
    with gr.Accordion(_accordion_title(list(METHODS_WITHOUT_ADAPTER)), open=False, elem_id="arena-fold") as accordion:
        methods = gr.Dropdown(
            _method_choices(list(METHODS_WITHOUT_ADAPTER)), value=list(METHODS_WITHOUT_ADAPTER), multiselect=True,
            label="Methods that may be drawn", elem_id="arena-methods",
        )  # fmt: skip
    # Stored unencrypted: nothing in it is a secret.
    browser_state = gr.BrowserState(
        ["", DEFAULT_DATA, None],
        storage_key="prompt-or-tune-duel",
        secret="peft-arena",  # noqa: S106
    )
    form = ArenaForm(question, data, methods, accordion, browser_state)

    @action("view pages")
    def collect(*values: Any) -> list[Any]:
        return list(values)

    @action("view pages")
    def retitle(names: list[str] | None) -> Any:
        return gr.Accordion(label=_accordion_title(names))

    gr.on(
        [question.change, data.input, methods.input],
        collect,
        form.fields,
        browser_state,
        **_EVENT_OPTIONS,
    )
    methods.change(retitle, methods, accordion, **_EVENT_OPTIONS)
    return form


def form_updates(engine: LLMEngine | None, stored: Any, data_sets: Choices) -> list[Any]:
    """Return updates of `ArenaForm.fields`: the stored values, without methods that cannot be used any more.

    `data_sets` are the choices of this visitor.
    """
    question, data, methods = stored if isinstance(stored, list) and len(stored) == 3 else ("", DEFAULT_DATA, None)
    usable = usable_methods(engine) if engine is not None else list(METHODS_WITHOUT_ADAPTER)
    names = [name for name in methods if name in usable] if isinstance(methods, list) and engine is not None else []
    names = names or usable[:MAX_DEFAULT_METHODS]
    return [
        str(question or ""),
        gr.Dropdown(choices=data_sets, value=data if data in {name for _, name in data_sets} else DEFAULT_DATA),
        gr.Dropdown(choices=_method_choices(usable), value=names),
    ]


def _method_choices(names: list[str]) -> list[tuple[str, str]]:
    return [(method_label(name), name) for name in names]


def _accordion_title(names: list[str] | None) -> str:
    count = len(names or ())
    return f"Who takes part: {count} method{'' if count == 1 else 's'}"
