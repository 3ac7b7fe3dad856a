"""How many tokens a prompt has at the server: asked of the server, else of the base's tokenizer, else estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from errors import PeftArenaError
from serve.backends.openai.wire import Reply, Wire

# Fewer bytes a token than code and prose in any language have on average with the tokenizers of today's bases (code
# has 3 to 4): the estimate is meant to come out too high.
_BYTES_A_TOKEN = 2.0
_MOST_KNOWN = 256
_PROBE = "x = 1"
ESTIMATED = "Prompt lengths are estimated, on the safe side: the server has no way to count tokens."

LocalCount = Callable[[str], int]


@dataclass(frozen=True)
class _Form:
    """One server's way to count: the path beside /v1, the body, and where the number is in the answer."""

    path: str
    body: Callable[[str, str], Mapping[str, Any]]
    read: Callable[[Reply], object]


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


_FORMS = (
    # vLLM and Peft Arena
    _Form("/tokenize", lambda model, text: {"model": model, "prompt": text}, lambda said: said.field("count")),
    # llama-cpp-python
    _Form("/extras/tokenize/count", lambda _, text: {"input": text}, lambda said: said.field("count")),
    # llama.cpp
    _Form(
        "/tokenize", lambda _, text: {"content": text, "add_special": True}, lambda said: _length(said.field("tokens"))
    ),
    # LoRAX
    _Form("/tokenize", lambda _, text: {"inputs": text}, lambda said: _length(said.value)),
)


class Counter:
    """Counts tokens. Which way the server has is found out once; the same text is asked for once in a while."""

    def __init__(self, wire: Wire, model: str, local: LocalCount | None) -> None:
        self._wire = wire
        self._model = model
        self._local = local
        self._form = next((form for form in _FORMS if self._ask(form, _PROBE)), None)
        self._known: dict[str, int] = {}

    @property
    def estimates(self) -> bool:
        """Whether its numbers are guesses."""
        return self._form is None and self._local is None

    def __call__(self, text: str) -> int:
        """The number of tokens of `text`."""
        if text not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[text] = self._count(text)
        return self._known[text]

    def _count(self, text: str) -> int:
        if not text:
            return 0
        if self._form is not None and (count := self._ask(self._form, text)):
            return count
        return self._local(text) if self._local is not None else int(len(text.encode()) / _BYTES_A_TOKEN) + 1

    def _ask(self, form: _Form, text: str) -> int:
        """What the server says, 0 where it does not say."""
        try:
            reply = self._wire.post(form.path, form.body(self._model, text), at_root=True)
        except PeftArenaError:
            return 0
        count = form.read(reply) if reply.status == 200 else 0
        return count if type(count) is int and count > 0 else 0
