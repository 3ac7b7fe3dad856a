"""Setting fields and technique choices of the Train form.

Each field has the name of a TrainConfig field. The technique choices show the scores of
docs/results/techniques-conala.md.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from common.format import quantization_label
from errors import PromptOrTuneError
from jobs.job import DEFAULT_EVAL_EVERY, Job, ServingOptions, check_name_is_free
from tasks.prompt import STYLES
from train.config import OPTIMIZERS, VIRTUAL_TOKENS_INIT_METHODS, TrainConfig
from train.settings import FIELDS
from train.techniques import PRESETS, TECHNIQUES, get_technique

TECHNIQUE_TABLE = Path(__file__).resolve().parents[2] / "docs" / "results" / "techniques-conala.md"
_TECHNIQUE_TEXTS = {
    "lora": "Two thin matrices beside each attention layer: the usual first choice. It learns on the unquantized base.",
    "qlora-4bit": "LoRA on the base in 4 bits. Slower steps than LoRA on a CPU, less memory on a large base.",
    "qlora-8bit": "LoRA on the base in 8 bits. Slower steps than LoRA on a CPU, less memory on a large base.",
    "ia3": "Only rescales the layers' activations: by far the smallest adapter that still changes every layer.",
    "prompt-tuning": "Learns a few tokens in front of the prompt and nothing else: the smallest file of all.",
    "prefix-tuning": "Learns keys and values that every layer reads first: small, but sensitive to the learning rate.",
}
_MAX_NAME_ATTEMPTS = 1000
_TYPES = typing.get_type_hints(TrainConfig)
_LORA_TECHNIQUES = tuple(name for name in TECHNIQUES if "lora" in name)
_VIRTUAL_TOKEN_TECHNIQUES = tuple(name for name, technique in TECHNIQUES.items() if technique.uses_virtual_tokens)


@dataclass(frozen=True)
class Setting:
    """A field of the form: label, help text, and the techniques that have the setting (empty: all)."""

    name: str
    label: str
    help: str
    techniques: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def is_flag(self) -> bool:
        """Whether the setting is a bool."""
        return _TYPES[self.name] is bool


MAIN_SETTINGS = (
    Setting("adapter_name", "Name of the adapter", "Small letters, digits, '.', '_' and '-'."),
    Setting("num_train_epochs", "Epochs", "How often it reads all rows."),
    Setting("learning_rate", "Learning rate", "How far a step goes; the default was measured."),
    Setting("lora_r", "Rank", "How much it can learn; more makes a larger file.", _LORA_TECHNIQUES),
    Setting(
        "num_virtual_tokens",
        "Virtual tokens",
        "How many are learned; each takes one token of the context.",
        _VIRTUAL_TOKEN_TECHNIQUES,
    ),
)
MORE_SETTINGS = (
    Setting("preset", "Preset", "paper: the settings of the study (arXiv 2308.10462).", (), PRESETS),
    Setting("max_length", "Longest row in tokens", "Longer rows are left out whole."),
    Setting("validation_split", "Share held out", "Rows it never learns from, to score it on; 0.1 is a tenth."),
    Setting("max_train_samples", "At most so many rows to learn", "The first ones; empty: all."),
    Setting("max_eval_samples", "At most so many rows held out", "The first ones; empty: all."),
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
    Setting("virtual_tokens_init", "Virtual tokens begin as", "Text of your rows, or random tokens.",
            _VIRTUAL_TOKEN_TECHNIQUES, VIRTUAL_TOKENS_INIT_METHODS),
    Setting("optim", "Optimizer", "Adafactor keeps less in memory than AdamW.", (), OPTIMIZERS),
    Setting("warmup_ratio", "Warm-up", "Share of steps in which the learning rate rises."),
    Setting("weight_decay", "Weight decay", "Pulls the learned weights towards zero."),
    Setting("max_grad_norm", "Longest gradient", "Longer ones are cut to this."),
    Setting("eval_every", "Validated every so many epochs", "Also how often a checkpoint is saved."),
    Setting("early_stopping_patience", "Patience", "Stops after so many validations without progress; 0: never."),
    Setting("prompt_style", "Prompt", "How intent and code become text.", (), tuple(STYLES)),
    Setting("train_examples", "Examples in its prompts", "nearest:0-8: 0 to 8 similar rows each; empty: none."),
    Setting("seed", "Seed", "The same seed and rows give the same adapter."),
)  # fmt: skip
# Settings that the page sets itself or that visitors may not set: paths, the base, the Hub.
HIDDEN_SETTINGS = frozenset({
    "dataset_name", "technique", "data_dir", "validation_file", "intent_column", "code_column", "model_name_or_path",
    "model_revision", "trust_remote_code", "quantization", "device", "output_dir", "overwrite", "push_to_hub",
    "hub_model_id", "hub_private_repo",
})  # fmt: skip
ALL_SETTINGS = (*MAIN_SETTINGS, *MORE_SETTINGS)
# Fields that contain the technique's default; the others have it as a placeholder.
_PREFILLED = ("num_train_epochs", "learning_rate", "lora_r", "num_virtual_tokens")
_DEFAULT_CHOICE = "as usual"


def build_main_fields(technique: str) -> list[Any]:
    """Build the main fields in the current row, with the values of the technique."""
    return [
        _setting_component(setting, 130 if setting.name != "adapter_name" else 240, technique)
        for setting in MAIN_SETTINGS
    ]


def build_more_fields(technique: str) -> list[Any]:
    """Build the other fields in the current accordion; an empty field means the default in its placeholder."""
    with gr.Row(elem_id="train-more-fields"):
        return [_setting_component(setting, 240, technique) for setting in MORE_SETTINGS]


def default_values(technique: str, preset: str = "default") -> dict[str, Any]:
    """Return the values of all settings for a technique and preset, each as a string or a bool."""
    values = {**get_technique(technique).settings(preset), "eval_every": DEFAULT_EVAL_EVERY}
    return {
        setting.name: _setting_text(setting, values.get(setting.name, FIELDS[setting.name].default))
        for setting in ALL_SETTINGS
    }


def parse_settings(values: Sequence[Any]) -> dict[str, Any]:
    """Return the values of the fields, which come in the order of ALL_SETTINGS, by name; without empty ones."""
    settings: dict[str, Any] = {}
    for setting, value in zip(ALL_SETTINGS, values, strict=True):
        text = value if isinstance(value, bool) else str(value or "").strip()
        if text not in ("", False, _DEFAULT_CHOICE):
            settings[setting.name] = text
    return settings


def settings_for_technique(settings: Mapping[str, Any], technique: str) -> dict[str, Any]:
    """Return the settings that the technique has."""
    names = {setting.name for setting in ALL_SETTINGS if not setting.techniques or technique in setting.techniques}
    return {name: value for name, value in settings.items() if name in names}


def settings_updates(technique: str, settings: Mapping[str, Any]) -> list[Any]:
    """Return updates of all fields: `settings`, and the technique's defaults for the others."""
    defaults = default_values(technique, str(settings.get("preset") or "default"))
    return [
        _setting_update(setting, technique, defaults, settings.get(setting.name, _initial_value(setting, defaults)))
        for setting in ALL_SETTINGS
    ]


