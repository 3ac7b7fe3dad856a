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
    kit.fill(TABLE, team="none")
    kit.order(TABLE, "-pay", "city").clear()
    kit.unique(TABLE, by="team").clear()
    kit.where(TABLE, "pay").clear()
    assert before == TABLE


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


@pytest.mark.parametrize("cents", [0, 1, 100, 101, 9_999])
@pytest.mark.parametrize("parts", [1, 3, 7])
def test_split_loses_no_cent(cents: int, parts: int) -> None:
    amounts = kit.split(cents, parts)
    assert sum(amounts) == cents
    assert len(amounts) == parts
    assert amounts == sorted(amounts, reverse=True)
    assert amounts[0] - amounts[-1] <= 1


def test_months_end_on_their_last_day() -> None:
    assert kit.shift("2023-01-31", months=1) == "2023-02-28"
    assert kit.shift("2024-03-31", months=-1) == "2024-02-29"
    assert kit.shift("2024-11-30", months=14, weeks=1, days=1) == "2026-02-07"
    assert kit.period("2024-12-30", "week") == "2025-W01"
    assert [kit.period(f"2024-{month:02d}-01", "quarter")[-2:] for month in (3, 4, 9, 10)] == ["Q1", "Q2", "Q3", "Q4"]
