"""The ratings as HTML: dots with intervals, a table, and who won how often against whom. All texts are escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from evaluate.arena.ratings import Rating, RatingTable
from evaluate.arena.report import player_labels, rank_text, vote_count_text
from evaluate.arena.vote import Base, Player
from evaluate.stats import Interval
from ui.labels import method_label, model_label

_AXIS_STEP = 100  # points between the ends of an axis are a multiple of this
RATING_NOTE = (
    "1000 is the mean of all rated methods; 400 points more win ten times as often as they lose. A tie, and both bad, "
    "count as half a win for each. The line is the 95 % interval: where two overlap, the votes do not tell them apart."
)
NO_VOTES = "No votes yet. A rating appears here once there are enough of them to say something."


def ratings_html(base: Base | None, ratings: RatingTable) -> str:
    """The section under the duel."""
    if base is None or not ratings.votes:
        return f'<p class="empty">{NO_VOTES}</p>'
    names = {player: _player_label(name) for player, name in _player_labels(ratings).items()}
    rated = [standing for standing in ratings.ratings if standing.interval]
    about = f"{vote_count_text(ratings.votes, ratings.people)} · {model_label(base.id, base.quantization, '')}".rstrip(
        " ·"
    )
    notes = "".join(
        f'<p class="few">{escape(note)}</p>' for note in (ratings.no_ratings_reason, ratings.unrated_reason) if note
    )
    how = f'<p class="quiet">{escape(RATING_NOTE)}</p>' if rated else ""
    plot = _interval_plot(rated, names) if rated else ""
    return (
        f'<p class="about">{escape(about)}</p>{notes}'
        f'<div class="arena-sheets">{plot}{_votes_table(ratings.ratings, names)}{_win_matrix(ratings, names)}</div>{how}'
    )


def _player_labels(ratings: RatingTable) -> dict[Player, str]:
    return player_labels([standing.player for standing in ratings.ratings])


def _player_label(name: str) -> str:
    # The piece of a digest that tells two adapters of one name apart is no part of the method's own name.
    method, space, rest = name.partition(" (")
    return f"{method_label(method)}{space}{rest}"


def _interval_plot(rated: Sequence[Rating], names: Mapping[Player, str]) -> str:
    intervals = [standing.interval for standing in rated if standing.interval]
    low = _AXIS_STEP * math.floor(min(interval.low for interval in intervals) / _AXIS_STEP)
    high = _AXIS_STEP * math.ceil(max(interval.high for interval in intervals) / _AXIS_STEP)
    lines = "".join(
        _interval_row(names[standing.player], interval, low, high)
        for standing, interval in zip(rated, intervals, strict=True)
    )
    ends = f'<div class="axis" aria-hidden="true"><span>{low}</span><span>{high}</span></div>'
    return (
        '<figure class="plot"><figcaption>Rating with its 95 % interval</figcaption>'
        f'<ul class="bars">{lines}</ul>{ends}</figure>'
    )


def _interval_row(name: str, interval: Interval, low: float, high: float) -> str:
    def place(value: float) -> float:
        return (value - low) / max(high - low, 1)

    label = escape(name)
    width = max(place(interval.high) - place(interval.low), 0.002)
    figures = f"{interval.value:.0f} <span>[{interval.low:.0f}, {interval.high:.0f}]</span>"
    return (
        f'<li><span class="name" title="{label}">{label}</span><span class="track" aria-hidden="true">'
        f'<span class="range" style="left:{place(interval.low):.2%};width:{width:.2%}"></span>'
        f'<span class="dot" style="left:{place(interval.value):.2%}"></span></span>'
        f'<span class="value">{figures}</span></li>'
    )


def _votes_table(standings: Sequence[Rating], names: Mapping[Player, str]) -> str:
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Method", "Rating", "Place", "Votes", "Won", "Lost", "Tie", "Both bad")
    )
    rows = "".join(_votes_row(standing, names[standing.player]) for standing in standings)
    return (
        '<figure class="plot"><figcaption>All votes</figcaption><div class="sheet" tabindex="0" role="group" '
        f'aria-label="Votes by method"><table class="grid"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></figure>"
    )


def _votes_row(standing: Rating, name: str) -> str:
    tally = standing.win_counts
    counts = (tally.votes, tally.wins, tally.losses, tally.ties, tally.both_bad)
    cells = "".join(f"<td>{count}</td>" for count in counts)
    rating = f"{standing.interval.value:.0f}" if standing.interval else '<span class="few">too few votes to say</span>'
    return f'<tr><th scope="row">{escape(name)}</th><td>{rating}</td><td>{rank_text(standing)}</td>{cells}</tr>'


def _win_matrix(ratings: RatingTable, names: Mapping[Player, str]) -> str:
    """Each row's share of wins against each column."""
    players = [standing.player for standing in ratings.ratings]
    head = "".join(f'<th scope="col">{escape(names[player])}</th>' for player in players)
    rows = "".join(
        f'<tr><th scope="row">{escape(names[one])}</th>{"".join(_matrix_cell(ratings, one, other) for other in players)}</tr>'
        for one in players
    )
    return (
        '<figure class="plot wide"><figcaption>How often the row beats the column, ties as half</figcaption>'
        '<div class="sheet" tabindex="0" role="group" aria-label="Win matrix"><table class="grid matrix">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div></figure>"
    )


def _matrix_cell(ratings: RatingTable, one: Player, other: Player) -> str:
    tally = ratings.pair_counts.get((one, other))
    if tally is None or tally.win_rate is None:
        return '<td class="none">–</td>'
    votes = f"{tally.votes} vote{'' if tally.votes == 1 else 's'}"
    return f'<td style="--share:{tally.win_rate:.0%}">{tally.win_rate:.0%}<span>{votes}</span></td>'
