"""Scripted model runner without a base: logits are a function of a sequence's tokens and its adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Event
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import torch

from serve.backends.local.batch import PromptInput, SamplingBatch, run_to_end
from serve.backends.local.beam_search import BeamSearchBatch
from serve.backends.local.sampler import Detokenizer
from serve.types import PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests.serve.tiny import tokenizer

Script = Callable[[tuple[int, ...], Any], torch.Tensor]
END = 2
PLAIN = STYLES["plain"]
ROWS = [
    Row("sort a list", None),
    Row("x", None, "one"),
    Row("sort a list", None, "two"),
    Row("a much longer prompt " * 3, None, "one"),
    Row("sort", PLAIN),
    Row("y", None),
]
DECODINGS = [
    SamplingParams(max_new_tokens=12),
    SamplingParams("sample", 9, 3, 1.5, 0.9, 5),
    SamplingParams("sample", 20, 1, 0.7, 1.0, 6),
    SamplingParams(max_new_tokens=3),
    SamplingParams(max_new_tokens=1),
    SamplingParams("sample", 7, 2, 1.0, 0.5, 7, top_logprobs=2),
]


def vocabulary() -> Detokenizer:
    """Return a detokenizer with one token per byte and the end token END."""
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=END))
    return Detokenizer(tokenizer(), model)


def encode(row: Row) -> list[int]:
    return list(tokenizer()(row.prompt)["input_ids"])


def noise(scale: float = 4.0) -> Script:
    """Return random logits that depend on every token and the adapter; the end token is never the most likely."""

    def logits(tokens_so_far: tuple[int, ...], adapter: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(crc32(repr((tokens_so_far, adapter)).encode()))
        scores = scale * torch.randn(len(tokenizer()), generator=generator)
        scores[:3] = -30.0
        return scores

    return logits


def saying(answers: dict[str, str], end: bool = True) -> Script:
    """Return logits that generate each prompt's answer byte by byte, then the end token (or "." without end)."""
    answer_by_prompt = {tuple(tokenizer()(prompt)["input_ids"]): answer for prompt, answer in answers.items()}

    def logits(tokens_so_far: tuple[int, ...], adapter: Any) -> torch.Tensor:
        prompt, answer = next(pair for pair in answer_by_prompt.items() if tokens_so_far[: len(pair[0])] == pair[0])
        tokens = [*tokenizer()(answer)["input_ids"], *([END] if end else [])]
        index = len(tokens_so_far) - len(prompt)
        scores = torch.zeros(len(tokenizer()))
        scores[tokens[index] if index < len(tokens) else tokenizer()(".")["input_ids"][0]] = 9.0
        return scores

    return logits


class ScriptedRunner:
    """Records each sequence's tokens and asserts that decoding follows the ModelRunner protocol."""

    def __init__(self, script: Script, continuous: bool = True, chunk_size: int = 1000) -> None:
        self.script = script
        self.supports_continuous_batching = continuous
        self.chunk_size = chunk_size
        self.sequences: list[tuple[int, tuple[int, ...], Any]] = []
        self.calls: list[str] = []
        self.num_prompts = 0
        self.prefilling = False
        self.fail_at: str | None = None

    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        assert prompts
        assert not self.prefilling, "one prefill at a time"
        assert self.supports_continuous_batching or not self.sequences, "this runner admits no further rows"
        self.prefilling = True
        try:
            self._record("prefill")
            for _ in range(self.chunk_size, max(len(prompt_input.tokens) for prompt_input in prompts), self.chunk_size):
                yield None
                self._record("chunk")
            new_sequences = [
                (self.num_prompts + number, prompt_input.tokens, prompt_input.applied_adapter)
                for number, prompt_input in enumerate(prompts)
            ]
            self.num_prompts += len(prompts)
            self.sequences += new_sequences
        finally:
            self.prefilling = False
        yield self._logits(new_sequences)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        self._record("decode")
        assert len(tokens) == len(self.sequences) > 0
        sequences_and_tokens = zip(self.sequences, tokens.tolist(), strict=True)
        self.sequences = [
            (prompt, (*tokens_so_far, token), adapter)
            for (prompt, tokens_so_far, adapter), token in sequences_and_tokens
        ]
        return self._logits(self.sequences)

    def reorder(self, indices: torch.Tensor) -> None:
        self._record("reorder")
        self.sequences = [self.sequences[prompt_input] for prompt_input in indices.tolist()]
        prompts = [prompt for prompt, _, _ in self.sequences]
        runs = [prompt for index, prompt in enumerate(prompts) if index == 0 or prompts[index - 1] != prompt]
        assert len(runs) == len(set(runs)), "the sequences of a prompt must stay adjacent"

    def fork(self) -> None:
        self._record("fork")
        assert not self.prefilling

    def _logits(self, sequences: Sequence[tuple[int, tuple[int, ...], Any]]) -> torch.Tensor:
        return torch.stack([self.script(tokens_so_far, adapter) for _, tokens_so_far, adapter in sequences])

    def _record(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fail_at:
            raise RuntimeError("the base failed")


class Bench:
    """A batch over scripted runners, and all runners that it has made."""

    def __init__(self, script: Script, kind: str = "step", continuous: bool = True, chunk_size: int = 1000) -> None:
        self.runners: list[ScriptedRunner] = []

        def make() -> ScriptedRunner:
            self.runners.append(ScriptedRunner(script, continuous, chunk_size))
            return self.runners[-1]

        def resolve(row: Row) -> Any:
            return row.adapter

        batch_class = SamplingBatch if kind == "step" else BeamSearchBatch
        self.batch: SamplingBatch | BeamSearchBatch = batch_class(make, encode, resolve, vocabulary())

    @property
    def runner(self) -> ScriptedRunner:
        return self.runners[-1]


def alone(row: Row, decoding: SamplingParams) -> RowOutput:
    """Return the row's output from a batch of its own."""
    batch = Bench(noise(), "beam" if decoding.mode == "beam" else "step").batch
    (finished,) = (event for event in run_to_end(batch, [row], decoding, Event()) if isinstance(event, RowOutput))
    return finished


def drain(bench: Bench, events: list[PartialOutput | RowOutput] | None = None) -> dict[int, RowOutput]:
    """Step to the end; return the outputs here and in `events`, to which all events are appended."""
    events = [] if events is None else events
    for _ in range(300):
        if not len(bench.batch):
            break
        events += bench.batch.step()
    assert not len(bench.batch)
    return by_key(events)


def by_key(events: Iterable[PartialOutput | RowOutput]) -> dict[int, RowOutput]:
    return {event.index: event for event in events if isinstance(event, RowOutput)}


def sample_texts(finished: RowOutput) -> list[str]:
    return [sample.text for sample in finished.samples]
