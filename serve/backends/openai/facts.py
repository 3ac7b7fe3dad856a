"""What a server says of itself: which engine it is, which model answers, what else it lists, how much it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.weights import shown
from errors import PeftArenaError, unknown
from serve.backends.openai.kinds import LLAMA_CPP, LORAX, OTHER, OURS, OWNERS, Kind
from serve.backends.openai.said import told
from serve.backends.openai.wire import Wire

_MOST_NAMED = 8


@dataclass(frozen=True)
class Facts:
    """One server. `model` is what its base is called there, `base_id` what that base is, as far as the server says.

    `revision`, `quantization` and `context` are '' and 0 where it does not. `slots` are the LoRA adapters that
    llama.cpp was started with: name -> number.
    """

    kind: Kind
    model: str
    base_id: str
    revision: str = ""
    quantization: str = ""
    context: int = 0
    slots: Mapping[str, int] | None = None


def discover(wire: Wire, model: str | None) -> Facts:
    """Asks the server; PeftArenaError in one sentence where it is none of ours to use."""
    listed = models(wire)
    if listed is None:
        found = _lorax(wire, model) or _named(wire, model)
    else:
        found = _listed(wire, listed, model)
    if found.kind is LLAMA_CPP:
        found = _llama_cpp(wire, found)
    return found


def models(wire: Wire) -> list[dict[str, Any]] | None:
    """The entries of /v1/models; None where the server has no such list."""
    reply = wire.get("/models")
    if reply.status == 404:
        return None
    entries = reply.field("data")
    if reply.status != 200:
        raise wire.refusal(reply.status, reply.headers, reply.value)
    if not isinstance(entries, list):
        raise PeftArenaError(f"{wire.url}/models is no list of models: check --url, which ends in /v1 as a rule.")
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def names(entries: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The ids of the entries."""
    return frozenset(entry["id"] for entry in entries)


def _listed(wire: Wire, entries: list[dict[str, Any]], model: str | None) -> Facts:
    if not entries:
        raise PeftArenaError(f"The server at {wire.host} lists no model: load one there first.")
    bases = [entry for entry in entries if not entry.get("parent")]
    chosen = next((entry for entry in entries if entry["id"] == model), None) if model else (bases or entries)[0]
    if chosen is None:
        raise unknown("model of the server", str(model), [shown(entry["id"]) for entry in entries[:_MOST_NAMED]])
    kind = OWNERS.get(str(chosen.get("owned_by")), OTHER)
    root = chosen.get("root")
    is_known = isinstance(root, str) and root and (kind is OURS or not root.startswith(("/", "~", ".")))
    return Facts(
        kind,
        chosen["id"],
        str(root) if is_known else chosen["id"],
        revision=_text(chosen, "revision"),
        quantization=_text(chosen, "quantization"),
        context=_count(chosen.get("max_model_len")),
    )


def _lorax(wire: Wire, model: str | None) -> Facts | None:
    """LoRAX has no list, and says of itself in /info what it runs."""
    reply = wire.get("/info", at_root=True)
    served = reply.field("model_id")
    if reply.status != 200 or not isinstance(served, str) or not served:
        return None
    if model not in (None, served):
        raise unknown("model of the server", str(model), [served])
    sha = reply.field("model_sha")
    context = _count(reply.field("max_total_tokens"))
    return Facts(LORAX, served, served, revision=sha if isinstance(sha, str) else "", context=context)


def _named(wire: Wire, model: str | None) -> Facts:
    if not model:
        raise PeftArenaError(
            f"The server at {wire.host} lists no models under {wire.url}/models: name one with --model, "
            "and check that --url ends in /v1."
        )
    return Facts(OTHER, model, model)


def _llama_cpp(wire: Wire, found: Facts) -> Facts:
    """llama.cpp tells its context in /props, and the adapters that it was started with in /lora-adapters."""
    settings = wire.get("/props", at_root=True).field("default_generation_settings")
    context = _count(settings.get("n_ctx")) if isinstance(settings, dict) else 0
    listed = wire.get("/lora-adapters", at_root=True).value
    slots: dict[str, int] = {}
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("path"), str) and type(entry.get("id")) is int:
            file = entry["path"].replace("\\", "/").rsplit("/", 1)[-1]
            slots[file.removesuffix(".gguf")] = entry["id"]
    return Facts(found.kind, found.model, found.base_id, context=context or found.context, slots=slots)


def gives_logprobs(wire: Wire, facts: Facts) -> bool:
    """Asks for one token, with its log-probability and, where that is refused, without: so the model is known to work.

    PeftArenaError where neither is answered.
    """
    body = {"model": facts.model, "prompt": "x", "max_tokens": 1, **facts.kind.greedy}
    reply = wire.post("/completions", {**body, "logprobs": 1}, seconds=120)
    if reply.status == 200:
        choices = reply.field("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        return isinstance(first, dict) and any(told(first.get("logprobs")))
    reply = wire.post("/completions", body, seconds=120)
    if reply.status != 200:
        raise wire.refusal(reply.status, reply.headers, reply.value, facts.model)
    return False


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) and value.isprintable() else ""


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
