"""Data sets of one's own: a table of rows, kept in the user's folder with its splits, and used by its name.

The table is a file, or a data set of the Hub. `datasets/<name>/` in PROMPT_OR_TUNE_HOME has `train.jsonl`,
`validation.jsonl`, `test.jsonl` and `dataset.json`, which says where the rows came from and how they were split. The
rows are copied once: the file may change or go afterwards. A row may bring tests, in any form that tasks.pasted_tests
reads; then Pass@1 can be scored.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from common.files import atomic_dir, cache_dir, make_private_dir
from errors import DataError, PromptOrTuneError, unknown_name_error
from tasks.datasets.base import SPLITS, DatasetRow, read_rows
from tasks.datasets.hub import fetch_tables
from tasks.datasets.split import EmbedFn, split_rows
from tasks.datasets.tables import RowError
from tasks.datasets.upload import UploadResult, read_uploads
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import Example, Problem

TESTS_COLUMNS = ("tests", "test_list", "test")
GROUP_COLUMN = "group"
MIN_ROWS = 10
_MAX_SUGGESTED = 40
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_INFO = "dataset.json"


@dataclass(frozen=True)
class OwnDataset:
    """What dataset.json says.

    `source` is the name of the file, or the Hub's data set with its revision, and `digest` the SHA-256 of what was
    read. `rows` counts the rows of each split, `left_out` those that could not be read, `with_tests` those that bring
    tests, `twins` the pairs of near-twins, which are on one side unless `note` says otherwise. `columns` and `group`
    name the columns that were read, '' for none. `rows_digest` is the SHA-256 of the stored rows, '' in older folders.
    """

    name: str
    source: str
    digest: str
    rows: Mapping[str, int]
    left_out: int
    with_tests: int
    twins: int
    note: str
    columns: str
    group: str
    seed: int
    created: str
    rows_digest: str = ""

    @property
    def version(self) -> str:
        """A text that differs for other rows under the same name: what is computed from the rows is kept under it."""
        return f"{self.rows_digest} {self.created}"

    def describe(self) -> str:
        """Return the facts in a few lines."""
        counts = ", ".join(f"{count} {split}" for split, count in self.rows.items())
        lines = [f"{self.name}: {counts} rows of {self.source} ({self.columns}), split with seed {self.seed}."]
        if self.left_out:
            lines.append(f"{self.left_out} rows could not be read and are left out.")
        if self.twins:
            where = f"but {self.note}" if self.note else "and stay on one side"
            lines.append(f"{self.twins} pairs of rows are near-twins, {where}.")
        elif self.note:
            lines.append(f"Note: {self.note}.")
        if self.group:
            lines.append(f"Rows with the same '{self.group}' stay on one side.")
        total = sum(self.rows.values())
        lines.append(
            f"{self.with_tests} of {total} rows have tests: Pass@1 can be scored."
            if self.with_tests
            else "No row has tests: answers are compared with the code of the row."
        )
        return "\n".join(lines)


def datasets_dir() -> Path:
    """Return the folder of the user's own data sets."""
    return cache_dir() / "datasets"


def list_own_datasets() -> list[OwnDataset]:
    """Return the user's data sets by name; folders without a valid dataset.json are left out."""
    found = []
    for name in _own_names():
        try:
            found.append(read_own_dataset(name))
        except PromptOrTuneError:  # damaged, or removed at this moment
            continue
    return found


def is_own_dataset(name: str) -> bool:
    """Return whether the user has a data set of this name."""
    return bool(_NAME.fullmatch(name)) and (datasets_dir() / name / _INFO).is_file()


