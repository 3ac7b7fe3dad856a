"""Rows of data sets as tests: MBPP's list of asserts, and rows of MBPP, HumanEval and APPS as JSON or Python."""

from __future__ import annotations

import ast
import json
from typing import Any

from tasks.apps_format import parse_tests, to_stdio_text
from tasks.pasted_tests.examples import read_examples
from tasks.pasted_tests.python_tests import PythonTests
from tasks.pasted_tests.script import ScriptBuilder
from tasks.pasted_tests.text import line_error, parse_expression
from tasks.problem import StdioTest


def read_rows(text: str, builder: ScriptBuilder, python: PythonTests) -> bool:
    """Add the tests of a list or an object; return False for other text. Raises DataError for rows without tests."""
    value, lines = _parse(text)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        for at, each in enumerate(value):
            python.read(each.strip(), lines[at] if at < len(lines) else 1)
        return True
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        for at, each in enumerate(value):
            _read_object(each, lines[at] if at < len(lines) else 1, builder, python)
        return True
    if isinstance(value, dict):
        _read_object(value, 1, builder, python)
        return True
    if isinstance(value, list):
        raise line_error(1, "a list of values does not name what is called: write lines like 'assert f(2) == 4'")
    return False


def _parse(text: str) -> tuple[Any, list[int]]:
    """Return the value of JSON or of a Python literal, and the lines of a list's items; (None, []) for other text."""
    node = parse_expression(text)
    lines = [each.lineno for each in node.elts] if isinstance(node, ast.List | ast.Tuple) else []
    try:
        return json.loads(text), lines
    except (ValueError, RecursionError):
        pass
    try:
        return (ast.literal_eval(node) if node is not None else None), lines
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None, []


def _read_object(row: dict[str, Any], line: int, builder: ScriptBuilder, python: PythonTests) -> None:
    if isinstance(row.get("test_list"), list):
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
        if setup:
            python.read(str(setup), line)
        for each in row["test_list"]:
            python.read(str(each).strip(), line)
    elif isinstance(row.get("test"), str):
        _read_function_row(row, line, python)
    elif isinstance(row.get("inputs"), list) and "outputs" in row:
        for test in parse_tests(json.dumps(row), f"Line {line}").tests:
            builder.add(test)
    elif "input" in row and "output" in row:
        given, wanted = to_stdio_text(row["input"]), to_stdio_text(row["output"])
        if "=" in given:
            read_examples([f"Input: {given}", f"Output: {wanted}"], line, builder)
        else:
            builder.add(StdioTest(given, wanted))
    else:
        raise line_error(
            line, "this object has no tests: it needs test_list, test, inputs and outputs, or input and output"
        )


def _read_function_row(row: dict[str, Any], line: int, python: PythonTests) -> None:
    """Add the tests of a row of HumanEval; what its prompt defines beside the function is at hand for them."""
    entry_point = str(row.get("entry_point") or "")
    prompt = row.get("prompt")
    if isinstance(prompt, str) and entry_point:
        python.read(prompt, line, [entry_point])
    python.read(str(row["test"]), line, [entry_point])
    if entry_point:
        python.call_check(entry_point, line)
