"""What the programs that serve have in common: options that are checked before anything is loaded, and progress."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

from errors import BaseModelError, DataError, PromptOrTuneError, unknown_name_error
from serve.backends.local.loading import DEVICES, QUANTIZATIONS

_PERCENT = re.compile(r"\s*\d+(?:\.\d+)?\s?%.*")


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong with an option in one sentence, as a PromptOrTuneError."""

    def error(self, message: str) -> NoReturn:
        raise PromptOrTuneError(f"{message[:1].upper()}{message[1:]}; `python {self.prog} --help` lists all options.")


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


def optional_folder(folder: Path | None, what: str, option: str) -> Path | None:
    """The folder with ~ resolved, or None where none was given; DataError where there is no such folder."""
    return None if folder is None else require_folder(folder, what, option)


def require_folder(folder: Path, what: str, option: str) -> Path:
    """The folder with ~ resolved; DataError where there is none."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise DataError(f"There is no {what} folder {folder}: check the path given to {option}.")
    return folder


def read_secrets(file: Path | None, variable: str, what: str, option: str) -> list[tuple[str, str]]:
    """The lines of `file`, and what the environment has in `variable` between commas, each with where it stands.

    `what` and `option` are for the sentence, which repeats none of it, where the file cannot be read: PromptOrTuneError.
    """
    lines: list[tuple[str, str]] = []
    if file is not None:
        try:
            text = file.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else "it is not UTF-8"
            raise PromptOrTuneError(f"The {what} in {file} cannot be read ({reason}): check {option}.") from fault
        lines += [(f"line {number} of {file}", line) for number, line in enumerate(text.splitlines(), 1)]
    given = os.environ.get(variable, "")
    lines += [(f"entry {number} of {variable}", line) for number, line in enumerate(given.split(","), 1)]
    return lines


def parse_port(text: str) -> int:
    """The port that `text` says; PromptOrTuneError where it says none."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise PromptOrTuneError(f"'{text}' is no port: give a number from 1 to 65535.")
    return int(text)


def check_port_free(host: str, port: int) -> None:
    """PromptOrTuneError unless this machine lets us serve on `host` and `port` now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as fault:
        if fault.errno == errno.EADDRINUSE:
            reason = (
                f"Port {port} is in use: stop the other program or choose another with --port N (`make demo PORT=N`)."
            )
        elif fault.errno == errno.EACCES:
            reason = f"You may not serve on port {port}: choose one above 1023 with --port N (`make demo PORT=N`)."
        else:
            reason = f"Cannot serve on address '{host}' ({fault.strerror}): check --host."
        raise PromptOrTuneError(reason) from fault


class ProgressPrinter:
    """Prints lines of progress; on a terminal a growing percentage stays on its line, elsewhere it is thinned out."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._open_message = ""
        self._last_write = 0.0

    def __call__(self, message: str) -> None:
        """Shows one line."""
        message = message.strip()
        head = _PERCENT.sub("", message)
        counts = head != message
        if self._is_terminal:
            same = counts and head == self._open_message
            self._write(
                ("\r\x1b[K" if same else "\n" if self._open_message else "") + message + ("" if counts else "\n")
            )
        elif not (counts and head == self._open_message and time.monotonic() - self._last_write < 10):
            self._write(message + "\n")
        self._open_message = head if counts else ""

    def _write(self, text: str) -> None:
        self._last_write = time.monotonic()
        sys.stdout.write(text)
        sys.stdout.flush()
