"""Pasted tests: parse the tests that a person writes or pastes. One of three forms at a time.

Asserts, with imports or other lines before those that need them:

    import math
    assert area(1) == math.pi
    assert area(0) == 0

Calls with their results, as in an interactive session (doctest):

    >>> double(2)
    4

Program runs, with input and expected output on the same line as their label or on the lines below it:

    input:
    2 3
    output:
    5

    input: 1 1
    output: 2

A label begins its line, in upper or lower case; empty lines around a block are ignored.
"""

from __future__ import annotations

import ast
import doctest
import re
from dataclasses import dataclass, field
from typing import Literal, overload

from common.syntax import parse_python
from errors import DataError
from tasks.problem import AssertTest, StdioTest, Test

MAX_CHARACTERS = 100_000
MAX_TESTS = 200
_LABEL = re.compile(r"^(input|output)[ \t]*:[ \t]*(.*)$", re.IGNORECASE)
_FORMAT_HINT = "write lines like 'assert f(2) == 4', '>>> f(2)' with the answer below, or 'input:' and 'output:' blocks"


def parse_pasted_tests(text: str) -> tuple[Test, ...]:
    """Parse at least one test in `text`; raises DataError with the line where it has none of the forms."""
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"The tests have {len(text)} characters: paste at most {MAX_CHARACTERS}.")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if any(line.lstrip().startswith(">>>") for line in lines):
        tests: tuple[Test, ...] = _parse_session("\n".join(lines))
    elif any(_LABEL.match(line) for line in lines):
        tests = _parse_runs(lines)
    else:
        tests = _parse_asserts("\n".join(lines))
    if len(tests) > MAX_TESTS:
        raise DataError(f"There are {len(tests)} tests: paste at most {MAX_TESTS}.")
    return tests


def _parse_asserts(text: str) -> tuple[Test, ...]:
    body = _parse_python(text, 1, "exec").body
    setup: list[str] = []
    tests: list[Test] = []
    for statement in body:
        source = ast.get_source_segment(text, statement) or ast.unparse(statement)
        if isinstance(statement, ast.Assert):
            tests.append(AssertTest(source, "\n".join(setup)))
        elif any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
            raise DataError(f"Line {statement.lineno}: write each assert on a separate line, not inside a block.")
        elif isinstance(statement, ast.Expr) and _is_comparison(statement.value):
            raise DataError(f"Line {statement.lineno}: '{_truncate(source)}' checks nothing: put 'assert' before it.")
        else:
            setup.append(source)
    if not tests:
        raise DataError(f"There is no test in this text: {_FORMAT_HINT}.")
    return tuple(tests)


def _parse_session(text: str) -> tuple[Test, ...]:
    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError as error:
        raise DataError(
            f"The session cannot be read ({_truncate(str(error))}): write '>>> ' before each call."
        ) from None
    setup: list[str] = []
    tests: list[Test] = []
    for example in examples:
        line, source, want = example.lineno + 1, example.source.strip(), example.want.strip()
        if example.exc_msg is not None:
            raise DataError(f"Line {line}: an answer that is an error cannot be tested: write the value it gives.")
        if not want:
            _parse_python(source, line, "exec")
            setup.append(source)
            continue
        tests.append(AssertTest(_assert_statement(source, want, line), "\n".join(setup)))
    if not tests:
        raise DataError(f"Line {_first_call(text)}: no call has an answer below it: {_FORMAT_HINT}.")
    return tuple(tests)


def _assert_statement(source: str, want: str, line: int) -> str:
    """Build the equivalent assert: it compares values where the result is a literal, else their repr."""
    call = _parse_python(source, line, "eval").body
    code = ast.get_source_segment(source, call) or source
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "print" and len(call.args) == 1 and not call.keywords:
        return f"assert str({ast.get_source_segment(source, call.args[0])}) == {want!r}"
    try:
        ast.literal_eval(want)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return f"assert repr({code}) == {want!r}"
    return f"assert {code} == ({want})" if "\n" in want else f"assert {code} == {want}"


@dataclass
class _LabelledBlock:
    """The lines after one label."""

    label: str
    line: int
    lines: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = list(self.lines)
        while lines and not lines[0].strip():
            lines.pop(0)
        while lines and not lines[-1].strip():
            lines.pop()
        return "".join(f"{line}\n" for line in lines)


def _parse_runs(lines: list[str]) -> tuple[Test, ...]:
    tests: list[Test] = []
    pending: _LabelledBlock | None = None
    for block in _split_blocks(lines):
        if block.label == "input":
            if pending is not None:
                raise DataError(f"Line {pending.line}: 'input:' has no 'output:' after it: add what must be printed.")
            pending = block
        elif pending is None:
            raise DataError(
                f"Line {block.line}: 'output:' has no 'input:' before it: add one, empty if nothing is read."
            )
        else:
            tests.append(StdioTest(pending.text(), block.text()))
            pending = None
    if pending is not None:
        raise DataError(f"Line {pending.line}: 'input:' has no 'output:' after it: add what must be printed.")
    return tuple(tests)


def _split_blocks(lines: list[str]) -> list[_LabelledBlock]:
    blocks: list[_LabelledBlock] = []
    for number, line in enumerate(lines, start=1):
        label = _LABEL.match(line)
        if label:
            blocks.append(_LabelledBlock(label[1].lower(), number, [label[2]]))
        elif blocks:
            blocks[-1].lines.append(line)
        elif line.strip():
            raise DataError(f"Line {number}: '{_truncate(line)}' is before the first 'input:': move or remove it.")
    return blocks


@overload
def _parse_python(source: str, line: int, mode: Literal["exec"]) -> ast.Module: ...
@overload
def _parse_python(source: str, line: int, mode: Literal["eval"]) -> ast.Expression: ...
def _parse_python(source: str, line: int, mode: Literal["exec", "eval"]) -> ast.AST:
    """Parse `source`, whose first line is line `line` of the pasted text."""
    try:
        return parse_python(source, mode)
    except SyntaxError as error:
        quoted = f" ('{_truncate(error.text)}')" if error.text and error.text.strip() else ""
        number = line + (error.lineno or 1) - 1
        raise DataError(f"Line {number}: this is not Python, {error.msg}{quoted}: {_FORMAT_HINT}.") from None
    except (ValueError, MemoryError, RecursionError):
        raise DataError(f"Line {line}: this cannot be read as Python: {_FORMAT_HINT}.") from None


def _is_comparison(node: ast.expr) -> bool:
    return isinstance(node, ast.Compare | ast.BoolOp) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def _first_call(text: str) -> int:
    lines = text.split("\n")
    return next(number for number, line in enumerate(lines, start=1) if line.lstrip().startswith(">>>"))


def _truncate(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:59]}…"
