"""Tests of train/settings.py: precedence of flags, file and preset, and the messages for invalid settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errors import PromptOrTuneError, TrainingError
from train.__main__ import main
from train.config import TrainConfig
from train.settings import make_config, read_yaml, write_yaml
from train.techniques import TECHNIQUES

NEEDED: dict[str, Any] = {"adapter_name": "mine", "dataset_name": "starter"}
CONFIGS = sorted((Path(__file__).parents[2] / "train" / "configs").glob("*.yaml"))


def test_paper_preset_has_the_settings_of_the_study() -> None:
    """The values are from 'Settings' in the study's protocol."""
    rates = {"full": 5e-5, "lora": 3e-4, "ia3": 3e-4, "qlora-8bit": 3e-4, "qlora-4bit": 3e-4}
    rates |= {"prompt-tuning": 3e-3, "prefix-tuning": 3e-2}
    assert rates.keys() == TECHNIQUES.keys()
    for technique, rate in rates.items():
        config = make_config(NEEDED, technique=technique, preset="paper")
        assert config.learning_rate == rate
        assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)
        assert (config.optim, config.warmup_ratio, config.weight_decay) == ("adafactor", 0.05, 0.0)
        assert (config.per_device_train_batch_size, config.num_train_epochs, config.eval_every) == (8, 5.0, 0.2)
        weights = {"qlora-8bit": "int8", "qlora-4bit": "nf4"}.get(technique, "none")
        assert config.quantization == weights
    assert make_config(NEEDED, technique="prompt-tuning", preset="paper").num_virtual_tokens == 20
    assert make_config(NEEDED, technique="prefix-tuning", preset="paper").num_virtual_tokens == 10


def test_flags_override_the_file_and_the_file_overrides_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("technique: lora\nlearning_rate: 2e-4\nlora_r: 8\nlora_target_modules: [q_proj, v_proj]\n")
    config = make_config({**read_yaml(file), **NEEDED, "lora_r": "32"})
    assert (config.learning_rate, config.lora_r, config.lora_alpha) == (2e-4, 32, 32)
    assert config.lora_target_modules == ("q_proj", "v_proj")


def test_configuration_is_written_and_read_back(tmp_path: Path) -> None:
    config = make_config(NEEDED, technique="ia3", learning_rate="5e-3", lora_target_modules="q_proj, v_proj")
    write_yaml(config, tmp_path / "config.yaml")
    assert make_config(read_yaml(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_provided_configuration_files_are_valid(file: Path) -> None:
    config = make_config({**NEEDED, **read_yaml(file)})
    assert isinstance(config, TrainConfig)
    assert config.technique in file.stem


def test_each_technique_and_preset_has_a_configuration_file() -> None:
    prefixes = {file.stem for file in CONFIGS}
    assert prefixes >= {*TECHNIQUES, *(f"paper-{name}" for name in TECHNIQUES)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "Unknown setting 'learning_rat': did you mean 'learning_rate'"),
        ({"technique": "lroa"}, "Unknown technique 'lroa': did you mean 'lora'"),
        ({"preset": "papr"}, "Unknown preset 'papr': did you mean 'paper'"),
        ({"optim": "adamw"}, "did you mean 'adamw_torch'"),
        ({"virtual_tokens_init": "exmples"}, "did you mean 'examples'"),
        ({"learning_rate": "fast"}, "learning_rate cannot be 'fast': it must be a number"),
        ({"lora_r": 2.5}, "lora_r cannot be 2.5: it must be a whole number"),
        ({"lora_r": True}, "lora_r cannot be True: it must be a whole number"),
        ({"use_dora": "perhaps"}, "use_dora cannot be 'perhaps': it must be true or false"),
        ({"lora_target_modules": 3}, "must be a list of names"),
        ({"learning_rate": "nan"}, "learning_rate must be above 0"),
        ({"quantization": "nf4"}, "LoRA trains on a base with quantization none, not nf4"),
        ({"technique": "qlora-4bit", "quantization": "none"}, "choose --technique full or lora"),
        (
            {"technique": "prefix-tuning", "gradient_checkpointing": True},
            "Prefix tuning with gradient checkpointing cannot train: the prefix is a key/value cache",
        ),
        ({"push_to_hub": True}, "push_to_hub needs hub_model_id"),
        ({"model_name_or_path": "a/b@main", "model_revision": "main"}, "is given twice"),
        ({"adapter_name": "../up"}, "cannot name an adapter"),
        ({"prompt_style": "plane"}, "did you mean 'plain'"),
        ({"lora_r": 0}, "lora_r must be at least 1"),
        ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1"),
    ],
)
def test_invalid_settings_are_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptOrTuneError) as error:
        make_config({**NEEDED, **values})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_r: [8\n", "line 2: not YAML"),
        ("- lora_r\n", "must hold settings"),
        ("lorar: 8\n", "Unknown setting 'lorar': did you mean 'lora_r'"),
    ],
)
def test_error_of_an_invalid_file_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(TrainingError) as error:
        read_yaml(tmp_path / "run.yaml")
    assert message in str(error.value)
    assert "run.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "adapter_name is missing: say --adapter-name"),
        (["--adapter-name", "x"], "dataset_name is missing"),
        (["--adapter-name", "x", "--dataset-name", "conalla"], "did you mean 'conala'"),
        (["--adaptername", "x"], "Unknown flag '--adaptername': did you mean '--adapter-name'"),
        (["run.yaml", "more.yaml"], "'more.yaml' belongs to no flag"),
        (["run.yaml"], "run.yaml cannot be read"),
        (["--adapter-name", "nobody", "--resume"], "no unfinished run of 'nobody'"),
    ],
)
def test_command_prints_errors_on_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1
