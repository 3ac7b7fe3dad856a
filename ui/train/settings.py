"""Setting fields, technique choices.

The settings of a training as fields: few that matter, the rest folded, each as TrainConfig names it.

The techniques to choose from, a sentence each, with what they scored in docs/results/techniques-conala.md.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from jobs.job import DEFAULT_EVAL_EVERY, ServingOptions
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


TECHNIQUE_TABLE = Path(__file__).resolve().parents[2] / "docs" / "results" / "techniques-conala.md"
_TECHNIQUE_TEXTS = {
    "lora": "Two thin matrices beside each attention layer: the usual first choice. It learns on the unquantized base.",
    "qlora-4bit": "LoRA on the base in 4 bits. Slower steps than LoRA on a CPU, less memory on a large base.",
    "qlora-8bit": "LoRA on the base in 8 bits. Slower steps than LoRA on a CPU, less memory on a large base.",
    "ia3": "Only rescales what passes through the layers: by far the smallest adapter that still changes every layer.",
    "prompt-tuning": "Learns a few tokens in front of the prompt and nothing else: the smallest file of all.",
    "prefix-tuning": "Learns keys and values that every layer reads first: small files; minds its learning rate.",
}
_QUANTIZATION_NAMES = {"none": "unquantized", "nf4": "NF4", "int8": "int8"}


@dataclass(frozen=True)
class TechniqueScore:
    """What the table says: how many problems of which base, and per technique the scores where it answered on a base.

    `scores` maps (technique's title, quantization) to the table's cells by their headings.
    """

    description: str
    scores: Mapping[tuple[str, str], Mapping[str, str]]


def technique_choices(serving: ServingOptions) -> list[str]:
    """The techniques of the page: of the QLoRAs the one for the quantization that answers here."""
    quantized = "qlora-8bit" if serving.quantization == "int8" else "qlora-4bit"
    return ["lora", quantized, "ia3", "prompt-tuning", "prefix-tuning"]


def recommended_technique(serving: ServingOptions) -> str:
    """LoRA in the quantization that answers here: what is learned on other weights loses on these."""
    return "lora" if serving.quantization == "none" else technique_choices(serving)[1]


def training_quantization(technique: str, serving: ServingOptions, preset: str = "default") -> str:
    """The base's weights during training: as they answer here, where the technique can."""
    known = get_technique(technique)
    fixed = known.settings(preset).get("quantization")
    if fixed is None and serving.quantization in known.quantizations:
        return serving.quantization
    return str(fixed or known.quantizations[0])


def radio_choices(serving: ServingOptions, technique_score: TechniqueScore | None) -> list[tuple[str, str]]:
    """Labels of several lines (the name, the sentence, the figures) and values of the radio group."""
    return [(_technique_label(name, serving, technique_score), name) for name in technique_choices(serving)]


def scores_note(serving: ServingOptions, technique_score: TechniqueScore | None) -> str:
    """What the figures are of; '' without figures."""
    if technique_score is None:
        return ""
    bare = technique_score.scores.get(("zero-shot", _scored_quantization(serving, "zero-shot", technique_score)))
    nothing = f" Without training: {bare['CodeBLEU']}." if bare else ""
    return (
        f"CodeBLEU of {technique_score.description}, with 95 % intervals in brackets.{nothing} Where intervals overlap much, no "
        "difference is shown, and your rows may say otherwise."
    )


def read_technique_score(path: Path = TECHNIQUE_TABLE) -> TechniqueScore | None:
    """The table, None where it does not come along."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in _first_table(lines)]
    if len(rows) < 3:
        return None
    heads = rows[0]
    cells = [dict(zip(heads, row, strict=False)) for row in rows[2:]]
    wanted = {"technique", "answers on", "CodeBLEU"}
    scores = {(row["technique"], row["answers on"]): row for row in cells if wanted <= row.keys()}
    return TechniqueScore(_table_description(lines), scores)


def _technique_label(name: str, serving: ServingOptions, technique_score: TechniqueScore | None) -> str:
    title = TECHNIQUES[name].title.replace("-4bit", " 4 bit").replace("-8bit", " 8 bit")
    lines = [title, ("Recommended here. " if name == recommended_technique(serving) else "") + _TECHNIQUE_TEXTS[name]]
    if technique_score:
        there = _scored_quantization(serving, TECHNIQUES[name].title, technique_score)
        row = technique_score.scores.get((TECHNIQUES[name].title, there))
        if row:
            lines.append(f"CodeBLEU {row['CodeBLEU']} on the {_QUANTIZATION_NAMES.get(there, there)} base")
    return "\n".join(lines)


def _scored_quantization(serving: ServingOptions, title: str, technique_score: TechniqueScore) -> str:
    """The quantization that answers here where it was measured, else the one that was."""
    known = [where for technique, where in technique_score.scores if technique == title]
    return serving.quantization if serving.quantization in known or not known else known[-1]


def _first_table(lines: list[str]) -> list[str]:
    begin = next((at for at, line in enumerate(lines) if line.startswith("|")), len(lines))
    end = next((at for at in range(begin, len(lines)) if not lines[at].startswith("|")), len(lines))
    return lines[begin:end]


def _table_description(lines: list[str]) -> str:
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("- ") and ": " in line)
    base = facts.get("Base", "").split(" at ")[0].rsplit("/", 1)[-1]
    data = facts.get("Data", "").split(", sha256")[0].replace("conala", "CoNaLa")
    return f"{data} ({base})".replace("test, n = ", "test problems, n = ")
