"""Beam search over a batch of problems: each prompt is read once, then its cache is repeated for the beams.

The search is transformers' own (length penalty 1, `early_stopping=False`; tests hold it against `generate`) with
two differences that its users need: a prompt is not computed once per beam, and a beam ends where its answer ends,
not only at the end token. A base that chatters on would else give ten times the same code with ten continuations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from operator import itemgetter

import torch

from serve.backends.local.batch import ContinuousBatch, SequenceGroup, StepOutput
from serve.backends.local.detokenizer import Detokenizer, GeneratedText, dedupe_candidates
from serve.backends.local.model_runner import PromptInput
from serve.backends.local.sampler import ROWS_PER_CHUNK
from serve.types import PartialOutput, Row, RowOutput, SamplingParams


@dataclass(eq=False, kw_only=True)
class BeamGroup(SequenceGroup):
    """The beams of one problem: those still running, best first, and the finished ones with their scores."""

    running: list[GeneratedText] = field(init=False)
    finished_beams: list[tuple[float, GeneratedText]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = [GeneratedText(self.row.style)]

    @property
    def width(self) -> int:
        return self.decoding.candidates

    def advance(self, top_tokens: Sequence[Sequence[tuple[float, int]]], detokenizer: Detokenizer) -> list[int]:
        """Extends the running beams by one token; `likely` are the best (log-probability, token) of each.

        Returns for each beam that runs on the old beam it continues; an empty list when the search is over.
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
            over = detokenizer.is_finished(beam.tokens, self.row.style)
            if over or len(beam.tokens) >= self.decoding.max_new_tokens:
                beam.finish_reason = "stop" if over else "length"
                # Only the best `width` may finish; those behind them are there to run on.
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
        """What the row would answer now: the best finished beam, else the best running one."""
        return self.finished_beams[0][1] if self.finished_beams else self.running[0]

    def row_output(self, detokenizer: Detokenizer) -> RowOutput:
        """All answers, best first; of a search that is not over those that run on, too."""
        candidates = [beam.candidate(detokenizer) for beam in self.answers()]
        return RowOutput(
            self.key, dedupe_candidates(candidates, raw=self.row.style is None), self.seconds(), self.cancelled
        )

    def answers(self) -> list[GeneratedText]:
        """All answers, best first: finished beams by score, then running ones where there were too few."""
        return ([beam for _, beam in self.finished_beams] + self.running)[: self.width]


class BeamSearchBatch(ContinuousBatch[BeamGroup]):
    """Rows under beam search; rows that are added while others are in flight wait until those have ended."""

    @property
    def supports_continuous_batching(self) -> bool:
        """Lines that share what has been read cannot be joined by others."""
        return False

    def _make_group(self, key: int, row: Row, decoding: SamplingParams, prompt: PromptInput) -> BeamGroup:
        if decoding.mode != "beam":
            raise ValueError("This batch is for beam search alone.")
        return BeamGroup(key=key, row=row, decoding=decoding, prompt=prompt)

    def _on_prefilled(self, groups: Sequence[BeamGroup]) -> None:  # noqa: ARG002 - all of them branch
        self._runner.fork()

    def _sample_step(self, logits: torch.Tensor) -> StepOutput:
        likely = _top_tokens(logits, max(search.width for search in self._running))
        growth = StepOutput()
        line = 0
        for search in self._running:
            first, line = line, line + search.num_seqs
            parents = [] if search.cancelled else search.advance(likely[first:line], self._detokenizer)
            search.num_seqs = len(parents)
            if parents:
                best = search.best()
                growth.parent_indices += [first + parent for parent in parents]
                growth.next_tokens += [beam.tokens[-1] for beam in search.running]
                growth.events.append(PartialOutput(search.key, self._detokenizer.decode(best.tokens), len(best.tokens)))
            elif not search.cancelled:
                growth.events.append(search.row_output(self._detokenizer))
        return growth


def _top_tokens(logits: torch.Tensor, width: int) -> list[list[tuple[float, int]]]:
    """The best tokens of each line with their log-probabilities: as many as its search can use, twice the width."""
    found: list[list[tuple[float, int]]] = []
    for few in logits.split(ROWS_PER_CHUNK):
        scores = few.float()
        top = scores.topk(min(2 * width, scores.shape[-1]))
        logprobs = top.values - scores.logsumexp(-1, keepdim=True)
        for values, tokens in zip(logprobs.tolist(), top.indices.tolist(), strict=True):
            found.append(list(zip(values, tokens, strict=True)))
    return found
