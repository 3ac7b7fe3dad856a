"""Training/validation rows, hold-out split.

What a run learns from and is validated on: a data set of ours, a file of the person's own, or one from the Hub.

Which rows are held out where a data set has no validation rows of its own.

What a person should know of their rows before they train on them: repeated, contradicting, unparsable, leaking.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errors import DataError, TrainingError, UnknownNameError, unknown_name_error
from tasks.datasets.hub import fetch_tables, is_hub_id
from tasks.datasets.registry import DATASETS, load_examples, load_problems
from tasks.datasets.tables import FORMATS, RowError
from tasks.datasets.upload import UploadResult, read_upload
from tasks.extract import is_valid_python
from tasks.problem import Example
from train.config import TrainConfig


def normalize_intent(intent: str) -> str:
    """What two intents have in common that ask the same: letters' case and white space do not count."""
    return " ".join(intent.casefold().split())


def normalize_code(code: str) -> str:
    """What two equal pieces of code have in common: white space at the ends of lines does not count."""
    return "\n".join(line.rstrip() for line in code.strip().splitlines())


def train_validation_split(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and validation rows, each in their own order; about `share` of all rows, at least one, are held out.

    Rows with the same intent or the same code stay on one side, so that nothing leaks. Where that ties too much
    together (answers that are all True or False, say), the same intent alone does. The second list is empty where
    nothing can be held out without a leak.
    """
    wanted = max(1, round(len(examples) * fraction))
    chosen: set[int] = set()
    for keys in (_intent_and_code_keys, _intent_keys):
        chosen = _choose_groups(_connected_groups(examples, keys), wanted, seed)
        if 2 * len(chosen) >= wanted:
            break
    learned = [example for index, example in enumerate(examples) if index not in chosen]
    return learned, [example for index, example in enumerate(examples) if index in chosen]


def _intent_and_code_keys(example: Example) -> tuple[Hashable, ...]:
    return ("intent", normalize_intent(example.intent)), ("code", normalize_code(example.code))


def _intent_keys(example: Example) -> tuple[Hashable, ...]:
    return (("intent", normalize_intent(example.intent)),)


def _connected_groups(examples: Sequence[Example], keys: Callable[[Example], tuple[Hashable, ...]]) -> list[list[int]]:
    """Indices of examples that share a key, also through others (union-find)."""
    parents = list(range(len(examples)))
    owners: dict[Hashable, int] = {}

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for index, example in enumerate(examples):
        for key in keys(example):
            parents[root(index)] = root(owners.setdefault(key, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(examples)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _choose_groups(groups: list[list[int]], count: int, seed: int) -> set[int]:
    """Whole groups, in an order that the seed draws, as long as they fit; never all of them."""
    order = random.Random(seed).sample(groups, len(groups))
    chosen: set[int] = set()
    for group in order[: len(order) - 1]:
        if len(chosen) + len(group) <= count:
            chosen.update(group)
    return chosen


# As the Hub writes licences; a file's is its owner's business, a data set of the Hub states its own.
LICENCES = {
    "conala": "cc-by-sa-4.0",
    "codealpacapy": "cc-by-nc-4.0",
    "mbpp": "cc-by-4.0",
    "apps": "mit",
    "starter": "apache-2.0",
}
OTHER_LICENCE = "other"


@dataclass
class DataSplit:
    """Rows of one side, from one file or several.

    `rows` counts those that the files have, `places` says where an example stands by its id ("my.csv, line 12"),
    `changes` counts what was done to rows on the way, `mapping` says which columns were read.
    """

    examples: list[Example] = field(default_factory=list)
    row_errors: list[RowError] = field(default_factory=list)
    num_rows: int = 0
    columns: tuple[str, ...] = ()
    column_mapping: str = ""
    locations: dict[str, str] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)

    def locate(self, example: Example) -> str:
        """Where the example stands, for a sentence; rows of our own data sets go by their ids."""
        return self.locations.get(example.id, example.id)


@dataclass(frozen=True)
class TrainingData:
    """The rows of one run. `source_note` says in a sentence where they and those that validate come from."""

    train: list[Example]
    validation: list[Example]
    name: str
    licence: str
    source_note: str
    # What was read, before max_train_samples left anything out; `held_out` is None where a share of it is held out.
    train_split: DataSplit = field(default_factory=DataSplit)
    validation_split: DataSplit | None = None

    @property
    def row_errors(self) -> list[RowError]:
        """All rows that could not be read, of both sides."""
        return self.train_split.row_errors + (self.validation_split.row_errors if self.validation_split else [])


@dataclass(frozen=True)
class _DatasetSplits:
    name: str
    licence: str
    train_split: DataSplit
    validation_split: DataSplit | None


def load_training_data(config: TrainConfig) -> TrainingData:
    """Reads what `config.dataset_name` names, at most max_train_samples and max_eval_samples of it.

    The validation rows are those of config.validation_file, else the data set's own, else a share of the training
    rows. Raises DataError, UnknownNameError or TrainingError in one sentence.
    """
    source = _load_splits(config)
    train, held_out = source.train_split.examples, source.validation_split
    if config.validation_file is not None:
        held_out, note = _read_split([config.validation_file], config), config.validation_file.name
    else:
        note = "its own validation rows"
    if held_out is not None:
        validation = held_out.examples
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
        validation_split=held_out,
    )


def _load_splits(config: TrainConfig) -> _DatasetSplits:
    name = config.dataset_name
    if name in DATASETS:
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
        f"{str(unknown_name_error('data set', name, DATASETS)).removesuffix('.')}; or give a file that ends in "
        f"{', '.join(FORMATS)}, or a data set of the Hub as user/name."
    )


def _load_builtin(config: TrainConfig) -> _DatasetSplits:
    name = config.dataset_name
    if (config.intent_column or config.code_column) and config.validation_file is None:
        raise DataError(
            f"--intent-column and --code-column map the columns of a file or a Hub data set; {name} has its own: "
            "leave them out."
        )
    learned = load_examples(name, config.data_dir)
    validation = None
    if config.validation_file is None:
        problems = load_problems(name, "validation", config.data_dir)
        solved = [Example(problem.id, problem.intent, problem.reference) for problem in problems if problem.reference]
        validation = DataSplit(solved, num_rows=len(problems))
    return _DatasetSplits(
        name, LICENCES.get(name, OTHER_LICENCE), DataSplit(learned, num_rows=len(learned)), validation
    )


def _read_split(paths: Sequence[Path], config: TrainConfig) -> DataSplit:
    """The rows of these files, which are shards of one where they are several."""
    part = DataSplit()
    for path in paths:
        _add_upload(part, path.name, read_upload(path, config.intent_column, config.code_column))
    return part


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


# Places named of each finding; all of them are counted.
MAX_EXAMPLES = 10

LocateFn = Callable[[Example], str]


@dataclass(frozen=True)
class DataIssue:
    """How many rows something is true of, and the first of them, each in a sentence or with its place."""

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class LengthStats:
    """Of some lengths in tokens: the median, the length that 95 % do not exceed, the longest, and the sum."""

    median: int
    p95: int
    max: int
    total: int


@dataclass(frozen=True)
class Leak:
    """Validation rows whose intent, or whose code, is a training row's too; `rows` counts those with either."""

    rows: int
    intents: int
    codes: int
    examples: tuple[str, ...] = ()


def make_issue(messages: Iterable[str]) -> DataIssue:
    """Counts all and keeps the first."""
    found = list(messages)
    return DataIssue(len(found), tuple(found[:MAX_EXAMPLES]))


def length_stats(lengths: Sequence[int]) -> LengthStats:
    """The spread of at least one length."""
    return LengthStats(int(statistics.median(lengths)), length_quantile(lengths, 0.95), max(lengths), sum(lengths))


def length_quantile(lengths: Sequence[int], fraction: float) -> int:
    """The smallest of the lengths that at least this share of them does not exceed (nearest rank)."""
    return sorted(lengths)[max(0, math.ceil(fraction * len(lengths)) - 1)]


def find_duplicates(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Rows with intent and code of an earlier one."""
    first: dict[tuple[str, str], Example] = {}
    found = []
    for example in examples:
        earlier = first.setdefault((example.intent, example.code), example)
        if earlier is not example:
            found.append(f"{locate(example)} repeats {locate(earlier)}")
    return make_issue(found)


def find_conflicts(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Rows that answer an earlier row's intent with other code, each once."""
    codes: dict[str, dict[str, Example]] = {}
    found = []
    for example in examples:
        known = codes.setdefault(normalize_intent(example.intent), {})
        if normalize_code(example.code) not in known:
            if known:
                found.append(f"{locate(example)} has the intent of {locate(next(iter(known.values())))}")
            known[normalize_code(example.code)] = example
    return make_issue(found)


def find_unparsable(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Rows whose code is not Python."""
    return make_issue(locate(example) for example in examples if not is_valid_python(example.code))


def find_special_tokens(examples: Sequence[Example], locate: LocateFn, tokens: Iterable[str]) -> DataIssue:
    """Rows with one of a base's special tokens in their text, which is read as that token: an early end, say."""
    known = sorted({token for token in tokens if token.strip()})
    found = []
    for example in examples:
        there = [token for token in known if token in example.intent or token in example.code]
        if there:
            found.append(f"{locate(example)} has {', '.join(there[:3])}")
    return make_issue(found)


def find_leaks(
    train: Sequence[Example], validation: Sequence[Example], train_split: DataSplit, validation_split: DataSplit
) -> Leak:
    """What the validation rows share with the training rows."""
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
