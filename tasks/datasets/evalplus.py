"""HumanEval+ and MBPP+ (Liu et al., arXiv 2305.01210): readers of EvalPlus's editions with many more tests.

Inputs of EvalPlus's rows: the types that JSON lacks, and the source of a call's arguments. Which arguments of which
tasks of MBPP+ are tuples, sets or complex numbers is EvalPlus's own knowledge (the function `mbpp_deserialize_inputs`
of its data/mbpp.py, release 0.3.1); the rows do not say so.

Both have the split test alone. A problem has two tests: `base`, the inputs of the original data set, and `plus`, those
that EvalPlus added. A test's expected values are what the canonical solution returns (evaluate.test_runner.reference),
as in EvalPlus, and are compared by EvalPlus's rules. Two forms of rows are read:

- EvalPlus's own (HumanEvalPlus.jsonl, MbppPlus.jsonl, also packed by gzip): base_input, plus_input and atol. JSON has
  no tuples, sets and complex numbers, so the inputs of some tasks of MBPP are converted, as EvalPlus does.
- That of the Hub (evalplus/humanevalplus, evalplus/mbppplus): `test` is a program with the list `inputs` of all
  inputs, which become one test, `base and plus`.

HumanEval+ asks as HumanEval does. MBPP+ asks as MBPP does: the text, and the first assert that calls the function.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.parsing import json_type, parse_python
from errors import DataError
from tasks.datasets import hub
from tasks.datasets.base import DatasetRow, DatasetSource, read_rows
from tasks.datasets.hub import HubFile
from tasks.datasets.published import completion_intent, find_entry_point, problem_id
from tasks.problem import Problem, ReferenceTest

_Restore = Callable[[list[Any]], list[Any]]
COMPARISON = "evalplus"
HUMANEVALPLUS_FILE = HubFile(
    "evalplus/humanevalplus",
    "d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
    "data/test-00000-of-00001-5973903632b82d40.parquet",
    "parquet",
)
MBPPPLUS_FILE = HubFile(
    "evalplus/mbppplus",
    "b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
    "data/test-00000-of-00001-d5781c9c51e02795.parquet",
    "parquet",
)
_MBPP_ID = re.compile(r"(?:mbpp/)?(\d+)", re.IGNORECASE)
MakeProblemFn = Callable[[DatasetRow], Problem]


def restore_types(task: int, arguments: list[Any]) -> list[Any]:
    """Return the arguments of an input of the MBPP task of that number with the types that it expects.

    Raises TypeError, ValueError, IndexError or AttributeError for arguments that the task cannot have.
    """
    restore = _RESTORE_BY_TASK.get(task)
    return restore(arguments) if restore else arguments


def argument_source(arguments: list[Any]) -> str:
    """Return Python's source of the arguments of a call, without names; raises ValueError for too long numbers."""
    return ", ".join(map(_value_source, arguments))


def _value_source(value: Any) -> str:
    match value:
        case float() if not math.isfinite(value):
            if math.isnan(value):
                return "(1e999-1e999)"
            return "1e999" if value > 0 else "-1e999"
        case list():
            return f"[{', '.join(map(_value_source, value))}]"
        case tuple():
            return f"({', '.join(map(_value_source, value))}{',' if len(value) == 1 else ''})"
        case set() if value:
            return f"{{{', '.join(sorted(map(_value_source, value)))}}}"
        case dict():
            return f"{{{', '.join(f'{_value_source(key)}: {_value_source(item)}' for key, item in value.items())}}}"
    return repr(value)


def _each_tuple(arguments: list[Any]) -> list[Any]:
    return [tuple(each) for each in arguments]


def _each_list_of_tuples(arguments: list[Any]) -> list[Any]:
    return [[tuple(each) for each in argument] for argument in arguments]


def _each_tuple_of_tuples(arguments: list[Any]) -> list[Any]:
    return [tuple(tuple(each) for each in argument) for argument in arguments]


def _first_tuple(arguments: list[Any]) -> list[Any]:
    return [tuple(arguments[0]), *arguments[1:]]


def _second_tuple(arguments: list[Any]) -> list[Any]:
    return [arguments[0], tuple(arguments[1])]


def _first_list_of_tuples(arguments: list[Any]) -> list[Any]:
    return [[tuple(each) for each in arguments[0]], arguments[1]]


def _first_tuple_with_tuples(arguments: list[Any]) -> list[Any]:
    return [tuple(tuple(each) if isinstance(each, list) else each for each in arguments[0])]


def _first_dict_of_tuples(arguments: list[Any]) -> list[Any]:
    return [{key: tuple(each) for key, each in arguments[0].items()}, *arguments[1:]]


