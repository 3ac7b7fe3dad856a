"""Server types (vLLM, LoRAX, llama.cpp) and discovery.

The engines that this program knows by what they say of themselves, and how their dialects differ.

Sources: the manuals and servers of vLLM (docs/features/lora.md, /v1/models), LoRAX (router/src/lib.rs), llama.cpp
(tools/server/README.md) and llama-cpp-python (llama_cpp/server).

What a server says of itself: which engine it is, which model answers, what else it lists, how much it reads.

Which adapters the server can put on a row, under which name, and why it cannot put on the others.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.store import AdapterFolder
from adapters.vllm_compat import vllm_checks
from common.format import quote_untrusted
from errors import AdapterError, PromptOrTuneError, unknown_name_error
from serve.backends.remote.client import ServerClient, error_message
from serve.backends.remote.stream import parse_logprobs


@dataclass(frozen=True)
class ServerType:
    """One engine's dialect.

    `takes_n`: several samples come from one call. `greedy`: what asks for the likeliest token. `neutral`: what switches
    off the samplers and penalties that the server would add by itself (vLLM takes those of the model's
    generation_config.json), so that all engines decode alike. `counting`: what makes a stream tell its tokens as they
    come, which an answer that we cut would never tell. `every_technique`: not LoRA alone. `loads`: it may have
    /v1/load_lora_adapter. `scales`: an adapter's strength can be chosen. `at_once`: how many streams it may be sent.
    """

    name: str
    supports_n: bool = False
    greedy: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    neutral: Mapping[str, Any] = field(default_factory=dict)
    usage_options: Mapping[str, Any] = field(default_factory=dict)
    supports_all_techniques: bool = False
    may_load_adapters: bool = False
    supports_scale: bool = False
    max_streams: int = 64


_USAGE_OPTIONS = {"continuous_usage_stats": True}
OURS = ServerType(
    "Prompt or Tune",
    supports_n=True,
    usage_options=_USAGE_OPTIONS,
    supports_all_techniques=True,
    may_load_adapters=True,
    supports_scale=True,
)
VLLM = ServerType(
    "vLLM",
    supports_n=True,
    usage_options=_USAGE_OPTIONS,
    neutral={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    may_load_adapters=True,
)
# LoRAX refuses a temperature of 0, and samples as soon as there is an `n`.
LORAX = ServerType("LoRAX", greedy={})
_LLAMA_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
LLAMA_CPP = ServerType("llama.cpp", neutral=_LLAMA_NEUTRAL, supports_scale=True)
# It answers one request at a time and, by default, breaks off a stream when the next one comes.
LLAMA_CPP_PYTHON = ServerType("llama-cpp-python", neutral=_LLAMA_NEUTRAL, max_streams=1)
OTHER = ServerType("OpenAI-compatible server")

# `owned_by` of the entries of /v1/models.
SERVER_TYPE_BY_OWNER: Mapping[str, ServerType] = {
    "prompt-or-tune": OURS,
    "vllm": VLLM,
    "llamacpp": LLAMA_CPP,
    "me": LLAMA_CPP_PYTHON,
}


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


_LOAD_SECONDS = 120.0
_TITLES = {"IA3": "IA3", "PROMPT_TUNING": "Prompt tuning", "PREFIX_TUNING": "Prefix tuning"}


class RemoteAdapters:
    """The adapters at one server. Thread-safe: adapters are loaded while others answer."""

    def __init__(self, client: ServerClient, server: ServerInfo) -> None:
        self._client = client
        self._server = server
        self._name = f"{server.server_type.name} at {client.host}"
        self._server_models = model_ids(list_models(client) or ())
        self._can_load = server.server_type.may_load_adapters and self.supports_runtime_loading()
        # name -> (digest, folder) of what we had the server load, or gave to it by its folder
        self._loaded: dict[str, AdapterFolder] = {}
        self._lock = threading.Lock()

    def unsupported_reason(self, folder: AdapterFolder | None, scale: float = 1.0) -> str | None:
        """Why this engine cannot answer with the adapter at that strength; None where it can, as far as is known."""
        if folder is None:
            return None
        if scale != 1 and not self._server.server_type.supports_scale:
            return f"{self._name} wears an adapter at its full strength only: ask for '{folder.name}' alone."
        if folder.name in self._server_models and folder.name not in self._loaded:
            return None
        technique = str(folder.config.get("peft_type"))
        if technique != "LORA" and not self._server.server_type.supports_all_techniques:
            return (
                f"This engine serves LoRA adapters only; '{folder.name}' is {_TITLES.get(technique, technique)}: "
                "answer with the local engine (leave --backend out), or train a LoRA."
            )
        return self._unsupported_folder_reason(folder)

    def _unsupported_folder_reason(self, folder: AdapterFolder) -> str | None:
        kind = self._server.server_type
        if kind is LLAMA_CPP:
            if folder.name in (self._server.lora_slots or {}):
                return None
            return (
                f"{self._name} was not started with '{folder.name}': convert it with convert_lora_to_gguf.py and start "
                f"the server with --lora {folder.name}.gguf."
            )
        if kind is LLAMA_CPP_PYTHON:
            return f"{self._name} has no adapters that a request can choose: use llama.cpp's own server, or vLLM."
        if kind in (VLLM, LORAX):
            for rule in vllm_checks(folder):
                if not rule.passed:
                    return f"{self._name} cannot wear '{folder.name}': {rule.reason}."
        if kind is LORAX or self._can_load:
            return None
        mend = " (--lora-modules), or let it load adapters (VLLM_ALLOW_RUNTIME_LORA_UPDATING)" if kind is VLLM else ""
        return f"{self._name} does not list '{folder.name}' among its models: start it with that adapter{mend}."

    def load(self, folder: AdapterFolder) -> None:
        """Has the server load the adapter where it must; AdapterError in one sentence where it will not."""
        with self._lock:
            if folder.name not in self._server_models:
                self._server_models = model_ids(list_models(self._client) or ())
            known = self._loaded.get(folder.name)
            if reason := self.unsupported_reason(folder):
                raise AdapterError(reason)
            if known is not None and known.digest == folder.digest:
                return
            if known is None and folder.name in self._server_models:
                return  # the server's own, by its name
            if self._server.server_type.may_load_adapters:
                if known is not None:
                    self._post_adapter("/unload_lora_adapter", {"lora_name": folder.name}, folder.name)
                body = {"lora_name": folder.name, "lora_path": str(folder.path.resolve())}
                self._post_adapter("/load_lora_adapter", body, folder.name)
            self._loaded[folder.name] = folder

    def unload(self, name: str) -> None:
        """Has the server forget what we had it load; a server that is gone has forgotten it."""
        with self._lock:
            if self._loaded.pop(name, None) is not None and self._server.server_type.may_load_adapters:
                try:
                    self._post_adapter("/unload_lora_adapter", {"lora_name": name}, name)
                except PromptOrTuneError:
                    return

    def adapter_fields(self, name: str | None, scale: float) -> dict[str, Any]:
        """The fields of a request that put the adapter on it: `model`, and what the engine wants besides."""
        kind = self._server.server_type
        if kind is LLAMA_CPP and self._server.lora_slots:
            # Without this list every adapter that the server was started with is on every row.
            worn = [
                {"id": slot, "scale": scale if each == name else 0.0} for each, slot in self._server.lora_slots.items()
            ]
            return {"model": self._server.model, "lora": worn}
        if name is None:
            return {"model": self._server.model}
        if kind is LORAX and name in self._loaded:
            return {"model": str(self._loaded[name].path.resolve()), "adapter_source": "local"}
        return {"model": name if scale == 1 else f"{name}*{scale:g}"}

    def supports_runtime_loading(self) -> bool:
        """Whether the server has the address that loads adapters; an empty name is refused there, and not unknown."""
        return self._client.post("/load_lora_adapter", {"lora_name": "", "lora_path": ""}).status not in (
            401,
            403,
            404,
            405,
        )

    def _post_adapter(self, path: str, body: dict[str, str], name: str) -> None:
        reply = self._client.post(path, body, seconds=_LOAD_SECONDS)
        if reply.status != 200:
            said = self._client.sanitize(error_message(reply.value) or reply.text)
            raise AdapterError(
                f"{self._name} does not load '{name}' (status {reply.status}: {said or 'no reason given'}): "
                "its folder must lie on a disk that the server sees."
            )
