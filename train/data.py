"""What a run learns from and is validated on: a data set of ours, a file of the person's own, or one from the Hub."""

from __future__ import annotations

from dataclasses import dataclass

from errors import unknown
from tasks.datasets import DATASETS, load_examples, load_problems
from tasks.problem import Example
from train.config import TrainConfig

# As the Hub writes licences; an upload's is its owner's business, a Hub data set states its own.
LICENCES = {
    "conala": "cc-by-sa-4.0",
    "codealpacapy": "cc-by-nc-4.0",
    "mbpp": "cc-by-4.0",
    "apps": "mit",
    "starter": "apache-2.0",
}
OTHER_LICENCE = "other"


@dataclass(frozen=True)
class TrainingData:
    """The rows of one run. `source_note` says in a sentence where both parts come from."""

    train: list[Example]
    validation: list[Example]
    name: str
    licence: str
    source_note: str


def load_training_data(config: TrainConfig) -> TrainingData:
    """Reads what `config.dataset_name` names, at most max_train_samples and max_eval_samples of it.

    Raises DataError, UnknownNameError or TrainingError in one sentence.
    """
    if config.dataset_name not in DATASETS:
        raise unknown("data set", config.dataset_name, DATASETS)
    train = load_examples(config.dataset_name, config.data_dir)
    validation, note = _own_validation(config), "its own validation split"
    return TrainingData(
        train=train[: config.max_train_samples],
        validation=validation[: config.max_eval_samples],
        name=config.dataset_name,
        licence=LICENCES.get(config.dataset_name, OTHER_LICENCE),
        source_note=f"{config.dataset_name}; validated on {note}.",
    )


def _own_validation(config: TrainConfig) -> list[Example]:
    problems = load_problems(config.dataset_name, "validation", config.data_dir)
    return [Example(problem.id, problem.intent, problem.reference) for problem in problems if problem.reference]
