"""The next token of every line: the likeliest one, or one drawn by temperature and top-p, with log-probabilities.

The distribution that is drawn from is that of transformers' TemperatureLogitsWarper and TopPLogitsWarper; tests hold it
to them. They sort the whole vocabulary for each line, which takes longer than the model's own step for many lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve.types import SamplingParams

# Lines whose logits are looked at together on a CPU: more would not fit its cache.
ROWS_PER_CHUNK = 8
# How many of the likeliest tokens are sorted first; only where the draw may lie behind them, more are.
_TOP_K_STEPS = (64, 2048)
# Colder than this there is one token left, and still colder the division overflows.
_MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token, its natural log-probability before temperature, and the likeliest tokens there with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceSampling:
    """How one line's token is chosen; `source` is None for greedy decoding, else this line's own random numbers."""

    decoding: SamplingParams
    generator: torch.Generator | None = None


def make_generator(seed: int, sample_index: int) -> torch.Generator:
    """The random numbers of one sample of a row. They do not depend on what else is in the batch."""
    return torch.Generator().manual_seed((seed + sample_index) % 2**63)


def sample(logits: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[SampledToken]:
    """One token for each line of `logits`, (lines, vocabulary)."""
    few = ROWS_PER_CHUNK if logits.device.type == "cpu" else max(len(samplings), 1)
    choices: list[SampledToken] = []
    for begin in range(0, len(samplings), few):
        choices += _sample(logits[begin : begin + few].float(), samplings[begin : begin + few])
    return choices


def _sample(scores: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[SampledToken]:
    logprobs = scores.log_softmax(-1)
    drawn = [line for line, wish in enumerate(samplings) if wish.generator is not None]
    tokens = [0] * len(samplings) if len(drawn) == len(samplings) else scores.argmax(-1).tolist()
    if drawn:
        found = _sample_top_p(
            scores if len(drawn) == len(samplings) else scores[drawn], [samplings[line] for line in drawn]
        )
        for line, token in zip(drawn, found, strict=True):
            tokens[line] = token
    said = logprobs.gather(-1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    tops = _top_logprobs(logprobs, [wish.decoding.top_logprobs or 0 for wish in samplings])
    return [SampledToken(*each) for each in zip(tokens, said, tops, strict=True)]


def _top_logprobs(logprobs: torch.Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """The `counts[line]` likeliest tokens of each line, with their log-probabilities."""
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(counts)
    asked = [line for line, count in enumerate(counts) if count]
    if asked:
        best = logprobs[asked].topk(min(max(counts), logprobs.shape[-1]))
        for line, tokens, values in zip(asked, best.indices.tolist(), best.values.tolist(), strict=True):
            tops[line] = tuple(zip(tokens[: counts[line]], values, strict=False))
    return tops


def _sample_top_p(scores: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[int]:
    """A token for each line: one random number in [0, 1) each, looked up in the sums of the sorted nucleus."""
    numbers = [float(torch.rand((), generator=wish.generator, dtype=torch.float64)) for wish in samplings]
    temperatures = torch.tensor(
        [max(wish.decoding.temperature, _MIN_TEMPERATURE) for wish in samplings], device=scores.device
    )
    limits = torch.tensor([wish.decoding.top_p for wish in samplings], dtype=torch.float64)
    points = torch.tensor(numbers, dtype=torch.float64)
    return nucleus_tokens((scores / temperatures[:, None]).softmax(-1), limits, points).tolist()


def nucleus_tokens(probs: torch.Tensor, top_ps: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at `points`, (lines,) in [0, 1), of each line's nucleus; `shares` is (lines, vocabulary).

    The nucleus are the fewest likeliest tokens that together have at least the share `limits`, (lines,); see
    arXiv 1904.09751. What comes back is on the CPU.
    """
    tokens = torch.zeros(len(probs), dtype=torch.long)
    open_lines = torch.arange(len(probs))
    for count in (*_TOP_K_STEPS, probs.shape[-1]):
        some = probs if len(open_lines) == len(probs) else probs[open_lines.to(probs.device)]
        best = some.topk(min(count, probs.shape[-1]))
        each, ids = best.values.double().cpu(), best.indices.cpu()
        sums, limit = each.cumsum(-1), top_ps[open_lines]
        # As in transformers, a token is in while those before it have less than the limit.
        weights = torch.where(sums - each < limit[:, None], each, 0.0)
        everything = limit >= 1
        mass = torch.where(everything, 1.0, weights.sum(-1))
        point = uniforms[open_lines] * mass
        place = (sums <= point[:, None]).sum(-1)
        # Of a nucleus that is not all here the mass is not known; of the whole vocabulary it is 1.
        known = torch.where(everything, place < ids.shape[-1], sums[:, -1] >= limit)
        if count >= probs.shape[-1]:
            known[:] = True
        # A line whose logits are not finite has no nucleus; its neighbours in the batch must not suffer for it.
        last = ((weights > 0).sum(-1) - 1).clamp(min=0)
        picked = ids.gather(-1, torch.minimum(place, last)[:, None])[:, 0]
        tokens[open_lines[known]] = picked[known]
        open_lines = open_lines[~known]
        if not len(open_lines):
            break
    return tokens
