"""The list of adapters as js/adapters.js draws it: a page of cards, found by words and by what they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from adapters.store import AdapterStatus
from errors import PeftArenaError
from ui import widgets
from ui.adapters.cards import card, details, full_models, searchable
from ui.adapters.shelf import Shelf
from ui.context import Context
from ui.visitors import Visitor

PAGE = 24
SHOW = {
    "all": "All",
    "usable": "Usable here",
    "unusable": "Not usable here",
    "own": "Trained or added here",
    "library": "Come with Peft Arena",
    "memory": "In memory",
}


def adapter_list(
    context: Context,
    shelf: Shelf,
    visitor: Visitor,
    *,
    words: str = "",
    show: str = "all",
    start: int = 0,
    after: str = "",
    fresh: str = "",
) -> dict[str, Any]:
    """The value of the list: the adapters from `start` on, at most PAGE of them.

    `after` says what the browser does next ('compare' or 'save'), `fresh` names the adapter that was just added.
    """
    phase = context.source.state().phase
    states, wanted = shelf.states(), _is(show, shelf)
    found = [state for state in states if wanted(state) and _matches(state, words)]
    start = min(max(start, 0), max(len(found) - 1, 0)) // PAGE * PAGE
    engine = shelf.engine
    base = None if engine is None else engine.base
    return {
        # Two equal lists differ in it: the browser then knows that its click was answered.
        "turn": time.monotonic_ns(),
        "head": _head(len(states), len(found)),
        "phase": phase,
        "cards": [card(entry, base) for entry in shelf.entries(found[start : start + PAGE])],
        "from": start,
        "size": PAGE,
        "total": len(found),
        "none": not states,
        "may": context.visitors.may_train(visitor) is None,
        # Where they lie on this machine is its owner's business.
        "models": full_models(shelf.store) if visitor.owner else [],
        "after": after,
        "fresh": fresh,
    }


def list_widget(shelf: Shelf) -> gr.HTML:
    """The list. Its events are `select` with {"do": open, load, unload, delete, save or page, "name", "from"}."""

    def adapter_details(name: str) -> dict[str, Any]:
        """The page asks for this when a card is unfolded."""
        try:
            folder = shelf.folder(str(name))
            manifest = next((state.manifest for state in shelf.states() if state.name == name), None)
        except PeftArenaError as fault:
            return {"fault": str(fault)}
        return details(folder, manifest)

    template = (
        '<p class="found" role="status" aria-live="polite">Looking for adapters ...</p><ul class="adapter-cards"></ul>'
        '<div class="pager"></div><div class="models" hidden><h2>Whole models</h2><p class="quiet">These are no '
        "adapters: full fine-tuning changed every weight. Serve one in place of the base with its command.</p><ul></ul>"
        "</div>"
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=widgets.script("adapters"),
        server_functions=[adapter_details],
        apply_default_css=False,
        elem_id="adapters-list",
    )


def _matches(state: AdapterStatus, words: str) -> bool:
    text = searchable(state.name, state.manifest)
    return all(word in text for word in words.casefold().split())


def _is(show: str, shelf: Shelf) -> Callable[[AdapterStatus], bool]:
    kinds: Mapping[str, Callable[[], Callable[[AdapterStatus], bool]]] = {
        "usable": lambda: shelf.usable,
        "unusable": lambda: lambda state: not shelf.usable(state),
        "own": lambda: _among(shelf.names_at("own")),
        "library": lambda: _among(shelf.names_at("library")),
        "memory": lambda: _among(shelf.resident()),
    }
    return kinds[show]() if show in kinds else lambda _: True


def _among(names: set[str]) -> Callable[[AdapterStatus], bool]:
    return lambda state: state.name in names


def _head(total: int, found: int) -> str:
    if total == found:
        return f"{total} adapter{'' if total == 1 else 's'}"
    return f"{found} of {total} adapters" if found else f"None of {total} adapters is like that: loosen the search."


def start_of(asked: Mapping[str, Any]) -> int:
    """The first card that the browser wants to see, or sees."""
    start = asked.get("from")
    return start if type(start) is int and 0 <= start < 10**9 else 0
