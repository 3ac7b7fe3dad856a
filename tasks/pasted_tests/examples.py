"""Examples as tests: `Input:` and `Output:`, interactive sessions, and rows of MBPP, HumanEval and APPS.

LeetCode gives the arguments by name (`Input: nums = [2, 7], target = 9`); any other input is what a program reads.
`f(2) -> 4` is a call with its value.
"""

from __future__ import annotations

import ast
import doctest
import json
import re
from dataclasses import dataclass, field
from typing import Any

from errors import DataError
from tasks.pasted_tests.python_tests import PythonTests
from tasks.pasted_tests.script import ScriptBuilder
from tasks.pasted_tests.text import is_literal, line_error, parse_expression, parse_source, parse_value, truncate, walk
from tasks.problem import ENTRY_POINT, Outcome, StdioTest, parse_tests, to_stdio_text

PROMPT = ">>>"
_IN = re.compile(r"^\s*In ?\[ ?\d* ?\]: ?(.*)$")
_OUT = re.compile(r"^\s*Out ?\[ ?\d* ?\]: ?(.*)$")
_IN_CONTINUED = re.compile(r"^\s*\.{3,}: ?(.*)$")
_RULE = re.compile(r"^\s*-{20,}\s*$")
_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?::|$)")
_FRAME = "  ..."
_TRACEBACK = "Traceback (most recent call last):"
FLOAT_TOLERANCE = 1e-5  # LeetCode's
# The quantifiers are possessive: a line of 20,000 spaces is read once.
_NUMBER = r"(?:[ \t]*+(?:case[ \t]*+)?#?\d++)?"
_MARK = r"[*_#> \t]*+"
_NAMES = (
    r"(?:sample|example|test|custom|expected|correct)?[ \t]*+(input|output|stdin|stdout)s?"
    r"|(expected)(?: value| result)?"
)
_LABEL = re.compile(rf"^{_MARK}(?:{_NAMES}){_NUMBER}{_MARK}:{_MARK}(.*)$", re.IGNORECASE)
_BARE_LABEL = re.compile(rf"^{_MARK}(?:{_NAMES}){_NUMBER}{_MARK}$", re.IGNORECASE)
_HEADING = re.compile(rf"^{_MARK}(?:Example|Sample|Test case|Case|Test){_NUMBER}{_MARK}:?{_MARK}$", re.IGNORECASE)
_COMMENT = re.compile(rf"^{_MARK}(?:Explanation|Note|Constraints?|Follow[- ]up){_NUMBER}{_MARK}(?::.*)?$")
_ARGUMENTS = re.compile(r"^\s*[A-Za-z_]\w*\s*=(?!=)")
_ARROW = re.compile(
    r"^\s*(?:[-*•]\s+|\d+[.)]\s+)?(.*?\))\s*(?:->|=>|-->|==>|→|➞|⇒|↦|returns|should return|gives)\s*+(.+)$"
)
_OTHER_FORM = re.compile(r"^(?:assert\b|def \w+\(|class \w+.*:|import \w+$|from \w+ import )")


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


@dataclass
class _Block:
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


def is_label(line: str) -> bool:
    """Return whether the line has a label with a colon, such as 'Input:' or '**Output:** 5'."""
    return bool(_LABEL.match(line))


def is_bare_label(line: str) -> bool:
    """Return whether the line is a label without a colon, or a heading such as 'Example 1:'."""
    return bool(_BARE_LABEL.match(line) or _HEADING.match(line))


def examples_end(lines: list[str], start: int) -> int:
    """Return the index after the labelled blocks that begin at `start`: they end before a test of another form."""
    for at in range(start, len(lines)):
        if _OTHER_FORM.match(lines[at]) or is_prompt(lines[at]):
            return at
    return len(lines)


def read_examples(lines: list[str], line: int, builder: ScriptBuilder) -> None:
    """Add the pairs of inputs and outputs in `lines`, the first of which is line `line`."""
    pending: _Block | None = None
    for block in _split_blocks(lines, line):
        if block.label == "input":
            if pending is not None:
                raise _no_output(pending)
            pending = block
        elif block.label == "output":
            if pending is None:
                raise line_error(block.line, "'output:' has no 'input:' before it: add one, empty if nothing is read")
            _add_example(pending, block, builder)
            pending = None
    if pending is not None:
        raise _no_output(pending)


def _no_output(block: _Block) -> Exception:
    return line_error(block.line, "'input:' has no 'output:' after it: add what must be printed")


def _split_blocks(lines: list[str], first: int) -> list[_Block]:
    with_colon = any(map(is_label, lines))
    blocks: list[_Block] = []
    for number, line in enumerate(lines, start=first):
        match = _LABEL.match(line) or (_BARE_LABEL.match(line) if not with_colon else None)
        if match:
            name = (match[1] or match[2]).lower()
            label = "input" if name in {"input", "stdin"} else "output"
            blocks.append(_Block(label, number, [match[3] if match.re is _LABEL else ""]))
        elif _HEADING.match(line) or (blocks and _COMMENT.match(line)):
            blocks.append(_Block("comment", number))
        elif blocks:
            blocks[-1].lines.append(line)
        elif line.strip():
            raise line_error(number, f"'{truncate(line)}' is before the first 'input:': move or remove it")
    for block in blocks:
        if block.label == "comment" and _HEADING.match(lines[block.line - first]) and block.text():
            text = truncate(block.text())
            raise line_error(block.line, f"'{text}' is neither input nor output: write 'Input:' before it or remove it")
    return blocks


