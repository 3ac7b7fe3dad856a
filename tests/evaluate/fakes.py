"""Fake engine without a model, and problems for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event

from errors import AdapterError, PromptTooLongError
from models.source import BaseIdentity
from serve.types import Candidate, Request, RequestOutput, SamplingParams
from tasks.methods import Method
from tasks.problem import Example, Problem
from tasks.prompt import STYLES

BASE = BaseIdentity("tiny", "sha256:0123456789abcdef", "LlamaForCausalLM", "nf4", "cpu", 2048, has_chat_template=True)


def problems(n: int) -> list[Problem]:
    """Make n problems in order of decreasing length, so that sorting by length changes the order."""
    return [Problem(f"p{index}", "add one " * (index + 1), f"x{index} = y + {index}") for index in reversed(range(n))]


def write_conala(folder: Path) -> Path:
    """Write a data folder with six rows of each of CoNaLa's splits, and return it."""
    (folder / "conala").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [{"id": f"{split}-{at}", "nl": f"{split} intent {at}", "cmd": f"x{at} = y"} for at in range(6)]
        (folder / "conala" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class FakeEngine:
    """Fake engine whose first candidate is correct with an adapter, the second with examples, none otherwise.

    `failing` is the id of a problem whose prompt is too long; `refused` maps methods to the reason why they cannot be
    answered.
    """

    has_independent_rows = False

    def __init__(
        self,
        interrupt_at: int | None = None,
        failing: str = "",
        digest: str = "d1",
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self.calls: list[list[Request]] = []
        self._refused = refused or {}
        self._interrupt_at = interrupt_at
        self._failing = failing
        self._digest = digest

    @property
    def base(self) -> BaseIdentity:
        return BASE

    def adapters(self) -> list[str]:
        return ["lora-tiny"]

    def require_method(self, method: Method) -> None:
        if method.name in self._refused:
            raise AdapterError(self._refused[method.name])

    def adapter_digest(self, name: str) -> str:
        return f"{name}:{self._digest}"

    def count_prompt_tokens(self, requests: Sequence[Request], sampling_params: SamplingParams) -> list[int]:
        return [len(request.problem.intent) + 9 * request.method.examples.k for request in requests]

    def answer(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None
    ) -> list[RequestOutput]:
        if len(self.calls) == self._interrupt_at:
            raise KeyboardInterrupt
        self.calls.append(list(requests))
        return [self._answer(index, request, sampling_params) for index, request in enumerate(requests)]

    def _answer(self, index: int, request: Request, decoding: SamplingParams) -> RequestOutput:
        problem, method = request.problem, request.method
        if problem.id == self._failing:
            error = PromptTooLongError("The prompt has 9999 tokens and 2048 fit.")
            return RequestOutput(index, request, error=str(error), exception=error)
        codes = ["x = 1", problem.reference or "", "print(x)"]
        if method.adapter:
            codes = [problem.reference or "", "x = 1"]
        elif not method.examples.k:
            codes = ["x = 1", "print(x)"]
        return RequestOutput(
            index,
            request,
            tuple(Candidate(code + "\n", code, -1.5, 7) for code in codes[: decoding.candidates]),
            prompt=problem.intent,
            style=request.style or STYLES["chat-python"],
            examples=(Example("e1", "say hello", "print('hello')"),) * method.examples.k,
            seconds=2.0,
            prompt_tokens=30,
        )
