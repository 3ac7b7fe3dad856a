"""From a YAML file and flags to a TrainConfig: a flag beats the file, the file beats the preset."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import TrainingError, unknown_name_error
from train.config import TrainConfig
from train.techniques import get_technique

FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(TrainConfig)}
_FIELD_TYPES = typing.get_type_hints(TrainConfig)
_BOOLEAN_WORDS = {True: ("true", "yes", "on", "1"), False: ("false", "no", "off", "0")}


def make_config(values: Mapping[str, Any] | None = None, **overrides: Any) -> TrainConfig:
    """The configuration with these values, and for the rest those of the preset and the technique.

    Values may be text, as flags and YAML give them (`3e-4` is text in YAML). UnknownNameError with the nearest
    name for a setting that does not exist; TrainingError for a value that cannot be, or that cannot train.
    """
    given = {name: _coerce_field(name, value) for name, value in {**(values or {}), **overrides}.items()}
    for name in ("adapter_name", "dataset_name"):
        if name not in given:
            raise TrainingError(f"{name} is missing: say --{name.replace('_', '-')}, or put it in the YAML file.")
    technique = get_technique(given.get("technique", "lora"))
    chosen = technique.settings(given.get("preset", "default"))
    config = TrainConfig(**{"quantization": technique.quantizations[0], **chosen, **given})
    technique.validate(config)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; paths in it are relative to where the command is run, as with flags."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise TrainingError(f"{path} cannot be read ({fault.strerror or fault}).") from fault
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as fault:
        place = getattr(fault, "problem_mark", None)
        where = f", line {place.line + 1}" if place else ""
        raise TrainingError(f"{path}{where}: not YAML; write one `setting: value` a line.") from fault
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: must hold settings as `name: value`, one a line.")
    for name in values:
        if name not in FIELDS:
            raise TrainingError(f"{path}: {unknown_name_error('setting', str(name), FIELDS)}")
    return values


def write_yaml(config: TrainConfig, path: Path, **extra: Any) -> None:
    """The resolved settings, sorted as TrainConfig has them."""
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
    except (TypeError, ValueError) as fault:
        raise TrainingError(f"{name} cannot be {value!r}: it must be {_type_label(hint)}.") from fault


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
