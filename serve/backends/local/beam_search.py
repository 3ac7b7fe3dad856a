"""Beam search over a batch of rows: each prompt is prefilled once and its KV cache is shared by the beams.

The search is that of transformers (length penalty 1, `early_stopping=False`; tests compare with `generate`) with two
differences: a prompt is not computed once per beam, and a beam ends where its answer ends (tasks/extract), not only
at the end token. Otherwise a base that goes on after its answer fills the beams with one code and many continuations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from operator import itemgetter

import torch

from serve.backends.local.batch import ContinuousBatch, PromptInput, SequenceGroup, StepOutput
from serve.backends.local.sampler import ROWS_PER_CHUNK, Detokenizer, GeneratedText
from serve.types import PartialOutput, Row, RowOutput, SamplingParams, dedupe_candidates


@dataclass(eq=False, kw_only=True)
class BeamGroup(SequenceGroup):
    """The beams of one row: the running ones, best first, and the finished ones with their scores."""

    running: list[GeneratedText] = field(init=False)
    finished_beams: list[tuple[float, GeneratedText]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = [GeneratedText(self.row.style)]

    @property
    def width(self) -> int:
        return self.decoding.candidates

    def advance(self, top_tokens: Sequence[Sequence[tuple[float, int]]], detokenizer: Detokenizer) -> list[int]:
        """Extend the running beams by one token; `top_tokens` holds the best (log-probability, token) pairs of each.

        Returns the index of the old beam that each new running beam continues; [] when the search has ended.
        """
        choices = [
            (beam.logprob + logprob, parent, token)
            for parent, (beam, tokens) in enumerate(zip(self.running, top_tokens, strict=True))
            for logprob, token in tokens
        ]
        running: list[GeneratedText] = []
        parents: list[int] = []
        best = nlargest(2 * self.width, choices, key=itemgetter(0))
        for rank, (logprob, parent, token) in enumerate(best):
            beam = GeneratedText(self.row.style, [*self.running[parent].tokens, token], logprob)
            is_end = detokenizer.is_finished(beam.tokens, self.row.style)
            if is_end or len(beam.tokens) >= self.decoding.max_new_tokens:
                beam.finish_reason = "stop" if is_end else "length"
                # As in transformers: 2 * width choices are ranked so that enough running beams remain, but only the
                # best `width` of them may finish.
                if rank < self.width:
                    self.finished_beams.append((logprob / len(beam.tokens), beam))
            elif len(running) < self.width:
                running.append(beam)
                parents.append(parent)
        self.finished_beams = sorted(self.finished_beams, key=lambda scored: -scored[0])[: self.width]
        self.running = running
        return [] if self._is_finished() else parents

    def _is_finished(self) -> bool:
        if not self.running:
            return True
        full = len(self.finished_beams) == self.width
        return full and self.running[0].logprob / len(self.running[0].tokens) <= self.finished_beams[-1][0]

    def best(self) -> GeneratedText:
        """Return the best finished beam, else the best running one."""
        return self.finished_beams[0][1] if self.finished_beams else self.running[0]

    def row_output(self, detokenizer: Detokenizer) -> RowOutput:
        """Return the row's answers, best first."""
        candidates = [beam.candidate(detokenizer) for beam in self.answers()]
        return RowOutput(
            self.key, dedupe_candidates(candidates, raw=self.row.style is None), self.seconds(), self.cancelled
        )

    def answers(self) -> list[GeneratedText]:
        """Return `width` beams, best first: finished beams by score, then running ones if there are too few."""
        return ([beam for _, beam in self.finished_beams] + self.running)[: self.width]


class BeamSearchBatch(ContinuousBatch[BeamGroup]):
    """Beam search; rows that are added while others run wait until those have ended."""

    @property
    def supports_continuous_batching(self) -> bool:
        """False: sequences that share a prompt's KV cache admit no others."""
        return False

    def _make_group(self, key: int, row: Row, decoding: SamplingParams, prompt: PromptInput) -> BeamGroup:
        if decoding.mode != "beam":
            raise ValueError("This batch is for beam search alone.")
        return BeamGroup(key=key, row=row, decoding=decoding, prompt=prompt)

    def _on_prefilled(self, groups: Sequence[BeamGroup]) -> None:  # noqa: ARG002 - all of them fork
        self._runner.fork()

    def _sample_step(self, logits: torch.Tensor) -> StepOutput:
        top_tokens = _top_tokens(logits, max(group.width for group in self._running))
        output = StepOutput()
        end = 0
        for group in self._running:
            first, end = end, end + group.num_seqs
            parents = [] if group.cancelled else group.advance(top_tokens[first:end], self._detokenizer)
            group.num_seqs = len(parents)
            if parents:
                best = group.best()
                output.parent_indices += [first + parent for parent in parents]
                output.next_tokens += [beam.tokens[-1] for beam in group.running]
                output.events.append(PartialOutput(group.key, self._detokenizer.decode(best.tokens), len(best.tokens)))
            elif not group.cancelled:
                output.events.append(group.row_output(self._detokenizer))
        return output


def _top_tokens(logits: torch.Tensor, width: int) -> list[list[tuple[float, int]]]:
    """Return the best 2 * `width` (log-probability, token) pairs of each sequence, as many as a search can use."""
    top_tokens: list[list[tuple[float, int]]] = []
    for chunk in logits.split(ROWS_PER_CHUNK):
        scores = chunk.float()
        top = scores.topk(min(2 * width, scores.shape[-1]))
        logprobs = top.values - scores.logsumexp(-1, keepdim=True)
        for values, tokens in zip(logprobs.tolist(), top.indices.tolist(), strict=True):
            top_tokens.append(list(zip(values, tokens, strict=True)))
    return top_tokens
