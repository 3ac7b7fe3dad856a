"""How many tokens a prompt has at the server: asked of the server, else of the base's tokenizer, else estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from errors import PromptOrTuneError
from serve.backends.openai.wire import ServerClient, ServerResponse

# Fewer bytes a token than code and prose in any language have on average with the tokenizers of today's bases (code
# has 3 to 4): the estimate is meant to come out too high.
_BYTES_PER_TOKEN = 2.0
_MAX_CACHED_TEXTS = 256
_PROBE_TEXT = "x = 1"
ESTIMATED_NOTE = "Prompt lengths are estimated, on the safe side: the server has no way to count tokens."

CountFn = Callable[[str], int]


@dataclass(frozen=True)
class _CountEndpoint:
    """One server's way to count: the path beside /v1, the body, and where the number is in the answer."""

    path: str
    body: Callable[[str, str], Mapping[str, Any]]
    parse: Callable[[ServerResponse], object]


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


_COUNT_ENDPOINTS = (
    # vLLM and Peft Arena
    _CountEndpoint("/tokenize", lambda model, text: {"model": model, "prompt": text}, lambda said: said.field("count")),
    # llama-cpp-python
    _CountEndpoint("/extras/tokenize/count", lambda _, text: {"input": text}, lambda said: said.field("count")),
    # llama.cpp
    _CountEndpoint(
        "/tokenize", lambda _, text: {"content": text, "add_special": True}, lambda said: _length(said.field("tokens"))
    ),
    # LoRAX
    _CountEndpoint("/tokenize", lambda _, text: {"inputs": text}, lambda said: _length(said.value)),
)


class TokenCounter:
    """Counts tokens. Which way the server has is found out once; the same text is asked for once in a while."""

    def __init__(self, client: ServerClient, model: str, count_locally: CountFn | None) -> None:
        self._client = client
        self._model = model
        self._count_locally = count_locally
        self._endpoint = next((form for form in _COUNT_ENDPOINTS if self._count_at(form, _PROBE_TEXT)), None)
        self._cache: dict[str, int] = {}

    @property
    def is_estimate(self) -> bool:
        """Whether its numbers are guesses."""
        return self._endpoint is None and self._count_locally is None

    def __call__(self, text: str) -> int:
        """The number of tokens of `text`."""
        if text not in self._cache:
            if len(self._cache) >= _MAX_CACHED_TEXTS:
                self._cache.clear()
            self._cache[text] = self._count(text)
        return self._cache[text]

    def _count(self, text: str) -> int:
        if not text:
            return 0
        if self._endpoint is not None and (count := self._count_at(self._endpoint, text)):
            return count
        return (
            self._count_locally(text)
            if self._count_locally is not None
            else int(len(text.encode()) / _BYTES_PER_TOKEN) + 1
        )

    def _count_at(self, endpoint: _CountEndpoint, text: str) -> int:
        """What the server says, 0 where it does not say."""
        try:
            reply = self._client.post(endpoint.path, endpoint.body(self._model, text), at_root=True)
        except PromptOrTuneError:
            return 0
        count = endpoint.parse(reply) if reply.status == 200 else 0
        return count if type(count) is int and count > 0 else 0
