"""kit, the library of the data set house: the examples in its docstrings, and its conventions at their limits."""

from __future__ import annotations

import copy
import doctest
import inspect
from typing import Any

import pytest

from tasks.house import kit

TABLE: kit.Table = [
    {"id": 1, "team": "ops", "city": "Rome", "pay": 30},
    {"id": 2, "team": "dev", "city": "", "pay": 50},
    {"id": 3, "team": None, "city": "Oslo", "pay": 50},
    {"id": 4, "city": "rome", "pay": None},
    {"id": 5, "team": "ops", "city": "Oslo"},
]


def ids(rows: kit.Table) -> list[int]:
    return [row["id"] for row in rows]


def test_examples_of_the_docstrings_are_right() -> None:
    results = doctest.testmod(kit)
    assert results.failed == 0
    public = [value for name, value in vars(kit).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert results.attempted >= len(public)
    assert [function.__name__ for function in public if ">>>" not in (function.__doc__ or "")] == []


def test_nothing_that_is_passed_in_is_changed() -> None:
    before = copy.deepcopy(TABLE)
    other: kit.Table = [{"team": "ops", "lead": "Zoe"}]
    kit.fill(TABLE, team="none")
    kit.derive(TABLE, "pay", into="pay", using=lambda pay: pay + 1)
    kit.order(TABLE, "-pay", "city").clear()
    kit.running(TABLE, "pay", into="pay")
    kit.join(TABLE, other, on="team")
    kit.group(TABLE, by="team")["ops"].clear()
    assert before == TABLE
    assert other == [{"team": "ops", "lead": "Zoe"}]


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ({}, [1, 2, 3]),
        ({"over": 30}, [2, 3]),
        ({"least": 30}, [1, 2, 3]),
        ({"under": 50}, [1]),
        ({"most": 50}, [1, 2, 3]),
        ({"over": 30, "most": 49}, []),
        ({"equal": 50}, [2, 3]),
        ({"unequal": 50}, [1]),
        ({"among": [30, 31]}, [1]),
        ({"blank": True}, [4, 5]),
        ({"like": 3}, []),
    ],
)
def test_where_passes_over_blank_cells(tests: dict[str, Any], expected: list[int]) -> None:
    if "like" in tests:
        assert ids(kit.where(TABLE, "city", like="ROM")) == [1, 4]
        return
    assert ids(kit.where(TABLE, "pay", **tests)) == expected


def test_unknown_test_is_an_error() -> None:
    with pytest.raises(KeyError):
        kit.where(TABLE, "pay", above=3)


def test_order_has_blank_cells_last_and_ties_in_the_given_order() -> None:
    assert ids(kit.order(TABLE, "pay")) == [1, 2, 3, 4, 5]
    assert ids(kit.order(TABLE, "-pay")) == [2, 3, 1, 4, 5]
    assert ids(kit.order(TABLE, "city", "-pay")) == [3, 5, 1, 4, 2]
    assert ids(kit.order(TABLE)) == [1, 2, 3, 4, 5]


def test_top_takes_all_rows_that_tie_with_the_last() -> None:
    assert ids(kit.top(TABLE, 1, by="pay")) == [2, 3]
    assert ids(kit.top(TABLE, 9, by="pay")) == [2, 3, 1]
    assert kit.top(TABLE, 0, by="pay") == kit.top([], 2, by="pay") == []


def test_rows_with_a_blank_key_are_in_no_group() -> None:
    assert {key: ids(rows) for key, rows in kit.group(TABLE, by="team").items()} == {"ops": [1, 5], "dev": [2]}
    assert {key: ids(rows) for key, rows in kit.group(TABLE, by=["team", "city"]).items()} == {
        ("ops", "Rome"): [1],
        ("ops", "Oslo"): [5],
    }
    assert kit.tally(TABLE, by="city") == [
        {"city": "Oslo", "count": 2},
        {"city": "Rome", "count": 1},
        {"city": "rome", "count": 1},
    ]
    assert kit.total(TABLE, "pay", by="team") == [{"team": "ops", "pay": 30}, {"team": "dev", "pay": 50}]
    assert ids(kit.unique(TABLE, by="team", keep="last")) == [5, 2]


