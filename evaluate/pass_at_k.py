"""Pass@k and the share of tests passed: what running the candidates says.

Definitions:

- A sample is right when it passes all tests of its problem. Pass@k of a problem with n samples, c of them right, is
  1 - C(n - c, k) / C(n, k): the chance that k samples drawn from the n without putting back hold a right one
  (unbiased; Chen et al., arXiv 2107.03374, section 2.1). It is defined for samples (or for one greedy answer), not for
  beams, and for k up to n. A data set's Pass@k is the mean over its problems.
- `tests` of a problem is the mean over its samples of the share of its tests that the sample passes; a data set's is
  the mean over its problems. (The metric that arXiv 2308.10462 used leaves several samples per problem undefined.)
"""

from __future__ import annotations

from collections.abc import Sequence

from errors import PromptOrTuneError


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
