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

from errors import PeftArenaError
from serve.backends.local.speech import Vocabulary
from serve.backends.local.state import Line, State
from serve.backends.local.worn import Worn
from serve.backends.memory import give_back
from serve.backends.openmp import let_go
from serve.rows import Batch, Decoding, Finished, Partial, Row

Events = list[Partial | Finished]
# Prompts of all lengths come and go, and glibc keeps the gaps that they leave: after so many rows it gives them back.
ROWS_BETWEEN_TIDYING = 8


@dataclass(eq=False, kw_only=True)
class Answering(ABC):
    """One row from when it is taken in until it has ended. `lines` of the state are its own once it has been read."""

    key: int
    row: Row
    decoding: Decoding
    prompt: Line
    lines: int = 1
    gone: bool = False
    _began: float = field(init=False, default_factory=time.perf_counter)

    @property
    @abstractmethod
    def width(self) -> int:
        """How many lines it has, or will have once it is read."""

    @abstractmethod
    def finished(self, vocabulary: Vocabulary) -> Finished:
        """What it has said, as the row's last event; a row whose lines have not all ended is a cancelled one."""

    def seconds(self) -> float:
        """Since it was taken in."""
        return time.perf_counter() - self._began


A = TypeVar("A", bound=Answering)


@dataclass
class Growth:
    """One step of all lines: the events to tell, and of each line that goes on its line before and its token."""

    events: Events = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Flight(ABC, Generic[A]):
    """A batch (serve/rows.py) over a state (state.py); a row's seconds count from when it was added.

    `encode` gives a row's prompt as tokens, `worn` the adapter it wears; both may raise PeftArenaError.
    """

    def __init__(
        self,
        make_state: Callable[[], State],
        encode: Callable[[Row], list[int]],
        worn: Callable[[Row], Worn | None],
        vocabulary: Vocabulary,
    ) -> None:
        self._make_state = make_state
        self._encode = encode
        self._worn = worn
        self._vocabulary = vocabulary
        self._reading: Iterator[torch.Tensor | None] | None = None
        self._untidied = 0
        self._clear()

    def _clear(self) -> None:
        """No rows, and a state that knows of none."""
        reading, self._reading = self._reading, None
        self._answers: dict[int, A] = {}
        self._waiting: list[A] = []
        self._arriving: list[A] = []
        # Those that have been read, in the order of the state's lines, and the token that each line is to read next.
        self._flying: list[A] = []
        self._tokens: list[int] = []
        if isinstance(reading, Generator):
            reading.close()
        self._state = self._make_state()

    @property
    def joins(self) -> bool:
        """Whether rows may be added while others are in flight; if not, such rows wait until those have ended."""
        return self._state.joins

    def __len__(self) -> int:
        return sum(answer.width for answer in self._answers.values())

    def add(self, key: int, row: Row, decoding: Decoding) -> None:
        """Takes a row in under a number that is not in use; the next step that can begins to read it."""
        if key in self._answers:
            raise ValueError(f"Row {key} is in the batch already.")
        tokens = self._encode(row)
        if not tokens:
            raise PeftArenaError("The prompt is empty: give the model at least one character to read.")
        answer = self._begin(key, row, decoding, Line(tuple(tokens), self._worn(row)))
        self._answers[key] = answer
        self._waiting.append(answer)
        self._untidied += 1

    def cancel(self, key: int) -> Finished:
        """Takes the row out; its lines leave the state before anything else is done with that."""
        answer = self._answers.pop(key)
        answer.gone = True
        finished = answer.finished(self._vocabulary)
        if answer in self._waiting:
            self._waiting.remove(answer)
        if self._reading is not None and all(each.gone for each in self._arriving):
            self._stop_reading()
        if not self._answers:
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
            if self._untidied >= ROWS_BETWEEN_TIDYING:
                self._untidied = 0
                give_back()
            if not self._answers:
                let_go()  # another thread may be the next to run the model

    def _step(self) -> Events:
        self._drop()
        logits = self._state.step(torch.tensor(self._tokens)) if self._tokens else None
        read = self._read_on()
        if read is not None:
            logits = read if logits is None else torch.cat([logits, read])
        if logits is None:
            return []
        growth = self._grow(logits)
        self._keep(growth, len(logits))
        return growth.events

    def _drop(self) -> None:
        """Lines of cancelled rows leave the state."""
        if not any(answer.gone for answer in self._flying):
            return
        kept: list[int] = []
        line = 0
        for answer in self._flying:
            kept += [] if answer.gone else range(line, line + answer.lines)
            line += answer.lines
        self._select(kept)
        self._flying = [answer for answer in self._flying if not answer.gone]
        self._tokens = [self._tokens[line] for line in kept]

    def _read_on(self) -> torch.Tensor | None:
        """Reads one piece; when all are read, those who wanted to be become the last lines in flight."""
        if self._reading is None:
            if not self._waiting or (self._flying and not self.joins):
                return None
            self._arriving, self._waiting = self._waiting, []
            self._reading = iter(self._state.read([answer.prompt for answer in self._arriving]))
        logits = next(self._reading)
        if logits is None:
            return None
        next(self._reading, None)  # lets it run to its end
        arrived, self._arriving, self._reading = self._arriving, [], None
        self._flying += arrived
        self._read_all(arrived)
        return logits

    def _stop_reading(self) -> None:
        reading, self._reading, self._arriving = self._reading, None, []
        if isinstance(reading, Generator):
            reading.close()

    def _keep(self, growth: Growth, lines: int) -> None:
        """The lines that go on are the state's lines from here on."""
        for event in growth.events:
            if isinstance(event, Finished):
                del self._answers[event.index]
        self._flying = [answer for answer in self._flying if answer.lines]
        self._tokens = growth.tokens
        if growth.sources != list(range(lines)):
            self._select(growth.sources)

    def _select(self, lines: Sequence[int]) -> None:
        if lines or self._reading is not None:
            self._state.select(torch.tensor(lines, dtype=torch.long))
        else:  # a fresh one, so that nothing of these rows stays in memory
            self._state = self._make_state()

    @abstractmethod
    def _begin(self, key: int, row: Row, decoding: Decoding, prompt: Line) -> A:
        """The row as it is before it has been read; raises where it cannot be answered in this kind of batch."""

    @abstractmethod
    def _read_all(self, arrived: Sequence[A]) -> None:
        """The prompts of `arrived` have been read; the state may be told to branch."""

    @abstractmethod
    def _grow(self, logits: torch.Tensor) -> Growth:
        """Takes the next token of every line; rows that are `gone` or end here are left with no lines."""


def run_to_end(batch: Batch, rows: Sequence[Row], decoding: Decoding, cancel: Event) -> Iterator[Partial | Finished]:
    """All rows in one empty batch until each has its Finished; what they have said when `cancel` is set, is theirs.

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
            waiting.difference_update(event.index for event in events if isinstance(event, Finished))
            yield from events
        cancelled = [batch.cancel(index) for index in sorted(waiting)]
        waiting.clear()
        yield from cancelled
    finally:
        if len(batch):  # after an error of its own it is empty already
            for index in waiting:
                batch.cancel(index)
