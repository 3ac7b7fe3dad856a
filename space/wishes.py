"""What a person wants of a Space besides its files: hardware, storage, secrets and variables, read from options."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from errors import PromptOrTuneError, unknown_name_error
from serve.space import STORAGE_DIR

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,255}")


@dataclass(frozen=True)
class SpaceOptions:
    """Nothing is changed of what is not wished for. `storage` is a bucket, "user/name", mounted at /data.

    `private` matters for a new Space alone. Secrets' values appear in no message.
    """

    private: bool = False
    hardware: str | None = None
    storage: str | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict)


def add_space_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `read_wishes` reads."""
    parser.add_argument("--private", action="store_true", help="a new Space is private")
    parser.add_argument(
        "--hardware", metavar="NAME", help="such as cpu-basic, t4-small, l4x1, or zero-a10g for ZeroGPU"
    )
    parser.add_argument(
        "--storage",
        metavar="user/bucket",
        help=f"a storage bucket to mount at {STORAGE_DIR}, so that jobs, votes and adapters outlive a restart; it is "
        "created, private, where there is none",
    )
    for option, words in (
        ("--secret", "repeatable; KEY alone takes the value from this environment"),
        ("--variable", "repeatable; everybody can read variables"),
    ):
        parser.add_argument(option, action="append", metavar="KEY=VALUE", default=[], help=words)


def parse_space_options(args: argparse.Namespace) -> SpaceOptions:
    """The options, checked; PromptOrTuneError in one sentence."""
    from huggingface_hub import SpaceHardware

    known = [str(each.value) for each in SpaceHardware]
    if args.hardware is not None and args.hardware not in known:
        raise unknown_name_error("hardware", args.hardware, known)
    secrets = _parse_pairs(args.secret, "--secret")
    variables = _parse_pairs(args.variable, "--variable")
    both = sorted(secrets.keys() & variables.keys())
    if both:
        raise PromptOrTuneError(f"{both[0]} is given as --secret and as --variable: give it once.")
    if args.storage is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.storage, re.ASCII):
        raise PromptOrTuneError("--storage names no bucket: write user/name, such as someone/peft-arena-data.")
    return SpaceOptions(args.private, args.hardware, args.storage, secrets, variables)


def _parse_pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """KEY=VALUE, or KEY with its value in the environment. No message repeats a value."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not _KEY.fullmatch(key):
            raise PromptOrTuneError(
                f"{option} wants KEY=VALUE, and a key has letters, digits and '_' only: correct it."
            )
        if not equals:
            if key not in os.environ:
                raise PromptOrTuneError(
                    f"{option} {key} has no value: write {key}=VALUE, or set it in the environment."
                )
            value = os.environ[key]
        if key in found:
            raise PromptOrTuneError(f"{option} {key} is given twice: give it once.")
        found[key] = value
    return found
