"""The settings of a training as fields: few that matter, the rest folded, each as TrainConfig names it."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from jobs.request import DEFAULT_EVAL_EVERY
from tasks.prompt import STYLES
from train.config import OPTIMIZERS, VIRTUAL_TOKENS_INIT_METHODS, TrainConfig
from train.settings import FIELDS
from train.techniques import PRESETS, TECHNIQUES, get_technique

_TYPES = typing.get_type_hints(TrainConfig)
_LORA_TECHNIQUES = tuple(name for name in TECHNIQUES if "lora" in name)
_VIRTUAL_TOKEN_TECHNIQUES = tuple(name for name, technique in TECHNIQUES.items() if technique.uses_virtual_tokens)


@dataclass(frozen=True)
class Setting:
    """One field: its label, what it means, the techniques that it belongs to (all of them where empty)."""

    name: str
    label: str
    help: str
    techniques: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def is_flag(self) -> bool:
        """Whether it is on or off."""
        return _TYPES[self.name] is bool


MAIN_SETTINGS = (
    Setting("adapter_name", "Name of the adapter", "Small letters, digits, '.', '_' and '-'."),
    Setting("num_train_epochs", "Epochs", "How often it reads all rows."),
    Setting("learning_rate", "Learning rate", "How far a step goes; the default was measured."),
    Setting("lora_r", "Rank", "How much it can learn; more makes a larger file.", _LORA_TECHNIQUES),
    Setting(
        "num_virtual_tokens",
        "Virtual tokens",
        "How many are learned; each takes a place of the prompt.",
        _VIRTUAL_TOKEN_TECHNIQUES,
    ),
)
MORE_SETTINGS = (
    Setting("preset", "Preset", "paper: the settings of the study (arXiv 2308.10462).", (), PRESETS),
    Setting("max_length", "Longest row in tokens", "Longer rows are left out whole."),
    Setting("validation_split", "Share held out", "Rows it never learns from, to score it on; 0.1 is a tenth."),
    Setting("max_train_samples", "At most so many rows to learn", "The first ones; all without a number."),
    Setting("max_eval_samples", "At most so many rows held out", "The first ones; all without a number."),
    Setting("per_device_train_batch_size", "Rows in a batch", "Learned from together, in one step."),
    Setting("gradient_accumulation_steps", "Batches in a step", "More steps as one, for the same memory."),
    Setting("max_tokens_at_once", "Tokens computed together", "Less memory, the same result."),
    Setting("gradient_checkpointing", "Gradient checkpointing", "Computes twice to keep less in memory."),
    Setting("lora_alpha", "LoRA alpha", "How strongly the adapter counts: alpha divided by rank.", _LORA_TECHNIQUES),
    Setting("lora_dropout", "LoRA dropout", "Share of inputs dropped while it learns.", _LORA_TECHNIQUES),
    Setting("use_rslora", "rsLoRA", "Divides alpha by the rank's square root.", _LORA_TECHNIQUES),
    Setting("use_dora", "DoRA", "Learns the length of weights apart from their direction.", _LORA_TECHNIQUES),
    Setting("lora_target_modules", "LoRA's layers", "Ends of layers' names, with commas between.", _LORA_TECHNIQUES),
    Setting("ia3_target_modules", "IA3's layers", "Ends of layers' names, with commas between.", ("ia3",)),
    Setting("ia3_feedforward_modules", "IA3's feed-forward layers", "Those rescaled at their input.", ("ia3",)),
    Setting("virtual_tokens_init", "Virtual tokens begin as", "Text of your rows, or tokens drawn.", _VIRTUAL_TOKEN_TECHNIQUES,
            VIRTUAL_TOKENS_INIT_METHODS),
    Setting("optim", "Optimizer", "Adafactor keeps less in memory than AdamW.", (), OPTIMIZERS),
    Setting("warmup_ratio", "Warm-up", "Share of steps in which the learning rate rises."),
    Setting("weight_decay", "Weight decay", "Pulls what is learned towards nothing."),
    Setting("max_grad_norm", "Longest gradient", "Longer ones are cut to this."),
    Setting("eval_every", "Validated every so many epochs", "Also how often a checkpoint is saved."),
    Setting("early_stopping_patience", "Patience", "Stops after so many validations without progress; 0: never."),
    Setting("prompt_style", "Prompt", "How intent and code become text.", (), tuple(STYLES)),
    Setting("seed", "Seed", "The same seed and rows give the same adapter."),
)  # fmt: skip
# What a page settles by itself, or what is no visitor's business: paths, the base, the Hub.
HIDDEN_SETTINGS = frozenset({
    "dataset_name", "technique", "data_dir", "validation_file", "intent_column", "code_column", "model_name_or_path",
    "model_revision", "trust_remote_code", "quantization", "device", "output_dir", "overwrite", "push_to_hub",
    "hub_model_id", "hub_private_repo",
})  # fmt: skip
ALL_SETTINGS = (*MAIN_SETTINGS, *MORE_SETTINGS)
# Filled with the technique's own value, as a person looks at them.
_PREFILLED = ("num_train_epochs", "learning_rate", "lora_r", "num_virtual_tokens")
_DEFAULT_CHOICE = "as usual"


def build_main_fields(technique: str) -> list[Any]:
    """The fields that matter, inside the current row, as they are for the technique."""
    return [
        _setting_component(setting, 130 if setting.name != "adapter_name" else 240, technique)
        for setting in MAIN_SETTINGS
    ]


def build_more_fields(technique: str) -> list[Any]:
    """The folded fields, inside the current accordion; an empty one means its default, which stands in it."""
    with gr.Row(elem_id="train-more-fields"):
        return [_setting_component(setting, 240, technique) for setting in MORE_SETTINGS]


def default_values(technique: str, preset: str = "default") -> dict[str, Any]:
    """The values of all settings that a technique has under a preset, as text or a truth."""
    chosen = {**get_technique(technique).settings(preset), "eval_every": DEFAULT_EVAL_EVERY}
    return {each.name: _setting_text(each, chosen.get(each.name, FIELDS[each.name].default)) for each in ALL_SETTINGS}


def parse_settings(values: Sequence[Any]) -> dict[str, Any]:
    """The fields' values by name, in the order of ALL; those that were left empty are left out."""
    found: dict[str, Any] = {}
    for setting, value in zip(ALL_SETTINGS, values, strict=True):
        text = value if isinstance(value, bool) else str(value or "").strip()
        if text not in ("", False, _DEFAULT_CHOICE):
            found[setting.name] = text
    return found