def apply_technique(technique: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings after a change of technique or preset: its defaults replace those of the main fields."""
    defaults = default_values(technique, str(settings.get("preset") or "default"))
    return {**settings, **{name: defaults[name] for name in _PREFILLED}}


def locate_error(message: str) -> tuple[str, str]:
    """Return the name of the setting in an error message ('' for none), and the message with the field's label."""
    named = [setting for setting in ALL_SETTINGS if setting.name in message]
    if "cannot name an adapter" in message or "choose another name" in message:
        named = [MAIN_SETTINGS[0]]
    if not named:
        return "", message
    setting = min(named, key=lambda setting: message.index(setting.name) if setting.name in message else 0)
    return setting.name, message.replace(setting.name, f"'{setting.label}'", 1)


def error_updates(name: str, message: str) -> list[Any]:
    """Return updates of all fields that show `message` at the field `name` and remove it from the others."""
    return [
        gr.update(info=message, elem_classes=["wrong"])
        if setting.name == name
        else gr.update(info=setting.help, elem_classes=[])
        for setting in ALL_SETTINGS
    ]


def _setting_component(setting: Setting, width: int, technique: str) -> Any:
    defaults = default_values(technique)
    common = {
        "value": _initial_value(setting, defaults),
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
    return gr.Textbox(placeholder=defaults[setting.name], max_lines=1, **common)


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


@dataclass(frozen=True)
class TechniqueScore:
    """Scores of the techniques. `description` has the data, the number of problems and the base.

    `scores` maps (title of the technique, quantization of the base at inference) to the table's cells by column.
    """

    description: str
    scores: Mapping[tuple[str, str], Mapping[str, str]]


def technique_choices(serving: ServingOptions) -> list[str]:
    """Return the techniques of the page; of QLoRA only the one for the served quantization."""
    quantized = "qlora-8bit" if serving.quantization == "int8" else "qlora-4bit"
    return ["lora", quantized, "ia3", "prompt-tuning", "prefix-tuning"]


def recommended_technique(serving: ServingOptions) -> str:
    """Return LoRA for the served quantization: an adapter trained on other weights scores lower on these."""
    return "lora" if serving.quantization == "none" else technique_choices(serving)[1]


def training_quantization(technique: str, serving: ServingOptions, preset: str = "default") -> str:
    """Return the quantization of the base in training: the served one if the technique supports it."""
    description = get_technique(technique)
    fixed = description.settings(preset).get("quantization")
    if fixed is None and serving.quantization in description.quantizations:
        return serving.quantization
    return str(fixed or description.quantizations[0])


def radio_choices(serving: ServingOptions, technique_score: TechniqueScore | None) -> list[tuple[str, str]]:
    """Return labels (name, description and score, a line each) and values of the radio group."""
    return [(_technique_label(name, serving, technique_score), name) for name in technique_choices(serving)]


def scores_note(serving: ServingOptions, technique_score: TechniqueScore | None) -> str:
    """Return what was scored; '' without scores."""
    if technique_score is None:
        return ""
    zero_shot = technique_score.scores.get(("zero-shot", _scored_quantization(serving, "zero-shot", technique_score)))
    untrained = f" Without training: {zero_shot['CodeBLEU']}." if zero_shot else ""
    return (
        f"CodeBLEU of {technique_score.description}, with 95 % intervals in brackets.{untrained} Where intervals "
        "overlap much, no difference is shown, and the result on your rows may differ."
    )


def read_technique_score(path: Path = TECHNIQUE_TABLE) -> TechniqueScore | None:
    """Read the table of scores; None if the file is missing or has no rows."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in _first_table(lines)]
    if len(rows) < 3:
        return None
    columns = rows[0]
    cells = [dict(zip(columns, row, strict=False)) for row in rows[2:]]
    required = {"technique", "answers on", "CodeBLEU"}
    scores = {(row["technique"], row["answers on"]): row for row in cells if required <= row.keys()}
    return TechniqueScore(_table_description(lines), scores)


def _technique_label(name: str, serving: ServingOptions, technique_score: TechniqueScore | None) -> str:
    title = TECHNIQUES[name].title.replace("-4bit", " 4 bit").replace("-8bit", " 8 bit")
    lines = [title, ("Recommended here. " if name == recommended_technique(serving) else "") + _TECHNIQUE_TEXTS[name]]
    if technique_score:
        quantization = _scored_quantization(serving, TECHNIQUES[name].title, technique_score)
        row = technique_score.scores.get((TECHNIQUES[name].title, quantization))
        if row:
            base = quantization_label(quantization)
            lines.append(f"CodeBLEU {row['CodeBLEU']} on the {base} base")
    return "\n".join(lines)


def _scored_quantization(serving: ServingOptions, title: str, technique_score: TechniqueScore) -> str:
    """Return the served quantization if the technique was scored on it, else the last one that was."""
    scored = [quantization for technique, quantization in technique_score.scores if technique == title]
    return serving.quantization if serving.quantization in scored or not scored else scored[-1]


def _first_table(lines: list[str]) -> list[str]:
    begin = next((index for index, line in enumerate(lines) if line.startswith("|")), len(lines))
    end = next((index for index in range(begin, len(lines)) if not lines[index].startswith("|")), len(lines))
    return lines[begin:end]


def _table_description(lines: list[str]) -> str:
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("- ") and ": " in line)
    base = facts.get("Base", "").split(" at ")[0].rsplit("/", 1)[-1]
    data = facts.get("Data", "").split(", sha256")[0].replace("conala", "CoNaLa")
    return f"{data} ({base})".replace("test, n = ", "test problems, n = ")


def suggest_adapter_name(technique: str, rows: str) -> str:
    """Return an adapter name such as 'lora-my-pairs' for LoRA on my_pairs.csv or someone/my-pairs."""
    kind = technique.split("-", maxsplit=1)[0] or "lora"
    last = re.split(r"[@:]", rows)[0].rsplit("/", 1)[-1]
    prefix = re.sub(r"\.(jsonl?|ndjson|[ct]sv|parquet)$", "", last.casefold())
    slug = re.sub(r"[^a-z0-9]+", "-", prefix).strip("-")[:40].strip("-")
    return f"{kind}-{slug or 'mine'}"


def find_unused_name(name: str, home: Path, jobs: Iterable[Job]) -> str:
    """Return `name`, or `name` with a number, that no adapter and no job has yet."""
    others, prefix = list(jobs), re.sub(r"-\d+$", "", name)[:58]
    for number in range(1, _MAX_NAME_ATTEMPTS):
        candidate = name if number == 1 else f"{prefix}-{number}"
        try:
            check_name_is_free(candidate, home, others)
        except PromptOrTuneError:
            continue
        return candidate
    return name
