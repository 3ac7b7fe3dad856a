"""Command lines: argument parser, exit status, checks of options, progress output, environment of the libraries."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import re
import socket
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn, TextIO

from common.files import adopt_old_variables, cache_dir, protect_home, take_over_old_cache
from common.format import quote_untrusted, terminal_text
from errors import DataError, PromptOrTuneError

EXIT_INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended
EXIT_NO_READER = 141  # that of a program that SIGPIPE ended
_PERCENT = re.compile(r"\s*\d+(?:\.\d+)?\s?%.*")


def run_command(run: Callable[[], int | None], name: str = "", stopped: str = "Stopped.") -> int:
    """Run a command and return its exit status: its own (None is 0), 2 after a PromptOrTuneError, 130 after Ctrl-C.

    The error's message goes to standard error behind "`name`: ", the text `stopped` after Ctrl-C. Before the command
    runs, variables and the cache folder of the product's old name are taken over. What it writes to both outputs passes
    through `terminal_text`.
    """

    def report(line: str) -> None:
        sys.stderr.write((f"{name}: {line}" if name else line) + "\n")

    outputs = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _PlainOutput(sys.stdout), _PlainOutput(sys.stderr)
    try:
        adopt_old_variables(report)
        take_over_old_cache(report)
        protect_home(cache_dir())
        return run() or 0
    except PromptOrTuneError as error:
        report(str(error))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{stopped}\n")
        return EXIT_INTERRUPTED
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = outputs


class _PlainOutput(io.TextIOBase):
    """Standard output or error without control characters; ProgressPrinter writes its own to `stream` itself.

    It says that it is no terminal, so that libraries send no colours.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self._exit_without_reader():
            self.stream.write(terminal_text(text))
        return len(text)

    def flush(self) -> None:
        with suppress(ValueError), self._exit_without_reader():  # ValueError: closed
            self.stream.flush()

    @contextmanager
    def _exit_without_reader(self) -> Iterator[None]:
        """End the command quietly where the reader of its output has left, as `head` does."""
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # for what is still buffered
            os.close(nowhere)
            raise SystemExit(EXIT_NO_READER) from None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    @property
    def buffer(self) -> BinaryIO:
        return self.stream.buffer


def exit_now(status: int) -> NoReturn:
    """End the process at once, without waiting for threads that are inside of a library."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises PromptOrTuneError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise PromptOrTuneError(f"{message[:1].upper()}{message[1:]}; `python {self.prog} --help` lists all options.")


def optional_folder(folder: Path | None, what: str, option: str) -> Path | None:
    """Return the folder with ~ expanded, or None where none was given. Raises DataError for a missing folder."""
    return None if folder is None else require_folder(folder, what, option)


def require_folder(folder: Path, what: str, option: str) -> Path:
    """Return the folder with ~ expanded. Raises DataError for a missing folder."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise DataError(f"There is no {what} folder {folder}: check the path given to {option}.")
    return folder


def read_secrets(file: Path | None, variable: str, what: str, option: str) -> list[tuple[str, str]]:
    """Return pairs (location, text) of the lines of `file` and of the comma-separated entries of a variable.

    `what` and `option` appear in the message of the PromptOrTuneError for a file that cannot be read, or that others
    than its owner can change; no secret does. A file that others can read gets a warning.
    """
    lines: list[tuple[str, str]] = []
    if file is not None:
        _check_mode(file.expanduser(), what)
        try:
            text = file.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise PromptOrTuneError(f"The {what} in {file} cannot be read ({reason}): check {option}.") from error
        lines += [(f"line {number} of {file}", line) for number, line in enumerate(text.splitlines(), 1)]
    given = os.environ.get(variable, "")
    lines += [(f"entry {number} of {variable}", line) for number, line in enumerate(given.split(","), 1)]
    return lines


def _check_mode(file: Path, what: str) -> None:
    try:
        mode = file.stat().st_mode
    except OSError:
        return  # reading it gives the error
    if os.name != "posix" or not stat.S_ISREG(mode):
        return
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PromptOrTuneError(
            f"Others than its owner can change the {what} in {file} (mode {stat.S_IMODE(mode):04o}): run "
            f"`chmod 600 {file}`, and check its lines."
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        sys.stderr.write(f"Others than its owner can read the {what} in {file}: run `chmod 600 {file}`.\n")


def parse_port(text: str) -> int:
    """Return the port number in `text`. Raises PromptOrTuneError for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise PromptOrTuneError(f"'{quote_untrusted(text)}' is no port: give a number from 1 to 65535.")
    return int(text)


def check_port_free(host: str, port: int) -> None:
    """Raise PromptOrTuneError unless this process can listen on `host` and `port` now."""
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
    """Prints progress lines. A percentage is rewritten in place on a terminal, and printed every 10 s elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = _standard_output().isatty()
        self._open_message = ""
        self._last_write = 0.0

    def __call__(self, message: str) -> None:
        """Print one line."""
        message = terminal_text(message.strip())
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
        _standard_output().write(text)
        _standard_output().flush()


def _standard_output() -> TextIO:
    return sys.stdout.stream if isinstance(sys.stdout, _PlainOutput) else sys.stdout


def configure_environment() -> None:
    """Set environment variables and log levels of the libraries; call it before they are imported."""
    # How long OpenMP threads spin before they sleep. A decoding step starts hundreds of kernels within microseconds of
    # one another, and waking a thread takes longer than most of them. libgomp's default, milliseconds, slows the
    # process down as soon as another program needs a core. This value covers the gap between two kernels;
    # `OMP_WAIT_POLICY=passive` is better where other programs keep the cores busy.
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
    # bitsandbytes warns that an optional kernel package is not installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.CRITICAL)
