"""Server command: the methods and adapters of one base behind an OpenAI-compatible API.

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
    parse_port,
    require_folder,
)
from errors import PromptOrTuneError
from serve.api.server import ApiOptions, add_api_options, parse_count, read_api_options
from serve.engine.config import EngineConfig
from serve.options import add_model_options, check_model_options

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

DEFAULT_PORT = 8000
# Names of earlier versions.
_OLD_NAMES = {"--max-lines": "--max-num-seqs", "--max-resident": "--max-loras"}


@dataclass(frozen=True)
class Options:
    """Options of the command line, checked as far as possible without loading anything."""

    model: argparse.Namespace
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
    add_model_options(parser, os.environ.get("PROMPT_OR_TUNE_BASE") or "embedded")
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
    check_model_options(given)
    return Options(
        model=given,
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
    """Serve until a signal; raises PromptOrTuneError if the model cannot be loaded, KeyboardInterrupt after Ctrl-C."""
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
            base=options.model.base,
            quantization=options.model.quantization,
            device=options.model.device,
            data_dir=options.model.data_dir,
            trust_remote_code=options.model.trust_remote_code,
            embedder=options.model.embedder,
            report=report_and_print,
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
    """Runs the server and gives its exit status: 2 for an error that a person can mend, 130 after Ctrl-C."""
    configure_environment()
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        check_port_free(options.host, options.port)
        run_server(options)
        return 0
    except PromptOrTuneError as error:
        print(f"prompt-or-tune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without waiting for other threads: the model's thread may be deep inside a library.
    os._exit(status)
