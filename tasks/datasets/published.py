"""Readers of CoNaLa, CodeAlpacaPy, MBPP and HumanEval, whose rows need little but their names changed.

CoNaLa and CodeAlpacaPy: an intent (column nl) and its code (column cmd) in each row, in three files, without tests.
CoNaLa is DocPrompting's split (Zhou et al., arXiv 2207.05987), from the JSON Lines files of its repository.
CodeAlpacaPy is the Python part of CodeAlpaca in the study (arXiv 2308.10462), from the Hub's Parquet copy of
`antolin/codealpaca-filtered`.

MBPP (Austin et al., arXiv 2108.07732): 974 short tasks with asserts, in one file. The splits are the
authors': task_id 11-510 test, 511-600 validation, 601-974 train; 1-10 are their few-shot prompt and in none of the
three. A task's text never names the function that the asserts call, so, as is usual with MBPP, the intent ends with the
first of them ("Your code should pass this test: ..."). That assert is among those that score the answer. Windows
newlines, which nearly every row has, are replaced.

HumanEval (Chen et al., arXiv 2107.03374): 164 functions to complete, with the tests of their authors. The
only split is test. The prompt is a signature with a docstring, in a few problems after imports and helper functions;
the intent is that prompt below one line that asks to complete the function. An answer may be the body or a program that
repeats the signature (tasks.problem). The reference is prompt and canonical solution.

The tests are the row's `check(candidate)`, read as pasted tests are (tasks.pasted_tests), and compared as Python does.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from common.parsing import parse_python
from errors import DataError
from tasks.datasets import hub
from tasks.datasets.base import DatasetRow, DatasetSource, read_rows
from tasks.datasets.hub import HubFile
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest, Problem, Test

CONALA_REPO, CONALA_REVISION = "neulab/docprompting-conala", "48df7abf0f64f9279b4ee04386272eb9dc89ef89"
CODEALPACAPY_REPO, CODEALPACAPY_REVISION = "antolin/codealpaca-filtered", "2e2e5f16ccd5ab5891d6962cdff5453a62e8920b"

_CONALA_FILES = {
    split: HubFile(CONALA_REPO, CONALA_REVISION, f"conala-{stem}.jsonl", "json")
    for split, stem in (("train", "train"), ("validation", "dev"), ("test", "test"))
}
_CODEALPACAPY_FILES = {
    split: HubFile(CODEALPACAPY_REPO, CODEALPACAPY_REVISION, f"default/{stem}/0000.parquet", "parquet")
    for split, stem in (("train", "train"), ("validation", "valid"), ("test", "test"))
}
HUMANEVAL_REPO, HUMANEVAL_REVISION = "openai/openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"
_HUMANEVAL_FILES = ("HumanEval.jsonl", "HumanEval.jsonl.gz")
HUMANEVAL_REQUEST = "Complete this function:"


def read_pairs(name: str, title: str, folder: Path, split: str) -> list[Problem]:
    """Read the problems of `<folder>/<split>.jsonl`."""
    expected = f"{title}'s {split} split, one JSON object a line with the columns nl and cmd"
    return _make_pair_problems(name, split, read_rows(folder / f"{split}.jsonl", expected))


def fetch_pairs(name: str, title: str, files: dict[str, HubFile], split: str) -> list[Problem]:
    """Load the problems of a split from the Hub."""
    return _make_pair_problems(name, split, hub.load_rows(files[split], title))


def _make_pair_problems(name: str, split: str, rows: Iterable[DatasetRow]) -> list[Problem]:
    seen: Counter[str] = Counter()
    problems = []
    for number, row in enumerate(rows):
        id = row.row_id(f"{name}-{split}-{number:04d}")
        seen[id] += 1
        if seen[id] > 1:  # CoNaLa repeats 21 rows; results are stored by id, so each row needs its own
            id = f"{id}#{seen[id]}"
        problems.append(Problem(id, row.text("nl", "instruction"), row.text("cmd", "output")))
    return problems


def _make_source(name: str, title: str, files: dict[str, HubFile]) -> DatasetSource:
    return DatasetSource(
        name=name,
        title=title,
        patterns=("train.jsonl", "validation.jsonl", "test.jsonl"),
        layout=f"{name}/train.jsonl, validation.jsonl and test.jsonl (columns nl and cmd), or these three files",
        read=partial(read_pairs, name, title),
        fetch=partial(fetch_pairs, name, title, files),
    )


CONALA = _make_source("conala", "CoNaLa", _CONALA_FILES)
CODEALPACAPY = _make_source("codealpacapy", "CodeAlpacaPy", _CODEALPACAPY_FILES)


def find_entry_point(code: str, tests: Iterable[str]) -> str | None:
    """Return the top-level function or class of `code` that the tests call first; None if they call none."""
    try:
        defined = {
            node.name
            for node in parse_python(code).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        trees = [parse_python(test.strip()) for test in tests]
    except (SyntaxError, ValueError):  # ValueError: a null byte, on Python before 3.12
        return None
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
                return node.func.id
    return None


MBPP_REPO, MBPP_REVISION = "google-research-datasets/mbpp", "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
MBPP_FILE = "mbpp.jsonl"
SPLIT_IDS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}


def read_mbpp(folder: Path, split: str) -> list[Problem]:
    """Read the problems of the split in `<folder>/mbpp.jsonl`."""
    rows = read_rows(
        folder / MBPP_FILE, "MBPP, one JSON object a line with the columns task_id, text, code and test_list"
    )
    problems = _make_mbpp_problems(row for row in rows if row.number("task_id") in SPLIT_IDS[split])
    if not problems:
        ids = SPLIT_IDS[split]
        raise DataError(
            f"{folder / MBPP_FILE} has no row of the {split} split (task_id {ids.start} to {ids.stop - 1})."
        )
    return problems


def fetch_mbpp(split: str) -> list[Problem]:
    """Load the problems of the split from the Hub."""
    return _make_mbpp_problems(
        hub.load_rows(HubFile(MBPP_REPO, MBPP_REVISION, f"full/{split}-00000-of-00001.parquet", "parquet"), "MBPP")
    )


def _make_mbpp_problems(rows: Iterable[DatasetRow]) -> list[Problem]:
    return [_make_mbpp_problem(row) for row in rows]


def _make_mbpp_problem(row: DatasetRow) -> Problem:
    code = _normalize_newlines(row.text("code"))
    tests = [_normalize_newlines(test).strip() for test in row.texts("test_list")]
    if not tests:
        raise DataError(f"{row.location}: column 'test_list' is empty.")
    setup = _normalize_newlines(row.optional_text("test_setup_code"))
    return Problem(
        id=f"mbpp-{row.number('task_id')}",
        intent=f"{_normalize_newlines(row.text('text')).strip()}\nYour code should pass this test: {tests[0]}",
        reference=code,
        tests=tuple(AssertTest(test, setup) for test in tests),
        entry_point=find_entry_point(code, tests),
    )


def _normalize_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


MBPP = DatasetSource("mbpp", "MBPP", (MBPP_FILE,), f"mbpp/{MBPP_FILE}, or {MBPP_FILE} itself", read_mbpp, fetch_mbpp)


def completion_intent(prompt: str) -> str:
    """Return the intent that asks for the function whose beginning the prompt is."""
    return f"{HUMANEVAL_REQUEST}\n{prompt.strip()}"


def problem_id(row: DatasetRow) -> str:
    """Return `humaneval-7` for the task_id `HumanEval/7`."""
    return row.text("task_id").strip().lower().replace("/", "-")


def read_humaneval(path: Path, _split: str) -> list[Problem]:
    """Read the problems in HumanEval's file, or in the folder that has it."""
    file = (
        path
        if path.is_file()
        else next((path / name for name in _HUMANEVAL_FILES if (path / name).is_file()), path / _HUMANEVAL_FILES[0])
    )
    return _make_humaneval_problems(
        read_rows(file, "HumanEval, one JSON object a line with prompt, entry_point and test")
    )


