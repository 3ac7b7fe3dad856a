"""Starts Peft Arena: reads the command line, loads the model behind the pages, and serves them.

python app.py                                              the embedded base, on http://127.0.0.1:7860
python app.py --base Qwen/Qwen2.5-Coder-1.5B-Instruct --device cuda
python app.py --base ~/models/mine --quantization int8 --data-dir ~/data --port 8000
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from errors import BaseModelError, DataError, PeftArenaError, unknown
from serve.backends.local.loading import DEVICES, QUANTIZATIONS
from serve.quiet import quiet

if TYPE_CHECKING:
    from serve.engine import Engine
    from serve.engine_source import EngineSource

DEFAULT_PORT = 7860
_PERCENT = re.compile(r"\s*\d+(?:\.\d+)?\s?%.*")


@dataclass(frozen=True)
class Options:
    """What the command line and the environment ask for, checked as far as it can be without loading anything."""

    base: str
    quantization: str
    device: str
    data_dir: Path | None
    runs_dir: Path | None
    host: str
    port: int
    trust_remote_code: bool
    embedder: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PeftArenaError(f"{message[:1].upper()}{message[1:]}; `python app.py --help` lists all options.")


def parse_options(arguments: Sequence[str]) -> Options:
    """The options in `arguments`, with defaults from the environment; PeftArenaError in one sentence otherwise."""
    on_a_space = bool(os.environ.get("SPACE_ID"))
    base = os.environ.get("PEFT_ARENA_BASE") or "embedded"
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_a_space else "127.0.0.1")  # noqa: S104
    port = os.environ.get("GRADIO_SERVER_PORT") or str(DEFAULT_PORT)
    parser = _Parser(prog="app.py", description="Peft Arena: four answers to one intent, side by side.")
    parser.add_argument(
        "--base",
        default=base,
        help="'embedded', a Hub id with optional @revision, a folder, or a .gguf file (%(default)s)",
    )
    parser.add_argument("--quantization", default="nf4", help=f"{', '.join(QUANTIZATIONS)} (%(default)s)")
    parser.add_argument("--device", default="auto", help=f"{', '.join(DEVICES)} (%(default)s)")
    parser.add_argument("--data-dir", type=Path, help="a folder with data sets, instead of the Hub's")
    parser.add_argument("--runs-dir", type=Path, help="a folder with runs of `python -m evaluate` for Results")
    parser.add_argument(
        "--embedder",
        default="embedded",
        help="for RAG: 'embedded', or a Hub id such as thenlper/gte-small",
    )
    parser.add_argument("--host", default=host, help="the address to serve on (%(default)s)")
    parser.add_argument("--port", default=port, help="the port to serve on (%(default)s)")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that a Hub base brings; needs --base NAME@<commit>",
    )
    given = parser.parse_args(arguments)
    if given.quantization not in QUANTIZATIONS:
        raise unknown("quantization", given.quantization, QUANTIZATIONS)
    if given.device not in DEVICES:
        raise unknown("device", given.device, DEVICES)
    return Options(
        base=_checked_base(given.base.strip()),
        quantization=given.quantization,
        device=given.device,
        data_dir=_checked_folder(given.data_dir, "data", "--data-dir"),
        runs_dir=_checked_folder(given.runs_dir, "runs", "--runs-dir"),
        host=given.host,
        port=_checked_port(given.port),
        trust_remote_code=given.trust_remote_code,
        embedder=given.embedder,
    )


def _checked_base(base: str) -> str:
    """Refuses at once what cannot be a base; whether a Hub id exists shows when it is loaded."""
    if not base:
        raise BaseModelError("--base is empty: give 'embedded', a Hub id, a model's folder, or a .gguf file.")
    is_path = base.startswith((".", "/", "~")) or base.endswith(".gguf")
    if is_path and not Path(base).expanduser().exists():
        raise BaseModelError(f"There is no base {base}: no such folder or file; check the path given to --base.")
    if base != "embedded" and difflib.get_close_matches(base.casefold(), ["embedded"], cutoff=0.8):
        raise unknown("base", base, ["embedded"])
    return base


def _checked_folder(folder: Path | None, what: str, option: str) -> Path | None:
    if folder is None:
        return None
    folder = folder.expanduser()
    if not folder.is_dir():
        raise DataError(f"There is no {what} folder {folder}: check the path given to {option}.")
    return folder


def _checked_port(text: str) -> int:
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


def serve(options: Options) -> NoReturn:
    """Serves the pages until Ctrl-C; PeftArenaError when the model cannot be loaded."""
    from serve.engine_source import EngineSource
    from ui.app import build_pages, launch, make_shelf

    progress = Progress()

    def build(report: Callable[[str], None]) -> Engine:
        from serve.build import build_engine

        def tell(line: str) -> None:
            progress(line)
            report(line)

        return build_engine(
            base=options.base,
            quantization=options.quantization,
            device=options.device,
            data_dir=options.data_dir,
            trust_remote_code=options.trust_remote_code,
            embedder=options.embedder,
            report=tell,
        )

    source = EngineSource(build).start()
    pages = build_pages(source, options.data_dir, shelf=make_shelf(options.runs_dir))
    try:
        launch(pages, options.host, options.port, prevent_thread_lock=True)
    except OSError:
        require_port(options.host, options.port)  # taken since we looked
        raise
    shown = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host  # noqa: S104
    progress(f"The page is up on http://{shown}:{options.port} while the model loads; Ctrl-C stops it.")
    _wait_for(source)
    progress(f"Ready: http://{shown}:{options.port}")
    while True:
        time.sleep(3600)


def _wait_for(source: EngineSource) -> None:
    while source.state().phase == "loading":
        time.sleep(0.1)
    if source.state().phase == "failed":
        time.sleep(2)  # an open page asks once a second: let it show the reason before it is gone
        raise PeftArenaError(source.state().message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and gives its exit status: 2 for an error that a person can mend, 130 after Ctrl-C."""
    quiet()
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        require_port(options.host, options.port)
        print("Starting Peft Arena ...", flush=True)
        serve(options)
    except PeftArenaError as error:
        print(f"peft-arena: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the model's thread may be deep inside a library: nothing of it must delay or spoil the exit
