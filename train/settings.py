"""Settings of `python -m train`: flags, YAML file and preset, in this order of precedence, make a TrainConfig.

Every field of TrainConfig is a flag; further flags choose a dry run, or continue an unfinished run.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import TrainingError, unknown_name_error
from models.loader import DEVICES, QUANTIZATIONS
from train.config import OPTIMIZERS, VIRTUAL_TOKENS_INIT_METHODS, RunDirectory, TrainConfig, adapter_store_dir
from train.techniques import PRESETS, TECHNIQUES, get_technique

FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(TrainConfig)}
_FIELD_TYPES = typing.get_type_hints(TrainConfig)
_BOOLEAN_WORDS = {True: ("true", "yes", "on", "1"), False: ("false", "no", "off", "0")}


def make_config(values: Mapping[str, Any] | None = None, **overrides: Any) -> TrainConfig:
    """Make the configuration from these values, the preset and the technique.

    Values may be text, as from flags and YAML (`3e-4` is text in YAML). Raises UnknownNameError with the nearest name
    for an unknown setting, and TrainingError for an invalid value.
    """
    given = {name: _coerce_field(name, value) for name, value in {**(values or {}), **overrides}.items()}
    for name in ("adapter_name", "dataset_name"):
        if name not in given:
            raise TrainingError(f"{name} is missing: say --{name.replace('_', '-')}, or put it in the YAML file.")
    technique = get_technique(given.get("technique", "lora"))
    preset = technique.settings(given.get("preset", "default"))
    config = TrainConfig(**{"quantization": technique.quantizations[0], **preset, **given})
    technique.validate(config)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file. Paths in it are relative to the current directory, as with flags."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise TrainingError(f"{path}{where}: not YAML; write one `setting: value` a line.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: must hold settings as `name: value`, one a line.")
    for name in values:
        if name not in FIELDS:
            raise TrainingError(f"{path}: {unknown_name_error('setting', str(name), FIELDS)}")
    return values


def write_yaml(config: TrainConfig, path: Path, **extra: Any) -> None:
    """Write the resolved settings, in the order of TrainConfig."""
    import yaml

    text = yaml.safe_dump({**config.to_public_dict(), **extra}, sort_keys=False, allow_unicode=True, width=100)
    path.write_text(text, encoding="utf-8")


def _coerce_field(name: str, value: Any) -> Any:
    if name not in FIELDS:
        raise unknown_name_error("setting", name, FIELDS)
    hint = _FIELD_TYPES[name]
    optional = isinstance(hint, types.UnionType)
    if optional:
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    try:
        return _coerce(hint, value)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{name} cannot be {value!r}: it must be {_type_label(hint)}.") from error


def _coerce(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise TypeError
        return tuple(item.strip() for item in items if item.strip())
    if hint is bool:
        return _parse_bool(value)
    if hint is Path:
        return Path(value).expanduser()
    if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
        raise TypeError
    if isinstance(value, float) and hint is int and not value.is_integer():
        raise ValueError
    return hint(value)


def _parse_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    for truth, words in _BOOLEAN_WORDS.items():
        if str(value).lower() in words:
            return truth
    raise ValueError


def _type_label(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return "a list of names"
    return {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}.get(hint, "text")


DRY_RUN, RESUME, FINISH = "dry-run", "resume", "finish"
_FIELD_CHOICES = {
    "technique": tuple(TECHNIQUES),
    "preset": PRESETS,
    "quantization": QUANTIZATIONS,
    "device": DEVICES,
    "optim": OPTIMIZERS,
    "virtual_tokens_init": VIRTUAL_TOKENS_INIT_METHODS,
}
# Settings whose default depends on the technique or the preset.
_PRESET_FIELDS = {
    "quantization",
    *(name for technique in TECHNIQUES.values() for preset in PRESETS for name in technique.settings(preset)),
}
_MODE_HELP = {
    DRY_RUN: "print the preflight, train nothing",
    RESUME: "continue an unfinished run from its last checkpoint",
    FINISH: "make an adapter of an unfinished run's best checkpoint, without training on",
}


def parse_args(arguments: Sequence[str] | None, description: str) -> tuple[TrainConfig, set[str]]:
    """Parse the command line into the configuration and the modes. Raises PromptOrTuneError."""
    parsed, unknown = _parser(description).parse_known_args(arguments)
    if unknown:
        _reject_argument(unknown[0])
    flags = vars(parsed)
    modes = {mode for mode in _MODE_HELP if flags.pop(mode.replace("-", "_"), False)}
    file = flags.pop("config")
    values = {**(read_yaml(file) if file else {}), **flags}
    if modes & {RESUME, FINISH} and "adapter_name" in values:
        # The run's settings are saved in its directory, so the adapter's name suffices.
        output = values.get("output_dir")
        run_dir = RunDirectory(adapter_store_dir(Path(output) if output else None) / values["adapter_name"])
        values = {**run_dir.saved_settings(), **values}
    return make_config(values), modes


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        usage="python -m train [CONFIG.yaml] [--setting value ...] [--dry-run | --resume | --finish]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("config", nargs="?", type=Path, default=None, metavar="CONFIG.yaml", help="settings in a file")
    for mode, text in _MODE_HELP.items():
        parser.add_argument(f"--{mode}", action="store_true", help=text)
    hints = typing.get_type_hints(TrainConfig)
    for field in FIELDS.values():
        # Both spellings work: with dashes as here, with underscores as in TRL.
        names = dict.fromkeys(("--" + field.name.replace("_", "-"), "--" + field.name))
        options: dict[str, Any] = {"dest": field.name, "help": _field_help(field), "metavar": "X"}
        if hints[field.name] is bool:
            options |= {"action": argparse.BooleanOptionalAction}
            del options["metavar"]
        elif typing.get_origin(hints[field.name]) is tuple:
            options |= {"nargs": "+", "metavar": "NAME"}
        parser.add_argument(*names, **options)
    return parser


def _field_help(field: dataclasses.Field[Any]) -> str:
    choices = ", ".join(_FIELD_CHOICES.get(field.name, ()))
    if field.name in _PRESET_FIELDS:
        default = "default: by technique and preset"
    else:
        default = "" if field.default in (None, (), dataclasses.MISSING) else f"default: {field.default}"
    return "; ".join(part for part in (choices, default) if part)


def _reject_argument(argument: str) -> None:
    flag = argument.split("=", maxsplit=1)[0]
    if flag.startswith("--"):
        raise unknown_name_error("flag", flag, ["--" + name.replace("_", "-") for name in (*FIELDS, *_MODE_HELP)])
    raise TrainingError(f"'{argument}' belongs to no flag: write --setting value.")
