"""ScriptedBackend: a fast backend without a model, whose answer is a function of the prompt, one word per step."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from adapters.store import AdapterFolder
from models.source import BaseIdentity
from serve.types import Candidate, PartialOutput, Row, RowOutput, SamplingParams, TokenLogprob
from tasks.prompt import Message
from tests.adapters.folders import BASE as SMALL_BASE

BASE = replace(SMALL_BASE, id="tiny/base", context_length=2048, prompt_style="plain")


@dataclass
class _Sequence:
    """One sample: all words of its answer, and how many have been generated."""

    key: int
    row: Row
    sampling_params: SamplingParams
    sample: int
    words: list[str]
    tokens: int = 0
    finish: Literal["stop", "length", "cancelled"] = "stop"
    done: bool = False

    def text(self) -> str:
        text = "".join(self.words[: self.tokens])
        ends = [text.index(stop) for stop in self.sampling_params.stop if stop in text]
        return text[: min(ends)] if ends else text

    def step(self) -> None:
        self.tokens += 1
        stopped = len(self.text()) < len("".join(self.words[: self.tokens])) or self.tokens >= len(self.words)
        self.done = stopped or self.tokens >= self.sampling_params.max_new_tokens
        self.finish = "stop" if stopped else "length"

    def candidate(self) -> Candidate:
        text = self.text()
        code = re.sub(r"\A```python\n|\n```\s*\Z", "", text)
        tops = self.sampling_params.top_logprobs
        words = (
            ()
            if tops is None
            else tuple(
                TokenLogprob(word, -0.5, tuple((f"other{n}", -1.0 - n) for n in range(tops)))
                for word in self.words[: self.tokens]
            )
        )
        return Candidate(text, code, -0.5 * self.tokens, self.tokens, 1, self.finish, words)


@dataclass
class ScriptedBatch:
    """Running rows, each of which generates one word per step."""

    backend: ScriptedBackend
    sequences: list[_Sequence] = field(default_factory=list)
    supports_continuous_batching: bool = True

    def __len__(self) -> int:
        return sum(not sequence.done for sequence in self.sequences)

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        for sample in range(sampling_params.candidates):
            words = re.findall(r"\s*\S+|\s+$", self.backend.answer(row, sample, sampling_params))
            self.sequences.append(_Sequence(key, row, sampling_params, sample, words))

    def step(self) -> list[PartialOutput | RowOutput]:
        self.backend.steps += 1
        if self.backend.fails:
            self.sequences = []
            raise RuntimeError("secret internals")
        time.sleep(self.backend.delay)
        events: list[PartialOutput | RowOutput] = []
        for sequence in self.sequences:
            if not sequence.done:
                sequence.step()
                if not sequence.done:
                    events.append(PartialOutput(sequence.key, sequence.text(), sequence.tokens, sequence.sample))
        running = {sequence.key for sequence in self.sequences if not sequence.done}
        ended = dict.fromkeys(sequence.key for sequence in self.sequences if sequence.key not in running)
        return [*events, *(self._finish(key) for key in ended)]

    def cancel(self, key: int) -> RowOutput:
        self.backend.cancelled += 1
        for sequence in self.sequences:
            if sequence.key == key and not sequence.done:
                sequence.done, sequence.finish = True, "cancelled"
        return replace(self._finish(key), cancelled=True)

    def _finish(self, key: int) -> RowOutput:
        samples_of_row = [sequence for sequence in self.sequences if sequence.key == key]
        self.sequences = [sequence for sequence in self.sequences if sequence.key != key]
        samples = tuple(sequence.candidate() for sequence in samples_of_row)
        return RowOutput(key, samples[:1], 0.0, False, samples)


@dataclass
class ScriptedBackend:
    """Answers with the question and the adapter of a row; the answer to "count N" is the words 1 to N."""

    delay: float = 0.001
    fails: bool = False
    steps: int = 0
    cancelled: int = 0
    adapters: dict[str, Path] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base(self) -> BaseIdentity:
        return BASE

    def open_batch(self, mode: Literal["step", "beam"]) -> ScriptedBatch:
        return ScriptedBatch(self)

    def answer(self, row: Row, sample: int, sampling_params: SamplingParams) -> str:
        with self.lock:
            self.prompts.append(row.prompt)
        question = row.prompt.removesuffix("### Response:\n").strip().splitlines()[-1]
        count = re.search(r"count (\d+)", question)
        if count:
            return " ".join(str(number) for number in range(1, int(count[1]) + 1))
        if "fenced" in question:
            return "```python\nx = 1\n```"
        adapter = f"{row.adapter or 'base'}*{row.scale:g}"
        suffix = f" # sample {sample} of seed {sampling_params.seed}" if sampling_params.mode == "sample" else ""
        return f"print({question!r}) # {adapter}{suffix}"

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        return "\n".join(message["content"] for message in messages)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def load_adapter(self, folder: AdapterFolder) -> None:
        self.adapters[folder.name] = folder.path

    def unload_adapter(self, name: str) -> None:
        self.adapters.pop(name, None)

    def adapter_bytes(self, name: str) -> int:
        return 1000

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: threading.Event
    ) -> Iterator[PartialOutput | RowOutput]:
        batch = self.open_batch("step")
        for key, row in enumerate(rows):
            batch.add(key, row, sampling_params)
        while len(batch):
            yield from batch.step()
