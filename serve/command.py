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

from errors import BaseModelError, DataError, PeftArenaError, unknown
from serve.backends.local.loading import DEVICES, QUANTIZATIONS

_PERCENT = re.compile(r"\s*\d+(?:\.\d+)?\s?%.*")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one sentence, as a PeftArenaError."""

    def error(self, message: str) -> NoReturn:
        raise PeftArenaError(f"{message[:1].upper()}{message[1:]}; `python {self.prog} --help` lists all options.")


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


def check_model_options(given: argparse.Namespace) -> None:
    """Checks what `add_model_options` added, and puts the base and the folder as they are used; PeftArenaError."""
    if given.quantization not in QUANTIZATIONS:
        raise unknown("quantization", given.quantization, QUANTIZATIONS)
    if given.device not in DEVICES:
        raise unknown("device", given.device, DEVICES)
    given.base = checked_base(given.base.strip())
    given.data_dir = checked_folder(given.data_dir, "data", "--data-dir")


def checked_base(base: str) -> str:
    """Refuses at once what cannot be a base; whether a Hub id exists shows when it is loaded."""
    if not base:
        raise BaseModelError("--base is empty: give 'embedded', a Hub id, a model's folder, or a .gguf file.")
    is_path = base.startswith((".", "/", "~")) or base.endswith(".gguf")
    if is_path and not Path(base).expanduser().exists():
        raise BaseModelError(f"There is no base {base}: no such folder or file; check the path given to --base.")
    if base != "embedded" and difflib.get_close_matches(base.casefold(), ["embedded"], cutoff=0.8):
        raise unknown("base", base, ["embedded"])
    return base


def checked_folder(folder: Path | None, what: str, option: str) -> Path | None:
    """The folder with ~ resolved, or None where none was given; DataError where there is no such folder."""
    return None if folder is None else require_folder(folder, what, option)


def require_folder(folder: Path, what: str, option: str) -> Path:
    """The folder with ~ resolved; DataError where there is none."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise DataError(f"There is no {what} folder {folder}: check the path given to {option}.")
    return folder


def secret_lines(file: Path | None, variable: str, what: str, option: str) -> list[tuple[str, str]]:
    """The lines of `file`, and what the environment has in `variable` between commas, each with where it stands.

    `what` and `option` are for the sentence, which repeats none of it, where the file cannot be read: PeftArenaError.
    """
    lines: list[tuple[str, str]] = []
    if file is not None:
        try:
            text = file.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else "it is not UTF-8"
            raise PeftArenaError(f"The {what} in {file} cannot be read ({reason}): check {option}.") from fault
        lines += [(f"line {number} of {file}", line) for number, line in enumerate(text.splitlines(), 1)]
    given = os.environ.get(variable, "")
    lines += [(f"entry {number} of {variable}", line) for number, line in enumerate(given.split(","), 1)]
    return lines


def checked_port(text: str) -> int:
    """The port that `text` says; PeftArenaError where it says none."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise PeftArenaError(f"'{text}' is no port: give a number from 1 to 65535.")
    return int(text)


def require_port(host: str, port: int) -> None:
    """PeftArenaError unless this machine lets us serve on `host` and `port` now."""
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
        raise PeftArenaError(reason) from fault


class Progress:
    """Prints lines of progress; on a terminal a growing percentage stays on its line, elsewhere it is thinned out."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._open = ""
        self._spoke = 0.0

    def __call__(self, line: str) -> None:
        """Shows one line."""
        line = line.strip()
        head = _PERCENT.sub("", line)
        counts = head != line
        if self._terminal:
            same = counts and head == self._open
            self._write(("\r\x1b[K" if same else "\n" if self._open else "") + line + ("" if counts else "\n"))
        elif not (counts and head == self._open and time.monotonic() - self._spoke < 10):
            self._write(line + "\n")
        self._open = head if counts else ""

    def _write(self, text: str) -> None:
        self._spoke = time.monotonic()
        sys.stdout.write(text)
        sys.stdout.flush()
