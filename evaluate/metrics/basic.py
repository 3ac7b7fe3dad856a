"""Exact match, parse rate, Pass@k and the share of tests passed.

- EM@k is 1 if the reference is among the first k candidates, both stripped of white space at their ends
  (arXiv 2308.10462, section 4; the paper uses k from 1 to 10). Equality of syntax trees has a name of its own
  (`em_tree`): it ignores quotes, blanks and redundant brackets, and is never mixed with the first.
- `parses` is 1 if `ast.parse` of the running Python accepts the stripped answer and it has at least one statement, else
  0; the parse rate is the mean over problems. An empty answer, or one of comments only, scores 0. Source: the grammar
  of the Python Language Reference, section 10, as implemented by CPython; the version is stored with the scores,
  because grammars differ between versions.
- A sample is correct if it passes all tests of its problem. Pass@k of a problem with n samples, c of them correct, is
  1 - C(n - c, k) / C(n, k): the probability that k samples drawn from the n without replacement contain a correct one
  (unbiased; Chen et al., arXiv 2107.03374, section 2.1). It is defined for samples (or one greedy answer), not for
  beams, and for k up to n. A data set's Pass@k is the mean over its problems.
- `tests` of a problem is the mean over its samples of the share of its tests that the sample passes; a data set's is
  the mean over its problems. (arXiv 2308.10462 does not define its metric for several samples per problem.)
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence

from errors import PromptOrTuneError
from tasks.extract import is_valid_python, syntax_tree


def add_in_order(values: Iterable[float]) -> float:
    """Return the sum of floats, added from left to right; from Python 3.12 on, `sum` rounds in another way."""
    total = 0.0
    for value in values:
        total += value
    return total


def exact_match(reference: str, candidate: str) -> bool:
    """Return whether both are equal after stripping white space at both ends."""
    return reference.strip() == candidate.strip()


def syntax_tree_match(reference: str, candidate: str) -> bool:
    """Return whether both parse, are not empty, and have equal syntax trees. Never raises."""
    left, right = syntax_tree(reference), syntax_tree(candidate)
    if left is None or right is None or not left.body:
        return False
    try:
        return ast.dump(left) == ast.dump(right)
    except (RecursionError, ValueError):  # a chain of operators too long for ast.dump, a number too long for repr
        return False


def exact_match_at_k(
    reference: str,
    candidates: Sequence[str],
    k: int,
    num_candidates: int | None = None,
    is_match: Callable[[str, str], bool] = exact_match,
) -> bool:
    """Return EM@k: whether the reference is among the first k candidates.

    `num_candidates` is the number of candidates requested from the model (default: the number given). Candidates with
    the same code were merged, so the list may be shorter. `is_match` is `syntax_tree_match` for `em_tree`. Raises
    PromptOrTuneError for k below 1 or above `num_candidates`.
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
    rank = first_match_rank(reference, candidates, is_match)
    return rank is not None and rank <= k


def first_match_rank(
    reference: str, candidates: Sequence[str], is_match: Callable[[str, str], bool] = exact_match
) -> int | None:
    """Return the rank (from 1) of the first candidate that matches, or None: EM@k is 1 for k from that rank on."""
    return next((rank for rank, candidate in enumerate(candidates, start=1) if is_match(reference, candidate)), None)


def parses_score(code: str) -> float:
    """Return 1.0 if the code parses and is not empty, else 0.0. Never raises."""
    return float(is_valid_python(code))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Compute Pass@k of one problem, in [0, 1], from `n` samples of which `c` are correct.

    Raises PromptOrTuneError for k below 1 or above n, or c not between 0 and n.
    """
    if not 1 <= k <= n:
        raise PromptOrTuneError(f"Pass@{k} is undefined for {n} samples: choose k from 1 to the number of samples.")
    if not 0 <= c <= n:
        raise PromptOrTuneError(f"Pass@{k} is undefined for {c} correct samples of {n}: count each sample once.")
    # The product form of C(n - c, k) / C(n, k): its factors are in [0, 1], so it does not overflow.
    wrong = 1.0
    for drawn in range(k):
        wrong *= max(n - c - drawn, 0) / (n - drawn)
    return 1.0 - wrong


def test_pass_rate(samples: Sequence[Sequence[bool]]) -> float:
    """Compute the mean over `samples` of the share of tests passed, in [0, 1].

    Each sample is a list that says of each test whether it passed. Raises PromptOrTuneError without samples or tests,
    or for samples with different numbers of tests.
    """
    counts = {len(sample) for sample in samples}
    if not samples or counts == {0}:
        raise PromptOrTuneError(
            "The share of tests passed is undefined without samples and tests: leave the problem out."
        )
    if len(counts) > 1:
        raise PromptOrTuneError("The share of tests passed is undefined where samples had different numbers of tests.")
    return add_in_order(sum(sample) / len(sample) for sample in samples) / len(samples)
