"""Sampler: the distribution of sampled tokens equals that of transformers' warpers."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from serve.backends.local.sampler import SequenceSampling, make_generator, nucleus_tokens, sample
from serve.types import SamplingParams

GREEDY = SequenceSampling(SamplingParams())
NUM_UNIFORMS = 4000


def _scores(num_rows: int, size: int, spread: float, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spread", [8.0, 1.0])
@pytest.mark.parametrize("top_p", [0.2, 0.95, 1.0])
@pytest.mark.parametrize("size", [40, 3000])
def test_distribution_matches_transformers_warpers(size: int, top_p: float, spread: float) -> None:
    """Uniform numbers spread evenly over [0, 1) must select each token as often as its probability."""
    scores = _scores(1, size, spread)
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(0.8)(None, scores)).softmax(-1)[0]
    uniforms = (torch.arange(NUM_UNIFORMS, dtype=torch.float64) + 0.5) / NUM_UNIFORMS
    probs = (scores / 0.8).softmax(-1).expand(NUM_UNIFORMS, -1)
    tokens = nucleus_tokens(probs, torch.full((NUM_UNIFORMS,), top_p, dtype=torch.float64), uniforms)
    frequencies = torch.bincount(tokens, minlength=size) / NUM_UNIFORMS
    assert torch.allclose(frequencies.float(), warped, atol=1.5 / NUM_UNIFORMS)
    assert set(frequencies.nonzero()[:, 0].tolist()) <= set(warped.nonzero()[:, 0].tolist())


def test_uniform_number_near_one_selects_a_token_of_the_nucleus() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    uniforms = torch.full((2,), 1 - 1e-16, dtype=torch.float64)
    for top_p, expected in ((1.0, [2, 0]), (0.6, [1, 0]), (0.5, [0, 0])):
        top_ps = torch.full((2,), top_p, dtype=torch.float64)
        assert nucleus_tokens(probs, top_ps, uniforms).tolist() == expected


def test_each_row_uses_its_own_sampling_params() -> None:
    scores = _scores(20, 500, 3.0)
    samplings = [
        GREEDY
        if row % 3 == 0
        else SequenceSampling(
            SamplingParams("sample", temperature=0.5 + row / 9, top_p=1.0 if row % 2 else 0.9, top_logprobs=row % 4),
            make_generator(row, 0),
        )
        for row in range(20)
    ]
    together = sample(scores, samplings)
    for row, sampling in enumerate(samplings):
        again = sampling if sampling.generator is None else SequenceSampling(sampling.decoding, make_generator(row, 0))
        (alone,) = sample(scores[row : row + 1], [again])
        assert (together[row].token, len(together[row].top)) == (alone.token, sampling.decoding.top_logprobs or 0)
        assert together[row].logprob == pytest.approx(alone.logprob)
    assert any(sampled.token != int(scores[row].argmax()) for row, sampled in enumerate(together))


def test_logprobs_are_those_before_temperature() -> None:
    scores = _scores(3, 100, 2.0)
    expected = scores.log_softmax(-1)
    sampling = SequenceSampling(SamplingParams("sample", temperature=3.0, top_logprobs=5), make_generator(1, 0))
    for row, sampled in enumerate(sample(scores, [sampling] * 3)):
        best = expected[row].topk(5)
        assert sampled.logprob == pytest.approx(float(expected[row, sampled.token]))
        assert [token for token, _ in sampled.top] == best.indices.tolist()
        assert [logprob for _, logprob in sampled.top] == pytest.approx(best.values.tolist())


def test_greedy_is_argmax_and_any_seed_is_accepted() -> None:
    scores = _scores(11, 100, 2.0)
    assert [sampled.token for sampled in sample(scores, [GREEDY] * 11)] == scores.argmax(-1).tolist()
    first = [
        float(torch.rand((), generator=make_generator(seed, copy))) for seed, copy in ((-5, 0), (2**64, 1), (3, 0))
    ]
    assert len(set(first)) == 3
    assert float(torch.rand((), generator=make_generator(2, 1))) == first[2], "copy n of a seed is seed + n"
