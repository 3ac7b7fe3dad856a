"""The n-gram parts against the `codebleu` package's own functions, to the last bit."""

from __future__ import annotations

import pytest
from codebleu.bleu import corpus_bleu
from codebleu.weighted_ngram_match import corpus_bleu as weighted_corpus_bleu
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.codebleu import bleu_scores, count_ngrams

KEYWORDS = frozenset({"for", "in"})
TOKENS = st.lists(st.sampled_from(["a", "b", "(", ")", "for", "in", "x" * 3]), min_size=1, max_size=14)


class Pair(list[object]):
    """Tokens and weights, as long as the tokens, for the package's brevity penalty."""

    def __len__(self) -> int:
        return len(self[0])  # type: ignore[arg-type]


@given(TOKENS, TOKENS)
def test_both_parts_are_the_packages(reference: list[str], candidate: list[str]) -> None:
    order = min(4, len(reference))
    uniform = (1 / order,) * order
    weights = {token: 5 if token in KEYWORDS else 1 for token in reference}
    plain = corpus_bleu([[reference]], [candidate], weights=uniform)
    weighted = weighted_corpus_bleu([[Pair([reference, weights])]], [candidate], weights=uniform)
    found = bleu_scores(count_ngrams(reference), count_ngrams(candidate), KEYWORDS, 5)
    assert found == (min(1.0, plain), min(1.0, weighted))


@given(TOKENS, TOKENS)
def test_both_parts_stay_in_bounds(reference: list[str], candidate: list[str]) -> None:
    for part in bleu_scores(count_ngrams(reference), count_ngrams(candidate), KEYWORDS, 5):
        assert 0 <= part <= 1
    assert bleu_scores(count_ngrams(reference), count_ngrams(reference), KEYWORDS, 5) == pytest.approx((1, 1))


def test_nothing_in_common_is_nothing() -> None:
    assert bleu_scores(count_ngrams(["a"]), count_ngrams(["b", "b"]), KEYWORDS, 5) == (0, 0)
