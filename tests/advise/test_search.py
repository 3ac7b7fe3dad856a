"""Search of training settings: losers end early, an interrupted search goes on, what cannot be trained is left out.

The trainer is a fake whose validation losses are scripted; Optuna and its journal are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from advise.folder import AdviceFolder, ProgressWriter
from advise.training import (
    AdapterSearch,
    Trained,
    best_trials,
    default_settings,
    describe_settings,
    settings_for_share,
)
from errors import TrainingError
from train.run import TrainingStoppedError
from train.trainer import Evaluation

ROWS = (Path("train.jsonl"), Path("validation.jsonl"))
STEPS = 8
TECHNIQUES: Mapping[str, Mapping[str, Any]] = {"qlora-4bit": {}, "ia3": {}}


class ScriptedTrainer:
    """Gives each technique a loss, and records which trainings ran for how many steps."""

    def __init__(self, losses: Mapping[str, float | Exception]) -> None:
        self.losses = losses
        self.steps: dict[str, int] = {}

    def train(
        self, name: str, rows: Any, settings: Mapping[str, Any], title: str, go_on: Callable[[Evaluation], bool]
    ) -> Trained:
        loss = self.losses[settings["technique"]]
        if isinstance(loss, Exception):
            raise loss
        for step in range(1, STEPS + 1):
            self.steps[name] = step
            if not go_on(Evaluation(step, STEPS, loss + 1 / step)):
                break
        return Trained(name, dict(settings), loss + 1 / self.steps[name], 60.0, 1000, self.steps[name] / STEPS)


def search(tmp_path: Path, trainer: ScriptedTrainer, epochs: int = 3) -> AdapterSearch:
    progress = ProgressWriter(AdviceFolder(tmp_path), lambda _: None, 600.0)
    return AdapterSearch(trainer, TECHNIQUES, tmp_path / "trials.log", progress, 42, epochs)  # type: ignore[arg-type]


def run(found: AdapterSearch, trials: int, seconds: float = 1e6) -> list[Trained]:
    return found.run("trial", "", ROWS, seconds, trials)


def test_trial_that_is_worse_at_a_quarter_ends_there(tmp_path: Path) -> None:
    trainer = ScriptedTrainer({"qlora-4bit": 0.5, "ia3": 0.9})
    first, second = run(search(tmp_path, trainer), 2)
    assert (first.settings["technique"], first.pruned, first.share) == ("qlora-4bit", False, 1.0)
    assert (second.settings["technique"], second.pruned, second.share) == ("ia3", True, 0.25)
    assert best_trials([second, first], 1) == [first]
    assert second.describe() == "ia3, learning rate 0.01, 4 epochs (ended after 25 % of its steps)"


def test_trial_that_is_better_runs_to_its_end(tmp_path: Path) -> None:
    trainer = ScriptedTrainer({"qlora-4bit": 0.9, "ia3": 0.5})
    trained = run(search(tmp_path, trainer), 2)
    assert [each.share for each in trained] == [1.0, 1.0]
    assert best_trials(trained, 1)[0].settings["technique"] == "ia3"


def test_time_that_is_spent_ends_the_first_trial_and_begins_no_other(tmp_path: Path) -> None:
    trainer = ScriptedTrainer({"qlora-4bit": 0.5, "ia3": 0.4})
    (only,) = run(search(tmp_path, trainer), 5, seconds=0.0)
    assert only.share == 1 / STEPS
    assert not only.pruned


def test_search_goes_on_from_its_file_without_training_again(tmp_path: Path) -> None:
    first = run(search(tmp_path, ScriptedTrainer({"qlora-4bit": 0.5, "ia3": 0.9})), 2)
    again = ScriptedTrainer({"qlora-4bit": 0.7, "ia3": 0.9})
    trained = run(search(tmp_path, again), 3)
    assert trained[:2] == first
    assert list(again.steps) == ["trial-3"]


def test_longer_trainings_begin_with_the_defaults_again(tmp_path: Path) -> None:
    trainer = ScriptedTrainer({"qlora-4bit": 0.5, "ia3": 0.4})
    run(search(tmp_path, trainer, epochs=4), 1)
    trained = run(search(tmp_path, trainer, epochs=9), 3)
    assert [(each.settings["technique"], each.settings["num_train_epochs"]) for each in trained] == [
        ("qlora-4bit", 4), ("qlora-4bit", 9), ("ia3", 10),
    ]  # fmt: skip


def test_stopped_trial_is_the_first_to_go_on(tmp_path: Path) -> None:
    stopped = ScriptedTrainer({"qlora-4bit": TrainingStoppedError("Stopped at step 3."), "ia3": 0.9})
    with pytest.raises(TrainingStoppedError):
        run(search(tmp_path, stopped), 2)
    again = ScriptedTrainer({"qlora-4bit": 0.5, "ia3": 0.9})
    trained = run(search(tmp_path, again), 2)
    assert [each.name for each in trained] == ["trial-1", "trial-2"]
    assert trained[0].settings["technique"] == "qlora-4bit"


def test_technique_that_the_base_lacks_is_left_out(tmp_path: Path) -> None:
    trainer = ScriptedTrainer({"qlora-4bit": 0.5, "ia3": TrainingError("IA3 does not know this architecture.")})
    trained = run(search(tmp_path, trainer), 2)
    assert [each.settings["technique"] for each in trained] == ["qlora-4bit", "qlora-4bit"]


def test_first_trial_that_cannot_be_trained_is_an_error(tmp_path: Path) -> None:
    trainer = ScriptedTrainer({"qlora-4bit": TrainingError("No such base."), "ia3": 0.5})
    with pytest.raises(TrainingError, match="No such base"):
        run(search(tmp_path, trainer), 2)


def test_what_a_technique_needs_is_part_of_its_settings() -> None:
    found = default_settings({"qlora-4bit": {"gradient_checkpointing": True}}, 3)
    assert [(each["technique"], each["lora_r"], each["gradient_checkpointing"]) for each in found] == [
        ("qlora-4bit", 16, True), ("qlora-4bit", 32, True),
    ]  # fmt: skip


def test_share_of_the_rows_is_trained_as_long_as_so_few_rows_alone() -> None:
    def epochs(given: int, rows: int, share: float) -> int:
        return int(settings_for_share({"num_train_epochs": given}, rows, share)["num_train_epochs"])

    assert [epochs(3, 585, share) for share in (0.25, 0.5)] == [4, 3]
    assert [epochs(12, 38, share) for share in (0.25, 0.5)] == [12, 12]
    assert epochs(1, 160, 0.25) == 4


def test_description_names_what_makes_a_training_slower_or_longer() -> None:
    settings = {"technique": "qlora-4bit", "lora_r": 16, "learning_rate": 1e-3, "num_train_epochs": 1}
    more = {"train_examples": "nearest:0-8", "gradient_checkpointing": True}
    assert describe_settings(settings) == "qlora-4bit, rank 16, learning rate 0.001, 1 epoch"
    assert describe_settings({**settings, **more}).endswith(", 1 epoch, with examples, gradient checkpointing")
