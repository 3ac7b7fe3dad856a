"""ModelOptions: which base answers, how it is loaded and where its data are; the command-line options for them."""

from __future__ import annotations

import argparse
import difflib
from dataclasses import dataclass
from pathlib import Path

from common.command import optional_folder
from errors import BaseModelError, unknown_name_error
from models.loader import DEVICES, QUANTIZATIONS
from models.source import EMBEDDED
from serve.backends.remote.backend import RemoteOptions, add_remote_options, parse_remote_options


@dataclass(frozen=True)
class ModelOptions:
    """The base model, its quantization and device, the data sets and the embedding model for RAG.

    With `remote` that server answers; `base`, where it is not None, then says which base the server has. Without
    either, the embedded base answers. `data_dir` holds data sets that are read instead of the Hub's; it may be the file
    of one.
    """

    base: str | None = None
    quantization: str = "nf4"
    device: str = "auto"
    data_dir: Path | None = None
    trust_remote_code: bool = False
    embedder: str = EMBEDDED
    remote: RemoteOptions | None = None


def add_model_options(parser: argparse.ArgumentParser, base: str | None = None, remote: bool = True) -> None:
    """Add the options that `parse_model_options` reads; `base` is the default of --base."""
    parser.add_argument(
        "--base",
        default=base,
        help=f"'embedded', a Hub id with optional @revision, a folder, or a .gguf file ({base or EMBEDDED})",
    )
    parser.add_argument("--quantization", default="nf4", help=f"{', '.join(QUANTIZATIONS)} (%(default)s)")
    parser.add_argument("--device", default="auto", help=f"{', '.join(DEVICES)} (%(default)s)")
    parser.add_argument(
        "--data-dir", type=Path, help="a folder with data sets, or the file of one, instead of the Hub's"
    )
    parser.add_argument(
        "--embedder", default=EMBEDDED, help="for RAG: 'embedded', or a Hub id such as thenlper/gte-small"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that a Hub base brings; needs --base NAME@<commit>",
    )
    if remote:
        add_remote_options(parser)


def parse_model_options(args: argparse.Namespace) -> ModelOptions:
    """Return what the options of `add_model_options` ask for. Raises PromptOrTuneError before anything is loaded."""
    if args.quantization not in QUANTIZATIONS:
        raise unknown_name_error("quantization", args.quantization, QUANTIZATIONS)
    if args.device not in DEVICES:
        raise unknown_name_error("device", args.device, DEVICES)
    base = None if args.base is None else check_base(args.base.strip())
    data_dir = _existing_data(args.data_dir)
    remote = parse_remote_options(args) if hasattr(args, "backend") else None
    if base is None and remote is None:
        base = EMBEDDED
    return ModelOptions(base, args.quantization, args.device, data_dir, args.trust_remote_code, args.embedder, remote)


def _existing_data(path: Path | None) -> Path | None:
    """Return the folder of data sets, or the file of one, with ~ expanded. Raises DataError for a missing one."""
    if path is not None and path.expanduser().is_file():
        return path.expanduser()
    return optional_folder(path, "data", "--data-dir")


def check_base(base: str) -> str:
    """Raise BaseModelError for what cannot be a base; whether a Hub id exists is known when it is loaded."""
    if not base:
        raise BaseModelError("--base is empty: give 'embedded', a Hub id, a model's folder, or a .gguf file.")
    is_path = base.startswith((".", "/", "~")) or base.endswith(".gguf")
    if is_path and not Path(base).expanduser().exists():
        raise BaseModelError(f"There is no base {base}: no such folder or file; check the path given to --base.")
    if base != EMBEDDED and difflib.get_close_matches(base.casefold(), [EMBEDDED], cutoff=0.8):
        raise unknown_name_error("base", base, [EMBEDDED])
    return base
