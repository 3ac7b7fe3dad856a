"""Where the rows of a run come from, and which of them are held out."""

from __future__ import annotations

from typing import Any

import pytest

from errors import UnknownNameError
from tasks.datasets import load_examples, load_problems
from train.config import TrainConfig
from train.data import load_training_data


def config(dataset: str, **changes: Any) -> TrainConfig:
    return TrainConfig(adapter_name="tiny", dataset_name=dataset, **changes)


def test_a_data_set_of_ours_brings_its_own_validation_split_and_licence() -> None:
    data = load_training_data(config("starter"))
    assert data.train == load_examples("starter")
    assert [example.id for example in data.validation] == [row.id for row in load_problems("starter", "validation")]
    assert (data.name, data.licence) == ("starter", "apache-2.0")


def test_the_samples_are_the_first_ones() -> None:
    data = load_training_data(config("starter", max_train_samples=5, max_eval_samples=3))
    assert data.train == load_examples("starter")[:5]
    assert len(data.validation) == 3


def test_an_unknown_data_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'conala'"):
        load_training_data(config("conla"))
