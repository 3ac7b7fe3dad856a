"""Ratings from votes: Bradley and Terry's model (Biometrika 39, 1952), fitted by evalica, with bootstrap intervals.

The model says that A beats B with probability a / (a + b). Ratings are 1000 + 400 log10(strength), strengths having a
geometric mean of 1: the methods' mean is 1000, and one that is 400 points ahead wins ten times as often as it loses.

A tie counts as half a win for each side, and so does 'both bad', as Chatbot Arena does (Chiang et al., ICML 2024): it
does not tell the two apart either. How often a method was in a 'both bad' is shown beside its rating.

Where a method has won or lost everything the likelihood has no maximum. So every method gets half a vote of tie in
advance, spread evenly over the pairs that have met; between two methods this is the half that Haldane and Anscombe add
to both counts of an odds ratio (Biometrika 43, 1956), and their distance is 400 log10((wins + 1/2) / (losses + 1/2)).

Intervals are percentile bootstrap over people and then over each drawn person's votes (Davison and Hinkley, 1997, 3.8):
who votes often is of one mind, so their votes are no independent ones. Of one person only the votes are drawn. The
votes given in advance are drawn along, and weigh at random (gamma, as in Rubin's Bayesian bootstrap, Annals of
Statistics 9, 1981): else they would hide that after few votes a method could be far better or worse than it looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from evaluate.arena.fit import fit_with_intervals, strengths
from evaluate.arena.tallies import MIN_EACH, MIN_VOTES, Bout, Tally, rated_players, tallies
from evaluate.arena.vote import Pair, Player
from evaluate.stats import Interval

RESAMPLES = 1000


@dataclass(frozen=True)
class Standing:
    """A method's rating with its interval, and the places it may have by the intervals; None where nothing is said.

    `tally` counts all its votes, those against methods without a rating too.
    """

    player: Player
    tally: Tally
    rating: Interval | None = None
    places: tuple[int, int] | None = None


@dataclass(frozen=True)
class Ratings:
    """All methods, best first, those without a rating last. `matrix` has each pair that met, from both sides.

    `reason` says in one sentence why nobody has a rating, `apart` why some have none; '' where that is not so.
    """

    standings: tuple[Standing, ...] = ()
    matrix: Mapping[Pair, Tally] = field(default_factory=dict)
    votes: int = 0
    people: int = 0
    reason: str = ""
    apart: str = ""

    def of(self, player: Player) -> Standing | None:
        return next((standing for standing in self.standings if standing.player == player), None)


def rate(bouts: Sequence[Bout], seed: int = 0, resamples: int = RESAMPLES) -> Ratings:
    """The ratings of all methods in these votes, the same for the same votes and seed.

    Rated is the largest group of methods that have met each other directly or through others, each with MIN_EACH votes
    in the group and MIN_VOTES in all: between groups that never met nothing can be said.
    """
    matrix = tallies(bouts)
    totals: dict[Player, Tally] = {}
    for (player, _), tally in matrix.items():
        totals[player] = totals.get(player, Tally()).plus(tally)
    rated = rated_players(matrix)
    chosen = [bout for bout in bouts if bout.left in rated and bout.right in rated]
    found = fit_with_intervals(chosen, sorted(rated), seed, resamples) if rated else {}
    places = _places(found)
    standings = [Standing(player, tally, found.get(player), places.get(player)) for player, tally in totals.items()]
    standings.sort(key=lambda each: (-each.rating.value if each.rating else 0.0, -each.tally.votes, each.player))
    people = len({bout.person for bout in bouts})
    return Ratings(
        tuple(standings), matrix, len(bouts), people, "" if rated else _reason(len(bouts)), _apart(rated, totals)
    )


def points(bouts: Sequence[Bout]) -> dict[Player, float]:
    """The ratings alone, without intervals: quick enough to ask before and after each vote. Empty where none are."""
    rated = rated_players(tallies(bouts))
    chosen = [bout for bout in bouts if bout.left in rated and bout.right in rated]
    return strengths(chosen, sorted(rated)) if rated else {}


def _places(found: Mapping[Player, Interval]) -> dict[Player, tuple[int, int]]:
    """The best and the worst place that each may have: only intervals that do not touch tell two apart."""
    above = Counter[Player]()
    below = Counter[Player]()
    for one, other in combinations(found, 2):
        for high, low in ((one, other), (other, one)):
            if found[high].low > found[low].high:
                above[low] += 1
                below[high] += 1
    return {player: (1 + above[player], len(found) - below[player]) for player in found}


def _reason(votes: int) -> str:
    return (
        f"Too few votes to say who is ahead: a rating needs {MIN_VOTES}, and at least {MIN_EACH} for each method "
        f"against the others. There {'is' if votes == 1 else 'are'} {votes or 'none'}."
    )


def _apart(rated: Collection[Player], totals: Mapping[Player, Tally]) -> str:
    lonely = [player for player, tally in totals.items() if player not in rated and tally.votes >= MIN_EACH]
    if not rated or not lonely:
        return ""
    who = f"{len(lonely)} method{'s have' if len(lonely) > 1 else ' has'}"
    return f"{who} votes enough, but too few against the rated ones: no place can be given beside these."
