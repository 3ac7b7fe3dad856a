"""Fake engine without a model: it streams scripted answers word by word, and fails for scripted methods."""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from adapters.store import AdapterStatus, Store
from errors import AdapterError
from models.source import BaseIdentity
from serve.engine.adapter_cache import AdapterCache
from serve.engine.llm_engine import LLMEngine
from serve.types import Backend, Candidate, PartialOutput, Request, RequestOutput, SamplingParams
from tasks.methods import Method
from tasks.problem import Example
from tasks.prompt import STYLES, render_prompt

BASE = BaseIdentity(
    id="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="sha256:0123456789abcdef",
    architecture="LlamaForCausalLM",
    quantization="nf4",
    device="cpu",
    context_length=2048,
    has_chat_template=True,
)
EXAMPLE = Example("starter-train-0001", "reverse the string `s`", "s[::-1]")


class FakeStore(Store):
    """Store of adapter names without files; `broken` maps unusable ones to the reason."""

    def __init__(self, adapters: Sequence[str], broken: Mapping[str, str]) -> None:
        super().__init__(())
        self._names, self._broken = adapters, broken

    def names(self) -> list[str]:
        return sorted(self._names)

    def status(self, base: BaseIdentity | None = None) -> list[AdapterStatus]:
        return [
            AdapterStatus(name, name not in self._broken, self._broken.get(name, ""), None) for name in self.names()
        ]


@dataclass
class FakeEngine(LLMEngine):
    """An LLMEngine with scripted answers.

    `answers` maps method names to answers, `errors` to error messages, `words` to the words per step; a step takes
    `delay` seconds. `unsupported` maps adapters to the reason why they are unsupported. `received` are the requests of
    each run, `cancelled` counts the cancelled runs.
    """

    answers: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)
    names: Sequence[str] = ("lora-starter", "lora-conala")
    delay: float = 0.0
    longest_intent: int = 10_000
    runs: int = 0
    cancelled: int = 0
    received: list[list[Request]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base(self) -> BaseIdentity:
        return BASE

    @property
    def store(self) -> Store:
        return FakeStore(self.names, self.errors)

    @property
    def adapter_cache(self) -> AdapterCache:
        """Return an empty cache."""
        return AdapterCache(cast("Backend", self), self.store)

    def adapters(self) -> list[str]:
        return list(self.names)

    def methods(self) -> list[str]:
        return ["zero-shot", "icl-8", "rag-8", *self.names]

    def adapter_digest(self, name: str) -> str:
        return f"sha256:{zlib.crc32(name.encode()):08x}"

    def unsupported_reason(self, method: Method) -> str | None:
        return self.unsupported.get(method.adapter or "")

    def require_method(self, method: Method) -> None:
        """Raise AdapterError for an unsupported method."""
        if (reason := self.unsupported_reason(method)) is not None:
            raise AdapterError(reason)

    @property
    def has_independent_rows(self) -> bool:
        return True

    def count_prompt_tokens(self, requests: Sequence[Request], sampling_params: SamplingParams) -> list[int]:
        return [len(request.problem.intent) for request in requests]

    def stream(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        cancel: threading.Event | None = None,
        owner: str = "",
    ) -> Iterator[PartialOutput | RequestOutput]:
        cancel = cancel or threading.Event()
        with self._lock:
            self.runs += 1
            self.received.append(list(requests))
            began = time.monotonic()
            remaining: dict[int, list[str]] = {}
            for index, request in enumerate(requests):
                error = self._failure(request)
                if error:
                    yield RequestOutput(index, request, error=error)
                else:
                    remaining[index] = re.findall(r"\s*\S+|\s+$", self._answer(request.method))
            tokens = dict.fromkeys(remaining, 0)
            try:
                while remaining and not cancel.is_set():
                    time.sleep(self.delay)
                    for index in list(remaining):
                        tokens[index] += self.words.get(requests[index].method.name, 1)
                        text = "".join(remaining[index][: tokens[index]])
                        if tokens[index] >= len(remaining[index]):
                            yield self._done(
                                index, requests[index], text, len(remaining[index]), sampling_params, began
                            )
                            del remaining[index]
                        else:
                            yield PartialOutput(index, text, tokens[index])
                self.cancelled += bool(remaining)
                for index in remaining:
                    text = "".join(remaining[index][: tokens[index]])
                    yield self._done(
                        index, requests[index], text, tokens[index], sampling_params, began, cancelled=True
                    )
            except GeneratorExit:
                self.cancelled += 1
                raise

    def answer(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        cancel: threading.Event | None = None,
        owner: str = "",
    ) -> list[RequestOutput]:
        answers = [
            event for event in self.stream(requests, sampling_params, cancel) if isinstance(event, RequestOutput)
        ]
        return sorted(answers, key=lambda answer: answer.index)

    def _failure(self, request: Request) -> str | None:
        if len(request.problem.intent) > self.longest_intent:
            return f"The prompt has {len(request.problem.intent) // 4} tokens and 1792 fit: shorten the intent."
        return self.errors.get(request.method.name)

    def _answer(self, method: Method) -> str:
        return self.answers.get(method.name, f"print({method.name!r})")

    def _done(
        self,
        index: int,
        request: Request,
        text: str,
        tokens: int,
        decoding: SamplingParams,
        began: float,
        *,
        cancelled: bool = False,
    ) -> RequestOutput:
        style = STYLES["plain"]
        examples = (EXAMPLE,) * request.method.examples.k
        code = re.sub(r"\A```python\n|\n```\s*\Z", "", text)
        candidates = tuple(
            Candidate(text, code + (f"  # candidate {i + 1}" if i else ""), -0.5 - i, tokens)
            for i in range(decoding.candidates)
        )
        return RequestOutput(
            index=index,
            request=request,
            candidates=candidates,
            prompt=render_prompt(request.problem.intent, examples, style),
            style=style,
            examples=examples,
            seconds=time.monotonic() - began,
            prompt_tokens=20 * (1 + len(examples)),
            notes=self.notes.get(request.method.name, ()),
            cancelled=cancelled,
        )
