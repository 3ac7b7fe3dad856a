"""Training and validation rows: loading, hold-out split, and checks of their quality.

Rows come from a built-in data set, a file, or a data set of the Hub. If the data set has no validation rows, a share of
the training rows is held out. The checks find repeated, contradicting, unparsable and leaking rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errors import DataError, TrainingError, UnknownNameError, unknown_name_error
from tasks.datasets.hub import fetch_tables, is_hub_id
from tasks.datasets.registry import (
    DATASETS,
    TRAINING_DATASETS,
    is_dataset,
    load_examples,
    load_problems,
    require_training,
)
from tasks.datasets.split import normalize_code, normalize_intent, train_validation_split
from tasks.datasets.tables import FORMATS, RowError
from tasks.datasets.upload import UploadResult, read_upload
from tasks.extract import is_valid_python
from tasks.problem import Example
from train.config import TrainConfig

# Licences of the built-in data sets, in the Hub's notation. A data set of the Hub states its own.
LICENCES = {
    "conala": "cc-by-sa-4.0",
    "codealpacapy": "cc-by-nc-4.0",
    "mbpp": "cc-by-4.0",
    "apps": "mit",
    "leetcode": "apache-2.0",
    "starter": "apache-2.0",
    "house": "apache-2.0",
}
OTHER_LICENCE = "other"


@dataclass
class DataSplit:
    """The rows of the training or the validation side, from one file or several.

    `num_rows` counts the rows of the files, `locations` maps an example's id to its position ("my.csv, line 12"),
    `changes` counts the changes made to rows while reading, `column_mapping` names the columns that were read.
    """

    examples: list[Example] = field(default_factory=list)
    row_errors: list[RowError] = field(default_factory=list)
    num_rows: int = 0
    columns: tuple[str, ...] = ()
    column_mapping: str = ""
    locations: dict[str, str] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)

    def locate(self, example: Example) -> str:
        """Return the example's position in its file, for a message; rows of built-in data sets have only an id."""
        return self.locations.get(example.id, example.id)


@dataclass(frozen=True)
class TrainingData:
    """The rows of one run. `source_note` describes in a sentence the source of training and validation rows."""

    train: list[Example]
    validation: list[Example]
    name: str
    licence: str
    source_note: str
    # All rows that were read, before max_train_samples; `validation_split` is None if a share of the training rows
    # is held out.
    train_split: DataSplit = field(default_factory=DataSplit)
    validation_split: DataSplit | None = None

    @property
    def row_errors(self) -> list[RowError]:
        """The errors of rows that could not be read, of both sides."""
        return self.train_split.row_errors + (self.validation_split.row_errors if self.validation_split else [])


@dataclass(frozen=True)
class _DatasetSplits:
    name: str
    licence: str
    train_split: DataSplit
    validation_split: DataSplit | None


def load_training_data(config: TrainConfig) -> TrainingData:
    """Read the data set `config.dataset_name`, at most max_train_samples and max_eval_samples of it.

    The validation rows are those of config.validation_file, else the data set's own, else a share of the training
    rows. Raises DataError, UnknownNameError or TrainingError with a one-sentence message.
    """
    source = _load_splits(config)
    train, validation_split = source.train_split.examples, source.validation_split
    if config.validation_file is not None:
        validation_split, note = _read_split([config.validation_file], config), config.validation_file.name
    else:
        note = "its own validation rows"
    if validation_split is not None:
        validation = validation_split.examples
    else:
        train, validation = train_validation_split(train, config.validation_split, config.seed)
        note = (
            f"{len(validation)} of its rows (validation_split {config.validation_split:g}), drawn with seed "
            f"{config.seed} so that rows with the same intent stay on one side"
        )
    if not validation:
        raise TrainingError(
            f"{source.name} leaves no row to validate on: give them with --validation-file, or add rows that differ."
        )
    return TrainingData(
        train=train[: config.max_train_samples],
        validation=validation[: config.max_eval_samples],
        name=source.name,
        licence=source.licence,
        source_note=f"{source.name}, validated on {note}.",
        train_split=source.train_split,
        validation_split=validation_split,
    )


def _load_splits(config: TrainConfig) -> _DatasetSplits:
    name = config.dataset_name
    if is_dataset(name):
        require_training(name)
        return _load_builtin(config)
    path = Path(name).expanduser()
    if path.exists() or path.suffix.casefold() in FORMATS:
        return _DatasetSplits(path.name, OTHER_LICENCE, _read_split([path], config), None)
    if is_hub_id(name):
        tables = fetch_tables(name)
        validation = _read_split(tables.validation, config) if tables.validation else None
        return _DatasetSplits(
            f"{tables.name}@{tables.revision}",
            tables.licence or OTHER_LICENCE,
            _read_split(tables.train, config),
            validation,
        )
    raise UnknownNameError(
        f"{str(unknown_name_error('data set', name, TRAINING_DATASETS)).removesuffix('.')}; or give a file that ends "
        f"in {', '.join(FORMATS)}, or a data set of the Hub as user/name."
    )