def read_own_dataset(name: str) -> OwnDataset:
    """Return the facts of a data set; raises DataError if there is none of this name, or its folder is damaged."""
    path = _folder(name) / _INFO
    try:
        return OwnDataset(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read: add the data set again under this name.") from error


def load_own_problems(name: str, split: str) -> list[Problem]:
    """Return the problems of a split, which may be none; raises DataError as `read_own_dataset` does."""
    path = _folder(name) / f"{split}.jsonl"
    if path.is_file() and not path.stat().st_size:
        return []
    return [_problem(row) for row in read_rows(path, f"the {split} split of {name}")]


def read_own_groups(name: str) -> dict[str, str]:
    """Return the group of each row that has one, by its id. Raises DataError as `read_own_dataset` does."""
    folder, groups = _folder(name), {}
    for split in SPLITS:
        for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("group"):
                groups[str(row["id"])] = str(row["group"])
    return groups


def read_own_rows(name: str, split: str) -> list[dict[str, str]]:
    """Return the stored rows of a split as texts: id, intent, code and tests. Raises as `load_own_problems` does."""
    path = _folder(name) / f"{split}.jsonl"
    rows = read_rows(path, f"the {split} split of {name}") if path.is_file() and path.stat().st_size else []
    return [{column: row.optional_text(column) for column in ("id", "intent", "code", "tests")} for row in rows]


def remove_own_dataset(name: str) -> None:
    """Delete a data set; raises UnknownNameError if there is none of this name."""
    folder = _folder(name)
    removed = folder.with_name(f".{name}.old")
    shutil.rmtree(removed, ignore_errors=True)
    folder.rename(removed)  # a rename: no reader gets a part of it
    shutil.rmtree(removed)


@dataclass(frozen=True)
class RowOptions:
    """How the rows of a file are read and split.

    Without `tests_column` and `group_column` those of TESTS_COLUMNS and GROUP_COLUMN are used where the file has them.
    """

    intent_column: str | None = None
    code_column: str | None = None
    tests_column: str | None = None
    group_column: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.2
    seed: int = 42

    def __post_init__(self) -> None:
        if self.validation_share < 0 or self.test_share <= 0 or self.validation_share + self.test_share > 0.8:
            raise DataError(
                "The shares of validation and test rows must leave at least a fifth of the rows to learn from, and "
                "that of the test rows must be above 0."
            )


def suggest_dataset_name(source: str, reserved: Sequence[str] = ()) -> str:
    """Return a free name for the rows of a file or a Hub data set: 'my-rows' for My Rows.csv or a/my-rows@main."""
    last = re.split(r"[@:]", source)[0].replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
    stem = re.sub(r"\.(jsonl?|ndjson|[ct]sv|parquet)$", "", last)
    name = re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:_MAX_SUGGESTED].strip("-._") or "my-rows"
    free = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(
        candidate for candidate in free if candidate not in reserved and not (datasets_dir() / candidate).exists()
    )


def add_own_dataset(
    source: Path | str,
    name: str,
    options: RowOptions = RowOptions(),
    *,
    reserved: Sequence[str] = (),
    embed: EmbedFn | None = None,
    overwrite: bool = False,
) -> tuple[OwnDataset, list[RowError]]:
    """Read a table, split its rows and keep them as `name`; return the facts and the rows that were left out.

    `source` is the path of a file, or as a str a data set of the Hub (user/name@revision), of which the files of
    training rows are read. `reserved` are names that are taken. Near-twins are found with `embed`
    (models.embedder.Embedder.embed). Raises DataError for a name or a table that cannot be used.
    """
    _check_name(name, reserved, overwrite)
    paths, title = _find_tables(source)
    further = (*TESTS_COLUMNS, GROUP_COLUMN, options.tests_column, options.group_column)
    upload = read_uploads(paths, options.intent_column, options.code_column, further)
    tests_column = _present_column(title, upload.columns, options.tests_column, TESTS_COLUMNS)
    group_column = _present_column(title, upload.columns, options.group_column, (GROUP_COLUMN,))
    problems, errors = _problems(upload, tests_column)
    if len(problems) < MIN_ROWS:
        raise DataError(f"{title} has {len(problems)} usable rows: give {MIN_ROWS} or more.")
    groups = [_group(upload.extras[problem.id].get(group_column)) for problem, _ in problems] if group_column else []
    examples = [Example(problem.id, problem.intent, problem.reference or "") for problem, _ in problems]
    split = split_rows(examples, options.validation_share, options.test_share, options.seed, groups, embed)
    if not split.test:
        raise DataError(f"{title}: no row can be held out, as all of them belong together: add rows that differ.")
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    group_of = {problem.id: group for (problem, _), group in zip(problems, groups, strict=False)}
    files = {side: _jsonl([problems[index] for index in indices], group_of) for side, indices in sides.items()}
    info = OwnDataset(
        name=name,
        source=title,
        digest=_sha256(*(path.read_bytes() for path in paths)),
        rows={side: len(indices) for side, indices in sides.items()},
        left_out=len(errors),
        with_tests=sum(bool(problem.tests) for problem, _ in problems),
        twins=len(split.twins),
        note=split.note,
        columns=str(upload.mapping),
        group=group_column or "",
        seed=options.seed,
        created=datetime.now().astimezone().isoformat(timespec="microseconds"),
        rows_digest=_sha256(*(file.encode() for file in files.values())),
    )
    _write(info, files, overwrite)
    return info, errors


