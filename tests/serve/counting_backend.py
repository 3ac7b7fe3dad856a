"""CountingBackend: a backend without a model, whose answers identify the row, its adapter and the step count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Semaphore
from typing import Any, Literal

from adapters.manifest import Manifest
from adapters.store import AdapterFolder
from errors import AdapterError, PromptOrTuneError, unknown_name_error
from models.source import BaseIdentity
from serve.types import Candidate, PartialOutput, Row, RowOutput, SamplingParams
from tasks.problem import Example
from tasks.prompt import STYLES, Message

BASE = BaseIdentity("tiny", "sha256:0", "Tiny", "none", "cpu", context_length=600, has_chat_template=False)
POOL = [Example(f"e{number}", f"intent number {number}", f"x = {number}") for number in range(20)]


def words(row: Row, digest: str | None, candidate: int, tokens: int) -> str:
    """Return the text of a row after `tokens` steps."""
    return f"{len(row.prompt)}|{hash(row.prompt)}|{row.adapter}|{digest}|{row.scale}|{candidate}|{tokens}"


@dataclass
class CountingRow:
    """One row of a batch, with the digest of its adapter at the time when it was added."""

    row: Row
    sampling_params: SamplingParams
    digest: str | None
    tokens: int = 0

    def candidates(self) -> tuple[Candidate, ...]:
        if not self.tokens:
            return ()
        texts = (words(self.row, self.digest, index, self.tokens) for index in range(self.sampling_params.candidates))
        return tuple(Candidate(text, text, -1.0, self.tokens) for text in texts)


@dataclass
class CountingBatch:
    """A batch whose rows end at their token limit. Raises AssertionError if the engine misuses it."""

    backend: CountingBackend
    mode: Literal["step", "beam"]
    rows: dict[int, CountingRow] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    added: list[Row] = field(default_factory=list)
    broken: bool = False

    @property
    def supports_continuous_batching(self) -> bool:
        return self.mode == "step" and self.backend.continuous

    def __len__(self) -> int:
        return sum(row.sampling_params.candidates for row in self.rows.values())

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        assert not self.broken, "the batch was used after an exception"
        assert key not in self.rows
        assert self.supports_continuous_batching or not any(row.tokens for row in self.rows.values()), (
            "the batch accepts no rows while rows are running"
        )
        assert (sampling_params.mode == "beam") == (self.mode == "beam")
        if "refuse me" in row.prompt:
            raise PromptOrTuneError("This row is refused.")
        digest = None if row.adapter is None else self.backend.loaded[row.adapter]
        self.rows[key] = CountingRow(row, sampling_params, digest)
        self.added.append(row)

    def step(self) -> list[PartialOutput | RowOutput]:
        assert not self.broken, "the batch was used after an exception"
        assert self.rows, "an empty batch was stepped"
        self.backend.before_step(self)
        self.sizes.append(len(self))
        events: list[PartialOutput | RowOutput] = []
        for key, row in list(self.rows.items()):
            row.tokens += 1
            if row.tokens < row.sampling_params.max_new_tokens:
                candidates = enumerate(row.candidates())
                events += [PartialOutput(key, candidate.text, row.tokens, index) for index, candidate in candidates]
            else:
                events.append(RowOutput(key, row.candidates(), 0.2))
                del self.rows[key]
        return events

    def cancel(self, key: int) -> RowOutput:
        assert not self.broken, "the batch was used after an exception"
        return RowOutput(key, self.rows.pop(key).candidates(), 0.1, cancelled=True)


class CountingBackend:
    """Opens CountingBatches. `gate`, if given, must be released once per step; `pause` is the duration of a step.

    `error` is raised by the next step of a batch that is not beam search. `loading` is called by each adapter load.
    """

    base = BASE

    def __init__(self, continuous: bool = True, pause: float = 0.001, gate: Semaphore | None = None) -> None:
        self.continuous = continuous
        self.pause = pause
        self.gate = gate
        self.loaded: dict[str, str] = {}
        self.batches: list[CountingBatch] = []
        self.steps = 0
        self.error: Exception | None = None
        self.loading: Callable[[AdapterFolder], None] = lambda _: None

    @property
    def rows(self) -> list[Row]:
        """Return all rows that were added to any batch."""
        return [row for batch in self.batches for row in batch.added]

    def open_batch(self, mode: Literal["step", "beam"]) -> CountingBatch:
        self.batches.append(CountingBatch(self, mode))
        return self.batches[-1]

    def before_step(self, batch: CountingBatch) -> None:
        if self.gate is not None:
            self.gate.acquire()
        time.sleep(self.pause)
        self.steps += 1
        if self.error is not None and batch.mode == "step":
            error, self.error, batch.broken = self.error, None, True
            raise error

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        raise AssertionError("a base without a chat template must get plain prompts")

    def count_tokens(self, text: str) -> int:
        return len(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        self.loading(folder)
        self.loaded[folder.name] = folder.digest

    def unload_adapter(self, name: str) -> None:
        del self.loaded[name]

    def adapter_bytes(self, name: str) -> int:
        return 1000

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        raise AssertionError("the engine must use batches")


class FakeStore:
    """A store with 20 LoRAs and one adapter that cannot be opened; `digests` overrides their digests."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    def names(self) -> list[str]:
        return ["broken", *(f"lora-{number}" for number in range(20))]

    def open(self, name: str, base: BaseIdentity) -> AdapterFolder:
        if name == "broken":
            raise AdapterError("Adapter 'broken' is broken: train it again.")
        if name not in self.names():
            raise unknown_name_error("adapter", name, self.names())
        trained = "nf4" if name == "lora-8" else "none"
        manifest = Manifest(
            name, "lora", base.id, base.revision, trained, "plain", STYLES["plain"].fingerprint, "starter", "", 0, ""
        )
        config: dict[str, Any] = {"num_virtual_tokens": 60} if name == "lora-7" else {}
        return AdapterFolder(name, Path(name), manifest, config, self.digests.get(name, f"digest of {name}"))


class FirstExamples:
    """A retriever that returns the first examples of the pool."""

    def nearest(self, intent: str, k: int) -> list[Example]:
        return POOL[:k]
