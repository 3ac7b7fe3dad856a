"""Sampler: greedy or temperature and top-p choice of each sequence's next token, with log-probabilities.

The sampled distribution is that of transformers' TemperatureLogitsWarper and TopPLogitsWarper (tests compare with
them). Those sort the whole vocabulary for each sequence, which for many sequences takes longer than the model's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve.types import SamplingParams

# Rows of logits that are processed together on a CPU: more would not fit its cache.
ROWS_PER_CHUNK = 8
# Numbers of most likely tokens that are sorted, one after the other, until the sampled token is certainly among them.
_TOP_K_STEPS = (64, 2048)
# Lower temperatures leave one token with any probability, and the division by very low ones overflows.
_MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token, its natural log-probability before temperature, and the most likely tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceSampling:
    """How one sequence's tokens are chosen; `generator` is None for greedy decoding, else the sequence's own one."""

    decoding: SamplingParams
    generator: torch.Generator | None = None


def make_generator(seed: int, sample_index: int) -> torch.Generator:
    """Return the random generator of one sample; it depends on seed and index only, not on the rest of the batch."""
    return torch.Generator().manual_seed((seed + sample_index) % 2**63)


def sample(logits: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[SampledToken]:
    """Choose one token for each row of `logits`, (rows, vocabulary)."""
    rows_per_chunk = ROWS_PER_CHUNK if logits.device.type == "cpu" else max(len(samplings), 1)
    sampled: list[SampledToken] = []
    for begin in range(0, len(samplings), rows_per_chunk):
        sampled += _sample(logits[begin : begin + rows_per_chunk].float(), samplings[begin : begin + rows_per_chunk])
    return sampled


def _sample(scores: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[SampledToken]:
    logprobs = scores.log_softmax(-1)
    sampled_rows = [row for row, sampling in enumerate(samplings) if sampling.generator is not None]
    tokens = [0] * len(samplings) if len(sampled_rows) == len(samplings) else scores.argmax(-1).tolist()
    if sampled_rows:
        drawn_tokens = _sample_top_p(
            scores if len(sampled_rows) == len(samplings) else scores[sampled_rows],
            [samplings[row] for row in sampled_rows],
        )
        for row, token in zip(sampled_rows, drawn_tokens, strict=True):
            tokens[row] = token
    chosen_logprobs = logprobs.gather(-1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    tops = _top_logprobs(logprobs, [sampling.decoding.top_logprobs or 0 for sampling in samplings])
    return [SampledToken(*token_probs) for token_probs in zip(tokens, chosen_logprobs, tops, strict=True)]


def _top_logprobs(logprobs: torch.Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """Return the `counts[row]` most likely tokens of each row with their log-probabilities."""
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(counts)
    rows = [row for row, count in enumerate(counts) if count]
    if rows:
        top = logprobs[rows].topk(min(max(counts), logprobs.shape[-1]))
        for row, tokens, values in zip(rows, top.indices.tolist(), top.values.tolist(), strict=True):
            tops[row] = tuple(zip(tokens[: counts[row]], values, strict=False))
    return tops


def _sample_top_p(scores: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[int]:
    """Sample a token for each row: one random number in [0, 1) per row, looked up in the nucleus's cumulative sums."""
    uniforms_list = [float(torch.rand((), generator=sampling.generator, dtype=torch.float64)) for sampling in samplings]
    temperatures = torch.tensor(
        [max(sampling.decoding.temperature, _MIN_TEMPERATURE) for sampling in samplings], device=scores.device
    )
    top_ps = torch.tensor([sampling.decoding.top_p for sampling in samplings], dtype=torch.float64)
    uniforms = torch.tensor(uniforms_list, dtype=torch.float64)
    return nucleus_tokens((scores / temperatures[:, None]).softmax(-1), top_ps, uniforms).tolist()


def nucleus_tokens(probs: torch.Tensor, top_ps: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the token at quantile `uniforms`, (rows,) in [0, 1), of each row's nucleus, as a CPU tensor.

    `probs` is (rows, vocabulary). The nucleus is the smallest set of most likely tokens whose probabilities add up to
    at least `top_ps`, (rows,); see arXiv 1904.09751. Sorting starts with few tokens; rows whose nucleus or quantile
    may reach beyond them are repeated with more.
    """
    tokens = torch.zeros(len(probs), dtype=torch.long)
    open_rows = torch.arange(len(probs))
    for count in (*_TOP_K_STEPS, probs.shape[-1]):
        open_probs = probs if len(open_rows) == len(probs) else probs[open_rows.to(probs.device)]
        top = open_probs.topk(min(count, probs.shape[-1]))
        token_probs, ids = top.values.double().cpu(), top.indices.cpu()
        sums, top_p = token_probs.cumsum(-1), top_ps[open_rows]
        # As in transformers, a token belongs to the nucleus if those before it add up to less than top_p.
        weights = torch.where(sums - token_probs < top_p[:, None], token_probs, 0.0)
        is_whole = top_p >= 1
        mass = torch.where(is_whole, 1.0, weights.sum(-1))
        target = uniforms[open_rows] * mass
        index = (sums <= target[:, None]).sum(-1)
        # The mass of a nucleus beyond the sorted tokens is unknown, except that of the whole vocabulary: 1.
        decided = torch.where(is_whole, index < ids.shape[-1], sums[:, -1] >= top_p)
        if count >= probs.shape[-1]:
            decided[:] = True
        # A row with non-finite logits has an empty nucleus: clamp, so that other rows of the batch get their tokens.
        last = ((weights > 0).sum(-1) - 1).clamp(min=0)
        picked = ids.gather(-1, torch.minimum(index, last)[:, None])[:, 0]
        tokens[open_rows[decided]] = picked[decided]
        open_rows = open_rows[~decided]
        if not len(open_rows):
            break
    return tokens
