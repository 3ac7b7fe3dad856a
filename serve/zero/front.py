"""The backend as the process without a GPU sees it: it can write prompts and count tokens, and generates nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Literal

from adapters.manifest import BaseIdentity
from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME
from serve.backends.local.backend import LocalBackend
from serve.rows import Batch, PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import Message


class PromptOnlyBackend:
    """Implements Backend (serve.rows). Adapters are noted here and loaded where the GPU is."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._bytes: dict[str, int] = {}

    @property
    def base(self) -> BaseIdentity:
        """What was loaded."""
        return self._backend.base

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """The base's own chat template around `messages`."""
        return self._backend.apply_chat_template(messages)

    def count_tokens(self, text: str) -> int:
        """How many tokens the base reads for `text`."""
        return self._backend.count_tokens(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Notes the adapter, which passed its checks."""
        self._bytes[folder.name] = (folder.path / WEIGHTS_NAME).stat().st_size

    def unload_adapter(self, name: str) -> None:
        """Forgets the adapter."""
        self._bytes.pop(name, None)

    def adapter_bytes(self, name: str) -> int:
        """The size of the adapter's file."""
        return self._bytes[name]

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """Nothing grows in this process."""
        raise NotImplementedError(f"Rows ({mode}) grow where the GPU is: see serve.zero.engine.")

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """Nothing grows in this process."""
        raise NotImplementedError(f"{len(rows)} rows grow where the GPU is: see serve.zero.engine.")