def _load_builtin(config: TrainConfig) -> _DatasetSplits:
    name = config.dataset_name
    if (config.intent_column or config.code_column) and config.validation_file is None:
        raise DataError(
            f"--intent-column and --code-column map the columns of a file or a Hub data set; {name} has its own: "
            "leave them out."
        )
    examples = load_examples(name, config.data_dir)
    validation = None
    if config.validation_file is None:
        problems = load_problems(name, "validation", config.data_dir)
        solved = [Example(problem.id, problem.intent, problem.reference) for problem in problems if problem.reference]
        validation = DataSplit(solved, num_rows=len(problems)) if name in DATASETS or solved else None
    return _DatasetSplits(
        name, LICENCES.get(name, OTHER_LICENCE), DataSplit(examples, num_rows=len(examples)), validation
    )


def _read_split(paths: Sequence[Path], config: TrainConfig) -> DataSplit:
    """Read the rows of a file; several paths are its shards."""
    split = DataSplit()
    for path in paths:
        _add_upload(split, path.name, read_upload(path, config.intent_column, config.code_column))
    return split


def _add_upload(split: DataSplit, file: str, upload: UploadResult) -> None:
    for example in upload.examples:
        id = example.id if example.id not in split.locations else f"{file}#{len(split.examples)}"
        split.examples.append(example if id == example.id else Example(id, example.intent, example.code))
        split.locations[id] = f"{file}, {upload.locations[example.id]}"
    split.row_errors += [
        RowError(error.line, error.column, f"{file}, {error.message}", error.empty) for error in upload.errors
    ]
    split.num_rows += upload.rows
    split.columns, split.column_mapping = upload.columns, str(upload.mapping)
    for change, times in upload.changes.items():
        split.changes[change] = split.changes.get(change, 0) + times


# The number of examples listed for each issue; the count covers all of them.
MAX_EXAMPLES = 10

LocateFn = Callable[[Example], str]


@dataclass(frozen=True)
class DataIssue:
    """The number of rows with an issue, and a message or position for each of the first ones."""

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class LengthStats:
    """Statistics of lengths in tokens: median, 95th percentile, maximum and sum."""

    median: int
    p95: int
    max: int
    total: int


@dataclass(frozen=True)
class Leak:
    """Validation rows whose intent or code is also in a training row; `rows` counts rows with at least one of both."""

    rows: int
    intents: int
    codes: int
    examples: tuple[str, ...] = ()


def make_issue(messages: Iterable[str]) -> DataIssue:
    """Count the messages and keep the first MAX_EXAMPLES of them."""
    listed = list(messages)
    return DataIssue(len(listed), tuple(listed[:MAX_EXAMPLES]))


def length_stats(lengths: Sequence[int]) -> LengthStats:
    """Compute the statistics of at least one length."""
    return LengthStats(int(statistics.median(lengths)), length_quantile(lengths, 0.95), max(lengths), sum(lengths))


def length_quantile(lengths: Sequence[int], fraction: float) -> int:
    """Return the smallest length that at least `fraction` of the lengths do not exceed (nearest-rank quantile)."""
    return sorted(lengths)[max(0, math.ceil(fraction * len(lengths)) - 1)]


def find_duplicates(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Find rows that have the intent and the code of an earlier row."""
    first: dict[tuple[str, str], Example] = {}
    found = []
    for example in examples:
        earlier = first.setdefault((example.intent, example.code), example)
        if earlier is not example:
            found.append(f"{locate(example)} repeats {locate(earlier)}")
    return make_issue(found)


def find_conflicts(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Find rows that have the intent of an earlier row and different code, each once."""
    codes: dict[str, dict[str, Example]] = {}
    found = []
    for example in examples:
        earlier = codes.setdefault(normalize_intent(example.intent), {})
        if normalize_code(example.code) not in earlier:
            if earlier:
                found.append(f"{locate(example)} has the intent of {locate(next(iter(earlier.values())))}")
            earlier[normalize_code(example.code)] = example
    return make_issue(found)


def find_unparsable(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Find rows whose code does not parse as Python."""
    return make_issue(locate(example) for example in examples if not is_valid_python(example.code))


def find_special_tokens(examples: Sequence[Example], locate: LocateFn, tokens: Iterable[str]) -> DataIssue:
    """Find rows with the text of a special token, which the base reads as that token (an early end, for example)."""
    special = sorted({token for token in tokens if token.strip()})
    found = []
    for example in examples:
        present = [token for token in special if token in example.intent or token in example.code]
        if present:
            found.append(f"{locate(example)} has {', '.join(present[:3])}")
    return make_issue(found)


def find_leaks(
    train: Sequence[Example], validation: Sequence[Example], train_split: DataSplit, validation_split: DataSplit
) -> Leak:
    """Find validation rows that share their intent or code with a training row."""
    intents = {normalize_intent(example.intent): example for example in reversed(train)}
    codes = {normalize_code(example.code): example for example in reversed(train)}
    found, same_intent, same_code = [], 0, 0
    for example in validation:
        by_intent, by_code = intents.get(normalize_intent(example.intent)), codes.get(normalize_code(example.code))
        same_intent += by_intent is not None
        same_code += by_code is not None
        if other := by_intent or by_code:
            what = "intent and code" if by_intent and by_code else "intent" if by_intent else "code"
            found.append(f"{validation_split.locate(example)} has the {what} of {train_split.locate(other)}")
    return Leak(len(found), same_intent, same_code, tuple(found[:MAX_EXAMPLES]))
