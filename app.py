"""Command line of the app: serves the pages of Prompt or Tune and loads the model in the background.

python app.py                                              the embedded base, on http://127.0.0.1:7860
python app.py --base Qwen/Qwen2.5-Coder-1.5B-Instruct --device cuda
python app.py --base ~/models/mine --quantization int8 --data-dir ~/data --port 8000
python app.py --api                                        an OpenAI-compatible API beside them (docs/serving.md)
python app.py --backend openai --url http://127.0.0.1:8000/v1       another engine answers (docs/other-engines.md)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from common.command import (
    ArgumentParser,
    ProgressPrinter,
    check_port_free,
    configure_environment,
    exit_now,
    optional_folder,
    parse_port,
    run_command,
)
from common.files import take_over_old_cache
from errors import PromptOrTuneError
from jobs.job import ServingOptions
from models.source import EMBEDDED
from serve.api.app import Api
from serve.api.auth import WebAccess, read_web_access
from serve.api.server import ApiOptions, add_api_options, read_api_options
from serve.options import ModelOptions, add_model_options, parse_model_options
from space.settings import SpaceSettings, space_settings
from ui.access.policy import AccessOptions, add_access_options, parse_access_options

if TYPE_CHECKING:
    from jobs.api import JobService
    from serve.engine.llm_engine import EngineLoader, LLMEngine

DEFAULT_PORT = 7860


@dataclass(frozen=True)
class AppOptions:
    """The options of the command line and the environment, checked as far as possible before anything is loaded."""

    model: ModelOptions
    runs_dir: Path | None
    host: str
    port: int
    api: ApiOptions | None
    access: AccessOptions
    web: WebAccess
    space: SpaceSettings


def parse_options(arguments: Sequence[str]) -> AppOptions:
    """Return the options in `arguments`, with defaults from the environment. Raises PromptOrTuneError."""
    space = space_settings(os.environ)
    base = os.environ.get("PROMPT_OR_TUNE_BASE") or None
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if space.is_space else "127.0.0.1")  # noqa: S104
    port = os.environ.get("GRADIO_SERVER_PORT") or str(DEFAULT_PORT)
    parser = ArgumentParser(prog="app.py", description="Prompt or Tune: four answers to one intent, side by side.")
    add_model_options(parser, base)
    parser.add_argument("--runs-dir", type=Path, help="a folder with runs of `python -m evaluate` for Results")
    parser.add_argument("--host", default=host, help="the address to serve on (%(default)s)")
    parser.add_argument("--port", default=port, help="the port to serve on (%(default)s)")
    parser.add_argument("--api", action="store_true", help="serve the OpenAI-compatible API beside the pages")
    add_api_options(parser)
    add_access_options(parser)
    given = parser.parse_args(arguments)
    web = read_web_access(given, given.host)
    return AppOptions(
        model=parse_model_options(given),
        runs_dir=optional_folder(given.runs_dir, "runs", "--runs-dir"),
        host=given.host,
        port=parse_port(given.port),
        api=read_api_options(given, given.host) if given.api else None,
        access=parse_access_options(given, web, space),
        web=web,
        space=space,
    )


def serve(options: AppOptions) -> NoReturn:
    """Serve the pages until Ctrl-C; raise PromptOrTuneError if the model cannot be loaded."""
    from jobs.api import JobService
    from ui.access.guard import VisitorRegistry
    from ui.app import build_pages, launch, make_run_library
    from ui.context import Context

    progress = ProgressPrinter()
    source = _start_engine_loader(options, progress)
    api = Api(source, options.api.keys, options.api.settings) if options.api else None
    context = Context(
        source,
        options.model.data_dir,
        visitors=VisitorRegistry(options.access.policy),
        serving=_job_serving(options),
        persistent=not options.space.is_space or bool(os.environ.get("PROMPT_OR_TUNE_HOME")),
    )
    pages = build_pages(source, context=context, run_library=make_run_library(options.runs_dir))
    job_service = JobService(context.home)
    if options.access.policy.training != "nobody":
        _resume_jobs(job_service, progress)
    try:
        launch(
            pages,
            options.host,
            options.port,
            limits=options.access.upload_limits(),
            accounts=options.access.accounts,
            web=options.web,
            runs=context.cancel_registry,
            routes=api.routes() if api else [],
            prevent_thread_lock=True,
        )
    except OSError:
        check_port_free(
            options.host, options.port
        )  # raises an error that names the port, if another program has taken it since the first check
        raise
    displayed = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host  # noqa: S104
    progress(f"The page is up on http://{displayed}:{options.port} while the model loads; Ctrl-C stops it.")
    if api:
        progress(f"The API is up on http://{displayed}:{options.port}/v1.")
    if options.access.note:
        progress(options.access.note)
    try:
        _wait_until_loaded(source)
        progress(f"Ready: http://{displayed}:{options.port}")
        while True:
            time.sleep(3600)
    finally:
        if api:
            api.stop()
        _report_running_jobs(job_service, progress)


def _start_engine_loader(options: AppOptions, progress: ProgressPrinter) -> EngineLoader:
    """Start loading the engine in the background; on ZeroGPU load it now, before the pages are built."""
    from serve.engine.build import build_engine, build_zero_gpu_engine
    from serve.engine.llm_engine import EngineLoader

    if options.space.zero_gpu and options.model.remote is None:
        engine = build_zero_gpu_engine(options.model, progress)
        return EngineLoader(lambda _: engine).start()

    def build(report: Callable[[str], None]) -> LLMEngine:
        def report_everywhere(line: str) -> None:
            progress(line)
            report(line)

        return build_engine(options.model, report_everywhere)

    return EngineLoader(build).start()


def _job_serving(options: AppOptions) -> ServingOptions:
    """Return the base and the settings of new training jobs; the base is empty if another engine answers."""
    model = options.model
    return ServingOptions(
        base="" if model.remote else model.base or EMBEDDED,
        quantization=model.quantization,
        device=model.device,
        data_dir=str(model.data_dir) if model.data_dir else None,
        trust_remote_code=model.trust_remote_code,
        embedder=model.embedder,
    )


def _resume_jobs(job_service: JobService, progress: ProgressPrinter) -> None:
    """Start the worker if a restart of the app or of the machine interrupted training jobs."""
    waiting = [job.adapter for job in job_service.list_jobs() if not job.is_ended]
    if waiting:
        progress(f"Going on with the training of {', '.join(waiting)}.")
        job_service.ensure_worker()


def _report_running_jobs(job_service: JobService, progress: ProgressPrinter) -> None:
    running = [job.adapter for job in job_service.list_jobs() if not job.is_ended]
    if running:
        progress(f"The training of {', '.join(running)} goes on by itself; `python -m jobs list` shows it.")


def _wait_until_loaded(loader: EngineLoader) -> None:
    while loader.state().phase == "loading":
        time.sleep(0.1)
    if loader.state().phase == "failed":
        time.sleep(2)  # open pages poll once per second: let them display the error before the server stops
        raise PromptOrTuneError(loader.state().message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the app and return its exit status: 2 after an error that the user can correct, 130 after Ctrl-C."""
    configure_environment()
    return run_command(lambda: _main(arguments), "prompt-or-tune", "\nStopped.")


def _main(arguments: Sequence[str] | None) -> None:
    storage = space_settings(os.environ).persistent_cache_dir
    if storage:
        take_over_old_cache(print, storage.parent)
        os.environ["PROMPT_OR_TUNE_HOME"] = str(storage)
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    check_port_free(options.host, options.port)
    print("Starting Prompt or Tune ...", flush=True)
    serve(options)


if __name__ == "__main__":
    exit_now(main())  # the model's thread may be running in a library: it must not delay the exit or change its status
