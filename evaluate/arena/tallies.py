"""What votes come to for each pair, and whose are enough to be rated together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evaluate.arena.vote import Pair, Player, Winner

MIN_VOTES = 10  # among the methods that are rated
MIN_EACH = 3  # of a method, with others that have as many


@dataclass(frozen=True)
class Bout:
    """A vote as ratings need it: who stood where, what was chosen, and who chose."""

    left: Player
    right: Player
    winner: Winner
    person: str


@dataclass(frozen=True)
class Tally:
    """Votes from the view of one side: its wins and losses, ties, and 'both bad', which also counts as a tie."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    both_bad: int = 0

    @property
    def votes(self) -> int:
        return self.wins + self.losses + self.ties + self.both_bad

    @property
    def share(self) -> float | None:
        """Of the votes those won, ties as half; None without votes."""
        return (self.wins + (self.ties + self.both_bad) / 2) / self.votes if self.votes else None

    def plus(self, other: Tally) -> Tally:
        return Tally(
            self.wins + other.wins, self.losses + other.losses, self.ties + other.ties, self.both_bad + other.both_bad
        )


def tallies(bouts: Sequence[Bout]) -> dict[Pair, Tally]:
    """For each pair that met, in both orders: what the first of the two had against the second."""
    counted = Counter((bout.left, bout.right, bout.winner) for bout in bouts)
    found: dict[Pair, Tally] = {}
    for (left, right, winner), number in counted.items():
        for one, other, won in ((left, right, "left"), (right, left, "right")):
            tally = {
                won: Tally(wins=number), "tie": Tally(ties=number), "both bad": Tally(both_bad=number),
            }.get(winner, Tally(losses=number))  # fmt: skip
            found[one, other] = found.get((one, other), Tally()).plus(tally)
    return found


def rated_players(matrix: Mapping[Pair, Tally]) -> frozenset[Player]:
    """The largest group whose members have MIN_EACH votes among themselves and MIN_VOTES in all; empty without one."""
    alive = {player for player, _ in matrix}
    while True:
        votes = Counter[Player]()
        for (player, other), tally in matrix.items():
            votes[player] += tally.votes if player in alive and other in alive else 0
        few = {player for player in alive if votes[player] < MIN_EACH}
        if not few:
            break
        alive -= few
    groups = [group for group in _groups(alive, matrix) if sum(votes[player] for player in group) >= 2 * MIN_VOTES]
    return max(groups, key=lambda group: (sum(votes[player] for player in group), sorted(group)), default=frozenset())


def _groups(players: Collection[Player], matrix: Mapping[Pair, Tally]) -> Iterator[frozenset[Player]]:
    """The players in groups of those who met, directly or through others."""
    left = set(players)
    while left:
        group, edge = set[Player](), {min(left)}
        while edge:
            group |= edge
            edge = {other for player, other in matrix if player in edge and other in left} - group
        left -= group
        yield frozenset(group)
