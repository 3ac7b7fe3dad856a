"""The flags of `python -m train`: every field of TrainConfig, and what is to be done with the run."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import TrainingError, unknown_name_error
from serve.backends.local.loading import DEVICES, QUANTIZATIONS
from train.config import OPTIMIZERS, VIRTUAL_TOKENS_INIT_METHODS, TrainConfig
from train.settings import FIELDS, make_config, read_yaml
from train.techniques import PRESETS, TECHNIQUES
from train.workspace import RunDirectory, adapter_store_dir

DRY_RUN, RESUME, FINISH = "dry-run", "resume", "finish"
_FIELD_CHOICES = {
    "technique": tuple(TECHNIQUES),
    "preset": PRESETS,
    "quantization": QUANTIZATIONS,
    "device": DEVICES,
    "optim": OPTIMIZERS,
    "virtual_tokens_init": VIRTUAL_TOKENS_INIT_METHODS,
}
# What a technique or a preset settles, so that no single default is true.
_PRESET_FIELDS = {
    "quantization",
    *(name for each in TECHNIQUES.values() for preset in PRESETS for name in each.settings(preset)),
}
_MODE_HELP = {
    DRY_RUN: "print the preflight, train nothing",
    RESUME: "continue an unfinished run from its last checkpoint",
    FINISH: "make an adapter of an unfinished run's best checkpoint, without training on",
}


def parse_args(arguments: Sequence[str] | None, description: str) -> tuple[TrainConfig, set[str]]:
    """The configuration that the command line asks for, and the modes; PromptOrTuneError in one sentence."""
    parsed, unread = _parser(description).parse_known_args(arguments)
    if unread:
        _reject_argument(unread[0])
    flags = vars(parsed)
    modes = {mode for mode in _MODE_HELP if flags.pop(mode.replace("-", "_"), False)}
    file = flags.pop("config")
    values = {**(read_yaml(file) if file else {}), **flags}
    if modes & {RESUME, FINISH} and "adapter_name" in values:
        # The run was begun with settings, and those are kept: its name alone suffices.
        output = values.get("output_dir")
        values = {
            **RunDirectory(
                adapter_store_dir(Path(output) if output else None) / values["adapter_name"]
            ).saved_settings(),
            **values,
        }
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
    for mode, words in _MODE_HELP.items():
        parser.add_argument(f"--{mode}", action="store_true", help=words)
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
    known = ", ".join(_FIELD_CHOICES.get(field.name, ()))
    if field.name in _PRESET_FIELDS:
        default = "default: by technique and preset"
    else:
        default = "" if field.default in (None, (), dataclasses.MISSING) else f"default: {field.default}"
    return "; ".join(part for part in (known, default) if part)


def _reject_argument(word: str) -> None:
    flag = word.split("=", maxsplit=1)[0]
    if flag.startswith("--"):
        raise unknown_name_error("flag", flag, ["--" + name.replace("_", "-") for name in (*FIELDS, *_MODE_HELP)])
    raise TrainingError(f"'{word}' belongs to no flag: write --setting value.")