def test_averages_round_halves_away_from_zero() -> None:
    assert kit.average([{"n": 1}, {"n": 2}, {"n": 2}, {"n": 2}], "n", digits=1) == 1.8  # 1.75
    assert kit.average([{"n": 2}, {"n": 3}], "n", digits=0) == 3
    assert kit.average([{"n": -2}, {"n": -3}], "n", digits=0) == -3
    assert kit.average(TABLE, "pay", by="city") == [
        {"city": "Rome", "pay": 30.0},
        {"city": "Oslo", "pay": 50.0},
        {"city": "rome", "pay": None},
    ]


def test_shares_add_up_to_a_hundred() -> None:
    rows: kit.Table = [{"team": name, "n": n} for name, n in zip("abcdef", (1, 1, 1, 1, 1, 1), strict=True)]
    assert [row["share"] for row in kit.shares(rows, "n", by="team")] == [17, 17, 17, 17, 16, 16]
    assert kit.shares([{"team": "a", "n": 0}], "n", by="team") == [{"team": "a", "share": 0}]


def test_join_takes_the_first_match_and_keeps_the_cells_of_the_row() -> None:
    other: kit.Table = [
        {"key": "ops", "city": "Kiel", "lead": "Zoe"},
        {"key": "ops", "lead": "Yan"},
        {"key": None, "lead": "Xi"},
    ]
    joined = kit.join(TABLE, other, on=("team", "key"))
    assert [row["lead"] for row in joined] == ["Zoe", None, None, None, "Zoe"]
    assert [row["city"] for row in joined] == ["Rome", None, "Oslo", "rome", "Oslo"]
    assert ids(kit.join(TABLE, other, on=("team", "key"), keep="matched")) == [1, 5]
    assert ids(kit.unmatched(TABLE, other, on=("team", "key"))) == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two.."),
        ("one two three", 9, "one two.."),
        ("one two three", 8, "one.."),
        ("Donaudampfschiff", 6, "Dona.."),
    ],
)
def test_clip_cuts_at_the_end_of_a_word(text: str, width: int, expected: str) -> None:
    assert kit.clip(text, width) == expected
    assert len(expected) <= width


@pytest.mark.parametrize(
    ("text", "cents"),
    [("12", 1200), ("-0.05", -5), ("EUR 1,000.005", 100001), ("(12.50 EUR)", -1250), (None, 0), ("no price", 0)],
)
def test_amounts_are_read(text: str | None, cents: int) -> None:
    assert kit.cents(text) == cents


@pytest.mark.parametrize("cents", [0, 5, -5, 99_999, -123_456_789])
def test_amounts_are_read_as_they_are_written(cents: int) -> None:
    assert kit.cents(kit.money(cents)) == cents


@pytest.mark.parametrize("cents", [0, 1, 100, 101, 9_999])
@pytest.mark.parametrize("parts", [1, 3, 7, [1, 2], [5, 0, 3], [1, 1, 1, 1]])
def test_split_loses_no_cent(cents: int, parts: int | list[int]) -> None:
    amounts = kit.split(cents, parts)
    assert sum(amounts) == cents
    weights = [1] * parts if isinstance(parts, int) else parts
    assert all(abs(amount - cents * weight / sum(weights)) < 1 for amount, weight in zip(amounts, weights, strict=True))


def test_months_end_on_their_last_day() -> None:
    assert kit.shift("2023-01-31", months=1) == "2023-02-28"
    assert kit.shift("2024-03-31", months=-1) == "2024-02-29"
    assert kit.shift("2024-11-30", months=14, weeks=1, days=1) == "2026-02-07"
    assert kit.period("2024-12-30", "week") == "2025-W01"
    assert [kit.period(f"2024-{month:02d}-01", "quarter")[-2:] for month in (3, 4, 9, 10)] == ["Q1", "Q2", "Q3", "Q4"]


def test_ranges_of_days_include_both_ends() -> None:
    assert kit.days("2024-03-01", "2024-03-01") == ["2024-03-01"]
    assert kit.days("2024-03-02", "2024-03-01") == []
    assert kit.workdays("2024-03-02", "2024-03-03") == []


def test_gaps_are_inside_of_the_bounds() -> None:
    assert kit.gaps([(0, 10), (90, 120)], 5, 100) == [(10, 90)]
    assert kit.gaps([(200, 300)], 5, 100) == [(5, 100)]
    assert kit.gaps([(0, 300)], 5, 100) == kit.gaps([], 5, 5) == []
    assert kit.merge([(3, 3), (5, 1), (0, 2), (1, 2)]) == [(0, 2)]