def _first_list_of_sets(arguments: list[Any]) -> list[Any]:
    return [[set(each) if isinstance(each, list) and each else {} for each in arguments[0]]]


def _float_and_complex(arguments: list[Any]) -> list[Any]:
    return [float(arguments[0]), complex(arguments[1])]


def _one_complex(arguments: list[Any]) -> list[Any]:
    return [complex(arguments[0])]


def _all_tuples(arguments: list[Any]) -> list[Any]:
    return [_deep_tuple(each) for each in arguments]


def _deep_tuple(value: Any) -> Any:
    return tuple(map(_deep_tuple, value)) if isinstance(value, list) else value


_TASKS: tuple[tuple[_Restore, tuple[int, ...]], ...] = (
    (
        _each_tuple,
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
    ),
    (_each_list_of_tuples, (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    (_each_tuple_of_tuples, (259, 401, 445)),
    (_first_list_of_tuples, (75, 413, 444, 753)),
    (_first_tuple, (250, 307, 405, 446, 617, 720, 763, 808)),
    (_second_tuple, (106, 750)),
    (_first_tuple_with_tuples, (278,)),
    (_first_dict_of_tuples, (722,)),
    (_first_list_of_sets, (115,)),
    (_float_and_complex, (124,)),
    (_one_complex, (252,)),
    (_all_tuples, (580, 615, 791)),
)
_RESTORE_BY_TASK: dict[int, _Restore] = {task: restore for restore, tasks in _TASKS for task in tasks}


def read_evalplus(
    path: Path, _split: str, *, patterns: Sequence[str], title: str, make: MakeProblemFn
) -> list[Problem]:
    """Read the problems in a file of EvalPlus, or in the folder that has one."""
    files = [path] if path.is_file() else sorted({file for pattern in patterns for file in path.glob(pattern)})
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise DataError(f"{path} has several editions of {title} ({listed}): name one of them as --data-dir FILE.")
    file = files[0] if files else path / patterns[0]
    rows = read_rows(file, f"{title}, one JSON object a line with prompt, canonical_solution and the inputs")
    return [make(row) for row in rows]


def fetch_evalplus(_split: str, *, file: HubFile, title: str, make: MakeProblemFn) -> list[Problem]:
    """Load the problems from the Hub."""
    return [make(row) for row in hub.load_rows(file, title)]


def make_humanevalplus_problem(row: DatasetRow) -> Problem:
    """Make the problem of a row of HumanEval+ in either form."""
    prompt, entry_point = row.text("prompt"), _entry_point(row)
    reference = prompt + row.text("canonical_solution")
    return Problem(
        id=problem_id(row),
        intent=completion_intent(prompt),
        reference=reference,
        tests=_tests(row, row.text("task_id").strip(), entry_point, reference, 0),
        entry_point=entry_point,
        comparison=COMPARISON,
        prompt=prompt,
    )


def make_mbppplus_problem(row: DatasetRow) -> Problem:
    """Make the problem of a row of MBPP+ in either form."""
    number = _mbpp_number(row)
    reference = row.text("canonical_solution", "code").strip("\n") + "\n"
    text, first_assert = _mbpp_question(row)
    if "entry_point" in row.values:
        entry_point = _entry_point(row)
    else:
        found = find_entry_point(reference, row.texts("test_list"))
        if found is None:
            raise DataError(f"{row.location}: no assert of column 'test_list' calls a function of column 'code'.")
        entry_point = found
    return Problem(
        id=f"mbpp-{number}",
        intent=f"{text}\nYour code should pass this test: {first_assert}" if first_assert else text,
        reference=reference,
        tests=_tests(row, f"Mbpp/{number}", entry_point, reference, number),
        entry_point=entry_point,
        comparison=COMPARISON,
    )


def _entry_point(row: DatasetRow) -> str:
    name = row.text("entry_point").strip()
    if not name.isidentifier():
        raise DataError(f"{row.location}: column 'entry_point' must be the name of a function.")
    return name


def _mbpp_number(row: DatasetRow) -> int:
    value = row.values.get("task_id")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _MBPP_ID.fullmatch(row.text("task_id").strip())
    if match is None:
        raise DataError(f"{row.location}: column 'task_id' must be a number, or a text like Mbpp/2.")
    return int(match[1])


def _mbpp_question(row: DatasetRow) -> tuple[str, str]:
    """Return the text and an assert: the last line of the prompt's docstring, else the first of the row's asserts."""
    lines = row.text("prompt").strip().strip("\"'").strip().splitlines()
    asserts = [at for at, line in enumerate(lines) if line.startswith("assert ")]
    if asserts:
        text, test = "\n".join(lines[: asserts[0]]), "\n".join(lines[asserts[0] :])
    else:
        text = "\n".join(lines)
        given = row.texts("test_list") if "test_list" in row.values else row.optional_text("assertion").splitlines()
        test = next((line.strip() for line in given if line.strip()), "")
    if not text.strip():
        raise DataError(f"{row.location}: column 'prompt' has no text beside its quotes and asserts.")
    return text.strip(), test.strip()


def _tests(row: DatasetRow, name: str, function: str, reference: str, number: int) -> tuple[ReferenceTest, ...]:
    if "base_input" not in row.values and "test" in row.values:
        inputs, tolerance = _read_test_program(row)
        return (ReferenceTest(f"{name} base and plus", function, inputs, reference, tolerance),)
    tolerance = _tolerance(row)
    tests = []
    for kind in ("base", "plus"):
        # A task without added inputs has an empty object in EvalPlus's file.
        values = row.items(f"{kind}_input") if row.values.get(f"{kind}_input") != {} else []
        sources = tuple(_input_source(row, f"{kind}_input", at, value, number) for at, value in enumerate(values))
        if kind == "base" and not sources:
            raise DataError(f"{row.location}: column 'base_input' is empty.")
        if sources:
            tests.append(ReferenceTest(f"{name} {kind}", function, sources, reference, tolerance))
    return tuple(tests)


def _tolerance(row: DatasetRow) -> float:
    value = row.values.get("atol", 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DataError(f"{row.location}: column 'atol' must be a number that is not negative.")
    return float(value)


def _input_source(row: DatasetRow, column: str, at: int, value: Any, number: int) -> str:
    """Return the source of the arguments of one input."""
    if not isinstance(value, list):
        raise DataError(
            f"{row.location}: column '{column}' must be a list of lists of arguments, input {at + 1} is "
            f"{json_type(value)}."
        )
    try:
        return argument_source(restore_types(number, value) if number else value)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{row.location}: column '{column}', input {at + 1}: these are no arguments of task {number} ({error})."
        ) from error


def _read_test_program(row: DatasetRow) -> tuple[tuple[str, ...], float]:
    """Return the inputs and the tolerance in the program of column `test`, of which nothing is run."""
    try:
        tree = parse_python(row.text("test"))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise DataError(f"{row.location}: column 'test' is not Python ({error}).") from error
    inputs: list[ast.expr] = []
    tolerance = 0.0
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id="inputs")], value=ast.List(elts=elements)):
                inputs = elements
            case ast.Call(func=ast.Name(id="assertion"), args=[_, _, *_, ast.Constant(value=int() | float() as last)]):
                tolerance = float(last)
            case ast.Assert(
                test=ast.Compare(
                    left=ast.Call(func=ast.Name(id="_poly")), comparators=[ast.Constant(value=float() as last)]
                )
            ):  # of find_zero
                tolerance = last
    if not inputs:
        raise DataError(f"{row.location}: column 'test' has no list of inputs.")
    for at, each in enumerate(inputs, start=1):
        if not isinstance(each, ast.List | ast.Tuple):
            raise DataError(f"{row.location}: column 'test', input {at} is no list of arguments.")
    return tuple(_elements_source(each) for each in inputs), tolerance