def fetch_humaneval(_split: str) -> list[Problem]:
    """Load the problems from the Hub."""
    file = HubFile(HUMANEVAL_REPO, HUMANEVAL_REVISION, "openai_humaneval/test-00000-of-00001.parquet", "parquet")
    return _make_humaneval_problems(hub.load_rows(file, "HumanEval"))


def _make_humaneval_problems(rows: Iterable[DatasetRow]) -> list[Problem]:
    return [_make_humaneval_problem(row) for row in rows]


def _make_humaneval_problem(row: DatasetRow) -> Problem:
    prompt, entry_point = row.text("prompt"), row.text("entry_point").strip()
    return Problem(
        id=problem_id(row),
        intent=completion_intent(prompt),
        reference=prompt + row.text("canonical_solution"),
        tests=_parse_check(row, entry_point),
        entry_point=entry_point,
        prompt=prompt,
    )


def _parse_check(row: DatasetRow, entry_point: str) -> tuple[Test, ...]:
    """Return the tests in the row's function `check`; raises DataError with the row's location."""
    if not entry_point.isidentifier():
        raise DataError(f"{row.location}: column 'entry_point' must be the name of a function.")
    try:
        return parse_pasted_tests(f"{row.text('test').rstrip()}\ncheck({entry_point})\n")
    except DataError as error:
        if str(error).startswith(row.location):
            raise
        raise DataError(f"{row.location}: column 'test' cannot be read as tests ({str(error).rstrip('.')}).") from error


HUMANEVAL = DatasetSource(
    name="humaneval",
    title="HumanEval",
    patterns=_HUMANEVAL_FILES,
    layout=f"humaneval/{_HUMANEVAL_FILES[0]} (or .jsonl.gz), or that file itself",
    read=read_humaneval,
    fetch=fetch_humaneval,
    splits=("test",),
    is_file=True,
)
