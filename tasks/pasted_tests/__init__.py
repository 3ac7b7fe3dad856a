"""Pasted tests: parse the tests that a person writes or pastes, in any of these forms, several of them in one text.

- Python as it stands: asserts, loops of asserts, functions of pytest (parametrize, raises, approx), unittest's classes,
  HumanEval's `check(candidate)` with or without its call, whole HumanEval problems; each line runs in its place.
- Sessions of Python (`>>> f(2)` with what it displays below) and IPython (`In [1]:`, `Out[1]:`).
- Examples: `Input:` and `Output:` of a program, or of LeetCode's functions (`Input: nums = [2, 7], target = 9`).
- Calls with their values (`f(2) -> 4`).
- Rows of data sets as JSON: MBPP's `test_list`, a row of MBPP, HumanEval or APPS.

Fences around any of them are left out. Text that has none of these forms is an error with its line.
"""

from __future__ import annotations

import re
import textwrap

from errors import DataError
from tasks.pasted_tests.examples import (
    examples_end,
    is_arrow,
    is_bare_label,
    is_label,
    is_prompt,
    read_arrow,
    read_examples,
    read_rows,
    read_session,
    session_end,
)
from tasks.pasted_tests.python_tests import PythonTests
from tasks.pasted_tests.script import MAX_TESTS, ScriptBuilder, no_test_error
from tasks.pasted_tests.text import (
    FORMAT_HINT,
    is_python,
    limited_work,
    line_error,
    string_lines,
    truncate,
)
from tasks.problem import Test

MAX_CHARACTERS = 20_000
_FENCE = re.compile(r"^\s*(?:`{3,}+|~{3,}+)[^`]*$")
_CODE_LINE = re.compile(r"^\s*(?:assert|def|class|import|from|for|with|self)\b|[=(\[]")


def parse_pasted_tests(text: str) -> tuple[Test, ...]:
    """Parse at least one test in `text`; raises DataError with the line where it has none of the forms.

    Its length is checked first, and the work of reading it is limited.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"The tests have {len(text):,} characters: paste at most {MAX_CHARACTERS:,}.")
    try:
        with limited_work():
            reader = _Reader(_normalize(text))
            reader.read()
            return reader.finish()
    except (RecursionError, MemoryError):
        raise DataError("The tests are nested too deeply to be read: write them on more lines.") from None
    except (ValueError, ArithmeticError) as error:  # of numbers that Python parses and cannot write
        raise DataError(f"The tests have a value that cannot be read ({error}): write a smaller one.") from None


def _normalize(text: str) -> list[str]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    lines = text.split("\n")
    inside = string_lines(lines)
    lines = ["" if _FENCE.match(line) and not quoted else line for line, quoted in zip(lines, inside, strict=True)]
    return textwrap.dedent("\n".join(lines)).split("\n")


class _Reader:
    """Reads the forms of one text in order."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._builder = ScriptBuilder()
        self._python = PythonTests(self._builder)
        self._first_prompt = 0  # the line of a session without any test
        self._last_label = max((at for at, line in enumerate(lines) if is_label(line)), default=-1)

    def read(self) -> None:
        """Read all lines."""
        text = "\n".join(self._lines)
        if text.lstrip().startswith(("[", "{")) and read_rows(text, self._builder, self._python):
            return
        if not any(map(is_label, self._lines)) and self._is_labelled():
            read_examples(self._lines, 1, self._builder)
            return
        inside = string_lines(self._lines)
        has_session = any(is_prompt(line) for line, quoted in zip(self._lines, inside, strict=True) if not quoted)
        at = start = 0
        while at < len(self._lines):
            line = self._lines[at]
            end = at
            if not inside[at]:
                end = self._end_of_form(line, at)
            if end > at:
                if is_label(line):
                    self._refuse_words_before(start, at)
                self._read_python(start, at, prose=has_session)
                self._read_form(line, at, end)
                start = end
            at = max(end, at + 1)
        self._read_python(start, len(self._lines), prose=has_session)

    def finish(self) -> tuple[Test, ...]:
        """Return the tests of all forms."""
        self._python.finish()
        if not self._builder.tests:
            for stub in self._python.stubs:
                docstring = stub.docstring.split("\n")
                if any(map(is_prompt, docstring)):
                    read_session(docstring, stub.line, self._builder, self._python)
        tests = self._builder.finish()
        if not tests and self._first_prompt:
            raise line_error(self._first_prompt, f"no call has an answer below it: {FORMAT_HINT}")
        if not tests:
            raise no_test_error()
        return tests

    def _is_labelled(self) -> bool:
        """Return whether the text has labels without a colon, as some sites write them."""
        first = next((line for line in self._lines if line.strip()), "")
        labels = [line.lower() for line in self._lines if is_bare_label(line)]
        return is_bare_label(first) and all(any(name in line for line in labels) for name in ("in", "out"))

    def _end_of_form(self, line: str, at: int) -> int:
        """Return the index after a form other than Python that begins with this line; `at` if there is none."""
        if is_prompt(line):
            return session_end(self._lines, at)
        if is_label(line) or (at <= self._last_label and is_bare_label(line)):
            return examples_end(self._lines, at)
        return at + 1 if is_arrow(line) else at

    def _read_form(self, line: str, start: int, end: int) -> None:
        lines = self._lines[start:end]
        if is_prompt(line):
            if not read_session(lines, start + 1, self._builder, self._python):
                self._first_prompt = self._first_prompt or start + 1
        elif is_arrow(line):
            read_arrow(line, start + 1, self._builder)
        else:
            read_examples(lines, start + 1, self._builder)

    def _refuse_words_before(self, start: int, end: int) -> None:
        lines = self._lines[start:end]
        if not any(map(_CODE_LINE.search, lines)):
            for number, line in enumerate(lines, start=start + 1):
                if line.strip():
                    raise line_error(number, f"'{truncate(line)}' is before the first 'input:': move or remove it")

    def _read_python(self, start: int, end: int, *, prose: bool) -> None:
        """Read lines of Python; words between the examples of a session (`prose`) are no part of it, as in doctest."""
        lines = self._lines[start:end]
        if not any(line.strip() for line in lines):
            return
        if prose and not any(map(_CODE_LINE.search, lines)) and not is_python("\n".join(lines)):
            return
        self._python.read(textwrap.dedent("\n".join(lines)), start + 1)


__all__ = ["MAX_CHARACTERS", "MAX_TESTS", "parse_pasted_tests"]
