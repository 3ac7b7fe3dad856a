"""What a run learns from and is validated on: a data set of ours, a file of the person's own, or one from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errors import DataError, TrainingError, UnknownNameError, unknown_name_error
from tasks.datasets import DATASETS, load_examples, load_problems
from tasks.datasets.hub_files import fetch_tables, is_hub_id
from tasks.datasets.tables import FORMATS, RowError
from tasks.datasets.upload import UploadResult, read_upload
from tasks.problem import Example
from train.config import TrainConfig
from train.split import train_validation_split

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
        RowError(fault.line, fault.column, f"{file}, {fault.message}", fault.empty) for fault in upload.errors
    ]
    split.num_rows += upload.rows
    split.columns, split.column_mapping = upload.columns, str(upload.mapping)
    for change, times in upload.changes.items():
        split.changes[change] = split.changes.get(change, 0) + times
