"""Encoding of values that a child process sends to the host."""

from __future__ import annotations

import collections
import enum
import json
import math
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.test_runner.child import ValueTooLargeError, ValueWriter
from evaluate.test_runner.result import format_value
from evaluate.test_runner.values import InvalidValueError, OpaqueValue, SubclassValue, decode_value, parse_json_line

HASHABLE: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False),
    st.text(),
    st.text(st.characters(categories=["Cs"])),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.fractions(),
)
HASHABLE = st.recursive(
    HASHABLE, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3)
)
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "int",
                    "str",
                    "set",
                    "dict",
                    "fraction",
                    "decimal",
                    "complex",
                    "bytes",
                    "tuple",
                    "float",
                    "no",
                    "other",
                ]
            ),
            inner,
            max_size=2,
        )
    ),
)


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.IntEnum):
    RED = 1


class FakeInt(int):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __add__(self, other: object) -> Any:
        return self

    def __repr__(self) -> str:
        return "4"

    __class__ = int  # type: ignore[assignment]


def sent(value: Any) -> Any:
    """Return `value` after encoding in the child and decoding on the host."""
    return decode_value(parse_json_line(ValueWriter().write(value)))


def same(left: Any, right: Any) -> bool:
    """Return whether both values are equal, with equal types at every level."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@given(VALUES)
def test_plain_values_are_decoded_unchanged(value: Any) -> None:
    assert same(sent(value), value)


def test_extreme_numbers_are_decoded_unchanged() -> None:
    assert math.isnan(sent(math.nan))
    assert sent([math.inf, -math.inf, 10**15, -(10**15), Decimal("1.50")]) == [
        math.inf,
        -math.inf,
        10**15,
        -(10**15),
        Decimal("1.5"),
    ]
    assert math.copysign(1, sent(-0.0)) == -1
    assert sent(7 ** (10**4)) == 7 ** (10**4)
    assert format_value(sent(7 ** (10**4))) == "an integer of 28074 bits"


@pytest.mark.parametrize(
    "value",
    [
        collections.Counter("aab"),
        collections.Counter(a=0),
        collections.OrderedDict(b=1, a=2),
        collections.deque([1, 2]),
        collections.UserList([1]),
        collections.UserDict(a=1),
        collections.UserString("a"),
        {"a": 1}.keys(),
        {"a": 1}.items(),
        bytearray(b"ab"),
        range(1, 9, 2),
        np.int64(3),
        np.float64(0.5),
        np.float32(0.1),
        np.bool_(True),
        np.complex64(1j),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_the_library_are_restored(value: Any) -> None:
    assert same(sent(value), value)


@pytest.mark.parametrize("value", [np.zeros((2, 3)), np.array([1, 2]), np.array(3), np.array([], dtype=bool)])
def test_arrays_of_numbers_are_restored(value: Any) -> None:
    arrived = sent(value)
    assert arrived.dtype == value.dtype
    assert arrived.shape == value.shape
    assert (arrived == value).all()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Point(1, 2), (1, 2)),
        (Colour.RED, 1),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (FakeInt(3), 3),
        (np.str_("a"), "a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_is_sent_with_the_data_of_its_base(value: Any, plain: Any) -> None:
    arrived = sent(value)
    assert arrived == plain
    assert isinstance(arrived, type(plain))
    assert isinstance(arrived, SubclassValue)
    assert arrived.type_name == type(value).__name__


def test_other_objects_are_sent_as_type_names_and_equal_nothing() -> None:
    arrived = sent([object(), np.array(["a"]), iter([]), int])
    assert [each.type_name for each in arrived] == ["object", "ndarray", "list_iterator", "type"]
    assert arrived[0] != arrived[0]
    assert format_value(arrived[2]) == "an object of type list_iterator"
    assert sent({1: object()}) != {1: OpaqueValue("object")}


def test_too_large_values_raise_in_the_child() -> None:
    endless: list[Any] = []
    endless.append(endless)
    shared: Any = []
    for _ in range(50):
        shared = [shared, shared]
    for value, expected in (
        (endless, "nested more than 60 deep"),
        (shared, "characters"),
        ("x" * 200_001, "characters"),
    ):
        with pytest.raises(ValueTooLargeError, match=expected):
            ValueWriter().write(value)


@given(JSON)
def test_any_json_is_decoded_or_raises(encoded: Any) -> None:
    try:
        value = decode_value(encoded)
    except InvalidValueError:
        return
    assert isinstance(format_value(value), str)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[" * 100_000,
        '"' + "x" * 500_000 + '"',
        json.dumps({"set": [[1]]}),
        json.dumps({"dict": [[{"dict": []}, 1]]}),
        json.dumps({"int": "9" * 10}),
        json.dumps({"int": "0xg"}),
        json.dumps({"fraction": ["0x1", "0x0"]}),
        json.dumps({"decimal": "1E999999999"}),
        json.dumps({"complex": ["1", "x"]}),
        json.dumps({"bytes": "0"}),
        json.dumps({"float": "1.5"}),
        json.dumps({"set": [1], "int": "0x1"}),
        json.dumps({"__class__": [1]}),
        "[" * 70 + "]" * 70,
    ],
    ids=lambda line: line[:20],
)
def test_invalid_value_raises(line: str) -> None:
    with pytest.raises(InvalidValueError):
        decode_value(parse_json_line(line))
