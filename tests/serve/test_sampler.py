"""Tokens are chosen as transformers chooses them."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from serve.backends.local.sampler import SequenceSampling, make_generator, nucleus_tokens, sample
from serve.types import SamplingParams

GREEDY = SequenceSampling(SamplingParams())
POINTS = 4000


def _scores(lines: int, size: int, spread: float, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(lines, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spread", [8.0, 1.0])
@pytest.mark.parametrize("top_p", [0.2, 0.95, 1.0])
@pytest.mark.parametrize("size", [40, 3000])
def test_distribution_matches_transformers_warpers(size: int, top_p: float, spread: float) -> None:
    """Points spread evenly over [0, 1) meet each token as often as its probability says."""
    scores = _scores(1, size, spread)
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(0.8)(None, scores)).softmax(-1)[0]
    points = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    shares = (scores / 0.8).softmax(-1).expand(POINTS, -1)
    found = nucleus_tokens(shares, torch.full((POINTS,), top_p, dtype=torch.float64), points)
    seen = torch.bincount(found, minlength=size) / POINTS
    assert torch.allclose(seen.float(), warped, atol=1.5 / POINTS)
    assert set(seen.nonzero()[:, 0].tolist()) <= set(warped.nonzero()[:, 0].tolist())


def test_uniform_near_one_stays_in_the_nucleus() -> None:
    shares = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    nearly = torch.full((2,), 1 - 1e-16, dtype=torch.float64)
    for top_p, expected in ((1.0, [2, 0]), (0.6, [1, 0]), (0.5, [0, 0])):
        limits = torch.full((2,), top_p, dtype=torch.float64)
        assert nucleus_tokens(shares, limits, nearly).tolist() == expected


def test_each_row_uses_its_own_sampling_params() -> None:
    scores = _scores(20, 500, 3.0)
    wishes = [
        GREEDY
        if line % 3 == 0
        else SequenceSampling(
            SamplingParams("sample", temperature=0.5 + line / 9, top_p=1.0 if line % 2 else 0.9, top_logprobs=line % 4),
            make_generator(line, 0),
        )
        for line in range(20)
    ]
    together = sample(scores, wishes)
    for line, wish in enumerate(wishes):
        again = wish if wish.generator is None else SequenceSampling(wish.decoding, make_generator(line, 0))
        (alone,) = sample(scores[line : line + 1], [again])
        assert (together[line].token, len(together[line].top)) == (alone.token, wish.decoding.top_logprobs or 0)
        assert together[line].logprob == pytest.approx(alone.logprob)
    assert any(choice.token != int(scores[line].argmax()) for line, choice in enumerate(together))


def test_logprobs_are_those_before_temperature() -> None:
    scores = _scores(3, 100, 2.0)
    expected = scores.log_softmax(-1)
    wish = SequenceSampling(SamplingParams("sample", temperature=3.0, top_logprobs=5), make_generator(1, 0))
    for line, choice in enumerate(sample(scores, [wish] * 3)):
        best = expected[line].topk(5)
        assert choice.logprob == pytest.approx(float(expected[line, choice.token]))
        assert [token for token, _ in choice.top] == best.indices.tolist()
        assert [logprob for _, logprob in choice.top] == pytest.approx(best.values.tolist())


def test_greedy_is_argmax_and_any_seed_is_accepted() -> None:
    scores = _scores(11, 100, 2.0)
    assert [choice.token for choice in sample(scores, [GREEDY] * 11)] == scores.argmax(-1).tolist()
    first = [
        float(torch.rand((), generator=make_generator(seed, copy))) for seed, copy in ((-5, 0), (2**64, 1), (3, 0))
    ]
    assert len(set(first)) == 3
    assert float(torch.rand((), generator=make_generator(2, 1))) == first[2], "copy n of a seed is seed + n"
