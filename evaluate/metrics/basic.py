"""Exact match, parse rate, pass@k.

Exact match: the answer is the reference, letter by letter.

Definition: EM@k is 1 when the reference is among the first k candidates, both stripped of white space at their ends
(arXiv 2308.10462, section 4; the paper uses k from 1 to 10). Equality of syntax trees is a second figure with a label
of its own (`em_tree`): it forgives quotes, blanks and brackets without meaning, and is never mixed with the first.

Parse rate: the share of first answers that are Python at all.

Definition: an answer scores 1 where `ast.parse` of the Python that runs here accepts it after stripping and it holds at
least one statement, else 0; the rate is the mean over problems. An empty answer and one of comments alone, which the
parser accepts, are no answers and score 0. Source: the grammar of the Python Language Reference, section 10, as CPython
implements it; the version is recorded with the scores, because what parses differs from one to the next.

Pass@k and the share of tests passed: what running the candidates says.

Definitions:

- A sample is right when it passes all tests of its problem. Pass@k of a problem with n samples, c of them right, is
  1 - C(n - c, k) / C(n, k): the chance that k samples drawn from the n without putting back hold a right one
  (unbiased; Chen et al., arXiv 2107.03374, section 2.1). It is defined for samples (or for one greedy answer), not for
  beams, and for k up to n. A data set's Pass@k is the mean over its problems.
- `tests` of a problem is the mean over its samples of the share of its tests that the sample passes; a data set's is
  the mean over its problems. (The metric that arXiv 2308.10462 used leaves several samples per problem undefined.)
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from errors import PromptOrTuneError
from tasks.extract import is_valid_python, syntax_tree


def exact_match(reference: str, candidate: str) -> bool:
    """Whether both are equal after stripping both ends."""
    return reference.strip() == candidate.strip()


def syntax_tree_match(reference: str, candidate: str) -> bool:
    """Whether both parse, are not empty, and have equal syntax trees. Never raises."""
    left, right = syntax_tree(reference), syntax_tree(candidate)
    if left is None or right is None or not left.body:
        return False
    try:
        return ast.dump(left) == ast.dump(right)
    except RecursionError:  # a chain of operators too long for ast.dump
        return False


def exact_match_at_k(
    reference: str,
    candidates: Sequence[str],
    k: int,
    num_candidates: int | None = None,
    is_match: Callable[[str, str], bool] = exact_match,
) -> bool:
    """EM@k: whether the reference is among the first k candidates.

    `asked` is the number of candidates that the model was asked for, by default the number that is here. Candidates
    with the same code were merged, so the list may be shorter than that. A k below 1 or above `asked` has no meaning
    and raises PromptOrTuneError. `same` is `same_tree` for the second figure.
    """
    num_candidates = len(candidates) if num_candidates is None else num_candidates
    if not 1 <= k <= num_candidates:
        raise PromptOrTuneError(
            f"EM@{k} is undefined for {num_candidates} candidates: choose k from 1 to the number asked for."
        )
    if len(candidates) > num_candidates:
        raise PromptOrTuneError(
            f"EM@{k} is undefined: {num_candidates} candidates were asked for and {len(candidates)} are here."
        )
    place = first_match_rank(reference, candidates, is_match)
    return place is not None and place <= k


def first_match_rank(
    reference: str, candidates: Sequence[str], is_match: Callable[[str, str], bool] = exact_match
) -> int | None:
    """The place of the first candidate that matches, from 1, or None: EM@k is 1 from that k on."""
    return next((place for place, candidate in enumerate(candidates, start=1) if is_match(reference, candidate)), None)


def parses_score(code: str) -> float:
    """1.0 where the code parses and is not empty, else 0.0. Never raises."""
    return float(is_valid_python(code))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Pass@k of one problem: `n` samples were drawn and `c` of them are right. In [0, 1].

    Raises PromptOrTuneError where it is undefined: k below 1 or above n, or c not between 0 and n.
    """
    if not 1 <= k <= n:
        raise PromptOrTuneError(f"Pass@{k} is undefined for {n} samples: choose k from 1 to the number of samples.")
    if not 0 <= c <= n:
        raise PromptOrTuneError(f"Pass@{k} is undefined for {c} right samples of {n}: count each sample once.")
    # The product form of C(n - c, k) / C(n, k): its factors lie in [0, 1], so nothing over- or underflows to nonsense.
    wrong = 1.0
    for drawn in range(k):
        wrong *= max(n - c - drawn, 0) / (n - drawn)
    return 1.0 - wrong


def test_pass_rate(samples: Sequence[Sequence[bool]]) -> float:
    """The mean over `samples` of the share of tests passed; each sample is whether each test passed. In [0, 1].

    Raises PromptOrTuneError where it is undefined: without samples, without tests, or where samples had different tests.
    """
    counts = {len(sample) for sample in samples}
    if not samples or counts == {0}:
        raise PromptOrTuneError(
            "The share of tests passed is undefined without samples and tests: leave the problem out."
        )
    if len(counts) > 1:
        raise PromptOrTuneError("The share of tests passed is undefined where samples had different numbers of tests.")
    return sum(sum(sample) / len(sample) for sample in samples) / len(samples)
