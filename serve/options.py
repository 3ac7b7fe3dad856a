"""Command-line options that describe a base model and the engine over it."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from common.command import optional_folder
from errors import BaseModelError, unknown_name_error
from models.loader import DEVICES, QUANTIZATIONS


def add_model_options(parser: argparse.ArgumentParser, base: str) -> None:
    """The options that say which base answers and where its data lie; `base` is the default."""
    parser.add_argument(
        "--base",
        default=base,
        help="'embedded', a Hub id with optional @revision, a folder, or a .gguf file (%(default)s)",
    )
    parser.add_argument("--quantization", default="nf4", help=f"{', '.join(QUANTIZATIONS)} (%(default)s)")
    parser.add_argument("--device", default="auto", help=f"{', '.join(DEVICES)} (%(default)s)")
    parser.add_argument("--data-dir", type=Path, help="a folder with data sets, instead of the Hub's")
    parser.add_argument(
        "--embedder",
        default="embedded",
        help="for RAG: 'embedded', or a Hub id such as thenlper/gte-small",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that a Hub base brings; needs --base NAME@<commit>",
    )


def check_model_options(args: argparse.Namespace) -> None:
    """Checks what `add_model_options` added, and puts the base and the folder as they are used; PromptOrTuneError."""
    if args.quantization not in QUANTIZATIONS:
        raise unknown_name_error("quantization", args.quantization, QUANTIZATIONS)
    if args.device not in DEVICES:
        raise unknown_name_error("device", args.device, DEVICES)
    args.base = check_base(args.base.strip())
    args.data_dir = optional_folder(args.data_dir, "data", "--data-dir")


def check_base(base: str) -> str:
    """Refuses at once what cannot be a base; whether a Hub id exists shows when it is loaded."""
    if not base:
        raise BaseModelError("--base is empty: give 'embedded', a Hub id, a model's folder, or a .gguf file.")
    is_path = base.startswith((".", "/", "~")) or base.endswith(".gguf")
    if is_path and not Path(base).expanduser().exists():
        raise BaseModelError(f"There is no base {base}: no such folder or file; check the path given to --base.")
    if base != "embedded" and difflib.get_close_matches(base.casefold(), ["embedded"], cutoff=0.8):
        raise unknown_name_error("base", base, ["embedded"])
    return base
