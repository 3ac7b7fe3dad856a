"""Adapter cards and the list of them, as plain texts for js/adapters.js, which makes text nodes of them.

A manifest may come from anybody: no value of it is assumed to be a number, or short, or without control characters.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gradio as gr

from adapters.manifest import Manifest, check_name
from adapters.store import AdapterStatus, Store
from adapters.weights import read_limited
from common.format import format_bytes, quantization_label, quote_untrusted
from errors import PromptOrTuneError
from models.source import BaseIdentity
from ui import components
from ui.access.guard import guard
from ui.access.policy import AccessPolicy, Visitor
from ui.adapters.catalog import AdapterCatalog, CatalogEntry
from ui.components import format_date
from ui.context import Context

PAGE_SIZE = 24
FILTERS = {
    "all": "All",
    "usable": "Usable here",
    "unusable": "Not usable here",
    "own": "Trained or added here",
    "library": "Come with Prompt or Tune",
    "memory": "In memory",
}
OTHERS_ROWS = "another visitor's rows"
DETAILS_HIDDEN = "This adapter is another visitor's: only they, or the owner of this app, see its card and manifest."
MAX_SCORES = 3
MAX_ALL_SCORES = 60
MAX_CARD_BYTES = 1 << 20
MAX_TEXT_LENGTH = 40_000
_PREFERRED_METRICS = ("EM@1", "Pass@1", "CodeBLEU", "EM@10", "Pass@5", "parses")
_TECHNIQUES = {
    "lora": "LoRA",
    "qlora-8bit": "QLoRA, 8 bit",
    "qlora-4bit": "QLoRA, 4 bit",
    "ia3": "IA3",
    "prompt-tuning": "Prompt tuning",
    "prefix-tuning": "Prefix tuning",
}
_NOT_STATED = "not stated"


def card_value(entry: CatalogEntry, base: BaseIdentity | None) -> dict[str, Any]:
    """Return the values of a card; `base` is the served base, None while it is being loaded."""
    manifest = entry.manifest
    scores = [] if manifest is None else best_scores(manifest.scores, base)
    return {
        "name": quote_untrusted(entry.name, 64),
        "kind": _technique_label(manifest),
        "usable": {True: "yes", False: "no", None: "unknown"}[entry.usable],
        "reason": entry.reason,
        "memory": "" if entry.memory_bytes is None else f"In memory, {format_bytes(entry.memory_bytes)}",
        "facts": [] if manifest is None else _card_facts(entry, manifest),
        "scored_on": score_conditions(scores[0]) if scores else "",
        "scores": [score_row(score) for score in scores],
        "place": _origin_text(entry),
        "own": entry.location == "own",
    }


def visitor_card(
    card: Mapping[str, Any], entry: CatalogEntry, policy: AccessPolicy, visitor: Visitor
) -> dict[str, Any]:
    """Return the card as this visitor may see it: with what they may do, without the data of another visitor."""
    owner = "" if entry.origin is None else entry.origin.owner
    may = {
        name: policy.may(visitor, f"{name} an adapter", owner=owner)
        for name in ("load", "unload", "download", "delete")
    }
    may["download"] = may["download"] or entry.location == "library"
    if is_hidden(owner, policy, visitor):
        facts = [[term, OTHERS_ROWS if term == "Trained on" else value] for term, value in card["facts"]]
        return {**card, "may": may, "facts": facts, "place": "Added by another visitor", "scores": [], "scored_on": ""}
    by = entry.origin.owner_name if visitor.owner and entry.origin is not None else ""
    return {**card, "may": may, "place": card["place"] + (f", added by {quote_untrusted(by, 64)}" if by else "")}


def is_hidden(owner: str, policy: AccessPolicy, visitor: Visitor) -> bool:
    """Return whether the data of an adapter of `owner` ('' for nobody's) is hidden from this visitor."""
    return bool(owner) and not policy.may(visitor, "see an adapter's data", owner=owner)


def details_value(path: Path, manifest: Manifest | None) -> dict[str, Any]:
    """Return the details under a card: all scores, the settings of its training, its model card and its manifest."""
    scores = () if manifest is None else manifest.scores
    return {
        "scores": [[score_conditions(score), *score_row(score)] for score in scores[:MAX_ALL_SCORES]],
        "facts": [] if manifest is None else _training_facts(manifest),
        "readme": _readme_text(path),
        "manifest": "" if manifest is None else _manifest_text(manifest),
    }


def best_scores(scores: Sequence[Mapping[str, Any]], base: BaseIdentity | None) -> list[Mapping[str, Any]]:
    """Return at most MAX_SCORES scores of the same conditions; those on the served quantization come first."""
    valid = [score for score in scores if parse_number(score.get("value")) is not None]
    counted = [score for score in valid if parse_number(score.get("n"))] or valid
    served = [score for score in counted if base is not None and score.get("quantization") == base.quantization]
    ranked = sorted(served or counted, key=_metric_rank)
    return [score for score in ranked if score_conditions(score) == score_conditions(ranked[0])][:MAX_SCORES]


def score_row(score: Mapping[str, Any]) -> list[str]:
    """Return metric, value, 95 % interval and n as texts; '' for what is not stated."""
    low, high, count = (parse_number(score.get(key)) for key in ("low", "high", "n"))
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    value = parse_number(score.get("value"))
    return [
        quote_untrusted(score.get("metric", "?"), 30),
        quote_untrusted(score.get("value", "?"), 20) if value is None else f"{value:.3f}",
        interval,
        "" if count is None else f"{count:,.0f}",
    ]


def score_conditions(score: Mapping[str, Any]) -> str:
    """Return the conditions of a score, such as 'conala test, base NF4, beam, 10 candidates'."""
    data = " ".join(quote_untrusted(score[key], 40) for key in ("dataset", "split") if score.get(key))
    quantization = str(score.get("quantization") or "")
    base = f"base {quantization_label(quote_untrusted(quantization, 20))}" if quantization else ""
    decoding = quote_untrusted(score["decoding"], 40) if score.get("decoding") else ""
    return ", ".join(part for part in (data, base, decoding) if part)


def parse_number(value: object) -> float | None:
    """Return a finite number below 1e12; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) < 1e12 else None


def search_text(name: str, manifest: Manifest | None) -> str:
    """Return the text that the search looks through, case-folded."""
    parts = [name]
    if manifest is not None:
        parts += [manifest.technique, _technique_label(manifest), manifest.dataset, manifest.base_id, manifest.licence]
    return " ".join(quote_untrusted(part, 200) for part in parts).casefold()


def full_models(store: Store) -> list[dict[str, str]]:
    """Return the full models among the adapters, each with the command that serves it."""
    try:
        models = store.full_models()
    except PromptOrTuneError:
        return []
    return [
        {"name": quote_untrusted(name, 64), "command": f"python app.py --base {shlex.quote(str(path))}"}
        for name, path in models.items()
        if str(path).isprintable()
    ]


def _metric_rank(score: Mapping[str, Any]) -> int:
    metric = score.get("metric")
    return _PREFERRED_METRICS.index(metric) if metric in _PREFERRED_METRICS else len(_PREFERRED_METRICS)


def _technique_label(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    return _TECHNIQUES.get(manifest.technique) or quote_untrusted(manifest.technique, 30)


def _card_facts(entry: CatalogEntry, manifest: Manifest) -> list[list[str]]:
    rows = parse_number(manifest.config.get("n_train"))
    data = quote_untrusted(manifest.dataset, 48) + (f", {rows:,.0f} rows" if rows else "")
    facts = [
        ["Trained on", data],
        ["Base", quote_untrusted(manifest.base_id.rstrip("/").rsplit("/", 1)[-1], 60)],
        ["Size", format_bytes(entry.weight_bytes) if entry.weight_bytes else _NOT_STATED],
        ["Licence", quote_untrusted(manifest.licence, 40) or _NOT_STATED],
    ]
    return [*facts, ["Created", _date_text(manifest.created)]] if manifest.created else facts


def _training_facts(manifest: Manifest) -> list[list[str]]:
    """Return what is needed to train the adapter again."""
    rate = parse_number(manifest.config.get("learning_rate"))
    epochs = parse_number(manifest.config.get("num_train_epochs"))
    facts = [
        ["Base", f"{quote_untrusted(manifest.base_id)} (revision {quote_untrusted(manifest.base_revision, 60)})"],
        [
            "Base in training",
            quantization_label(quote_untrusted(manifest.trained_quantization)),
        ],
        ["Data", f"{quote_untrusted(manifest.dataset)} ({quote_untrusted(manifest.dataset_digest, 40)})"],
        [
            "Prompt",
            f"{quote_untrusted(manifest.prompt_style, 40)} ({quote_untrusted(manifest.prompt_fingerprint, 40)})",
        ],
        ["Seed", str(manifest.seed)],
        ["Weights", quote_untrusted(manifest.weights_digest, 40) or _NOT_STATED],
    ]
    plural = "" if epochs == 1 else "s"
    settings = [f"learning rate {rate:g}" if rate else "", f"at most {epochs:g} epoch{plural}" if epochs else ""]
    training = ", ".join(part for part in settings if part)
    return [*facts, ["Training", training]] if training else facts


def _origin_text(entry: CatalogEntry) -> str:
    if entry.location == "library":
        return "Comes with Prompt or Tune"
    if entry.location == "registered":
        return "Registered through the API"
    if entry.origin is None or entry.origin.kind == "job":
        return "Trained here, or copied here by hand"
    what = quote_untrusted(entry.origin.what, 80)
    return f"From the Hub: {_short_commit(what)}" if entry.origin.kind == "hub" else f"From the zip {what}"


def _short_commit(what: str) -> str:
    repo, at, commit = what.partition("@")
    return f"{repo}{at}{commit[:8]}"


def _date_text(created: str) -> str:
    try:
        return format_date(created)
    except ValueError:
        return quote_untrusted(created, 30)


def _readme_text(path: Path) -> str:
    """Return the model card without YAML front matter; '' if there is none, an error message if it is unreadable."""
    if not (path / "README.md").is_file():
        return ""
    try:
        text = read_limited(path / "README.md", MAX_CARD_BYTES, path.name).decode("utf-8", "replace")
    except PromptOrTuneError as error:
        return str(error)
    if text.startswith("---\n") and "\n---\n" in text:
        text = text.split("\n---\n", 1)[1]
    return _truncate(text.strip())


def _manifest_text(manifest: Manifest) -> str:
    """Return the manifest as JSON, with only the length of its training log."""
    values = asdict(manifest)
    values["log"] = f"{len(manifest.log)} records"
    return _truncate(json.dumps(values, indent=1, ensure_ascii=True))


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else text[:MAX_TEXT_LENGTH] + "\n… (cut here)"


def adapter_list_value(
    context: Context,
    catalog: AdapterCatalog,
    visitor: Visitor,
    *,
    query: str | None = "",
    show: str | None = "all",
    start: int = 0,
    next_action: str = "",
    added: str = "",
) -> dict[str, Any]:
    """Return the value of the list: the PAGE_SIZE adapters on the page of index `start` that match `query` and `show`.

    `next_action` is what the browser does next ('compare' or 'save'); `added` is the adapter that was just installed.
    """
    query, show = str(query or ""), str(show or "all")  # a program may send null
    phase, policy = context.engine_loader.state().phase, context.visitors.policy
    states, matches_filter = catalog.states(), _filter_by(show, catalog)
    found = [state for state in states if matches_filter(state)]
    if query.strip():
        found = [state for state in found if _matches_query(_visible_state(state, catalog, policy, visitor), query)]
    start = min(max(start, 0), max(len(found) - 1, 0)) // PAGE_SIZE * PAGE_SIZE
    engine = catalog.engine
    base = None if engine is None else engine.base
    return {
        # Differs in each answer, so that the browser notices an answer with an equal list.
        "turn": time.monotonic_ns(),
        "head": _count_text(len(states), len(found)),
        "phase": phase,
        "cards": [
            visitor_card(card_value(entry, base), entry, policy, visitor)
            for entry in catalog.entries(found[start : start + PAGE_SIZE])
        ],
        "from": start,
        "size": PAGE_SIZE,
        "total": len(found),
        "none": not states,
        "may": policy.may(visitor, "add an adapter"),
        "models": full_models(catalog.store) if policy.may(visitor, "see paths of the machine") else [],
        "after": next_action,
        "fresh": added,
    }


def adapter_list_component(context: Context, catalog: AdapterCatalog) -> gr.HTML:
    """Return the list. It triggers `select` with {"do": open, load, unload, delete, save or page, "name", "from"}."""

    def adapter_details(name: str, request: gr.Request) -> dict[str, Any]:
        """Return the details of a card; called by the browser when they are unfolded."""
        visitor = context.visitors.identify(request)
        try:
            check_name(str(name))
            if is_hidden(catalog.owner(str(name)), context.visitors.policy, visitor):
                return {"error": DETAILS_HIDDEN}
            folder = catalog.folder(str(name))
            manifest = next((state.manifest for state in catalog.states() if state.name == name), None)
        except PromptOrTuneError as error:
            return {"error": str(error)}
        return details_value(folder, manifest)

    template = (
        '<p class="result-count" role="status" aria-live="polite">Looking for adapters ...</p>'
        '<ul class="adapter-cards"></ul>'
        '<div class="pager"></div><div class="models" hidden><h2>Whole models</h2><p class="muted">These are no '
        "adapters: full fine-tuning changed every weight. Serve one in place of the base with its command.</p><ul></ul>"
        "</div>"
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=components.load_script("adapters"),
        server_functions=[guard(context.visitors, "view pages", adapter_details)],
        apply_default_css=False,
        elem_id="adapters-list",
    )


def _visible_state(
    state: AdapterStatus, catalog: AdapterCatalog, policy: AccessPolicy, visitor: Visitor
) -> AdapterStatus:
    """Return the state without the name of its data where the visitor may not see that."""
    if visitor.owner or state.manifest is None or not is_hidden(catalog.owner(state.name), policy, visitor):
        return state
    return replace(state, manifest=replace(state.manifest, dataset=""))


def _matches_query(state: AdapterStatus, query: str) -> bool:
    text = search_text(state.name, state.manifest)
    return all(word in text for word in query.casefold().split())


def _filter_by(show: str, catalog: AdapterCatalog) -> Callable[[AdapterStatus], bool]:
    filters: Mapping[str, Callable[[], Callable[[AdapterStatus], bool]]] = {
        "usable": lambda: catalog.is_usable,
        "unusable": lambda: lambda state: not catalog.is_usable(state),
        "own": lambda: _in_names(catalog.names_in("own")),
        "library": lambda: _in_names(catalog.names_in("library")),
        "memory": lambda: _in_names(catalog.loaded_names()),
    }
    return filters[show]() if show in filters else lambda _: True


def _in_names(names: set[str]) -> Callable[[AdapterStatus], bool]:
    return lambda state: state.name in names


def _count_text(total: int, found: int) -> str:
    if total == found:
        return f"{total} adapter{'' if total == 1 else 's'}"
    return (
        f"{found} of {total} adapters"
        if found
        else f"None of {total} adapters matches: try fewer words or another filter."
    )


def page_start(event: Mapping[str, Any]) -> int:
    """Return the index of the first card in an event of the browser; 0 if it is not valid."""
    start = event.get("from")
    return start if type(start) is int and 0 <= start < 10**9 else 0