def _add_example(given: _Block, wanted: _Block, builder: ScriptBuilder) -> None:
    text = given.text()
    design = _design_calls(text, wanted.text())
    if design is not None:
        _add_design(design, given.line, builder)
        return
    call = parse_expression(text) if text.strip() else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
        add_call(ast.unparse(call), wanted.text(), wanted.line, builder)
        return
    if not _ARGUMENTS.match(text):
        builder.add(StdioTest(text, wanted.text()))
        return
    arguments = _parse_arguments(text)
    if arguments is None:
        raise line_error(
            given.line,
            f"'{truncate(text)}' looks like the arguments of a function, but not each has a value that can be read: "
            "write them like 'nums = [2, 7], target = 9'",
        )
    add_call(f"{ENTRY_POINT}({arguments})", wanted.text(), wanted.line, builder)


def _parse_arguments(text: str) -> str | None:
    """Return 'nums=[2, 7], target=9' for arguments on one line or several; None if one has no value."""
    lines = [line.strip().rstrip(",") for line in text.splitlines() if line.strip()]
    joined = ", ".join(lines) if all(_ARGUMENTS.match(line) for line in lines) else " ".join(lines)
    call = parse_expression(f"f({joined})")
    if not isinstance(call, ast.Call) or call.args:
        return None
    values = [(each.arg, parse_value(ast.unparse(each.value))) for each in call.keywords]
    if not all(name and value for name, value in values):
        return None
    return ", ".join(f"{name}={ast.unparse(value)}" for name, value in values if value)


def is_arrow(line: str) -> bool:
    """Return whether the line is a call with its value, such as 'f(2) -> 4'."""
    return _split_arrow(line) is not None


def read_arrow(line: str, number: int, builder: ScriptBuilder) -> None:
    """Add the call in line `number`."""
    parts = _split_arrow(line)
    if parts is not None:
        add_call(*parts, number, builder)


def _split_arrow(line: str) -> tuple[str, str] | None:
    match = _ARROW.match(line)
    call = parse_expression(match[1]) if match else None
    return (match[1], match[2].rstrip()) if match and isinstance(call, ast.Call) else None


def add_call(call: str, value: str, line: int, builder: ScriptBuilder) -> None:
    """Add the assert that the call gives the value, which is a literal of Python or JSON."""
    wanted = parse_value(value)
    if wanted is None:
        raise line_error(
            line, f"'{truncate(value)}' is no value that can be compared: write it as Python does, text in quotes"
        )
    literal = ast.unparse(wanted)
    if isinstance(wanted, ast.Constant) and isinstance(wanted.value, float):
        builder.add_assert(f"assert abs({call} - {literal}) <= {FLOAT_TOLERANCE}", line, "")
        return
    builder.add_assert(f"assert {call} {'is' if literal == 'None' else '=='} {literal}", line, "")


def _design_calls(given: str, wanted: str) -> list[tuple[str, list[str], str]] | None:
    """Return method, arguments and value of each call of a class, which LeetCode gives as lists; None for other text.

    The first is the class itself.
    """
    lines = [line.split("=", 1)[-1].strip().rstrip(",") for line in given.splitlines() if line.strip()]
    if len(lines) == 1 and lines[0].startswith("["):
        pair = parse_value(f"[{lines[0]}]")
        lines = [ast.unparse(each) for each in pair.elts] if isinstance(pair, ast.List) else lines
    parsed = [parse_value(text) for text in (*lines, wanted)]
    if len(parsed) != 3 or not all(isinstance(each, ast.List) for each in parsed):
        return None
    methods, arguments, values = ([*each.elts] for each in parsed if isinstance(each, ast.List))
    names = [each.value for each in methods if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    listed = [each.elts for each in arguments if isinstance(each, ast.List)]
    if not names or len({len(names), len(methods), len(listed), len(arguments), len(values)}) != 1:
        return None
    if not all(name.isidentifier() for name in names) or not names[0][0].isupper() or not is_literal(values[0]):
        return None
    return [
        (name, [ast.unparse(each) for each in given_values], ast.unparse(value))
        for name, given_values, value in zip(names, listed, values, strict=True)
    ]


def _add_design(calls: list[tuple[str, list[str], str]], line: int, builder: ScriptBuilder) -> None:
    (class_name, arguments, _), *others = calls
    builder.add_step(f"obj = {class_name}({', '.join(arguments)})", line, "example")
    for name, values, expected in others:
        call = f"obj.{name}({', '.join(values)})"
        operator = "is" if expected == "None" else "=="
        builder.add_assert(f"assert {call} {operator} {expected}", line, "example")


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