def _find_tables(source: Path | str) -> tuple[Sequence[Path], str]:
    """Return the files that hold the rows, and the name of the table."""
    if isinstance(source, Path):
        return [source.expanduser()], source.name
    tables = fetch_tables(source)
    return tables.train, f"{tables.name}@{tables.revision}"


def file_digest(path: Path) -> str:
    """Return what `OwnDataset.digest` is for the rows of this file."""
    return _sha256(path.read_bytes())


def _sha256(*parts: bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return f"sha256:{state.hexdigest()}"


def _check_name(name: str, reserved: Sequence[str], overwrite: bool) -> None:
    if not _NAME.fullmatch(name):
        raise DataError(
            f"'{name[:80]}' cannot name a data set: use lower-case letters, digits, '.', '_' and '-', 64 at most."
        )
    if name in reserved:
        raise DataError(f"'{name}' is a data set that everybody has: choose another name.")
    if is_own_dataset(name) and not overwrite:
        raise DataError(f"You have a data set '{name}': choose another name, or replace it (--overwrite).")


def _present_column(title: str, columns: Sequence[str], given: str | None, usual: Sequence[str]) -> str | None:
    if given is not None and given not in columns:
        raise DataError(f"{title} has no column '{given[:60]}'; it has {', '.join(columns[:20])}.")
    return given or next((column for column in usual if column in columns), None)


def _problems(upload: UploadResult, tests_column: str | None) -> tuple[list[tuple[Problem, str]], list[RowError]]:
    """Return each usable problem with the text of its tests, and the errors of all other rows."""
    errors, problems = list(upload.errors), []
    for example in upload.examples:
        problem, text = Problem(example.id, example.intent, example.code), ""
        try:
            text = _tests_text(upload.extras[example.id].get(tests_column)) if tests_column else ""
            problem = replace(problem, tests=parse_pasted_tests(text) if text else ())
        except DataError as error:
            location = upload.locations[example.id]
            line = int(location.rpartition(" ")[2])
            errors.append(RowError(line, tests_column or "", f"{location}: column '{tests_column}': {error}"))
            continue
        problems.append((problem, text))
    return problems, errors


def _tests_text(value: Any) -> str:
    if value is None:
        return ""
    lines = value if isinstance(value, list) else [value]
    if not all(isinstance(line, str) for line in lines):
        raise DataError("tests must be a text or a list of texts.")
    return "\n".join(lines).strip()


def _group(value: Any) -> str | None:
    return None if value is None or not str(value).strip() else str(value).strip()


def _jsonl(problems: Sequence[tuple[Problem, str]], groups: Mapping[str, str | None]) -> str:
    rows = [
        {"id": problem.id, "intent": problem.intent, "code": problem.reference, "tests": text}
        | ({"group": group} if (group := groups.get(problem.id)) else {})
        for problem, text in problems
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _write(info: OwnDataset, files: Mapping[str, str], overwrite: bool) -> None:
    folder = make_private_dir(datasets_dir()) / info.name
    previous = folder.with_name(f".{info.name}.old")
    shutil.rmtree(previous, ignore_errors=True)
    with atomic_dir(folder) as building:
        for split in SPLITS:
            (building / f"{split}.jsonl").write_text(files[split], encoding="utf-8")
        (building / _INFO).write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")
        if overwrite and folder.is_dir():
            folder.rename(previous)
    shutil.rmtree(previous, ignore_errors=True)


def _problem(row: DatasetRow) -> Problem:
    tests = row.optional_text("tests")
    return Problem(row.text("id"), row.text("intent"), row.text("code"), parse_pasted_tests(tests) if tests else ())


def _folder(name: str) -> Path:
    if not is_own_dataset(name):
        raise unknown_name_error("data set of yours", name, _own_names())
    return datasets_dir() / name


def _own_names() -> list[str]:
    names = sorted(path.parent.name for path in datasets_dir().glob(f"*/{_INFO}"))
    return [name for name in names if _NAME.fullmatch(name)]
