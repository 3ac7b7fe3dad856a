"""APPS (Hendrycks et al., arXiv 2105.09938): reader of its rows and of its test format.

APPS has competition problems with tests, in three difficulties. From the Hub the splits are the study's (arXiv
2308.10462): the training rows are shuffled with seed 42, the first 500 are the validation split and the rest is train;
test is the first 250 rows of each difficulty of APPS's test rows.

A folder has the split `test` only, and its problems come from APPS's *train* rows, in both known layouts:
`apps_unique128.jsonl` (128 problems, no reference solutions) and APPS's original layout, a folder NNNN for each problem
with question.txt and, where they exist, input_output.json, solutions.json, metadata.json, starter_code.py. Figures on
these must not be compared with the study's.

The intent is the question, the starter code if there is any, and APPS's own last line, which says how the program is
called. The reference is the first solution. The tests are those of tasks.problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.parsing import json_type, parse_json
from errors import DataError
from tasks.datasets import hub
from tasks.datasets.base import DatasetRow, DatasetSource, read_json, read_rows
from tasks.datasets.hub import HubFile
from tasks.problem import AppsTests, Problem, StdioTest, parse_tests, to_stdio_text

REPO, REVISION = "codeparrot/apps", "21e74ddf8de1a21436da12e3e653065c5213e9d1"
FILE, LAYOUT = "apps_unique128.jsonl", "original_layout"
_PROBLEM_FOLDER = "[0-9][0-9][0-9][0-9]"
VALIDATION_ROWS = 500
TEST_ROWS_PER_DIFFICULTY = 250
CALL_FORMAT, STDIO_FORMAT = "Use Call-Based format", "Use Standard Input format"
ARGUMENTS_HINT = "Read each argument from a line of its own of standard input and print the result."


def read_apps(folder: Path, split: str) -> list[Problem]:
    """Read the problems in a folder of either layout. Only `test`: see the module's docstring."""
    if split != "test":
        raise DataError(
            f"APPS in {folder} has only the split test: leave --data-dir out to get {split} from the Hugging Face Hub."
        )
    if (folder / FILE).is_file():
        return [_unique128_problem(row) for row in read_rows(folder / FILE, "problems of APPS, one JSON object a line")]
    numbered = folder / LAYOUT if (folder / LAYOUT).is_dir() else folder
    problems = [_folder_problem(path) for path in sorted(numbered.glob(_PROBLEM_FOLDER)) if path.is_dir()]
    if not problems:
        raise DataError(f"{numbered} is empty: expected there is a folder NNNN with question.txt for each problem.")
    return problems


def fetch_apps(split: str) -> list[Problem]:
    """Load the problems of the study's split from the Hub."""
    file = HubFile(REPO, REVISION, "test.jsonl" if split == "test" else "train.jsonl", "json")
    table = hub.load_table(file, "APPS")
    if split == "test":
        chosen: Iterable[int] = first_per_difficulty(table["difficulty"], TEST_ROWS_PER_DIFFICULTY)
    else:
        table = table.shuffle(seed=42)
        chosen = range(VALIDATION_ROWS) if split == "validation" else range(VALIDATION_ROWS, len(table))
        chosen = [index for index in chosen if index < len(table)]
    origin = "test" if split == "test" else "train"
    return [_hub_problem(hub.make_row(file, index + 1, table[index]), origin) for index in chosen]


def first_per_difficulty(difficulties: Iterable[str], number: int) -> list[int]:
    """Return the indices of the first `number` rows of each difficulty, in their order."""
    seen: Counter[str] = Counter()
    chosen = []
    for index, difficulty in enumerate(difficulties):
        seen[difficulty] += 1
        if seen[difficulty] <= number:
            chosen.append(index)
    return chosen


def _hub_problem(row: DatasetRow, origin: str) -> Problem:
    """Make the problem of a row of the Hub's files, where solutions and tests are JSON in text ('' for none)."""
    solutions = parse_json(row.optional_text("solutions") or "[]", f"{row.location}, column solutions")
    tests = row.optional_text("input_output") or "{}"
    return _make_problem(
        id=f"apps-{origin}-{row.number('id'):04d}",
        location=row.location,
        question=row.text("question"),
        starter=row.optional_text("starter_code"),
        solutions=solutions,
        tests=parse_tests(tests, f"{row.location}, column input_output"),
        difficulty=row.optional_text("difficulty"),
    )


def _folder_problem(folder: Path) -> Problem:
    question = folder / "question.txt"
    if not question.is_file():
        raise DataError(f"No such file: {question} should hold the problem's text.")
    values = _read_object(folder / "metadata.json")
    tests = _read_text(folder / "input_output.json") or "{}"
    solutions = folder / "solutions.json"
    return _make_problem(
        id=f"apps-train-{folder.name}",
        location=str(folder),
        question=DatasetRow(str(question), {"text": _read_text(question)}).text("text"),
        starter=_read_text(folder / "starter_code.py"),
        solutions=read_json(solutions) if solutions.is_file() else [],
        tests=parse_tests(tests, str(folder / "input_output.json")),
        difficulty=DatasetRow(str(folder / "metadata.json"), values).optional_text("difficulty"),
    )


def _make_problem(
    *, id: str, location: str, question: str, starter: str, solutions: Any, tests: AppsTests, difficulty: str
) -> Problem:
    if not isinstance(solutions, list):
        raise DataError(f"{location}: solutions must be a list, it is {json_type(solutions)}.")
    call = tests.function is not None or (not tests.tests and bool(starter.strip()))
    parts = [question.strip(), starter.strip(), CALL_FORMAT if call else STDIO_FORMAT]
    usable = [text for text in solutions if isinstance(text, str) and text.strip()]
    return Problem(
        id=id,
        intent="\n".join(part for part in parts if part),
        reference=usable[0].replace("\r\n", "\n") if usable else None,
        tests=tests.tests,
        entry_point=tests.function,
        difficulty=difficulty or None,
    )


def _unique128_problem(row: DatasetRow) -> Problem:
    """Make the problem of a row of apps_unique128.jsonl: its tests are program runs.

    Where the original calls a function the starter code is left out, as the program must read its arguments, one a
    line.
    """
    question = row.text("description").strip()
    how = f"{ARGUMENTS_HINT}\n{STDIO_FORMAT}" if row.optional_text("starter_code").strip() else STDIO_FORMAT
    return Problem(
        id=f"apps-train-{row.number('id'):04d}",
        intent=f"{question}\n{how}",
        tests=tuple(_parse_stdio_test(test, row.location) for test in row.items("test_list")),
        difficulty=row.optional_text("difficulty") or None,
    )


def _parse_stdio_test(test: Any, location: str) -> StdioTest:
    if not isinstance(test, dict) or not isinstance(test.get("input"), str) or "output" not in test:
        raise DataError(f"{location}: each of 'test_list' must be an object with a text 'input' and an 'output'.")
    return StdioTest(test["input"], to_stdio_text(test["output"]))


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a JSON object.")
    return value


def _read_text(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start + 1} of the file).") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error


APPS = DatasetSource(
    name="apps",
    title="APPS",
    patterns=(FILE, LAYOUT, f"{_PROBLEM_FOLDER}/question.txt"),
    layout=f"apps/{FILE}, or folders of APPS's original layout (NNNN/question.txt)",
    read=read_apps,
    fetch=fetch_apps,
)
