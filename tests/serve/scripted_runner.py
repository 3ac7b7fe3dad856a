"""A state without a base: what comes next is a function of all tokens that a line has read, and of what it wears."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Event
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import torch

from serve.backends.local.batch import SamplingBatch, run_to_end
from serve.backends.local.beam_search import BeamSearchBatch
from serve.backends.local.detokenizer import Detokenizer
from serve.backends.local.model_runner import PromptInput
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
    """One token a byte; END ends."""
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=END))
    return Detokenizer(tokenizer(), model)


def encode(row: Row) -> list[int]:
    return list(tokenizer()(row.prompt)["input_ids"])


def noise(scale: float = 4.0) -> Script:
    """Logits that any other token anywhere before would have made others. The end token is never the likeliest."""

    def logits(read: tuple[int, ...], worn: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(crc32(repr((read, worn)).encode()))
        scores = scale * torch.randn(len(tokenizer()), generator=generator)
        scores[:3] = -30.0
        return scores

    return logits


def saying(answers: dict[str, str], end: bool = True) -> Script:
    """After each prompt its answer, byte by byte, and then the end token (or "." on and on)."""
    known = {tuple(tokenizer()(prompt)["input_ids"]): answer for prompt, answer in answers.items()}

    def logits(read: tuple[int, ...], worn: Any) -> torch.Tensor:
        prompt, answer = next(pair for pair in known.items() if read[: len(pair[0])] == pair[0])
        said = [*tokenizer()(answer)["input_ids"], *([END] if end else [])]
        place = len(read) - len(prompt)
        scores = torch.zeros(len(tokenizer()))
        scores[said[place] if place < len(said) else tokenizer()(".")["input_ids"][0]] = 9.0
        return scores

    return logits


class ScriptedRunner:
    """Keeps each line's tokens and holds decoding to what State asks of it."""

    def __init__(self, script: Script, joins: bool = True, piece: int = 1000) -> None:
        self.script = script
        self.supports_continuous_batching = joins
        self.piece = piece
        self.lines: list[tuple[int, tuple[int, ...], Any]] = []
        self.calls: list[str] = []
        self.reads = 0
        self.reading = False
        self.break_at: str | None = None

    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        assert prompts
        assert not self.reading, "one read at a time"
        assert self.supports_continuous_batching or not self.lines, "this state cannot be joined"
        self.reading = True
        try:
            self._note("read")
            for _ in range(self.piece, max(len(line.tokens) for line in prompts), self.piece):
                yield None
                self._note("piece")
            fresh = [(self.reads + number, line.tokens, line.applied_adapter) for number, line in enumerate(prompts)]
            self.reads += len(prompts)
            self.lines += fresh
        finally:
            self.reading = False
        yield self._logits(fresh)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        self._note("step")
        assert len(tokens) == len(self.lines) > 0
        added = zip(self.lines, tokens.tolist(), strict=True)
        self.lines = [(prompt, (*read, token), worn) for (prompt, read, worn), token in added]
        return self._logits(self.lines)

    def reorder(self, indices: torch.Tensor) -> None:
        self._note("select")
        self.lines = [self.lines[line] for line in indices.tolist()]
        prompts = [prompt for prompt, _, _ in self.lines]
        runs = [prompt for place, prompt in enumerate(prompts) if place == 0 or prompts[place - 1] != prompt]
        assert len(runs) == len(set(runs)), "the lines of a prompt stay together"

    def fork(self) -> None:
        self._note("branch")
        assert not self.reading

    def _logits(self, lines: Sequence[tuple[int, tuple[int, ...], Any]]) -> torch.Tensor:
        return torch.stack([self.script(read, worn) for _, read, worn in lines])

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.break_at:
            raise RuntimeError("the base broke")


class Bench:
    """A batch over scripted states, with all the states that it has made."""

    def __init__(self, script: Script, kind: str = "step", joins: bool = True, piece: int = 1000) -> None:
        self.states: list[ScriptedRunner] = []

        def make() -> ScriptedRunner:
            self.states.append(ScriptedRunner(script, joins, piece))
            return self.states[-1]

        def worn(row: Row) -> Any:
            return row.adapter

        made = SamplingBatch if kind == "step" else BeamSearchBatch
        self.batch: SamplingBatch | BeamSearchBatch = made(make, encode, worn, vocabulary())

    @property
    def state(self) -> ScriptedRunner:
        return self.states[-1]


def alone(row: Row, decoding: SamplingParams) -> RowOutput:
    """What the row says in a batch of its own."""
    batch = Bench(noise(), "beam" if decoding.mode == "beam" else "step").batch
    (finished,) = (event for event in run_to_end(batch, [row], decoding, Event()) if isinstance(event, RowOutput))
    return finished


def drain(bench: Bench, events: list[PartialOutput | RowOutput] | None = None) -> dict[int, RowOutput]:
    """Steps to the end; what finished, here and in `events`, which takes all events up."""
    events = [] if events is None else events
    for _ in range(300):
        if not len(bench.batch):
            break
        events += bench.batch.step()
    assert not len(bench.batch)
    return by_key(events)


def by_key(events: Iterable[PartialOutput | RowOutput]) -> dict[int, RowOutput]:
    return {event.index: event for event in events if isinstance(event, RowOutput)}


def said(finished: RowOutput) -> list[str]:
    return [sample.text for sample in finished.samples]
