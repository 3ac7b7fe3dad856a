"""Registry of the data sets by name: published ones, our own starter and house, and those that the user has added.

Bundled data sets, starter and house: our own rows, which are part of this repository and need no network. Each is a
folder of train.jsonl, validation.jsonl and test.jsonl. A row is an intent that names a function, its code, and asserts
that call it; rows of starter's train have no asserts.

Starter is plain Python. House is in the style of a team with a library of its own, `kit` (tasks/house/kit.py): its rows
call `kit.where(...)` without an import, and the test runner defines `kit` before such code.

Each is read from a folder (`data_dir`: one with a folder for each data set, the data set's own folder, or its file
where it is one file) or, without one, from the Hugging Face Hub. Starter and house are part of this repository
(tasks.datasets.registry) and need neither. Importing this module loads neither `datasets` nor torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from errors import DataError, unknown_name_error
from tasks.datasets.apps import APPS
from tasks.datasets.base import SPLITS, DatasetRow, DatasetSource, read_rows
from tasks.datasets.evalplus import HUMANEVALPLUS, MBPPPLUS
from tasks.datasets.leetcode import LEETCODE
from tasks.datasets.own import is_own_dataset, list_own_datasets, load_own_problems, read_own_dataset
from tasks.datasets.published import CODEALPACAPY, CONALA, HUMANEVAL, MBPP, find_entry_point
from tasks.problem import AssertTest, Example, Problem

STARTER, HOUSE = "starter", "house"
_TASKS = Path(__file__).parents[1]
BUNDLED: Mapping[str, Path] = {name: _TASKS / name for name in (STARTER, HOUSE)}
LIBRARY = "kit"  # the name of house's library
_SOURCES: dict[str, DatasetSource] = {
    source.name: source for source in (CONALA, CODEALPACAPY, MBPP, APPS, HUMANEVAL, HUMANEVALPLUS, MBPPPLUS, LEETCODE)
}
DATASETS: tuple[str, ...] = (*BUNDLED, *_SOURCES)
# Data sets that examples come from and that can be trained on.
TRAINING_DATASETS: tuple[str, ...] = tuple(
    name for name in DATASETS if name in BUNDLED or "train" in _SOURCES[name].splits
)


def read_bundled(name: str, split: str) -> list[Problem]:
    """Read the problems of a split of the bundled data set `name`. Rows of train may have no tests."""
    expected = f"the {split} split of {name}, which comes with this program"
    return [_make_problem(row) for row in read_rows(BUNDLED[name] / f"{split}.jsonl", expected)]


@cache
def library_prelude() -> str:
    """Return lines that define the module `kit`, so that the code after them may use it with or without an import."""
    source = (BUNDLED[HOUSE] / f"{LIBRARY}.py").read_text(encoding="utf-8")
    return (
        "import sys, types\n"
        f"{LIBRARY} = sys.modules['{LIBRARY}'] = types.ModuleType('{LIBRARY}')\n"
        f"exec(compile({source!r}, '{LIBRARY}.py', 'exec', dont_inherit=True), {LIBRARY}.__dict__)\n"
        "del sys, types\n"
    )


def _make_problem(row: DatasetRow) -> Problem:
    code = row.text("code")
    setup = row.optional_text("setup")
    tests = row.texts("tests") if row.values.get("tests") is not None else []
    return Problem(
        id=row.text("id"),
        intent=row.text("intent"),
        reference=code,
        tests=tuple(AssertTest(test, setup) for test in tests),
        entry_point=find_entry_point(code, tests),
    )


def is_dataset(name: str) -> bool:
    """Return whether `load_problems` knows the name. On the pages those that are not in DATASETS are their owner's."""
    return name in DATASETS or is_own_dataset(name)


def dataset_names() -> list[str]:
    """Return the names that `load_problems` knows: DATASETS and the user's own."""
    return [*DATASETS, *(own.name for own in list_own_datasets())]


def dataset_version(name: str) -> str:
    """Return a text that changes when the user replaces their data set of this name; '' for DATASETS.

    What is computed from rows and kept in memory is kept under it. Raises UnknownNameError for an unknown name.
    """
    if not is_dataset(name):
        raise unknown_name_error("data set", name, dataset_names())
    return "" if name in DATASETS else read_own_dataset(name).version


def require_training(name: str) -> None:
    """Raise DataError for a data set without training rows, from which no examples come."""
    if name in _SOURCES:
        _SOURCES[name].require_split("train")


def load_problems(name: str, split: str, data_dir: str | Path | None = None, limit: int | None = None) -> list[Problem]:
    """Load the first `limit` problems of a split (all of them without a limit), in the data set's order.

    The name may be that of a data set of the user's own. Raises UnknownNameError for an unknown name or split, and
    DataError for a missing folder or file, an invalid row (with its location), a limit below 1 and a Hub that cannot be
    reached.
    """
    if not is_dataset(name):
        raise unknown_name_error("data set", name, dataset_names())
    if split not in SPLITS:
        raise unknown_name_error("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise DataError(f"A limit of {limit} problems is too small: choose 1 or more, or leave it out for all.")
    return _load_split(name, split, None if data_dir is None else Path(data_dir))[:limit]


def load_examples(name: str, data_dir: str | Path | None = None) -> list[Example]:
    """Load the training split as examples, without problems that have no reference (some of APPS)."""
    return [
        Example(problem.id, problem.intent, problem.reference)
        for problem in load_problems(name, "train", data_dir)
        if problem.reference is not None
    ]


def available_datasets(data_dir: str | Path | None = None) -> list[str]:
    """Return the data sets that load without the network: bundled ones, and those in `data_dir` or in this file."""
    if data_dir is None or not Path(data_dir).exists():
        return [*BUNDLED]
    if Path(data_dir).is_file():
        return [*BUNDLED, *(name for name, source in _SOURCES.items() if source.is_file_of(Path(data_dir)))]
    folder, names = Path(data_dir).resolve(), frozenset(_SOURCES)
    return [*BUNDLED, *(name for name, source in _SOURCES.items() if source.find(folder, names) is not None)]


def dataset_digest(items: Iterable[Problem | Example]) -> str:
    """Return `sha256:` and 16 hex digits that change with any id, intent or code of the items, or their order."""
    state = hashlib.sha256()
    for item in items:
        code = item.code if isinstance(item, Example) else item.reference
        state.update(json.dumps([item.id, item.intent, code or ""]).encode() + b"\n")
    return f"sha256:{state.hexdigest()[:16]}"


def _load_split(name: str, split: str, data_dir: Path | None) -> list[Problem]:
    if name not in DATASETS:
        return load_own_problems(name, split)
    if name in BUNDLED:
        # These need no folder, but a mistyped one is an error.
        if data_dir is not None and not data_dir.exists():
            raise DataError(f"No such data folder: {data_dir} (--data-dir); leave it out for {name}.")
        return read_bundled(name, split)
    source = _SOURCES[name]
    source.require_split(split)
    if data_dir is None:
        return source.fetch(split)
    return source.read(source.folder(data_dir, frozenset(_SOURCES)), split)