def _elements_source(node: ast.expr) -> str:
    """Return the source of the elements of a list or a tuple, with numbers in place of the names inf and nan."""
    elements = node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return ", ".join(ast.unparse(_NumberNames().visit(each)) for each in elements)


class _NumberNames(ast.NodeTransformer):
    """Replaces `inf` and `nan`, which the Hub's tests import, by what needs no import."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in {"inf", "nan"}:
            return parse_python(argument_source([float(node.id)]), "eval").body
        return node


def _source(name: str, title: str, file: str, hub_file: HubFile, make: MakeProblemFn) -> DatasetSource:
    patterns = (f"{file}*.jsonl", f"{file}*.jsonl.gz")
    return DatasetSource(
        name=name,
        title=title,
        patterns=patterns,
        layout=f"{name}/{file}.jsonl (or .jsonl.gz), or that file itself",
        read=partial(read_evalplus, patterns=patterns, title=title, make=make),
        fetch=partial(fetch_evalplus, file=hub_file, title=title, make=make),
        splits=("test",),
        is_file=True,
    )


HUMANEVALPLUS = _source("humanevalplus", "HumanEval+", "HumanEvalPlus", HUMANEVALPLUS_FILE, make_humanevalplus_problem)
MBPPPLUS = _source("mbppplus", "MBPP+", "MbppPlus", MBPPPLUS_FILE, make_mbppplus_problem)
