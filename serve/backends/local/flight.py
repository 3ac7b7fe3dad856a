"""Rows in flight, whatever they are decoded with: they wait, their prompts are read, their lines grow and leave.

stepwise.py (greedy decoding and sampling) and beams.py say how lines grow. Here is what both share: who waits, who is
being read, which line of the state belongs to whom, and that after any error nothing of it is left.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Generic, TypeVar

import torch

from errors import PromptOrTuneError
from serve.backends.local.speech import Detokenizer
from serve.backends.local.state import ModelRunner, PromptInput
from serve.backends.local.worn import AppliedAdapter
from serve.backends.memory import trim_malloc
from serve.backends.openmp import release_thread_pool
from serve.rows import Batch, PartialOutput, Row, RowOutput, SamplingParams

Events = list[PartialOutput | RowOutput]
# Prompts of all lengths come and go, and glibc keeps the gaps that they leave: after so many rows it gives them back.
ROWS_BETWEEN_MALLOC_TRIM = 8


@dataclass(eq=False, kw_only=True)
class SequenceGroup(ABC):
    """One row from when it is taken in until it has ended. `lines` of the state are its own once it has been read."""

    key: int
    row: Row
    decoding: SamplingParams
    prompt: PromptInput
    num_seqs: int = 1
    cancelled: bool = False
    _added_at: float = field(init=False, default_factory=time.perf_counter)

    @property
    @abstractmethod
    def width(self) -> int:
        """How many lines it has, or will have once it is read."""

    @abstractmethod
    def row_output(self, detokenizer: Detokenizer) -> RowOutput:
        """What it has said, as the row's last event; a row whose lines have not all ended is a cancelled one."""

    def seconds(self) -> float:
        """Since it was taken in."""
        return time.perf_counter() - self._added_at


GroupT = TypeVar("GroupT", bound=SequenceGroup)


@dataclass
class StepOutput:
    """One step of all lines: the events to tell, and of each line that goes on its line before and its token."""

    events: Events = field(default_factory=list)
    parent_indices: list[int] = field(default_factory=list)
    next_tokens: list[int] = field(default_factory=list)


