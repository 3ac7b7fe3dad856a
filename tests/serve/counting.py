"""A backend without a model: each row says who it is, one word a step, as its own batch would see it."""

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
from models.identity import BaseIdentity
from serve.types import Candidate, PartialOutput, Row, RowOutput, SamplingParams
from tasks.problem import Example
from tasks.prompt import STYLES, Message

BASE = BaseIdentity("tiny", "sha256:0", "Tiny", "none", "cpu", context_length=600, has_chat_template=False)
POOL = [Example(f"e{place}", f"intent number {place}", f"x = {place}") for place in range(20)]


def words(row: Row, digest: str | None, candidate: int, tokens: int) -> str:
    """What a row has said after so many tokens."""
    return f"{len(row.prompt)}|{hash(row.prompt)}|{row.adapter}|{digest}|{row.scale}|{candidate}|{tokens}"


@dataclass
class Growing:
    """One row of a batch, and the digest of the adapter that it put on when it joined."""

    row: Row
    decoding: SamplingParams
    digest: str | None
    tokens: int = 0

    def candidates(self) -> tuple[Candidate, ...]:
        if not self.tokens:
            return ()
        said = (words(self.row, self.digest, place, self.tokens) for place in range(self.decoding.candidates))
        return tuple(Candidate(text, text, -1.0, self.tokens) for text in said)


@dataclass
class CountingBatch:
    """Rows that end at their limit of tokens. What the engine may not do raises an AssertionError."""

    backend: CountingBackend
    mode: Literal["step", "beam"]
    rows: dict[int, Growing] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    added: list[Row] = field(default_factory=list)
    broken: bool = False

    @property
    def supports_continuous_batching(self) -> bool:
        return self.mode == "step" and self.backend.joins

    def __len__(self) -> int:
        return sum(each.decoding.candidates for each in self.rows.values())

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        assert not self.broken, "a batch is not used after an exception"
        assert key not in self.rows
        assert self.supports_continuous_batching or not any(each.tokens for each in self.rows.values()), (
            "this batch may not be joined now"
        )
        assert (sampling_params.mode == "beam") == (self.mode == "beam")
        if "refuse me" in row.prompt:
            raise PromptOrTuneError("This row is refused.")
        digest = None if row.adapter is None else self.backend.loaded[row.adapter]
        self.rows[key] = Growing(row, sampling_params, digest)
        self.added.append(row)

    def step(self) -> list[PartialOutput | RowOutput]:
        assert not self.broken, "a batch is not used after an exception"
        assert self.rows, "nobody steps an empty batch"
        self.backend.before_step(self)
        self.sizes.append(len(self))
        events: list[PartialOutput | RowOutput] = []
        for key, each in list(self.rows.items()):
            each.tokens += 1
            if each.tokens < each.decoding.max_new_tokens:
                said = each.candidates()
                events += [PartialOutput(key, one.text, each.tokens, place) for place, one in enumerate(said)]
            else:
                events.append(RowOutput(key, each.candidates(), 0.2))
                del self.rows[key]
        return events

    def cancel(self, key: int) -> RowOutput:
        assert not self.broken, "a batch is not used after an exception"
        return RowOutput(key, self.rows.pop(key).candidates(), 0.1, cancelled=True)


class CountingBackend:
    """Opens such batches. `gate`, where it is set, lets that many steps happen; `pause` is how long one takes.

    `fault` is raised by the next step that is none of a beam search.
    """

    base = BASE

    def __init__(self, joins: bool = True, pause: float = 0.001, gate: Semaphore | None = None) -> None:
        self.joins = joins
        self.pause = pause
        self.gate = gate
        self.loaded: dict[str, str] = {}
        self.batches: list[CountingBatch] = []
        self.steps = 0
        self.fault: Exception | None = None
        self.loading: Callable[[AdapterFolder], None] = lambda _: None

    @property
    def rows(self) -> list[Row]:
        """All rows that ever joined a batch."""
        return [row for batch in self.batches for row in batch.added]

    def open_batch(self, mode: Literal["step", "beam"]) -> CountingBatch:
        self.batches.append(CountingBatch(self, mode))
        return self.batches[-1]

    def before_step(self, batch: CountingBatch) -> None:
        if self.gate is not None:
            self.gate.acquire()
        time.sleep(self.pause)
        self.steps += 1
        if self.fault is not None and batch.mode == "step":
            error, self.fault, batch.broken = self.fault, None, True
            raise error

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        raise AssertionError("a base without a chat template gets plain prompts")

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
        raise AssertionError("the engine works with batches")


class OneStore:
    """A store in which every name but 'broken' opens, with the digest that `digests` gives it."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    def names(self) -> list[str]:
        return ["broken", *(f"lora-{place}" for place in range(20))]

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


class InOrder:
    """Retrieves the examples in their order."""

    def nearest(self, intent: str, k: int) -> list[Example]:
        return POOL[:k]
