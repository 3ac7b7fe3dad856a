"""ContinuousBatch, Sequence, greedy/sampling step.

Rows in flight, whatever they are decoded with: they wait, their prompts are read, their lines grow and leave.

stepwise.py (greedy decoding and sampling) and beams.py say how lines grow. Here is what both share: who waits, who is
being read, which line of the state belongs to whom, and that after any error nothing of it is left.

Greedy decoding and sampling, mixed as they come: every row has its own settings, and lines leave as they end.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Generic, TypeVar

import torch

from errors import PromptOrTuneError
from models.memory import trim_malloc
from models.threads import release_thread_pool
from serve.backends.local.detokenizer import (
    Detokenizer,
    GeneratedText,
    IncrementalDetokenizer,
    dedupe_candidates,
    find_stop,
    stable_prefix,
)
from serve.backends.local.lora.registry import AppliedAdapter
from serve.backends.local.model_runner import ModelRunner, PromptInput
from serve.backends.local.sampler import SampledToken, SequenceSampling, make_generator, sample
from serve.types import Batch, Candidate, PartialOutput, Row, RowOutput, SamplingParams, TokenLogprob

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
    """A batch (serve/types.py) over a state (state.py); a row's seconds count from when it was added.

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


class SampledSequence:
    """One sample of a row, or its one greedy answer."""

    def __init__(self, row: Row, decoding: SamplingParams, sample_index: int, detokenizer: Detokenizer) -> None:
        self.sample_index = sample_index
        self.generated = GeneratedText(row.style)
        sampled = decoding.mode == "sample"
        self.sampling = SequenceSampling(decoding, make_generator(decoding.seed, sample_index) if sampled else None)
        self._detokenizer = detokenizer
        self._incremental = IncrementalDetokenizer(detokenizer)
        # Of each token what was chosen and where the text ended with it, where log-probabilities are asked for.
        self._sampled_tokens: list[tuple[SampledToken, int]] = []

    def append_token(self, sampled: SampledToken) -> bool:
        """Says the token that was chosen; whether the answer is over with it."""
        speech, telling, decoding = self.generated, self._incremental, self.sampling.decoding
        before = len(telling.text)
        speech.tokens.append(sampled.token)
        speech.logprob += sampled.logprob
        is_end = sampled.token in self._detokenizer.eos_token_ids
        if not is_end:
            telling.add(sampled.token)
        if decoding.top_logprobs is not None:
            self._sampled_tokens.append((sampled, len(telling.text)))
        if is_end or self._is_finished(sampled.token, before):
            speech.finish_reason = "stop"
        elif len(speech.tokens) >= decoding.max_new_tokens:
            speech.finish_reason = "length"
        return speech.finish_reason != "cancelled"

    def _is_finished(self, token: int, previous_length: int) -> bool:
        stops = self.sampling.decoding.stop
        if stops and find_stop(self._incremental.text, stops, previous_length) is not None:
            return True
        return self.generated.style is not None and self._detokenizer.ends_answer(
            token, self._incremental.text, self.generated.style
        )

    def partial_output(self, key: int) -> PartialOutput:
        """What may be shown of it while it grows."""
        text = stable_prefix(self._incremental.text, self.sampling.decoding.stop, self.generated.style)
        return PartialOutput(key, text, len(self.generated.tokens), self.sample_index)

    def candidate(self) -> Candidate:
        """What it has said, with the log-probabilities that were asked for."""
        candidate = self.generated.candidate(self._detokenizer, self.sampling.decoding.stop)
        if not self._sampled_tokens:
            return candidate
        return replace(candidate, token_logprobs=tuple(self._logprobs(candidate.text)))

    def _logprobs(self, text: str) -> list[TokenLogprob]:
        """Those of the tokens whose texts, one after the other, are `text`; the last may reach beyond it."""
        is_cut = len(text) < len(self._incremental.text)
        found: list[TokenLogprob] = []
        begin = 0
        for choice, end in self._sampled_tokens:
            if choice.token in self._detokenizer.eos_token_ids or (is_cut and begin >= len(text)):
                break
            said = text[begin:end]
            names = (
                (said if token == choice.token else self._detokenizer.token_text(token)) for token, _ in choice.top
            )
            top = tuple(zip(names, (logprob for _, logprob in choice.top), strict=True))
            found.append(TokenLogprob(said, choice.logprob, top))
            begin = end
        return found


@dataclass(eq=False, kw_only=True)
class SamplingGroup(SequenceGroup):
    """The samples of one row, those still speaking in the order of the state's lines."""

    sequences: Sequence[SampledSequence]
    unfinished: list[SampledSequence] = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = list(self.sequences)

    @property
    def width(self) -> int:
        return len(self.unfinished)

    def row_output(self, detokenizer: Detokenizer) -> RowOutput:  # noqa: ARG002 - voices know theirs
        samples = tuple(voice.candidate() for voice in self.sequences)
        candidates = dedupe_candidates(samples, raw=self.row.style is None)
        return RowOutput(self.key, candidates, self.seconds(), self.cancelled, samples)


class SamplingBatch(ContinuousBatch[SamplingGroup]):
    """Rows that say one token a step, each line for itself.

    A row with several candidates is read once; its line is then repeated. Where nobody can join anyway, lines share
    what has been read instead.
    """

    def _make_group(self, key: int, row: Row, decoding: SamplingParams, prompt: PromptInput) -> SamplingGroup:
        if decoding.mode == "beam":
            raise ValueError("Beam search needs a batch of its own.")
        voices = [SampledSequence(row, decoding, copy, self._detokenizer) for copy in range(decoding.candidates)]
        return SamplingGroup(key=key, row=row, decoding=decoding, prompt=prompt, sequences=voices)

    def _on_prefilled(self, groups: Sequence[SamplingGroup]) -> None:
        if not self._runner.supports_continuous_batching and any(answer.width > 1 for answer in groups):
            self._runner.fork()

    def _sample_step(self, logits: torch.Tensor) -> StepOutput:
        # A row that has just been read has one line for all its voices, else each voice has its own.
        speakers: list[tuple[SamplingGroup, SampledSequence, int]] = []
        line = 0
        for answer in self._running:
            if not answer.cancelled:
                speakers += [
                    (answer, voice, line + min(place, answer.num_seqs - 1))
                    for place, voice in enumerate(answer.unfinished)
                ]
            line += answer.num_seqs
            answer.num_seqs = 0
        sources = [source for _, _, source in speakers]
        if sources != list(range(len(logits))):
            logits = logits[torch.tensor(sources, dtype=torch.long, device=logits.device)]
        choices = sample(logits, [voice.sampling for _, voice, _ in speakers])
        growth = StepOutput()
        for (answer, voice, source), choice in zip(speakers, choices, strict=True):
            if not voice.append_token(choice):
                growth.events.append(voice.partial_output(answer.key))
                growth.parent_indices.append(source)
                growth.next_tokens.append(choice.token)
                answer.num_seqs += 1
                continue
            answer.unfinished.remove(voice)
            if not answer.unfinished:
                growth.events.append(answer.row_output(self._detokenizer))
            else:  # its end is told now, and not when the others have ended
                candidate = voice.candidate()
                growth.events.append(PartialOutput(answer.key, candidate.text, candidate.tokens, voice.sample_index))
        return growth
