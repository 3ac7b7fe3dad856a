"""A backend without a model: what a row says is a function of its text, one word a step, and quick."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from adapters.store import AdapterFolder
from models.identity import BaseIdentity
from serve.types import Candidate, PartialOutput, Row, RowOutput, SamplingParams, TokenLogprob
from tasks.prompt import Message
from tests.adapters.folders import BASE as SMALL_BASE

BASE = replace(SMALL_BASE, id="tiny/base", context_length=2048, prompt_style="plain")


@dataclass
class _Line:
    """One growing sample: all its words, and how many have been said."""

    key: int
    row: Row
    decoding: SamplingParams
    place: int
    words: list[str]
    said: int = 0
    finish: Literal["stop", "length", "cancelled"] = "stop"
    done: bool = False

    def text(self) -> str:
        said = "".join(self.words[: self.said])
        ends = [said.index(stop) for stop in self.decoding.stop if stop in said]
        return said[: min(ends)] if ends else said

    def step(self) -> None:
        self.said += 1
        stopped = len(self.text()) < len("".join(self.words[: self.said])) or self.said >= len(self.words)
        self.done = stopped or self.said >= self.decoding.max_new_tokens
        self.finish = "stop" if stopped else "length"

    def candidate(self) -> Candidate:
        text = self.text()
        code = re.sub(r"\A```python\n|\n```\s*\Z", "", text)
        tops = self.decoding.top_logprobs
        words = (
            ()
            if tops is None
            else tuple(
                TokenLogprob(word, -0.5, tuple((f"other{n}", -1.0 - n) for n in range(tops)))
                for word in self.words[: self.said]
            )
        )
        return Candidate(text, code, -0.5 * self.said, self.said, 1, self.finish, words)


@dataclass
class ScriptedBatch:
    """Rows in flight. All of them say a word a step."""

    backend: ScriptedBackend
    lines: list[_Line] = field(default_factory=list)
    supports_continuous_batching: bool = True

    def __len__(self) -> int:
        return sum(not line.done for line in self.lines)

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        for place in range(sampling_params.candidates):
            words = re.findall(r"\s*\S+|\s+$", self.backend.says(row, place, sampling_params))
            self.lines.append(_Line(key, row, sampling_params, place, words))

    def step(self) -> list[PartialOutput | RowOutput]:
        self.backend.steps += 1
        if self.backend.fails:
            self.lines = []
            raise RuntimeError("secret internals")
        time.sleep(self.backend.delay)
        events: list[PartialOutput | RowOutput] = []
        for line in self.lines:
            if not line.done:
                line.step()
                if not line.done:
                    events.append(PartialOutput(line.key, line.text(), line.said, line.place))
        growing = {line.key for line in self.lines if not line.done}
        ended = dict.fromkeys(line.key for line in self.lines if line.key not in growing)
        return [*events, *(self._finish(key) for key in ended)]

    def cancel(self, key: int) -> RowOutput:
        self.backend.cancelled += 1
        for line in self.lines:
            if line.key == key and not line.done:
                line.done, line.finish = True, "cancelled"
        return replace(self._finish(key), cancelled=True)

    def _finish(self, key: int) -> RowOutput:
        mine = [line for line in self.lines if line.key == key]
        self.lines = [line for line in self.lines if line.key != key]
        samples = tuple(line.candidate() for line in mine)
        return RowOutput(key, samples[:1], 0.0, False, samples)


@dataclass
class ScriptedBackend:
    """Says which adapter a row wears and what it was asked; "count N" is answered with the words 1 to N."""

    delay: float = 0.001
    fails: bool = False
    steps: int = 0
    cancelled: int = 0
    worn: dict[str, Path] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base(self) -> BaseIdentity:
        return BASE

    def open_batch(self, mode: Literal["step", "beam"]) -> ScriptedBatch:
        return ScriptedBatch(self)

    def says(self, row: Row, place: int, decoding: SamplingParams) -> str:
        with self.lock:
            self.seen.append(row.prompt)
        asked = row.prompt.removesuffix("### Response:\n").strip().splitlines()[-1]
        counted = re.search(r"count (\d+)", asked)
        if counted:
            return " ".join(str(number) for number in range(1, int(counted[1]) + 1))
        if "fenced" in asked:
            return "```python\nx = 1\n```"
        wearer = f"{row.adapter or 'base'}*{row.scale:g}"
        sample = f" # sample {place} of seed {decoding.seed}" if decoding.mode == "sample" else ""
        return f"print({asked!r}) # {wearer}{sample}"

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        return "\n".join(message["content"] for message in messages)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def load_adapter(self, folder: AdapterFolder) -> None:
        self.worn[folder.name] = folder.path

    def unload_adapter(self, name: str) -> None:
        self.worn.pop(name, None)

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
