"""What a server says of itself: which engine it is, which model answers, what else it lists, how much it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.weights import quote_untrusted
from errors import PromptOrTuneError, unknown_name_error
from serve.backends.openai.kinds import LLAMA_CPP, LORAX, OTHER, OURS, SERVER_TYPE_BY_OWNER, ServerType
from serve.backends.openai.said import parse_logprobs
from serve.backends.openai.wire import ServerClient

_MAX_LISTED_MODELS = 8


@dataclass(frozen=True)
class ServerInfo:
    """One server. `model` is what its base is called there, `base_id` what that base is, as far as the server says.

    `revision`, `quantization` and `context` are '' and 0 where it does not. `slots` are the LoRA adapters that
    llama.cpp was started with: name -> number.
    """

    server_type: ServerType
    model: str
    base_id: str
    revision: str = ""
    quantization: str = ""
    context_length: int = 0
    lora_slots: Mapping[str, int] | None = None


def discover(client: ServerClient, model: str | None) -> ServerInfo:
    """Asks the server; PromptOrTuneError in one sentence where it is none of ours to use."""
    listed = list_models(client)
    if listed is None:
        found = _discover_lorax(client, model) or _from_model_option(client, model)
    else:
        found = _from_model_list(client, listed, model)
    if found.server_type is LLAMA_CPP:
        found = _with_llama_cpp_props(client, found)
    return found


def list_models(client: ServerClient) -> list[dict[str, Any]] | None:
    """The entries of /v1/models; None where the server has no such list."""
    reply = client.get("/models")
    if reply.status == 404:
        return None
    entries = reply.field("data")
    if reply.status != 200:
        raise client.status_error(reply.status, reply.headers, reply.value)
    if not isinstance(entries, list):
        raise PromptOrTuneError(f"{client.url}/models is no list of models: check --url, which ends in /v1 as a rule.")
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def model_ids(entries: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The ids of the entries."""
    return frozenset(entry["id"] for entry in entries)


def _from_model_list(client: ServerClient, entries: list[dict[str, Any]], model: str | None) -> ServerInfo:
    if not entries:
        raise PromptOrTuneError(f"The server at {client.host} lists no model: load one there first.")
    bases = [entry for entry in entries if not entry.get("parent")]
    chosen = next((entry for entry in entries if entry["id"] == model), None) if model else (bases or entries)[0]
    if chosen is None:
        raise unknown_name_error(
            "model of the server", str(model), [quote_untrusted(entry["id"]) for entry in entries[:_MAX_LISTED_MODELS]]
        )
    kind = SERVER_TYPE_BY_OWNER.get(str(chosen.get("owned_by")), OTHER)
    root = chosen.get("root")
    is_known = isinstance(root, str) and root and (kind is OURS or not root.startswith(("/", "~", ".")))
    return ServerInfo(
        kind,
        chosen["id"],
        str(root) if is_known else chosen["id"],
        revision=_text(chosen, "revision"),
        quantization=_text(chosen, "quantization"),
        context_length=_count(chosen.get("max_model_len")),
    )


def _discover_lorax(client: ServerClient, model: str | None) -> ServerInfo | None:
    """LoRAX has no list, and says of itself in /info what it runs."""
    reply = client.get("/info", at_root=True)
    served = reply.field("model_id")
    if reply.status != 200 or not isinstance(served, str) or not served:
        return None
    if model not in (None, served):
        raise unknown_name_error("model of the server", str(model), [served])
    sha = reply.field("model_sha")
    context = _count(reply.field("max_total_tokens"))
    return ServerInfo(LORAX, served, served, revision=sha if isinstance(sha, str) else "", context_length=context)


def _from_model_option(client: ServerClient, model: str | None) -> ServerInfo:
    if not model:
        raise PromptOrTuneError(
            f"The server at {client.host} lists no models under {client.url}/models: name one with --model, "
            "and check that --url ends in /v1."
        )
    return ServerInfo(OTHER, model, model)


def _with_llama_cpp_props(client: ServerClient, found: ServerInfo) -> ServerInfo:
    """llama.cpp tells its context in /props, and the adapters that it was started with in /lora-adapters."""
    settings = client.get("/props", at_root=True).field("default_generation_settings")
    context = _count(settings.get("n_ctx")) if isinstance(settings, dict) else 0
    listed = client.get("/lora-adapters", at_root=True).value
    slots: dict[str, int] = {}
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("path"), str) and type(entry.get("id")) is int:
            file = entry["path"].replace("\\", "/").rsplit("/", 1)[-1]
            slots[file.removesuffix(".gguf")] = entry["id"]
    return ServerInfo(
        found.server_type, found.model, found.base_id, context_length=context or found.context_length, lora_slots=slots
    )


def supports_logprobs(client: ServerClient, server: ServerInfo) -> bool:
    """Asks for one token, with its log-probability and, where that is refused, without: so the model is known to work.

    PromptOrTuneError where neither is answered.
    """
    body = {"model": server.model, "prompt": "x", "max_tokens": 1, **server.server_type.greedy}
    reply = client.post("/completions", {**body, "logprobs": 1}, seconds=120)
    if reply.status == 200:
        choices = reply.field("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        return isinstance(first, dict) and any(parse_logprobs(first.get("logprobs")))
    reply = client.post("/completions", body, seconds=120)
    if reply.status != 200:
        raise client.status_error(reply.status, reply.headers, reply.value, server.model)
    return False


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) and value.isprintable() else ""


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
