"""Outcomes of statements: compare what a child displayed or raised with what the test expects, as doctest does.

The child sends the displayed text, or the exception's types and message; the expected ones stay on the host. Displayed
text is compared by doctest's own checker. A value that is a literal may also differ in the order of a set or a dict.
"""

from __future__ import annotations

import ast
import doctest
from typing import Any

from common.parsing import parse_python
from evaluate.test_runner.calls import INVALID_RESULT_MESSAGE, CallResult
from evaluate.test_runner.explain import joined_error
from evaluate.test_runner.result import TestResult, one_line, shorten
from tasks.problem import Outcome, ScriptTest

MAX_LITERAL = 20_000  # characters; longer text is compared as text only


def is_protected_outcome(test: ScriptTest) -> bool:
    """Return whether no expected value enters the child: its statements compare nothing themselves."""
    return not any(isinstance(node, ast.Assert) for node in ast.walk(parse_python(test.code)))


def explain_outcome(test: ScriptTest, result: CallResult) -> TestResult:
    """Build the result of a test with an outcome from what the child sent."""
    outcome = test.outcome or Outcome()
    expected = _expected_error(outcome) if outcome.error else outcome.output.removesuffix("\n")
    called = one_line(_called(test.code))
    got, reason, status = "", "", "ok"
    if result.error:
        status = result.status
        reason = result.error if result.is_load_error else f"{called} {joined_error(result)}"
    else:
        match result.value:
            case (str(text), tuple(names), str(message), str(description)):
                got = description or text.removesuffix("\n")
                reason = _difference(outcome, text, names, message)
                if reason and description:
                    reason = f"{called} raised {one_line(description)}, expected {one_line(expected)}"
                elif reason:
                    reason = f"{called} {reason}, expected {one_line(expected)}"
            case _:
                status, reason = "error", f"{called} {INVALID_RESULT_MESSAGE}"
    return TestResult(
        passed=not reason,
        kind="call",
        given=shorten(_called(test.code)),
        expected=shorten(expected),
        got=shorten(got),
        reason=reason,
        status=status,
        protected=is_protected_outcome(test),
        seconds=result.seconds,
    )


def _called(code: str) -> str:
    """Return the statements without a `try` around them that only stores the exception for later tests."""
    match parse_python(code).body:
        case [ast.Try(body=body, handlers=[ast.ExceptHandler(body=[*_, ast.Raise(exc=None)])])]:
            return "\n".join(map(ast.unparse, body))
    return code


def _expected_error(outcome: Outcome) -> str:
    name = outcome.error.replace("|", " or ")
    if outcome.message:
        return f"{name}: {outcome.message}"
    return f"{name} with the message part {outcome.match!r}" if outcome.match else name


def _difference(outcome: Outcome, text: str, names: tuple[Any, ...], message: str) -> str:
    """Return '' for the expected outcome, else what happened in its stead."""
    if outcome.error:
        if not names:
            return "raised nothing"
        if not set(outcome.error.split("|")) & set(names):
            return "raised another exception"
        if outcome.message is not None and not _exact(outcome, outcome.message, message):
            return "raised another message"
        return "" if outcome.match in message else "raised another message"
    if names:
        return "raised"
    if _text_matches(outcome, text):
        return ""
    return f"displayed {one_line(text)}" if text.strip() else "displayed nothing"


def _exact(outcome: Outcome, wanted: str, got: str) -> bool:
    if "IGNORE_EXCEPTION_DETAIL" in outcome.options:
        return True
    return doctest.OutputChecker().check_output(_lines(wanted), _lines(got), _flags(outcome, wanted))


def _text_matches(outcome: Outcome, text: str) -> bool:
    wanted, got = _lines(outcome.output), _lines(text)
    if doctest.OutputChecker().check_output(wanted, got, _flags(outcome, wanted)):
        return True
    if max(len(wanted), len(got)) > MAX_LITERAL:
        return False
    try:
        return _order_free(ast.literal_eval(wanted.strip())) == _order_free(ast.literal_eval(got.strip()))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False


def _lines(text: str) -> str:
    """Return the text without blanks at the ends of its lines and without empty lines at its end."""
    lines = "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")
    return f"{lines}\n" if lines else ""


def _flags(outcome: Outcome, wanted: str) -> int:
    flags = 0
    for name in outcome.options:
        flags |= doctest.OPTIONFLAGS_BY_NAME.get(name, 0)
    # `3.14...` stands for more digits also where the directive was not copied.
    return flags | doctest.ELLIPSIS if "..." in wanted and wanted.strip() != "..." else flags


def _order_free(value: Any) -> Any:
    """Return the value with the types of all its parts, independent of the order of sets and dicts."""
    match value:
        case dict():
            pairs = [(_order_free(key), _order_free(item)) for key, item in value.items()]
            return "dict", tuple(sorted(pairs, key=repr))
        case set() | frozenset():
            return type(value).__name__, tuple(sorted((_order_free(item) for item in value), key=repr))
        case list() | tuple():
            return type(value).__name__, tuple(_order_free(item) for item in value)
    return type(value).__name__, repr(value)
