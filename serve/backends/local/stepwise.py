"""Greedy decoding and sampling of a batch, row by row, with finished rows leaving the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from serve.backends.local.speech import Speech, Vocabulary, merge
from serve.backends.local.state import CancelledError, OnRows, State
from serve.rows import Decoding, Finished, Partial
from tasks.prompt import PromptStyle

if TYPE_CHECKING:
    from collections.abc import Callable as Chooser


def decode_stepwise(
    state: State,
    prompts: Sequence[Sequence[int]],
    styles: Sequence[PromptStyle],
    decoding: Decoding,
    vocabulary: Vocabulary,
    on_rows: OnRows,
    cancelled: Callable[[], bool],
) -> Iterator[Partial | Finished]:
    """Yields a Partial per row and step and one Finished per row.

    Under sampling each row is read once and spoken `decoding.candidates` times. `on_rows` is told, whenever lines
    leave or multiply, which prompt each remaining line belongs to.
    """
    begin = time.perf_counter()
    copies = decoding.candidates
    lines = [row for row in range(len(prompts)) for _ in range(copies)]
    speeches = [Speech(styles[row]) for row in lines]
    choose = _sampler(decoding, len(lines)) if decoding.mode == "sample" else None
    alive = list(range(len(lines)))
    waiting = dict.fromkeys(range(len(prompts)), copies)

    def finish(row: int, stopped: bool = False) -> Finished:
        said = [speech for speech, owner in zip(speeches, lines, strict=True) if owner == row]
        candidates = merge([speech.candidate(vocabulary) for speech in said])
        return Finished(row, candidates, time.perf_counter() - begin, stopped)

    try:
        logits = state.start(prompts, on_rows, cancelled)
        if copies > 1:
            state.branch()
            state.select(torch.tensor(lines))
            logits = logits[torch.tensor(lines, device=logits.device)]
            on_rows(lines)
        while alive:
            if cancelled():
                raise CancelledError
            tokens = _next_tokens(logits, [speeches[line] for line in alive], alive, choose)
            kept = []
            for place, line in enumerate(alive):
                speech = speeches[line]
                over = vocabulary.is_over(speech.tokens, speech.style)
                if not over and len(speech.tokens) < decoding.max_new_tokens:
                    kept.append(place)
                    if line == 0 or lines[line - 1] != lines[line]:
                        yield Partial(lines[line], vocabulary.text(speech.tokens), len(speech.tokens))
                    continue
                waiting[lines[line]] -= 1
                if waiting[lines[line]] == 0:
                    yield finish(lines[line])
            if len(kept) < len(alive):
                alive = [alive[place] for place in kept]
                if not alive:
                    return
                state.select(torch.tensor(kept))
                tokens = tokens[torch.tensor(kept)]
                on_rows([lines[line] for line in alive])
            logits = state.step(tokens)
    except CancelledError:
        for row, left in waiting.items():
            if left:
                yield finish(row, stopped=True)


def _next_tokens(
    logits: torch.Tensor, speeches: Sequence[Speech], lines: Sequence[int], choose: Chooser[..., int] | None
) -> torch.Tensor:
    """Chooses one token a line, writes it and its log-probability down, and returns them, shape (lines,)."""
    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    if choose is None:
        tokens = logits.argmax(-1).cpu()
    else:
        scores = logits.cpu()
        tokens = torch.tensor([choose(scores[place : place + 1], line) for place, line in enumerate(lines)])
    said = logprobs.gather(-1, tokens.to(logits.device)[:, None])[:, 0].tolist()
    for speech, token, logprob in zip(speeches, tokens.tolist(), said, strict=True):
        speech.tokens.append(token)
        speech.logprob += logprob
    return tokens


def _sampler(decoding: Decoding, lines: int) -> Chooser[[torch.Tensor, int], int]:
    """Temperature and top-p sampling. Every copy of a row has its own seeded generator, so that what a row says
    does not depend on its neighbours in the batch.
    """
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    temperature, top_p = TemperatureLogitsWarper(decoding.temperature), TopPLogitsWarper(decoding.top_p)
    generators = [torch.Generator().manual_seed(decoding.seed + line % decoding.candidates) for line in range(lines)]

    def choose(scores: torch.Tensor, line: int) -> int:
        warped = top_p(None, temperature(None, scores))
        return int(torch.multinomial(warped.softmax(-1), 1, generator=generators[line]).item())

    return choose