def settings_for_technique(settings: Mapping[str, Any], technique: str) -> dict[str, Any]:
    """Those of the settings that this technique has."""
    known = {each.name for each in ALL_SETTINGS if not each.techniques or technique in each.techniques}
    return {name: value for name, value in settings.items() if name in known}


def settings_updates(technique: str, settings: Mapping[str, Any]) -> list[Any]:
    """Updates for all fields: these settings, and for what they leave open the technique's defaults."""
    usual = default_values(technique, str(settings.get("preset") or "default"))
    return [
        _setting_update(each, technique, usual, settings.get(each.name, _initial_value(each, usual)))
        for each in ALL_SETTINGS
    ]


def apply_technique(technique: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings after another technique or preset was chosen: what these decide is theirs again."""
    usual = default_values(technique, str(settings.get("preset") or "default"))
    return {**settings, **{name: usual[name] for name in _PREFILLED}}


def locate_error(message: str) -> tuple[str, str]:
    """The setting that an error's sentence names, '' for none, and the sentence with the field's label."""
    found = [each for each in ALL_SETTINGS if each.name in message]
    if "cannot name an adapter" in message or "choose another name" in message:
        found = [MAIN_SETTINGS[0]]
    if not found:
        return "", message
    setting = min(found, key=lambda each: message.index(each.name) if each.name in message else 0)
    return setting.name, message.replace(setting.name, f"'{setting.label}'", 1)


def error_updates(name: str, message: str) -> list[Any]:
    """Updates for all fields that put the sentence at one of them, and take it from the others."""
    return [
        gr.update(info=message, elem_classes=["wrong"])
        if each.name == name
        else gr.update(info=each.help, elem_classes=[])
        for each in ALL_SETTINGS
    ]


def _setting_component(setting: Setting, width: int, technique: str) -> Any:
    usual = default_values(technique)
    common = {
        "value": _initial_value(setting, usual),
        "visible": not setting.techniques or technique in setting.techniques,
        "label": setting.label,
        "info": setting.help,
        "min_width": width,
        "elem_id": f"train-{setting.name.replace('_', '-')}",
        "interactive": True,
    }
    if setting.is_flag:
        return gr.Checkbox(**common)
    if setting.choices:
        return gr.Dropdown([_DEFAULT_CHOICE, *setting.choices], filterable=False, **common)
    return gr.Textbox(placeholder=usual[setting.name], max_lines=1, **common)


def _initial_value(setting: Setting, defaults: Mapping[str, Any]) -> Any:
    if setting.is_flag:
        return False
    return defaults[setting.name] if setting.name in _PREFILLED else _DEFAULT_CHOICE if setting.choices else ""


def _setting_update(setting: Setting, technique: str, defaults: Mapping[str, Any], value: Any) -> Any:
    visible = not setting.techniques or technique in setting.techniques
    if setting.is_flag or setting.choices:
        return gr.update(value=value, visible=visible)
    return gr.update(value=str(value), placeholder=defaults[setting.name], visible=visible)


def _setting_text(setting: Setting, value: Any) -> Any:
    if setting.is_flag:
        return bool(value)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None or not isinstance(value, str | int) else str(value)
