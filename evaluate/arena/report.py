"""The ratings as text, and the words that the page uses too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evaluate.arena.ratings import Ratings, Standing
from evaluate.arena.vote import Base, Player

_HEADER = ("method", "rating", "95 % interval", "place", "votes", "won", "lost", "tie", "both bad")


def player_names(players: Sequence[Player]) -> dict[Player, str]:
    """What to call each: the method, and a piece of the adapter's digest where two adapters share a name."""
    often = Counter(player.method for player in players)
    return {
        player: player.method
        if often[player.method] == 1
        else f"{player.method} ({player.digest.rpartition(':')[2][:6] or 'no adapter'})"
        for player in players
    }


def place_text(standing: Standing) -> str:
    """'1', '1 to 3', '' without a rating."""
    if standing.places is None:
        return ""
    best, worst = standing.places
    return str(best) if best == worst else f"{best} to {worst}"


def base_text(base: Base) -> str:
    """'SmolLM2-135M-Instruct (sha256:0123…), nf4'."""
    return f"{base.id} ({base.revision}), {base.quantization}"


def counted(votes: int, people: int) -> str:
    """'12 votes of 3 people', '1 vote of one person'."""
    who = "one person" if people == 1 else f"{people} people"
    return f"{votes} vote{'' if votes == 1 else 's'} of {who}"


def text_report(base: Base, ratings: Ratings) -> str:
    """The ratings of one base as a table of text."""
    lines = [base_text(base), counted(ratings.votes, ratings.people)]
    names = player_names([standing.player for standing in ratings.standings])
    rows = [_HEADER, *(_row(standing, names[standing.player]) for standing in ratings.standings)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEADER))]
    for row in rows:
        cells = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    lines += [sentence for sentence in (ratings.reason, ratings.apart) if sentence]
    return "\n".join(lines) + "\n"


def _row(standing: Standing, name: str) -> tuple[str, ...]:
    rating, tally = standing.rating, standing.tally
    value, interval = (f"{rating.value:.0f}", f"{rating.low:.0f} to {rating.high:.0f}") if rating else ("", "")
    counts = (tally.votes, tally.wins, tally.losses, tally.ties, tally.both_bad)
    return (name, value, interval, place_text(standing), *(str(count) for count in counts))