class ContinuousBatch(ABC, Generic[GroupT]):
    """A batch (serve/rows.py) over a state (state.py); a row's seconds count from when it was added.

    `encode` gives a row's prompt as tokens, `worn` the adapter it wears; both may raise PromptOrTuneError.
    """

    def __init__(
        self,
        make_runner: Callable[[], ModelRunner],
        encode: Callable[[Row], list[int]],
        resolve_adapter: Callable[[Row], AppliedAdapter | None],
        detokenizer: Detokenizer,
    ) -> None:
        self._make_runner = make_runner
        self._encode = encode
        self._resolve_adapter = resolve_adapter
        self._detokenizer = detokenizer
        self._prefill: Iterator[torch.Tensor | None] | None = None
        self._rows_since_trim = 0
        self._clear()

    def _clear(self) -> None:
        """No rows, and a state that knows of none."""
        reading, self._prefill = self._prefill, None
        self._groups: dict[int, GroupT] = {}
        self._waiting: list[GroupT] = []
        self._prefilling: list[GroupT] = []
        # Those that have been read, in the order of the state's lines, and the token that each line is to read next.
        self._running: list[GroupT] = []
        self._next_tokens: list[int] = []
        if isinstance(reading, Generator):
            reading.close()
        self._runner = self._make_runner()

    @property
    def supports_continuous_batching(self) -> bool:
        """Whether rows may be added while others are in flight; if not, such rows wait until those have ended."""
        return self._runner.supports_continuous_batching

    def __len__(self) -> int:
        return sum(answer.width for answer in self._groups.values())

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        """Takes a row in under a number that is not in use; the next step that can begins to read it."""
        if key in self._groups:
            raise ValueError(f"Row {key} is in the batch already.")
        tokens = self._encode(row)
        if not tokens:
            raise PromptOrTuneError("The prompt is empty: give the model at least one character to read.")
        answer = self._make_group(key, row, sampling_params, PromptInput(tuple(tokens), self._resolve_adapter(row)))
        self._groups[key] = answer
        self._waiting.append(answer)
        self._rows_since_trim += 1

    def cancel(self, key: int) -> RowOutput:
        """Takes the row out; its lines leave the state before anything else is done with that."""
        answer = self._groups.pop(key)
        answer.cancelled = True
        finished = answer.row_output(self._detokenizer)
        if answer in self._waiting:
            self._waiting.remove(answer)
        if self._prefill is not None and all(each.cancelled for each in self._prefilling):
            self._abort_prefill()
        if not self._groups:
            self._clear()
        return finished

    @torch.inference_mode()
    def step(self) -> Events:
        """One token for all lines that have been read, and one piece of the prompts that are being read."""
        try:
            return self._step()
        except BaseException:
            self._clear()
            raise
        finally:
            if self._rows_since_trim >= ROWS_BETWEEN_MALLOC_TRIM:
                self._rows_since_trim = 0
                trim_malloc()
            if not self._groups:
                release_thread_pool()  # another thread may be the next to run the model

    def _step(self) -> Events:
        self._remove_cancelled()
        logits = self._runner.decode(torch.tensor(self._next_tokens)) if self._next_tokens else None
        read = self._prefill_step()
        if read is not None:
            logits = read if logits is None else torch.cat([logits, read])
        if logits is None:
            return []
        growth = self._sample_step(logits)
        self._commit(growth, len(logits))
        return growth.events

    def _remove_cancelled(self) -> None:
        """Lines of cancelled rows leave the state."""
        if not any(answer.cancelled for answer in self._running):
            return
        kept: list[int] = []
        line = 0
        for answer in self._running:
            kept += [] if answer.cancelled else range(line, line + answer.num_seqs)
            line += answer.num_seqs
        self._reorder(kept)
        self._running = [answer for answer in self._running if not answer.cancelled]
        self._next_tokens = [self._next_tokens[line] for line in kept]

    def _prefill_step(self) -> torch.Tensor | None:
        """Reads one piece; when all are read, those who wanted to be become the last lines in flight."""
        if self._prefill is None:
            if not self._waiting or (self._running and not self.supports_continuous_batching):
                return None
            self._prefilling, self._waiting = self._waiting, []
            self._prefill = iter(self._runner.prefill([answer.prompt for answer in self._prefilling]))
        logits = next(self._prefill)
        if logits is None:
            return None
        next(self._prefill, None)  # lets it run to its end
        arrived, self._prefilling, self._prefill = self._prefilling, [], None
        self._running += arrived
        self._on_prefilled(arrived)
        return logits

    def _abort_prefill(self) -> None:
        reading, self._prefill, self._prefilling = self._prefill, None, []
        if isinstance(reading, Generator):
            reading.close()

    def _commit(self, output: StepOutput, num_seqs: int) -> None:
        """The lines that go on are the state's lines from here on."""
        for event in output.events:
            if isinstance(event, RowOutput):
                del self._groups[event.index]
        self._running = [answer for answer in self._running if answer.num_seqs]
        self._next_tokens = output.next_tokens
        if output.parent_indices != list(range(num_seqs)):
            self._reorder(output.parent_indices)

    def _reorder(self, indices: Sequence[int]) -> None:
        if indices or self._prefill is not None:
            self._runner.reorder(torch.tensor(indices, dtype=torch.long))
        else:  # a fresh one, so that nothing of these rows stays in memory
            self._runner = self._make_runner()

    @abstractmethod
    def _make_group(self, key: int, row: Row, decoding: SamplingParams, prompt: PromptInput) -> GroupT:
        """The row as it is before it has been read; raises where it cannot be answered in this kind of batch."""

    @abstractmethod
    def _on_prefilled(self, groups: Sequence[GroupT]) -> None:
        """The prompts of `arrived` have been read; the state may be told to branch."""

    @abstractmethod
    def _sample_step(self, logits: torch.Tensor) -> StepOutput:
        """Takes the next token of every line; rows that are `gone` or end here are left with no lines."""


def run_to_end(
    batch: Batch, rows: Sequence[Row], decoding: SamplingParams, cancel: Event
) -> Iterator[PartialOutput | RowOutput]:
    """All rows in one empty batch until each has its RowOutput; what they have said when `cancel` is set, is theirs.

    `index` is a row's place in `rows`. When the caller stops asking, or a row cannot be answered, the batch is left
    empty.
    """
    waiting: set[int] = set()
    try:
        for index, row in enumerate(rows):
            batch.add(index, row, decoding)
            waiting.add(index)
        while waiting and not cancel.is_set():
            events = batch.step()
            waiting.difference_update(event.index for event in events if isinstance(event, RowOutput))
            yield from events
        cancelled = [batch.cancel(index) for index in sorted(waiting)]
        waiting.clear()
        yield from cancelled
    finally:
        if len(batch):  # after an error of its own it is empty already
            for index in waiting:
                batch.cancel(index)
