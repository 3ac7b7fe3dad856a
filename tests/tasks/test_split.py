"""Splits of rows: rows that belong together stay on one side; a note names those that do not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedder import Embedder
from tasks.datasets import split as split_module
from tasks.datasets.split import find_near_twins, normalize_intent, split_rows
from tasks.problem import Example


def rows(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(f"row-{n}", intent, code) for n, (intent, code) in enumerate(pairs)]


DIFFERENT = rows(*((f"intent {n}", f"code_{n}()") for n in range(100)))


def test_shares_are_met_and_no_row_is_lost() -> None:
    split = split_rows(DIFFERENT, 0.1, 0.2, seed=1)
    assert [len(side) for side in (split.train, split.validation, split.test)] == [70, 10, 20]
    assert sorted(split.train + split.validation + split.test) == list(range(100))
    assert split == split_rows(DIFFERENT, 0.1, 0.2, seed=1)
    assert split != split_rows(DIFFERENT, 0.1, 0.2, seed=2)
    assert split.note == ""


@settings(max_examples=100, derandomize=True)
@given(st.integers(3, 60), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_rows_of_one_intent_code_or_group_stay_on_one_side(
    count: int, intents: int, codes: int, groups: int, seed: int
) -> None:
    draw = random.Random(seed)
    examples = rows(*((f"intent {draw.randrange(intents)}", f"c{draw.randrange(codes)}") for _ in range(count)))
    group = [draw.choice([None, draw.randrange(groups)]) for _ in examples]
    split = split_rows(examples, 0.2, 0.2, seed, group)
    sides = {index: side for side, name in enumerate(("train", "validation", "test")) for index in getattr(split, name)}
    assert len(sides) == count
    assert split.train
    for first in range(count):
        for second in range(first):
            same_intent = normalize_intent(examples[first].intent) == normalize_intent(examples[second].intent)
            same_group = group[first] is not None and group[first] == group[second]
            same_code = examples[first].code == examples[second].code and not split.note
            if same_intent or same_group or same_code:
                assert sides[first] == sides[second]


def vectors(angles: Sequence[float]) -> Any:
    """Return an embedder of rows whose vectors have these angles."""
    made = np.array([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)
    return lambda texts: made


def test_near_twins_have_near_intents_and_shared_tokens() -> None:
    examples = rows(
        ("a", "kit.where(orders, 'amount', over=25)"),
        ("b", "kit.where(orders, 'amount', over=26)"),
        ("c", "kit.where(orders, 'amount', over=27)"),
        ("d", "print()"),
    )
    assert find_near_twins(examples, vectors([0.0, 0.1, 1.0, 0.1])) == [(0, 1)]


def test_near_twins_stay_on_one_side() -> None:
    pairs = [(f"sort list {n}, {word}", f"sorted(list_{n}, key=len, reverse=True)") for n in range(40) for word in "ab"]
    examples = rows(*pairs)
    split = split_rows(examples, 0.1, 0.2, 1, embed=lambda texts: np.eye(40, dtype=np.float32).repeat(2, axis=0))
    assert split.twins[:2] == [(0, 1), (2, 3)]
    held_out = set(split.test) | set(split.validation)
    assert all((first in held_out) == (second in held_out) for first, second in split.twins)
    assert split.note == ""


def test_rows_of_one_template_are_split_with_a_note() -> None:
    examples = rows(*((f"add {n} to x", f"x + {n}") for n in range(50)))
    split = split_rows(examples, 0.1, 0.2, 1, embed=lambda texts: np.ones((len(texts), 1), dtype=np.float32))
    assert split.note == ""  # the codes share two of four tokens
    longer = rows(*((f"add {n} to x", f"total(x, start=0, step=1, scale=2) + {n}") for n in range(50)))
    split = split_rows(longer, 0.1, 0.2, 1, embed=lambda texts: np.ones((len(texts), 1), dtype=np.float32))
    assert "near-twins" in split.note
    assert len(split.test) == 10
    same = rows(*((f"is {n} even?", "True") for n in range(50)))
    split = split_rows(same, 0.1, 0.2, 1)
    assert "codes of training rows" in split.note
    assert len(split.validation) == 5


def test_too_many_near_intents_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_module, "MAX_NEAR_INTENTS", 1_000)
    split = split_rows(DIFFERENT, 0.1, 0.2, 1, embed=lambda texts: np.ones((len(texts), 1), dtype=np.float32))
    assert split.twins == []
    assert split.note == "near-twins are not kept apart, as too many intents are near each other"
    monkeypatch.setattr(split_module, "MAX_COMPARED_ROWS", 99)
    assert find_near_twins(DIFFERENT, vectors([])) is None


@pytest.mark.slow
def test_real_embeddings_find_a_reworded_row() -> None:
    examples = rows(
        ("keep the orders with an amount over 25", "kit.where(orders, 'amount', over=25)"),
        ("keep the orders whose amount is over 30", "kit.where(orders, 'amount', over=30)"),
        ("parse a date from the text `s`", "kit.date(s)"),
    )
    assert find_near_twins(examples, Embedder().embed) == [(0, 1)]
