"""The list of adapters as js/adapters.js draws it: a page of cards, found by words and by what they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from adapters.store import AdapterStatus
from errors import PromptOrTuneError
from ui import widgets
from ui.adapters.cards import card_value, details_value, full_models, search_text
from ui.adapters.shelf import AdapterCatalog
from ui.context import Context
from ui.visitors import Visitor

PAGE_SIZE = 24
FILTERS = {
    "all": "All",
    "usable": "Usable here",
    "unusable": "Not usable here",
    "own": "Trained or added here",
    "library": "Come with Peft Arena",
    "memory": "In memory",
}


def adapter_list_value(
    context: Context,
    catalog: AdapterCatalog,
    visitor: Visitor,
    *,
    query: str = "",
    show: str = "all",
    start: int = 0,
    next_action: str = "",
    added: str = "",
) -> dict[str, Any]:
    """The value of the list: the adapters from `start` on, at most PAGE_SIZE of them.

    `after` says what the browser does next ('compare' or 'save'), `fresh` names the adapter that was just added.
    """
    phase = context.engine_loader.state().phase
    states, wanted = catalog.states(), _filter_by(show, catalog)
    found = [state for state in states if wanted(state) and _matches_query(state, query)]
    start = min(max(start, 0), max(len(found) - 1, 0)) // PAGE_SIZE * PAGE_SIZE
    engine = catalog.engine
    base = None if engine is None else engine.base
    return {
        # Two equal lists differ in it: the browser then knows that its click was answered.
        "turn": time.monotonic_ns(),
        "head": _count_text(len(states), len(found)),
        "phase": phase,
        "cards": [card_value(entry, base) for entry in catalog.entries(found[start : start + PAGE_SIZE])],
        "from": start,
        "size": PAGE_SIZE,
        "total": len(found),
        "none": not states,
        "may": context.visitors.training_denied_reason(visitor) is None,
        # Where they lie on this machine is its owner's business.
        "models": full_models(catalog.store) if visitor.owner else [],
        "after": next_action,
        "fresh": added,
    }


def adapter_list_component(catalog: AdapterCatalog) -> gr.HTML:
    """The list. Its events are `select` with {"do": open, load, unload, delete, save or page, "name", "from"}."""

    def adapter_details(name: str) -> dict[str, Any]:
        """The page asks for this when a card is unfolded."""
        try:
            folder = catalog.folder(str(name))
            manifest = next((state.manifest for state in catalog.states() if state.name == name), None)
        except PromptOrTuneError as fault:
            return {"fault": str(fault)}
        return details_value(folder, manifest)

    template = (
        '<p class="found" role="status" aria-live="polite">Looking for adapters ...</p><ul class="adapter-cards"></ul>'
        '<div class="pager"></div><div class="models" hidden><h2>Whole models</h2><p class="quiet">These are no '
        "adapters: full fine-tuning changed every weight. Serve one in place of the base with its command.</p><ul></ul>"
        "</div>"
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=widgets.load_script("adapters"),
        server_functions=[adapter_details],
        apply_default_css=False,
        elem_id="adapters-list",
    )


def _matches_query(state: AdapterStatus, query: str) -> bool:
    text = search_text(state.name, state.manifest)
    return all(word in text for word in query.casefold().split())


def _filter_by(show: str, catalog: AdapterCatalog) -> Callable[[AdapterStatus], bool]:
    kinds: Mapping[str, Callable[[], Callable[[AdapterStatus], bool]]] = {
        "usable": lambda: catalog.is_usable,
        "unusable": lambda: lambda state: not catalog.is_usable(state),
        "own": lambda: _in_names(catalog.names_in("own")),
        "library": lambda: _in_names(catalog.names_in("library")),
        "memory": lambda: _in_names(catalog.loaded_names()),
    }
    return kinds[show]() if show in kinds else lambda _: True


def _in_names(names: set[str]) -> Callable[[AdapterStatus], bool]:
    return lambda state: state.name in names


def _count_text(total: int, found: int) -> str:
    if total == found:
        return f"{total} adapter{'' if total == 1 else 's'}"
    return f"{found} of {total} adapters" if found else f"None of {total} adapters is like that: loosen the search."


def page_start(event: Mapping[str, Any]) -> int:
    """The first card that the browser wants to see, or sees."""
    start = event.get("from")
    return start if type(start) is int and 0 <= start < 10**9 else 0
