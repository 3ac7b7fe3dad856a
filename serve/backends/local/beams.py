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

from serve.backends.local.choosing import AT_ONCE
from serve.backends.local.flight import Answering, Flight, Growth
from serve.backends.local.speech import Speech, Vocabulary, merge
from serve.backends.local.state import Line
from serve.rows import Decoding, Finished, Partial, Row


@dataclass(eq=False, kw_only=True)
class Search(Answering):
    """The beams of one problem: those still running, best first, and the finished ones with their scores."""

    running: list[Speech] = field(init=False)
    ended: list[tuple[float, Speech]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = [Speech(self.row.style)]

    @property
    def width(self) -> int:
        return self.decoding.candidates

    def advance(self, likely: Sequence[Sequence[tuple[float, int]]], vocabulary: Vocabulary) -> list[int]:
        """Extends the running beams by one token; `likely` are the best (log-probability, token) of each.

        Returns for each beam that runs on the old beam it continues; an empty list when the search is over.
        """
        choices = [
            (beam.logprob + logprob, parent, token)
            for parent, (beam, tokens) in enumerate(zip(self.running, likely, strict=True))
            for logprob, token in tokens
        ]
        running: list[Speech] = []
        parents: list[int] = []
        best = nlargest(2 * self.width, choices, key=itemgetter(0))
        for rank, (logprob, parent, token) in enumerate(best):
            beam = Speech(self.row.style, [*self.running[parent].tokens, token], logprob)
            over = vocabulary.is_over(beam.tokens, self.row.style)
            if over or len(beam.tokens) >= self.decoding.max_new_tokens:
                beam.finish = "stop" if over else "length"
                # Only the best `width` may finish; those behind them are there to run on.
                if rank < self.width:
                    self.ended.append((logprob / len(beam.tokens), beam))
            elif len(running) < self.width:
                running.append(beam)
                parents.append(parent)
        self.ended = sorted(self.ended, key=lambda scored: -scored[0])[: self.width]
        self.running = running
        return [] if self._is_over() else parents

    def _is_over(self) -> bool:
        if not self.running:
            return True
        full = len(self.ended) == self.width
        return full and self.running[0].logprob / len(self.running[0].tokens) <= self.ended[-1][0]

    def best(self) -> Speech:
        """What the row would answer now: the best finished beam, else the best running one."""
        return self.ended[0][1] if self.ended else self.running[0]

    def finished(self, vocabulary: Vocabulary) -> Finished:
        """All answers, best first; of a search that is not over those that run on, too."""
        candidates = [beam.candidate(vocabulary) for beam in self.result()]
        return Finished(self.key, merge(candidates, raw=self.row.style is None), self.seconds(), self.gone)

    def result(self) -> list[Speech]:
        """All answers, best first: finished beams by score, then running ones where there were too few."""
        return ([beam for _, beam in self.ended] + self.running)[: self.width]


class BeamBatch(Flight[Search]):
    """Rows under beam search; rows that are added while others are in flight wait until those have ended."""

    @property
    def joins(self) -> bool:
        """Lines that share what has been read cannot be joined by others."""
        return False

    def _begin(self, key: int, row: Row, decoding: Decoding, prompt: Line) -> Search:
        if decoding.mode != "beam":
            raise ValueError("This batch is for beam search alone.")
        return Search(key=key, row=row, decoding=decoding, prompt=prompt)

    def _read_all(self, arrived: Sequence[Search]) -> None:  # noqa: ARG002 - all of them branch
        self._state.branch()

    def _grow(self, logits: torch.Tensor) -> Growth:
        likely = _likely(logits, max(search.width for search in self._flying))
        growth = Growth()
        line = 0
        for search in self._flying:
            first, line = line, line + search.lines
            parents = [] if search.gone else search.advance(likely[first:line], self._vocabulary)
            search.lines = len(parents)
            if parents:
                best = search.best()
                growth.sources += [first + parent for parent in parents]
                growth.tokens += [beam.tokens[-1] for beam in search.running]
                growth.events.append(Partial(search.key, self._vocabulary.text(best.tokens), len(best.tokens)))
            elif not search.gone:
                growth.events.append(search.finished(self._vocabulary))
        return growth


def _likely(logits: torch.Tensor, width: int) -> list[list[tuple[float, int]]]:
    """The best tokens of each line with their log-probabilities: as many as its search can use, twice the width."""
    found: list[list[tuple[float, int]]] = []
    for few in logits.split(AT_ONCE):
        scores = few.float()
        top = scores.topk(min(2 * width, scores.shape[-1]))
        logprobs = top.values - scores.logsumexp(-1, keepdim=True)
        for values, tokens in zip(logprobs.tolist(), top.indices.tolist(), strict=True):
            found.append(list(zip(values, tokens, strict=True)))
    return found
