"""Splitting of asserts into what the child evaluates and what the host evaluates."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.test_runner.asserts import BrokenTestError, is_constant, plan_assert
from evaluate.test_runner.host_functions import UnsupportedExprError
from evaluate.test_runner.interpreter import Interpreter
from tasks.datasets.registry import read_bundled
from tasks.problem import AssertTest
from tests import messages


@pytest.mark.parametrize(
    ("statement", "calls"),
    [
        ("assert f(1) == 4", ["f(1)"]),
        ("assert 4 == f(1)", ["f(1)"]),
        ("assert f(1) != [4, (5, 6)]", ["f(1)"]),
        ("assert f(g(2) + 1, key=lambda x: x == 2) == {4: None}", ["f(g(2) + 1, key=lambda x: x == 2)"]),
        ("assert f(1) is True", ["f(1)"]),
        ("assert f(1) is not None, 'a message'", ["f(1)"]),
        ("assert f(1) == 1, 2", ["f(1)"]),
        ("assert f(1)", ["f(1)"]),
        ("assert not f(1)", ["f(1)"]),
        ("assert Stack().push(1).is_full()", ["Stack().push(1).is_full()"]),
        ("assert f(1) in [[4], 4]", ["f(1)"]),
        ("assert 4 in f(1)", ["f(1)"]),
        ("assert set(f(1)) == set([4, 5])", ["set(f(1))"]),
        ("assert sorted(f(1)) == sorted([5, 4])", ["sorted(f(1))"]),
        ("assert len(f(1).rows[0]) == 3", ["f(1).rows"]),
        ("assert [each.name for each in f(1)] == ['a']", ["[each.name for each in f(1)]"]),
        ("assert (Ratio(1, 2) == Ratio(2, 4)) == True", ["Ratio(1, 2) == Ratio(2, 4)"]),
        ("assert (3 in Interval(1, 5)) == True", ["Interval(1, 5)"]),
        ("assert (f(1) == 4) == True", ["f(1)"]),
        ("assert f(1) == True", ["f(1)"]),
        ("assert math.isclose(f(1), 0.1, rel_tol=1e-3)", ["f(1)"]),
        ("assert isclose(0.1, f(1))", ["f(1)"]),
        ("assert abs(f(1) - 1.0) < 1e-6", ["f(1)"]),
        ("assert abs(1.0 - f(1)) <= 1e-6", ["f(1)"]),
        ("assert round(abs(f(1) - 1.0), 6) == 0", ["f(1)"]),
        ("assert f(1) - 1 == 0", ["f(1)"]),
        ("assert round(f(1), 3) == 0.333", ["f(1)"]),
        ("assert 0 < f(1) < 10", ["f(1)"]),
        ("assert -f(1) > 3", ["-f(1)"]),
        ("assert isclose(f(1), g(1))", ["isclose(f(1), g(1))"]),
        ("assert f(1) == 4 and f(2) == 5 or not f(3)", ["f(1)", "f(2)", "f(3)"]),
        ("assert isinstance(f(1), (list, tuple))", ["f(1)"]),
        ("assert f(1) == float('inf')", ["f(1)"]),
        ("assert f(1) == -2 ** 31", ["f(1)"]),
        ("assert f(1) == math.pi", ["f(1)"]),
        ("assert f(1) == [0] * 3 + [1]", ["f(1)"]),
        ("assert f(1) == {2} | {1} - set()", ["f(1)"]),
        ("x = f(1); assert x == 4", ["x"]),
        ("x = f(1)\ny = x\nassert y == 4", ["y"]),
        ("    assert f(\n    1) == 4", ["f(\n1)"]),
        ("assert f('ü') == 'ä'", ["f('ü')"]),
        ("assert np.allclose(f(1), [1, 2])", ["f(1)"]),
        ("assert np.allclose(f(1), [1, 2]) == True", ["f(1)"]),
        ("assert isinstance(f(1), np.ndarray)", ["f(1)"]),
        ("assert f(1).startswith('a')", ["f(1)"]),
        ("assert f(1).equals(df)", ["f(1).equals(df)"]),
        ("assert any(f(1))", ["any(f(1))"]),
        ("assert [x for x in f(1) if x == 2]", ["f(1)"]),
        ("assert 'abc'.startswith(f(1))", ["f(1)"]),
    ],
)
def test_child_receives_calls_but_no_expected_value(statement: str, calls: list[str]) -> None:
    plan = plan_assert(AssertTest(statement, "import this_module"))
    assert list(plan.source_expressions) == calls
    assert not plan.unprotected_reason
    assert plan.setup.startswith("import this_module")
    assert all(ast.parse(hole, mode="eval") for hole in plan.child_expressions)


@pytest.mark.parametrize(
    "statement",
    [
        "assert f(1) == g(1)",
        "assert f(1) == sys.getsizeof(1)",
        "assert all(f(x) == y for x, y in [(1, 2)])",
        "assert f(1).equals([1])",
        "ok = f(1) == 4\nassert ok",
        "assert f(1) == 4\nassert f(2) == 5",
        "for x in [1]:\n    assert f(x) == 4",
        "assert f(1) == 4\nprint('done')",
        "assert True",
    ],
)
def test_asserts_that_cannot_be_split_run_as_a_whole_with_a_reason(statement: str) -> None:
    plan = plan_assert(AssertTest(statement))
    assert plan.statement == statement
    assert plan.unprotected_reason
    assert not plan.child_expressions


@pytest.mark.parametrize(
    "code", ["", "f(1) == 4", "assert f(", "assert f(1) ==", "\0", "assert '\ud800'", "(" * 10_000]
)
def test_invalid_test_raises(code: str) -> None:
    with pytest.raises(BrokenTestError, match=messages.ASSERT_INVALID):
        plan_assert(AssertTest(code))


def test_nearly_all_tests_of_starter_can_be_split() -> None:
    tests = [
        test
        for split in ("train", "validation", "test")
        for each in read_bundled("starter", split)
        for test in each.tests
    ]
    assert len(tests) > 500
    # A constant is an argument of a method of what the function returned, or of no call.
    assert [test.code for test in tests if isinstance(test, AssertTest) and plan_assert(test).unprotected_reason] == [
        'assert left_join(people, cities, "id").fillna("?")["city"].tolist() == ["Rome", "?", "Bonn"]',
        "assert [switch.flip() for switch in [Toggle()] * 3] == [True, False, True]",
    ]


def value(source: str) -> object:
    return Interpreter().evaluate(ast.parse(source, mode="eval").body)


@pytest.mark.parametrize(
    "source",
    [
        "[1, -2.5, 'a', b'b', None, True, (3,), {4: {5}}, 1j, ...]",
        "2 ** 10 - 7 // 2 + 7 % 4 / 2",
        "1 < 2 <= 2 != 3",
        "1 in [1] and 2 not in (3,) or None",
        "sorted([3, 1]) + list('ab') + [len({1}), sum([1, 2]), min(2, 1), max([1]), abs(-1), round(1.256, 2)]",
        "isinstance(True, (int, str))",
        "not (None is None)",
        "[0] * 3",
        "{1, 2} & {2} | {3} ^ {4}",
        "dict(a=1)",
        "str(5) + 'x' * 2",
        "float('-inf')",
        "[x * 2 for x in range(3) if x != 1]",
        "sorted([3, 1, 2], key=lambda x: -x)",
        "max(abs(a - b) for a, b in zip([1, 2], [3, 5]))",
        "'a,b'.split(',')[::-1] + [','.join(['x', 'y'])]",
        "{k: v for k, v in {'a': 1}.items()}",
        "all(x > 0 for x in (1, 2)) and any(map(bool, [0, 1]))",
        "[y for x in [[1, 2], [3]] for y in x]",
        "5 ^ 3 | 8 & 12",
    ],
)
def test_constants_are_evaluated_as_python_does(source: str) -> None:
    assert value(source) == eval(source)
    assert is_constant(ast.parse(source, mode="eval").body)


@pytest.mark.parametrize(
    "source",
    [
        "2 ** 10 ** 9",
        "[0] * 10 ** 9",
        "10 ** 6 * 'x' * 1000",
        "bytes(10 ** 12)",
        "'%1000000000d' % 1",
        "1 << 10 ** 9",
        "round(1, -10 ** 9)",
        "().__class__",
        "open('/etc/passwd')",
        "f'{1}'",
        "range(10 ** 7)",
        "[x for x in range(10 ** 5) for y in range(10 ** 5)]",
        "','.join(['x' * 10 ** 5] * 1000)",
        "Fraction('1e99999999')",
        "math.factorial(10 ** 6)",
        "sum([[1]] * 10, [])",
        "isinstance(1, object)",
        "__import__('os')",
        "{**{}}",
        "sorted([1], **{})",
        "x",
    ],
)
def test_unbounded_or_unsupported_constants_are_not_evaluated(source: str) -> None:
    with pytest.raises(UnsupportedExprError):
        value(source)


def test_integer_of_any_length_is_parsed() -> None:
    assert value(f"int('{'9' * 6000}')") == 10**6000 - 1


@given(st.text(alphabet="assertf(1)=<>[],.' \nnoti&|*-+", max_size=60))
def test_any_text_gives_a_plan_or_a_error_message(text: str) -> None:
    try:
        plan = plan_assert(AssertTest(text))
    except BrokenTestError:
        return
    assert bool(plan.child_expressions) != bool(plan.unprotected_reason)
