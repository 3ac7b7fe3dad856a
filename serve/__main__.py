"""Command line of the API server: serves the methods and adapters of one base through an OpenAI-compatible API.

python -m serve                                            the embedded base, on http://127.0.0.1:8000/v1
python -m serve --base Qwen/Qwen2.5-Coder-1.5B-Instruct --device cuda --adapter-dir ~/adapters
python -m serve --host 0.0.0.0 --api-key-file keys.txt

docs/serving.md describes the API.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import (
    ArgumentParser,
    ProgressPrinter,
    check_port_free,
    configure_environment,
    exit_now,
    parse_port,
    require_folder,
    run_command,
)
from errors import PromptOrTuneError
from serve.api.server import ApiOptions, add_api_options, parse_count, read_api_options
from serve.engine.config import EngineConfig
from serve.options import ModelOptions, add_model_options, parse_model_options

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

DEFAULT_PORT = 8000
# Names of earlier versions.
_OLD_NAMES = {"--max-lines": "--max-num-seqs", "--max-resident": "--max-loras"}


@dataclass(frozen=True)
class Options:
    """Options of the command line, checked as far as possible without loading anything."""

    model: ModelOptions
    host: str
    port: int
    api: ApiOptions
    adapter_dirs: tuple[Path, ...]
    engine_config: EngineConfig


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options in `arguments`; raises PromptOrTuneError for a wrong one."""
    parser = ArgumentParser(
        prog="-m serve", description="Prompt or Tune's methods and adapters behind an OpenAI-compatible API."
    )
    add_model_options(parser, os.environ.get("PROMPT_OR_TUNE_BASE") or None, remote=False)
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve on (%(default)s)")
    parser.add_argument("--port", default=str(DEFAULT_PORT), help="the port to serve on (%(default)s)")
    add_api_options(parser)
    parser.add_argument(
        "--adapter-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a further folder of adapters; with it, /v1/load_lora_adapter loads from such folders alone",
    )
    defaults = EngineConfig()
    for option, value, text in (
        ("--max-num-seqs", defaults.max_num_seqs, "answers that are generated at once"),
        ("--max-queued", defaults.max_queued, "rows that may wait"),
        ("--max-loras", defaults.max_loaded_adapters, "adapters in memory"),
    ):
        parser.add_argument(option, default=str(value), metavar="N", help=f"{text} (%(default)s)")
    for old_name, option in _OLD_NAMES.items():
        parser.add_argument(old_name, dest=option.removeprefix("--").replace("-", "_"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    return Options(
        model=parse_model_options(given),
        host=given.host,
        port=parse_port(given.port),
        api=read_api_options(given, given.host),
        adapter_dirs=tuple(_adapter_dir(folder) for folder in given.adapter_dir),
        engine_config=EngineConfig(
            max_num_seqs=parse_count(given.max_num_seqs, "--max-num-seqs"),
            max_queued=parse_count(given.max_queued, "--max-queued"),
            max_loaded_adapters=parse_count(given.max_loras, "--max-loras"),
        ),
    )


def _adapter_dir(folder: Path) -> Path:
    return require_folder(folder, "adapter", "--adapter-dir").resolve()


def run_server(options: Options) -> None:
    """Serve the API until a signal stops the process.

    Raises PromptOrTuneError if the model cannot be loaded, and KeyboardInterrupt after Ctrl-C.
    """
    from serve.api.app import Api
    from serve.api.server import ApiServer, listen
    from serve.engine.llm_engine import EngineLoader

    progress = ProgressPrinter()
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host  # noqa: S104
    address = f"http://{f'[{host}]' if ':' in host else host}:{options.port}"

    def build(report: Callable[[str], None]) -> LLMEngine:
        from serve.engine.build import build_engine

        def report_and_print(line: str) -> None:
            progress(line)
            report(line)

        engine = build_engine(
            options.model,
            report_and_print,
            adapter_dirs=options.adapter_dirs,
            engine_config=options.engine_config,
        )
        progress(f"Ready: {address}/v1")
        threading.Thread(target=_warm_up, args=(engine, options.api.settings.pool, progress), daemon=True).start()
        return engine

    listener = listen(options.host, options.port)
    loader = EngineLoader(build).start()
    api = Api(loader, options.api.keys, options.api.settings)
    progress(f"The API is up on {address}/v1 while the model loads; Ctrl-C stops it.")
    ApiServer(api, lambda: loader.state().phase == "failed").run(sockets=[listener])
    if loader.state().phase == "failed":
        raise PromptOrTuneError(loader.state().message)


def _warm_up(engine: LLMEngine, pool: str, progress: ProgressPrinter) -> None:
    """Load the example pool for RAG in advance: the first RAG request would delay all requests behind it."""
    try:
        engine.warm_up(pool)
    except PromptOrTuneError as error:
        progress(f"No examples for icl and rag: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server and return its exit status: 2 after an error that the user can correct, 130 after Ctrl-C."""
    configure_environment()

    def run() -> None:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        check_port_free(options.host, options.port)
        run_server(options)

    return run_command(run, "prompt-or-tune", "\nStopped.")


if __name__ == "__main__":
    exit_now(main())  # the model's thread may be running in a library: it must not delay the exit or change its status
