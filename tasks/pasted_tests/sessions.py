"""Interactive sessions as tests: doctest's `>>>` and IPython's `In [1]:`, with their displayed values and errors."""

from __future__ import annotations

import ast
import doctest
import re

from errors import DataError
from tasks.pasted_tests.python_tests import PythonTests
from tasks.pasted_tests.script import ScriptBuilder
from tasks.pasted_tests.text import line_error, parse_source, truncate, walk
from tasks.problem import Outcome

PROMPT = ">>>"
_IN = re.compile(r"^\s*In ?\[ ?\d* ?\]: ?(.*)$")
_OUT = re.compile(r"^\s*Out ?\[ ?\d* ?\]: ?(.*)$")
_IN_CONTINUED = re.compile(r"^\s*\.{3,}: ?(.*)$")
_RULE = re.compile(r"^\s*-{20,}\s*$")
_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?::|$)")
_FRAME = "  ..."
_TRACEBACK = "Traceback (most recent call last):"


def is_prompt(line: str) -> bool:
    """Return whether the line begins an example of a session."""
    return line.lstrip().startswith(PROMPT) or bool(_IN.match(line))


def session_end(lines: list[str], start: int) -> int:
    """Return the index after the session that begins at `start`: it ends before a text that follows an empty line."""
    at = start
    while at < len(lines):
        if lines[at].strip():
            at += 1
            continue
        following = next((each for each in range(at, len(lines)) if lines[each].strip()), None)
        if following is None or not (is_prompt(lines[following]) or _OUT.match(lines[following])):
            return at
        at = following
    return at


def read_session(lines: list[str], line: int, builder: ScriptBuilder, python: PythonTests) -> bool:
    """Add the examples in `lines`, the first of which is line `line`; return whether one of them is a test."""
    text = "\n".join(_from_ipython(lines) if any(map(_IN.match, lines)) else lines)
    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError as error:
        raise DataError(
            f"The session cannot be read ({truncate(str(error))}): write '>>> ' before each call."
        ) from None
    count = len(builder.tests)
    for example in examples:
        _read_example(example, line + example.lineno, builder, python)
    return len(builder.tests) > count


def _read_example(example: doctest.Example, line: int, builder: ScriptBuilder, python: PythonTests) -> None:
    source, want = example.source.rstrip("\n"), example.want
    if example.options.get(doctest.SKIP):
        return
    if not want.strip() and example.exc_msg is None:
        python.read(source, line)
        return
    tree = parse_source(source, line)
    if len(tree.body) != 1:
        raise line_error(line, f"'{truncate(source)}' is no single statement: write one after each {PROMPT}")
    options = tuple(name for name, flag in doctest.OPTIONFLAGS_BY_NAME.items() if example.options.get(flag))
    if example.exc_msg is not None:
        name, colon, message = example.exc_msg.rstrip("\n").partition(":")
        outcome = Outcome(
            error=name.strip().rpartition(".")[2], message=message.strip() if colon else "", options=options
        )
    elif _displays_nothing(tree.body[0]):
        raise line_error(line, f"'{truncate(source)}' displays nothing, so '{truncate(want)}' below it cannot be right")
    else:
        outcome = Outcome(want, options=options)
    builder.add_outcome(source, outcome, line, checked=False)


def _displays_nothing(statement: ast.stmt) -> bool:
    simple = isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Import | ast.ImportFrom | ast.Pass)
    return simple and not any(isinstance(each, ast.Call) for each in walk(statement))


def _from_ipython(lines: list[str]) -> list[str]:
    """Return IPython's session in doctest's form, line by line."""
    found: list[str] = []
    for at, line in enumerate(lines):
        if match := _IN.match(line):
            found.append(f">>> {match[1]}")
        elif (match := _IN_CONTINUED.match(line)) and found and found[-1].startswith((">>> ", "... ")):
            found.append(f"... {match[1]}")
        elif match := _OUT.match(line):
            value = match[1]
            found.append(value if value or at + 1 < len(lines) else "")
        elif _RULE.match(line):
            found.append(_TRACEBACK)
        elif found and (found[-1] == _TRACEBACK or (found[-1] == _FRAME and not _ERROR.match(line))):
            found.append(_FRAME)
        else:
            found.append(line)
    return _without_blank_before_values(found)


def _without_blank_before_values(lines: list[str]) -> list[str]:
    """Return the lines with empty ones between a call and its value moved behind that value."""
    found = list(lines)
    for at in range(1, len(found) - 1):
        before, after = found[at - 1], found[at + 1]
        is_gap = not found[at].strip() and before.startswith((">>> ", "... "))
        if is_gap and after.strip() and not after.startswith(">>> "):
            found[at], found[at + 1] = after, ""
    return found
