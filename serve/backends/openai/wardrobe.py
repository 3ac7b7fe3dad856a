"""Which adapters the server can put on a row, under which name, and why it cannot put on the others."""

from __future__ import annotations

import threading
from typing import Any

from adapters.handover import vllm_checks
from adapters.store import AdapterFolder
from errors import AdapterError, PromptOrTuneError
from serve.backends.openai import facts as asked
from serve.backends.openai.facts import ServerInfo
from serve.backends.openai.kinds import LLAMA_CPP, LLAMA_CPP_PYTHON, LORAX, VLLM
from serve.backends.openai.wire import ServerClient, error_message

_LOAD_SECONDS = 120.0
_TITLES = {"IA3": "IA3", "PROMPT_TUNING": "Prompt tuning", "PREFIX_TUNING": "Prefix tuning"}


class RemoteAdapters:
    """The adapters at one server. Thread-safe: adapters are loaded while others answer."""

    def __init__(self, client: ServerClient, server: ServerInfo) -> None:
        self._client = client
        self._server = server
        self._name = f"{server.server_type.name} at {client.host}"
        self._server_models = asked.model_ids(asked.list_models(client) or ())
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
                self._server_models = asked.model_ids(asked.list_models(self._client) or ())
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
