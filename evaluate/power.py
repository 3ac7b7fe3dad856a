"""Power: which difference between two methods a number of problems can show, and how many problems one needs.

Two methods answer the same n problems, and each answer is right or wrong. A win is a problem that only the first one
solves. All figures assume that it loses none, so they are what n can show at best; with losses it takes more. The test
is the exact sign test, which McNemar's and the sign-flip test of evaluate/stats.py are for such scores; with several
comparisons in one table Holm's method divides the level by their number.
"""

from __future__ import annotations

import math

SIGNIFICANCE_LEVEL = 0.05
POWER = 0.8
_MAX_PROBLEMS = 1_000_000


def smallest_significant_wins(comparisons: int = 1, level: float = SIGNIFICANCE_LEVEL) -> int:
    """Return the smallest number of wins, without a loss, whose two-sided p is at most `level` / `comparisons`."""
    return math.ceil(1 - math.log2(level / comparisons))


def detectable_difference(
    n: int, comparisons: int = 1, power: float = POWER, level: float = SIGNIFICANCE_LEVEL
) -> float | None:
    """Return the smallest difference, a share of problems in (0, 1], that n problems show with probability `power`.

    None if even n wins out of n are not significant.
    """
    from scipy.optimize import brentq
    from scipy.stats import binom

    wins = smallest_significant_wins(comparisons, level)
    if n < wins:
        return None
    if n == wins:
        return float(power ** (1 / n))
    return float(brentq(lambda share: binom.sf(wins - 1, n, share) - power, 0.0, 1.0))


def needed_problems(
    difference: float, comparisons: int = 1, power: float = POWER, level: float = SIGNIFICANCE_LEVEL
) -> int:
    """Return the smallest n whose `detectable_difference` is at most `difference`, a share in (0, 1].

    Raises ValueError for a difference outside of this range.
    """
    if not 0 < difference <= 1:
        raise ValueError("difference must be above 0 and at most 1")
    from scipy.stats import binom

    wins = smallest_significant_wins(comparisons, level)
    low, high = wins, wins
    while binom.sf(wins - 1, high, difference) < power and high < _MAX_PROBLEMS:
        low, high = high, 2 * high
    while low < high:  # the power grows with n
        middle = (low + high) // 2
        if binom.sf(wins - 1, middle, difference) < power:
            low = middle + 1
        else:
            high = middle
    return low


def power_text(n: int, comparisons: int = 1) -> str:
    """Return in a sentence what n problems can show in a table with so many comparisons."""
    wins, difference = smallest_significant_wins(comparisons), detectable_difference(n, comparisons)
    if difference is None:
        return f"{n} rows can show no difference: even {n} wins without a loss may be chance. It takes {wins} wins."
    return (
        f"{n} rows can show no difference below {wins} wins ({100 * wins / n:.0f} points); a true difference of "
        f"{100 * difference:.0f} points is shown in four of five repeats, if nothing is lost."
    )
