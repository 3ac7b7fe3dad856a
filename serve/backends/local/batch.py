"""Continuous batching: queue, chunked prefill, one token per sequence and step, removal; the interface of runners.

ModelRunner: the interface between decoding and a base's forward with its KV cache. One runner holds the state of one
batch. Each kind of base has its own runner (`make_runner_factory` in backend.py chooses it), so that greedy decoding,
sampling and beam search need not know the base's architecture.

`ContinuousBatch` holds what greedy decoding, sampling and beam search (beam_search.py) share: the waiting rows, the
rows whose prompts are being prefilled, the order of the running sequences in the model runner, and the cleanup after
an error. `SamplingBatch` decodes rows greedily or by sampling; each row has its own settings and leaves when it ends.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Generic, Protocol, TypeVar

import torch

from errors import PromptError
from models.resources import release_thread_pool, trim_malloc
from serve.backends.local.lora.adapter import AppliedAdapter
from serve.backends.local.sampler import (
    Detokenizer,
    GeneratedText,
    IncrementalDetokenizer,
    SampledToken,
    SequenceSampling,
    make_generator,
    sample,
)
from serve.types import (
    Batch,
    Candidate,
    PartialOutput,
    Row,
    RowOutput,
    SamplingParams,
    TokenLogprob,
    dedupe_candidates,
    find_stop,
    stable_prefix,
)

Events = list[PartialOutput | RowOutput]
# glibc does not return the memory of freed prompts of different lengths by itself: call malloc_trim every so many rows.
ROWS_BETWEEN_MALLOC_TRIM = 8


@dataclass(frozen=True)
class PromptInput:
    """A prompt to prefill, and the adapter of its sequence."""

    tokens: tuple[int, ...]
    applied_adapter: AppliedAdapter | None = None


class ModelRunner(Protocol):
    """Forward passes and KV cache of one batch. Logits are (sequences, vocabulary) in the base's precision.

    Sequences are indexed 0, 1, ... in the order in which they were prefilled, or as the last `reorder` put them.
    """

    @property
    def supports_continuous_batching(self) -> bool:
        """Whether prompts may be prefilled while other sequences run."""

    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        """Prefill prompts chunk by chunk: yield None after each chunk, at last the logits of each first new token.

        The prompts become the runner's last sequences with that last yield. With `supports_continuous_batching`,
        `decode` and `reorder` may be called for the other sequences between two chunks. Closing the iterator, or an
        exception, leaves the runner as it was.
        """

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per sequence, shape (sequences,), and return the logits of the next ones."""

    def reorder(self, indices: torch.Tensor) -> None:
        """Keep, reorder, drop or repeat sequences: new sequence i is old sequence `indices[i]`.

        Sequences of one prompt must stay adjacent. Without indices the runner is empty and may `prefill` again.
        """

    def fork(self) -> None:
        """Announce that prompts will have several sequences each; a runner may then share their prompts' KV cache."""


