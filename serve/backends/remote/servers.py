"""Server types (vLLM, LoRAX, llama.cpp), their discovery, and the adapters of a remote server.

Sources: the manuals and servers of vLLM (docs/features/lora.md, /v1/models), LoRAX (router/src/lib.rs), llama.cpp
(tools/server/README.md) and llama-cpp-python (llama_cpp/server).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.export import vllm_checks
from adapters.store import AdapterFolder
from common.format import quote_untrusted
from errors import AdapterError, PromptOrTuneError, unknown_name_error
from serve.backends.remote.client import ServerClient, error_message
from serve.backends.remote.stream import parse_logprobs


@dataclass(frozen=True)
class ServerType:
    """The request fields and abilities of one kind of server.

    `supports_n`: one call returns several samples. `greedy`: fields for greedy decoding. `neutral`: fields that switch
    off samplers and penalties that the server adds by default (vLLM takes those of the model's generation_config.json),
    so that all engines decode alike. `usage_options`: fields for token counts in every chunk, because a stream that is
    closed early never reports its usage at the end. `supports_all_techniques`: not only LoRA. `may_load_adapters`: it
    may have /v1/load_lora_adapter. `supports_scale`: requests choose an adapter's scale. `max_streams`: how many
    streams may be open at once.
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
# It answers one request at a time and, by default, aborts a stream when the next request comes.
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
    """One server's description of itself: `model` is its name of the base, `base_id` the base's own id if it tells it.

    `revision`, `quantization` and `context_length` are '' or 0 if unknown. `lora_slots` maps the names of the LoRA
    adapters that llama.cpp was started with to their ids.
    """

    server_type: ServerType
    model: str
    base_id: str
    revision: str = ""
    quantization: str = ""
    context_length: int = 0
    lora_slots: Mapping[str, int] | None = None


def discover(client: ServerClient, model: str | None) -> ServerInfo:
    """Return the server's description; raises PromptOrTuneError if it cannot be used."""
    entries = list_models(client)
    if entries is None:
        info = _discover_lorax(client, model) or _from_model_option(client, model)
    else:
        info = _from_model_list(client, entries, model)
    if info.server_type is LLAMA_CPP:
        info = _with_llama_cpp_props(client, info)
    return info


def list_models(client: ServerClient) -> list[dict[str, Any]] | None:
    """Return the entries of /v1/models; None if the server has no such list."""
    reply = client.get("/models")
    if reply.status == 404:
        return None
    entries = reply.field("data")
    if reply.status != 200:
        raise client.status_error(reply.status, reply.headers, reply.value)
    if not isinstance(entries, list):
        raise PromptOrTuneError(f"{client.url}/models is not a list of models: check --url, which usually ends in /v1.")
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def model_ids(entries: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Return the ids of the entries."""
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
    server_type = SERVER_TYPE_BY_OWNER.get(str(chosen.get("owned_by")), OTHER)
    root = chosen.get("root")
    is_known = isinstance(root, str) and root and (server_type is OURS or not root.startswith(("/", "~", ".")))
    return ServerInfo(
        server_type,
        chosen["id"],
        str(root) if is_known else chosen["id"],
        revision=_text(chosen, "revision"),
        quantization=_text(chosen, "quantization"),
        context_length=_count(chosen.get("max_model_len")),
    )


def _discover_lorax(client: ServerClient, model: str | None) -> ServerInfo | None:
    """Return the description of a LoRAX server, which has /info instead of a model list; None for other servers."""
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


def _with_llama_cpp_props(client: ServerClient, info: ServerInfo) -> ServerInfo:
    """Add llama.cpp's context length (/props) and the adapters that it was started with (/lora-adapters)."""
    settings = client.get("/props", at_root=True).field("default_generation_settings")
    context = _count(settings.get("n_ctx")) if isinstance(settings, dict) else 0
    entries = client.get("/lora-adapters", at_root=True).value
    slots: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("path"), str) and type(entry.get("id")) is int:
            file = entry["path"].replace("\\", "/").rsplit("/", 1)[-1]
            slots[file.removesuffix(".gguf")] = entry["id"]
    return ServerInfo(
        info.server_type, info.model, info.base_id, context_length=context or info.context_length, lora_slots=slots
    )


def supports_logprobs(client: ServerClient, server: ServerInfo) -> bool:
    """Generate one token and return whether its log-probability came with it.

    A refusal of log-probabilities is tried again without them. Raises PromptOrTuneError if the model does not answer.
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
    """The adapters at one server: support, loading, request fields. Thread-safe, for loading during generation."""

    def __init__(self, client: ServerClient, server: ServerInfo) -> None:
        self._client = client
        self._server = server
        self._name = f"{server.server_type.name} at {client.host}"
        self._server_models = model_ids(list_models(client) or ())
        self._can_load = server.server_type.may_load_adapters and self.supports_runtime_loading()
        # By name: adapters that the server loaded for this backend, or that requests name by their folder.
        self._loaded: dict[str, AdapterFolder] = {}
        self._lock = threading.Lock()

    def unsupported_reason(self, folder: AdapterFolder | None, scale: float = 1.0) -> str | None:
        """Return why the server cannot answer with the adapter at that scale; None if it can, as far as is known."""
        if folder is None:
            return None
        if scale != 1 and not self._server.server_type.supports_scale:
            return f"{self._name} cannot scale adapters: request '{folder.name}' without a number after '*'."
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
        server_type = self._server.server_type
        if server_type is LLAMA_CPP:
            if folder.name in (self._server.lora_slots or {}):
                return None
            return (
                f"{self._name} was not started with '{folder.name}': convert it with convert_lora_to_gguf.py and start "
                f"the server with --lora {folder.name}.gguf."
            )
        if server_type is LLAMA_CPP_PYTHON:
            return f"{self._name} has no adapters that requests can choose: use llama.cpp's own server, or vLLM."
        if server_type in (VLLM, LORAX):
            for check in vllm_checks(folder):
                if not check.passed:
                    return f"{self._name} cannot use '{folder.name}': {check.reason}."
        if server_type is LORAX or self._can_load:
            return None
        hint = (
            " (--lora-modules), or let it load adapters (VLLM_ALLOW_RUNTIME_LORA_UPDATING)"
            if server_type is VLLM
            else ""
        )
        return f"{self._name} does not list '{folder.name}' among its models: start it with that adapter{hint}."

    def load(self, folder: AdapterFolder) -> None:
        """Have the server load the adapter if needed; raises AdapterError if it cannot."""
        with self._lock:
            if folder.name not in self._server_models:
                self._server_models = model_ids(list_models(self._client) or ())
            loaded = self._loaded.get(folder.name)
            if reason := self.unsupported_reason(folder):
                raise AdapterError(reason)
            if loaded is not None and loaded.digest == folder.digest:
                return
            if loaded is None and folder.name in self._server_models:
                return  # the server has an adapter of that name of its own
            if self._server.server_type.may_load_adapters:
                if loaded is not None:
                    self._post_adapter("/unload_lora_adapter", {"lora_name": folder.name}, folder.name)
                body = {"lora_name": folder.name, "lora_path": str(folder.path.resolve())}
                self._post_adapter("/load_lora_adapter", body, folder.name)
            self._loaded[folder.name] = folder

    def unload(self, name: str) -> None:
        """Have the server unload an adapter that it loaded for this backend; errors of the server are ignored."""
        with self._lock:
            if self._loaded.pop(name, None) is not None and self._server.server_type.may_load_adapters:
                try:
                    self._post_adapter("/unload_lora_adapter", {"lora_name": name}, name)
                except PromptOrTuneError:
                    return

    def adapter_fields(self, name: str | None, scale: float) -> dict[str, Any]:
        """Return the request fields that select the adapter: `model` and further ones of the server type."""
        server_type = self._server.server_type
        if server_type is LLAMA_CPP and self._server.lora_slots:
            # Without this list llama.cpp applies every adapter that it was started with to every request.
            slot_scales = [
                {"id": slot, "scale": scale if slot_name == name else 0.0}
                for slot_name, slot in self._server.lora_slots.items()
            ]
            return {"model": self._server.model, "lora": slot_scales}
        if name is None:
            return {"model": self._server.model}
        if server_type is LORAX and name in self._loaded:
            return {"model": str(self._loaded[name].path.resolve()), "adapter_source": "local"}
        return {"model": name if scale == 1 else f"{name}*{scale:g}"}

    def supports_runtime_loading(self) -> bool:
        """Return whether the server has /load_lora_adapter: it refuses an empty name, and an unknown path is a 404."""
        return self._client.post("/load_lora_adapter", {"lora_name": "", "lora_path": ""}).status not in (
            401,
            403,
            404,
            405,
        )

    def _post_adapter(self, path: str, body: dict[str, str], name: str) -> None:
        reply = self._client.post(path, body, seconds=_LOAD_SECONDS)
        if reply.status != 200:
            reason = self._client.sanitize(error_message(reply.value) or reply.text)
            raise AdapterError(
                f"{self._name} does not load '{name}' (status {reply.status}: {reason or 'no reason given'}): "
                "its folder must lie on a disk that the server sees."
            )
