"""What the programs that serve have in common: options that are checked before anything is loaded, and progress.

Makes libraries behave: what they print and a person can do nothing about, and how their threads wait.

Called once by a program, before it imports them.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import NoReturn

from errors import DataError, PromptOrTuneError

EXIT_INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended
_PERCENT = re.compile(r"\s*\d+(?:\.\d+)?\s?%.*")


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong with an option in one sentence, as a PromptOrTuneError."""

    def error(self, message: str) -> NoReturn:
        raise PromptOrTuneError(f"{message[:1].upper()}{message[1:]}; `python {self.prog} --help` lists all options.")


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
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise PromptOrTuneError(f"The {what} in {file} cannot be read ({reason}): check {option}.") from error
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
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = (
                f"Port {port} is in use: stop the other program or choose another with --port N (`make demo PORT=N`)."
            )
        elif error.errno == errno.EACCES:
            reason = f"You may not serve on port {port}: choose one above 1023 with --port N (`make demo PORT=N`)."
        else:
            reason = f"Cannot serve on address '{host}' ({error.strerror}): check --host."
        raise PromptOrTuneError(reason) from error


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


def configure_environment() -> None:
    """Keeps the console for our own progress and for errors, and the cores for work."""
    # How long threads of torch spin before they sleep. Hundreds of kernels a step follow one another within
    # microseconds, and waking a thread takes longer than most of them. Threads that spin for milliseconds, as is
    # libgomp's way, slow everything down as soon as another program wants one of the cores. This is about as long as
    # the gap between two kernels; `OMP_WAIT_POLICY=passive` is best where other programs keep the cores busy.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("bitsandbytes", "httpx", "sentence_transformers", "transformers", "huggingface_hub", "faiss", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    # bitsandbytes looks for an optional kernel package and warns that it is not there.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.CRITICAL)