def pad(prompts: Sequence[Sequence[int]], pad_token: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask, both (rows, longest), padded on the left or on the right."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_token, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        columns = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
        ids[row, columns] = torch.tensor(prompt, dtype=torch.long)
        mask[row, columns] = 1
    return ids, mask


@dataclass(eq=False, kw_only=True)
class SequenceGroup(ABC):
    """One row of the batch, from `add` to its RowOutput.

    Once it is prefilled, `num_seqs` consecutive sequences of the model runner belong to it.
    """

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
        """The number of sequences that it has, or will have after prefill."""

    @abstractmethod
    def row_output(self, detokenizer: Detokenizer) -> RowOutput:
        """Return the row's last event; a row with unfinished sequences has been cancelled."""

    def seconds(self) -> float:
        """Return the seconds since the row was added."""
        return time.perf_counter() - self._added_at


GroupT = TypeVar("GroupT", bound=SequenceGroup)


@dataclass
class StepOutput:
    """The result of one step: events, and for each sequence that continues its parent's index and its next token."""

    events: Events = field(default_factory=list)
    parent_indices: list[int] = field(default_factory=list)
    next_tokens: list[int] = field(default_factory=list)


class ContinuousBatch(ABC, Generic[GroupT]):
    """Implements Batch (serve/types.py) over a ModelRunner; a row's seconds count from when it was added.

    A row moves from `_waiting` to `_prefilling` to `_running`. Rows are prefilled as one set: what arrives meanwhile
    waits for the next set. Between two chunks of a prefill the running sequences decode, so their order in `_running`
    is the order of the runner's sequences at all times.

    `encode` returns a row's prompt as tokens, `resolve_adapter` the adapter of a row; both may raise PromptOrTuneError.
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
        """Drop all rows and make a fresh runner."""
        prefill, self._prefill = self._prefill, None
        self._groups: dict[int, GroupT] = {}
        self._waiting: list[GroupT] = []
        self._prefilling: list[GroupT] = []
        # Prefilled groups in the order of the runner's sequences, and for each sequence the token to decode next.
        self._running: list[GroupT] = []
        self._next_tokens: list[int] = []
        if isinstance(prefill, Generator):
            prefill.close()
        self._runner = self._make_runner()

    @property
    def supports_continuous_batching(self) -> bool:
        """Whether rows are prefilled while others run; if not, added rows wait until those have ended."""
        return self._runner.supports_continuous_batching

    def __len__(self) -> int:
        return sum(group.width for group in self._groups.values())

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        """Queue a row under an unused `key`; its prefill starts with the next step that can start one.

        Raises PromptError for an empty prompt.
        """
        if key in self._groups:
            raise ValueError(f"Row {key} is in the batch already.")
        tokens = self._encode(row)
        if not tokens:
            raise PromptError("The prompt is empty: give the model at least one character to read.")
        group = self._make_group(key, row, sampling_params, PromptInput(tuple(tokens), self._resolve_adapter(row)))
        self._groups[key] = group
        self._waiting.append(group)
        self._rows_since_trim += 1

    def cancel(self, key: int) -> RowOutput:
        """Remove the row and return what it has generated.

        The runner is not touched here: its sequences are removed at the start of the next step, because `cancel` may
        be called between two chunks of a prefill.
        """
        group = self._groups.pop(key)
        group.cancelled = True
        finished = group.row_output(self._detokenizer)
        if group in self._waiting:
            self._waiting.remove(group)
        if self._prefill is not None and all(group.cancelled for group in self._prefilling):
            self._abort_prefill()
        if not self._groups:
            self._clear()
        return finished

    @torch.inference_mode()
    def step(self) -> Events:
        """Decode one token for every running sequence and prefill one chunk of waiting prompts.

        After an exception the batch is empty and has a fresh runner: the KV cache may be half written.
        """
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
                release_thread_pool()  # the model may run in another thread next, which makes an OpenMP pool of its own

    def _step(self) -> Events:
        self._remove_cancelled()
        logits = self._runner.decode(torch.tensor(self._next_tokens)) if self._next_tokens else None
        prefill_logits = self._prefill_step()
        if prefill_logits is not None:
            logits = prefill_logits if logits is None else torch.cat([logits, prefill_logits])
        if logits is None:
            return []
        output = self._sample_step(logits)
        self._commit(output, len(logits))
        return output.events

    def _remove_cancelled(self) -> None:
        """Remove the sequences of cancelled rows from the runner."""
        if not any(group.cancelled for group in self._running):
            return
        remaining: list[int] = []
        index = 0
        for group in self._running:
            remaining += [] if group.cancelled else range(index, index + group.num_seqs)
            index += group.num_seqs
        self._reorder(remaining)
        self._running = [group for group in self._running if not group.cancelled]
        self._next_tokens = [self._next_tokens[index] for index in remaining]

    def _prefill_step(self) -> torch.Tensor | None:
        """Prefill one chunk; return the logits of all prefilled rows after the last chunk, else None.

        Rows that were cancelled meanwhile become running too, so that logits and sequences stay aligned; the next
        sampling step drops them.
        """
        if self._prefill is None:
            if not self._waiting or (self._running and not self.supports_continuous_batching):
                return None
            self._prefilling, self._waiting = self._waiting, []
            self._prefill = iter(self._runner.prefill([group.prompt for group in self._prefilling]))
        logits = next(self._prefill)
        if logits is None:
            return None
        next(self._prefill, None)  # run the generator's code behind its last yield
        prefilled, self._prefilling, self._prefill = self._prefilling, [], None
        self._running += prefilled
        self._on_prefilled(prefilled)
        return logits

    def _abort_prefill(self) -> None:
        prefill, self._prefill, self._prefilling = self._prefill, None, []
        if isinstance(prefill, Generator):
            prefill.close()

    def _commit(self, output: StepOutput, num_seqs: int) -> None:
        """Keep only the sequences that continue, in the order of `output.parent_indices`."""
        for event in output.events:
            if isinstance(event, RowOutput):
                del self._groups[event.index]
        self._running = [group for group in self._running if group.num_seqs]
        self._next_tokens = output.next_tokens
        if output.parent_indices != list(range(num_seqs)):
            self._reorder(output.parent_indices)

    def _reorder(self, indices: Sequence[int]) -> None:
        if indices or self._prefill is not None:
            self._runner.reorder(torch.tensor(indices, dtype=torch.long))
        else:  # a fresh runner frees the KV memory of the finished rows
            self._runner = self._make_runner()

    @abstractmethod
    def _make_group(self, key: int, row: Row, decoding: SamplingParams, prompt: PromptInput) -> GroupT:
        """Return the group of a new row; raises ValueError for settings of another kind of batch."""

    @abstractmethod
    def _on_prefilled(self, groups: Sequence[GroupT]) -> None:
        """Called after the prompts of `groups` are prefilled; may fork the runner."""

    @abstractmethod
    def _sample_step(self, logits: torch.Tensor) -> StepOutput:
        """Choose the next token of every sequence; set `num_seqs` to 0 for groups that are cancelled or end here."""


def run_to_end(
    batch: Batch, rows: Sequence[Row], decoding: SamplingParams, cancel: Event
) -> Iterator[PartialOutput | RowOutput]:
    """Run `rows` in an empty batch and yield its events until each row has its RowOutput.

    An event's `index` is the row's index in `rows`. Once `cancel` is set, unfinished rows end with what they have
    generated. The batch is left empty, also when the caller closes the iterator or `add` raises.
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
        if len(batch):  # after an exception in `step` it is empty already
            for index in waiting:
                batch.cancel(index)


class SampledSequence:
    """One sample of a row, or its greedy answer."""

    def __init__(self, row: Row, decoding: SamplingParams, sample_index: int, detokenizer: Detokenizer) -> None:
        self.sample_index = sample_index
        self.generated = GeneratedText(row.style)
        sampled = decoding.mode == "sample"
        self.sampling = SequenceSampling(decoding, make_generator(decoding.seed, sample_index) if sampled else None)
        self._detokenizer = detokenizer
        self._incremental = IncrementalDetokenizer(detokenizer)
        # Each sampled token with the length of the text after it; filled only when log-probabilities are requested.
        self._sampled_tokens: list[tuple[SampledToken, int]] = []

    def append_token(self, sampled: SampledToken) -> bool:
        """Append the sampled token; return whether the answer is finished."""
        generated, incremental, decoding = self.generated, self._incremental, self.sampling.decoding
        before = len(incremental.text)
        generated.tokens.append(sampled.token)
        generated.logprob += sampled.logprob
        is_end = sampled.token in self._detokenizer.eos_token_ids
        if not is_end:
            incremental.add(sampled.token)
        if decoding.top_logprobs is not None:
            self._sampled_tokens.append((sampled, len(incremental.text)))
        if is_end or self._is_finished(sampled.token, before):
            generated.finish_reason = "stop"
        elif len(generated.tokens) >= decoding.max_new_tokens:
            generated.finish_reason = "length"
        return generated.finish_reason != "cancelled"

    def _is_finished(self, token: int, previous_length: int) -> bool:
        stops = self.sampling.decoding.stop
        if stops and find_stop(self._incremental.text, stops, previous_length) is not None:
            return True
        return self.generated.style is not None and self._detokenizer.ends_answer(
            token, self._incremental.text, self.generated.style
        )

    def partial_output(self, key: int) -> PartialOutput:
        """Return the event for the text so far, without what a later token may remove."""
        text = stable_prefix(self._incremental.text, self.sampling.decoding.stop, raw=self.generated.style is None)
        return PartialOutput(key, text, len(self.generated.tokens), self.sample_index)

    def candidate(self) -> Candidate:
        """Return the answer so far, with log-probabilities if they were requested."""
        candidate = self.generated.candidate(self._detokenizer, self.sampling.decoding.stop)
        if not self._sampled_tokens:
            return candidate
        return replace(candidate, token_logprobs=tuple(self._logprobs(candidate.text)))

    def _logprobs(self, text: str) -> list[TokenLogprob]:
        """Return the log-probabilities of the tokens that make up `text`; the last one's text may be cut."""
        is_cut = len(text) < len(self._incremental.text)
        logprobs: list[TokenLogprob] = []
        begin = 0
        for sampled, end in self._sampled_tokens:
            if sampled.token in self._detokenizer.eos_token_ids or (is_cut and begin >= len(text)):
                break
            text_piece = text[begin:end]
            names = (
                text_piece if token == sampled.token else self._detokenizer.token_text(token)
                for token, _ in sampled.top
            )
            top = tuple(zip(names, (logprob for _, logprob in sampled.top), strict=True))
            logprobs.append(TokenLogprob(text_piece, sampled.logprob, top))
            begin = end
        return logprobs


@dataclass(eq=False, kw_only=True)
class SamplingGroup(SequenceGroup):
    """The samples of one row; `unfinished` is in the order of the runner's sequences."""

    sequences: Sequence[SampledSequence]
    unfinished: list[SampledSequence] = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = list(self.sequences)

    @property
    def width(self) -> int:
        return len(self.unfinished)

    def row_output(self, detokenizer: Detokenizer) -> RowOutput:  # noqa: ARG002 - its sequences have it
        samples = tuple(sequence.candidate() for sequence in self.sequences)
        candidates = dedupe_candidates(samples, raw=self.row.style is None)
        return RowOutput(self.key, candidates, self.seconds(), self.cancelled, samples)


class SamplingBatch(ContinuousBatch[SamplingGroup]):
    """Greedy decoding and sampling: one token per sequence and step.

    A row with several samples is prefilled once and its sequence is then repeated. With a runner that admits no rows
    while others run, samples share the prompt's KV cache instead (`fork`).
    """

    def _make_group(self, key: int, row: Row, decoding: SamplingParams, prompt: PromptInput) -> SamplingGroup:
        if decoding.mode == "beam":
            raise ValueError("Beam search needs a batch of its own.")
        sequences = [SampledSequence(row, decoding, copy, self._detokenizer) for copy in range(decoding.candidates)]
        return SamplingGroup(key=key, row=row, decoding=decoding, prompt=prompt, sequences=sequences)

    def _on_prefilled(self, groups: Sequence[SamplingGroup]) -> None:
        if not self._runner.supports_continuous_batching and any(group.width > 1 for group in groups):
            self._runner.fork()

    def _sample_step(self, logits: torch.Tensor) -> StepOutput:
        # A group that has just been prefilled has one row of logits for all its samples; later each sample has its own.
        unfinished: list[tuple[SamplingGroup, SampledSequence, int]] = []
        index = 0
        for group in self._running:
            if not group.cancelled:
                unfinished += [
                    (group, sequence, index + min(offset, group.num_seqs - 1))
                    for offset, sequence in enumerate(group.unfinished)
                ]
            index += group.num_seqs
            group.num_seqs = 0
        parents = [parent for _, _, parent in unfinished]
        if parents != list(range(len(logits))):
            logits = logits[torch.tensor(parents, dtype=torch.long, device=logits.device)]
        sampled_tokens = sample(logits, [sequence.sampling for _, sequence, _ in unfinished])
        output = StepOutput()
        for (group, sequence, parent), sampled in zip(unfinished, sampled_tokens, strict=True):
            if not sequence.append_token(sampled):
                output.events.append(sequence.partial_output(group.key))
                output.parent_indices.append(parent)
                output.next_tokens.append(sampled.token)
                group.num_seqs += 1
                continue
            group.unfinished.remove(sequence)
            if not group.unfinished:
                output.events.append(group.row_output(self._detokenizer))
            else:  # report its final text now: the row's output comes only when all samples have ended
                candidate = sequence.candidate()
                output.events.append(PartialOutput(group.key, candidate.text, candidate.tokens, sequence.sample_index))
        return output
