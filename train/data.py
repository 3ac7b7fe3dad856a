"""What a run learns from and is validated on: a data set of ours, a file of the person's own, or one from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errors import DataError, TrainingError, UnknownNameError, unknown
from tasks.datasets import DATASETS, load_examples, load_problems
from tasks.datasets.hub_files import fetch_tables, is_hub_id
from tasks.datasets.tables import FORMATS, Fault
from tasks.datasets.upload import Upload, read_upload
from tasks.problem import Example
from train.config import TrainConfig
from train.split import hold_out

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
class Part:
    """Rows of one side, from one file or several.

    `rows` counts those that the files have, `places` says where an example stands by its id ("my.csv, line 12"),
    `changes` counts what was done to rows on the way, `mapping` says which columns were read.
    """

    examples: list[Example] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    rows: int = 0
    columns: tuple[str, ...] = ()
    mapping: str = ""
    places: dict[str, str] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)

    def place(self, example: Example) -> str:
        """Where the example stands, for a sentence; rows of our own data sets go by their ids."""
        return self.places.get(example.id, example.id)


@dataclass(frozen=True)
class TrainingData:
    """The rows of one run. `source_note` says in a sentence where they and those that validate come from."""

    train: list[Example]
    validation: list[Example]
    name: str
    licence: str
    source_note: str
    # What was read, before max_train_samples left anything out; `held_out` is None where a share of it is held out.
    learned: Part = field(default_factory=Part)
    held_out: Part | None = None

    @property
    def faults(self) -> list[Fault]:
        """All rows that could not be read, of both sides."""
        return self.learned.faults + (self.held_out.faults if self.held_out else [])


@dataclass(frozen=True)
class _Source:
    name: str
    licence: str
    learned: Part
    validation: Part | None


def load_training_data(config: TrainConfig) -> TrainingData:
    """Reads what `config.dataset_name` names, at most max_train_samples and max_eval_samples of it.

    The validation rows are those of config.validation_file, else the data set's own, else a share of the training
    rows. Raises DataError, UnknownNameError or TrainingError in one sentence.
    """
    source = _source(config)
    train, held_out = source.learned.examples, source.validation
    if config.validation_file is not None:
        held_out, note = _part([config.validation_file], config), config.validation_file.name
    else:
        note = "its own validation rows"
    if held_out is not None:
        validation = held_out.examples
    else:
        train, validation = hold_out(train, config.validation_split, config.seed)
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
        learned=source.learned,
        held_out=held_out,
    )


def _source(config: TrainConfig) -> _Source:
    name = config.dataset_name
    if name in DATASETS:
        return _ours(config)
    path = Path(name).expanduser()
    if path.exists() or path.suffix.casefold() in FORMATS:
        return _Source(path.name, OTHER_LICENCE, _part([path], config), None)
    if is_hub_id(name):
        tables = fetch_tables(name)
        validation = _part(tables.validation, config) if tables.validation else None
        return _Source(
            f"{tables.name}@{tables.revision}",
            tables.licence or OTHER_LICENCE,
            _part(tables.train, config),
            validation,
        )
    raise UnknownNameError(
        f"{str(unknown('data set', name, DATASETS)).removesuffix('.')}; or give a file that ends in "
        f"{', '.join(FORMATS)}, or a data set of the Hub as user/name."
    )


def _ours(config: TrainConfig) -> _Source:
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
        validation = Part(solved, rows=len(problems))
    return _Source(name, LICENCES.get(name, OTHER_LICENCE), Part(learned, rows=len(learned)), validation)


def _part(paths: Sequence[Path], config: TrainConfig) -> Part:
    """The rows of these files, which are shards of one where they are several."""
    part = Part()
    for path in paths:
        _add(part, path.name, read_upload(path, config.intent_column, config.code_column))
    return part


def _add(part: Part, file: str, upload: Upload) -> None:
    for example in upload.examples:
        id = example.id if example.id not in part.places else f"{file}#{len(part.examples)}"
        part.examples.append(example if id == example.id else Example(id, example.intent, example.code))
        part.places[id] = f"{file}, {upload.places[example.id]}"
    part.faults += [
        Fault(fault.line, fault.column, f"{file}, {fault.sentence}", fault.empty) for fault in upload.faults
    ]
    part.rows += upload.rows
    part.columns, part.mapping = upload.columns, str(upload.mapping)
    for change, times in upload.changes.items():
        part.changes[change] = part.changes.get(change, 0) + times
