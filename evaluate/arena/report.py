"""The ratings as text, and the words that the page uses too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evaluate.arena.ratings import Rating, RatingTable
from evaluate.arena.vote import Base, Player

_HEADER = ("method", "rating", "95 % interval", "place", "votes", "won", "lost", "tie", "both bad")


def player_labels(players: Sequence[Player]) -> dict[Player, str]:
    """What to call each: the method, and a piece of the adapter's digest where two adapters share a name."""
    often = Counter(player.method for player in players)
    return {
        player: player.method
        if often[player.method] == 1
        else f"{player.method} ({player.digest.rpartition(':')[2][:6] or 'no adapter'})"
        for player in players
    }


def rank_text(rating: Rating) -> str:
    """'1', '1 to 3', '' without a rating."""
    if rating.rank_range is None:
        return ""
    best, worst = rating.rank_range
    return str(best) if best == worst else f"{best} to {worst}"


def base_text(base: Base) -> str:
    """'SmolLM2-135M-Instruct (sha256:0123…), nf4'."""
    return f"{base.id} ({base.revision}), {base.quantization}"


def vote_count_text(votes: int, people: int) -> str:
    """'12 votes of 3 people', '1 vote of one person'."""
    who = "one person" if people == 1 else f"{people} people"
    return f"{votes} vote{'' if votes == 1 else 's'} of {who}"


def ratings_text(base: Base, ratings: RatingTable) -> str:
    """The ratings of one base as a table of text."""
    lines = [base_text(base), vote_count_text(ratings.votes, ratings.people)]
    names = player_labels([standing.player for standing in ratings.ratings])
    rows = [_HEADER, *(_rating_row(standing, names[standing.player]) for standing in ratings.ratings)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEADER))]
    for row in rows:
        cells = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    lines += [sentence for sentence in (ratings.no_ratings_reason, ratings.unrated_reason) if sentence]
    return "\n".join(lines) + "\n"


def _rating_row(entry: Rating, name: str) -> tuple[str, ...]:
    rating, tally = entry.interval, entry.win_counts
    value, interval = (f"{rating.value:.0f}", f"{rating.low:.0f} to {rating.high:.0f}") if rating else ("", "")
    counts = (tally.votes, tally.wins, tally.losses, tally.ties, tally.both_bad)
    return (name, value, interval, rank_text(entry), *(str(count) for count in counts))
