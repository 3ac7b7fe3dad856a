"""What votes come to for each pair, and whose are enough to be rated together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evaluate.arena.vote import Pair, Player, Winner

MIN_VOTES = 10  # among the methods that are rated
MIN_VOTES_IN_GROUP = 3  # of a method, with others that have as many


@dataclass(frozen=True)
class Comparison:
    """A vote as ratings need it: who stood where, what was chosen, and who chose."""

    left: Player
    right: Player
    winner: Winner
    person: str


@dataclass(frozen=True)
class WinCounts:
    """Votes from the view of one side: its wins and losses, ties, and 'both bad', which also counts as a tie."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    both_bad: int = 0

    @property
    def votes(self) -> int:
        return self.wins + self.losses + self.ties + self.both_bad

    @property
    def win_rate(self) -> float | None:
        """Of the votes those won, ties as half; None without votes."""
        return (self.wins + (self.ties + self.both_bad) / 2) / self.votes if self.votes else None

    def add(self, other: WinCounts) -> WinCounts:
        return WinCounts(
            self.wins + other.wins, self.losses + other.losses, self.ties + other.ties, self.both_bad + other.both_bad
        )


def count_wins(comparisons: Sequence[Comparison]) -> dict[Pair, WinCounts]:
    """For each pair that met, in both orders: what the first of the two had against the second."""
    counted = Counter((bout.left, bout.right, bout.winner) for bout in comparisons)
    found: dict[Pair, WinCounts] = {}
    for (left, right, winner), number in counted.items():
        for one, other, won in ((left, right, "left"), (right, left, "right")):
            tally = {
                won: WinCounts(wins=number), "tie": WinCounts(ties=number), "both bad": WinCounts(both_bad=number),
            }.get(winner, WinCounts(losses=number))  # fmt: skip
            found[one, other] = found.get((one, other), WinCounts()).add(tally)
    return found


def rated_players(pair_counts: Mapping[Pair, WinCounts]) -> frozenset[Player]:
    """The largest group whose members have MIN_VOTES_IN_GROUP votes among themselves and MIN_VOTES in all; empty without one."""
    alive = {player for player, _ in pair_counts}
    while True:
        votes = Counter[Player]()
        for (player, other), tally in pair_counts.items():
            votes[player] += tally.votes if player in alive and other in alive else 0
        few = {player for player in alive if votes[player] < MIN_VOTES_IN_GROUP}
        if not few:
            break
        alive -= few
    groups = [
        group
        for group in _connected_groups(alive, pair_counts)
        if sum(votes[player] for player in group) >= 2 * MIN_VOTES
    ]
    return max(groups, key=lambda group: (sum(votes[player] for player in group), sorted(group)), default=frozenset())


def _connected_groups(
    players: Collection[Player], pair_counts: Mapping[Pair, WinCounts]
) -> Iterator[frozenset[Player]]:
    """The players in groups of those who met, directly or through others."""
    left = set(players)
    while left:
        group, edge = set[Player](), {min(left)}
        while edge:
            group |= edge
            edge = {other for player, other in pair_counts if player in edge and other in left} - group
        left -= group
        yield frozenset(group)
