"""Trains an adapter.

    python -m train train/configs/lora.yaml --dataset-name my-pairs.jsonl --adapter-name lora-mine
    python -m train --technique qlora-4bit --dataset-name conala --data-dir ../shared/data --adapter-name lora-conala
    python -m train ... --dry-run        what would be trained, on what, and what it would cost; nothing is trained
    python -m train --adapter-name lora-mine --resume

Every field of train.config.TrainConfig is a flag, with dashes or underscores, and a line of the YAML file; a flag
beats the file, the file beats the preset.
"""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import PeftArenaError, TrainingError, unknown
from train.config import TrainConfig
from train.settings import FIELDS, make_config, read_yaml
from train.workspace import Workspace, store

_MODES = ("dry-run", "resume", "finish")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("config", nargs="?", type=Path, default=None, metavar="CONFIG.yaml", help="settings in a file")
    parser.add_argument("--dry-run", action="store_true", help="print the preflight, train nothing")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished run from its last checkpoint")
    parser.add_argument("--finish", action="store_true", help="make an adapter of an unfinished run's best checkpoint")
    hints = typing.get_type_hints(TrainConfig)
    for field in FIELDS.values():
        # Both spellings work: with dashes as here, with underscores as in TRL.
        names = dict.fromkeys(("--" + field.name.replace("_", "-"), "--" + field.name))
        options: dict[str, Any] = {"dest": field.name, "help": f"default: {field.default}"}
        if hints[field.name] is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(hints[field.name]) is tuple:
            options |= {"nargs": "+", "metavar": "NAME"}
        parser.add_argument(*names, **options)
    return parser


def _values(arguments: Sequence[str] | None) -> tuple[dict[str, Any], set[str]]:
    """The settings that were given, file and flags together, and the modes that were asked for."""
    parsed, unread = _parser().parse_known_args(arguments)
    if unread:
        flag = unread[0].split("=")[0]
        if flag.startswith("--"):
            raise unknown("flag", flag, ["--" + name.replace("_", "-") for name in (*FIELDS, *_MODES)])
        raise TrainingError(f"'{unread[0]}' belongs to no flag: write --setting value.")
    flags = vars(parsed)
    modes = {mode for mode in _MODES if flags.pop(mode.replace("-", "_"), False)}
    file = flags.pop("config")
    return {**(read_yaml(file) if file else {}), **flags}, modes


def _config(values: dict[str, Any], modes: set[str]) -> TrainConfig:
    """A run that goes on needs its name alone: it was begun with settings, and those are kept."""
    if modes & {"resume", "finish"} and "adapter_name" in values:
        output = values.get("output_dir")
        place = Workspace(store(Path(output) if output else None) / str(values["adapter_name"]))
        values = {**place.begun_with(), **values}
    return make_config(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    try:
        values, modes = _values(arguments)
        config = _config(values, modes)
        from serve.quiet import quiet

        quiet()
        return _run(config, modes)
    except PeftArenaError as fault:
        print(f"train: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: stopped at once; what was saved before is kept, see --resume.", file=sys.stderr)
        return 130


def _run(config: TrainConfig, modes: set[str]) -> int:
    from train.run import TrainingStoppedError, train

    try:
        folder = train(config, lambda line: print(line, flush=True), "resume" in modes, "finish" in modes)
    except TrainingStoppedError as stop:
        print(f"train: {stop}", file=sys.stderr)
        return 130
    print(f"The adapter is ready in {folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
