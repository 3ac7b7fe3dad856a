"""Learning curve: points with intervals, and what it says about more rows."""

from __future__ import annotations

from collections.abc import Mapping

from advise.result import FoldAnswers, learning_curve
from tests.advise.results import answers_of, right


def curve_of(quarter: int, half: int, whole: int) -> dict[str, object]:
    counts = {0.25: quarter, 0.5: half}

    def answer(_found: FoldAnswers, _family: str, share: float) -> Mapping[str, float]:
        return {f"row-{number}": float(number < counts[share]) for number in range(40)}

    return learning_curve([answers_of(right(adapter=whole))], "adapter", "adapter", "em@1", (0.25, 0.5), 42, answer)


def test_points_go_from_the_smallest_share_to_all_rows() -> None:
    curve = curve_of(4, 10, 24)
    assert [(point["rows"], point["value"]) for point in curve["points"]] == [(20, 0.1), (40, 0.25), (80, 0.6)]  # type: ignore[attr-defined]
    assert all(point["low"] < point["value"] < point["high"] for point in curve["points"])  # type: ignore[attr-defined]


def test_gain_of_the_last_doubling_gives_the_rows_for_ten_points_more() -> None:
    sentence = str(curve_of(4, 10, 24)["sentence"])
    assert sentence.startswith("More rows would probably help: from 40 to 80 rows adapter gained 35.0 points")
    assert "10 points more take about 98 rows" in sentence


def test_no_gain_is_not_called_one() -> None:
    assert str(curve_of(9, 10, 11)["sentence"]).startswith("No gain of more rows is shown")
    assert str(curve_of(12, 12, 10)["sentence"]).startswith("No gain of more rows is shown")


def test_scores_near_the_top_leave_no_room() -> None:
    assert str(curve_of(20, 30, 39)["sentence"]).startswith("More rows can hardly help")
