"""Setting fields and technique choices of the Train form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from errors import PromptOrTuneError
from jobs.job import ServingOptions, resolve_settings
from tests import messages
from train.settings import FIELDS, make_config
from train.techniques import TECHNIQUES
from ui.train.drafts import Draft
from ui.train.events import FormValues, flags_to_setting_names, train_config_fields
from ui.train.settings import (
    ALL_SETTINGS,
    HIDDEN_SETTINGS,
    apply_technique,
    default_values,
    error_updates,
    find_unused_name,
    locate_error,
    parse_settings,
    radio_choices,
    read_technique_score,
    recommended_technique,
    scores_note,
    settings_for_technique,
    suggest_adapter_name,
    technique_choices,
    training_quantization,
)

SERVING = ServingOptions()


def test_every_setting_is_a_field_or_hidden() -> None:
    names = {setting.name for setting in ALL_SETTINGS}
    assert names | HIDDEN_SETTINGS == set(FIELDS)
    assert not names & HIDDEN_SETTINGS


@pytest.mark.parametrize("technique", technique_choices(SERVING))
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_default_values_equal_the_settings_of_training(technique: str, preset: str) -> None:
    draft = Draft("starter", technique=technique, settings={"adapter_name": "mine", "preset": preset})
    trained = resolve_settings(train_config_fields(draft, SERVING), SERVING, None)
    for name, text in default_values(technique, preset).items():
        setting = next(setting for setting in ALL_SETTINGS if setting.name == name)
        if name not in ("adapter_name", "preset") and text != "":
            assert trained[name] == make_config(adapter_name="a", dataset_name="b", **{name: text}).__dict__[name], name
        assert setting.help.endswith(".")


def test_empty_fields_are_omitted() -> None:
    values: list[Any] = [False if setting.is_flag else "" for setting in ALL_SETTINGS]
    values[0], values[1] = " mine ", "3"
    values[[setting.name for setting in ALL_SETTINGS].index("use_dora")] = True
    values[[setting.name for setting in ALL_SETTINGS].index("optim")] = "as usual"
    assert parse_settings(values) == {"adapter_name": "mine", "num_train_epochs": "3", "use_dora": True}


def test_settings_are_filtered_by_technique() -> None:
    settings = {"adapter_name": "a", "lora_r": "8", "num_virtual_tokens": "9", "seed": "1"}
    assert settings_for_technique(settings, "lora") == {"adapter_name": "a", "lora_r": "8", "seed": "1"}
    assert settings_for_technique(settings, "ia3") == {"adapter_name": "a", "seed": "1"}
    decided = apply_technique("prompt-tuning", settings)
    assert (decided["learning_rate"], decided["num_virtual_tokens"], decided["seed"]) == ("0.03", "20", "1")


@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        ({"learning_rate": "abc"}, "learning_rate", "'Learning rate' cannot be 'abc': it must be a number."),
        ({"lora_r": "0"}, "lora_r", "'Rank' must be at least 1."),
        ({"adapter_name": "No Name"}, "adapter_name", "'No Name' cannot name an adapter"),
        ({"validation_split": "2"}, "validation_split", "'Share held out' must be above 0 and below 1"),
    ],
)
def test_setting_error_is_displayed_at_its_field(values: dict[str, str], name: str, message: str) -> None:
    draft = Draft("starter", technique="lora", settings={"adapter_name": "mine", **values})
    with pytest.raises(PromptOrTuneError) as error:
        resolve_settings(train_config_fields(draft, SERVING), SERVING, None)
    located, displayed = locate_error(str(error.value))
    assert located == name
    assert displayed.startswith(message)
    marked = dict(zip((setting.name for setting in ALL_SETTINGS), error_updates(located, displayed), strict=True))
    assert [other for other, update in marked.items() if update["elem_classes"] == ["wrong"]] == [name]
    assert marked[name]["info"] == displayed
    assert marked["seed"]["info"] == "The same seed and rows give the same adapter."


def test_flags_in_messages_become_field_labels() -> None:
    message = flags_to_setting_names(
        "1 training samples are fewer than one batch: a smaller --per-device-train-batch-size."
    )
    assert locate_error(message) == (
        "per_device_train_batch_size",
        "1 training samples are fewer than one batch: a smaller 'Rows in a batch'.",
    )


def test_form_values_ignore_values_of_other_types() -> None:
    fields = [None for _ in ALL_SETTINGS]
    filled = FormValues.parse([None, 7, ["x"], {}, "cpu", *fields])
    assert filled == FormValues("", "", "", "", "cpu", {})
    with pytest.raises(PromptOrTuneError, match=messages.NOT_OFFERED):
        train_config_fields(Draft("starter", technique="full"), SERVING)


def test_technique_choices_are_labelled_with_scores() -> None:
    scores = read_technique_score()
    assert scores is not None
    row = scores.scores[("IA3", "nf4")]
    labels = {value: label.split("\n") for label, value in radio_choices(SERVING, scores)}
    assert labels["ia3"][0] == "IA3"
    assert labels["ia3"][-1] == f"CodeBLEU {row['CodeBLEU']} on the NF4 base"
    assert "n = 60" in scores_note(SERVING, scores)
    assert scores.scores[("zero-shot", "nf4")]["CodeBLEU"] in scores_note(SERVING, scores)


def test_technique_choices_without_scores(tmp_path: Path) -> None:
    assert read_technique_score(tmp_path / "none.md") is None
    assert all("CodeBLEU" not in label for label, _ in radio_choices(SERVING, None))
    assert scores_note(SERVING, None) == ""


@pytest.mark.parametrize(
    ("served", "recommended", "prefix"),
    [("nf4", "qlora-4bit", "nf4"), ("int8", "qlora-8bit", "int8"), ("none", "lora", "none")],
)
def test_recommended_technique_trains_on_the_served_quantization(served: str, recommended: str, prefix: str) -> None:
    serving = dataclasses.replace(SERVING, quantization=served)
    assert recommended_technique(serving) == recommended
    assert recommended in technique_choices(serving)
    assert training_quantization(recommended, serving) == served
    assert training_quantization("prefix-tuning", serving) == prefix
    assert training_quantization("lora", serving) == "none"
    assert "full" not in technique_choices(serving)
    assert set(technique_choices(serving)) <= set(TECHNIQUES)


@pytest.mark.parametrize(
    ("technique", "rows", "name"),
    [
        ("lora", "My Pairs.csv", "lora-my-pairs"),
        ("qlora-4bit", "someone/pairs@main", "qlora-pairs"),
        ("ia3", "数据.jsonl", "ia3-mine"),
    ],
)
def test_suggested_adapter_name_has_technique_and_rows(technique: str, rows: str, name: str, tmp_path: Path) -> None:
    assert suggest_adapter_name(technique, rows) == name
    make_config(adapter_name=suggest_adapter_name(technique, rows), dataset_name="starter")
    assert find_unused_name(name, tmp_path, []) == name
    (tmp_path / "adapters" / name).mkdir(parents=True)
    assert find_unused_name(name, tmp_path, []) == f"{name}-2"
