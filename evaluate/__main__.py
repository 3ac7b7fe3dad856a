r"""Command line of the evaluation: generates and scores the answers of methods to the problems of a data set.

    python -m evaluate --data conala --data-dir ../shared/data --limit 60 --output run.jsonl \
        --methods zero-shot,icl-8,rag-8,lora-conala,lora-conala+rag-8
    python -m evaluate score run.jsonl
    python -m evaluate report run.jsonl [more.jsonl]
    python -m evaluate extract [answer.txt]
    python -m evaluate check program.py tests.txt [--layer NAME]

The first command generates answers, scores them, and saves them after every batch; after an interruption the same
command continues. The others load no model: `score` scores the answers in a file again, `report` prints the tables
again, `extract` prints the code that is scored in one answer (a file, or stdin) and the rule that selected it, and
`check` runs tests, in any format of the Compare page, on a program in the sandbox; these two print one JSON object.
Each command has its own --help.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from common.command import EXIT_INTERRUPTED, run_command
from common.files import atomic_write
from errors import PromptOrTuneError
from evaluate.generate import EvaluationPlan, ProgressBar, generate_results, package_versions, parse_methods
from evaluate.inspection import check_command, extract_command, read_code_again
from evaluate.options import (
    build_engine_from_options,
    reference_limits_from_options,
    report_parser,
    run_parser,
    sampling_params_from_options,
    score_parser,
)
from evaluate.report import json_report, markdown_report, metrics_csv, plot_report_png, problems_csv, text_report
from evaluate.results import Run, open_run, problem_record, read_run
from evaluate.scoring import compute_expected_values, has_tests, score_run

if TYPE_CHECKING:
    from evaluate.sandbox.sandbox import Sandbox


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Reports store the command: ~ instead of the home folder makes it work for others.
    command = ("python -m evaluate " + shlex.join(words)).replace(str(Path.home()), "~")

    def run() -> int:
        if words[:1] == ["report"]:
            return _report_command(report_parser().parse_args(words[1:]), command)
        if words[:1] == ["score"]:
            return _score_command(score_parser().parse_args(words[1:]), command)
        if words[:1] == ["extract"]:
            return extract_command(words[1:])
        if words[:1] == ["check"]:
            return check_command(words[1:])
        return _run_command(run_parser(__doc__ or "").parse_args(words), command)

    return run_command(run, stopped="Stopped before anything new was saved.")


def _report_command(options: argparse.Namespace, command: str) -> int:
    _print_reports([read_run(path) for path in options.files], options, command)
    return 0


def _score_command(options: argparse.Namespace, command: str) -> int:
    runs = [read_run(path) for path in options.files]
    with _open_sandbox(options, any(has_tests(run.problems) for run in runs)) as sandbox:
        for run in runs:
            if not _score_missing(run, command, sandbox, options):
                return EXIT_INTERRUPTED
    _print_reports(runs, options, command)
    return 0


def _run_command(options: argparse.Namespace, command: str) -> int:
    plan = _build_plan(options)
    # Opened first, so that a missing sandbox is reported before anything is generated.
    with _open_sandbox(options, any(problem.tests for problem in plan.problems)) as sandbox:
        if sandbox is not None:  # so are reference solutions that fail
            tests = [test for problem in plan.problems for test in problem.tests]
            compute_expected_values(tests, sandbox, ProgressBar)
        return _generate_and_score(options, command, plan, sandbox)


def _generate_and_score(
    options: argparse.Namespace, command: str, plan: EvaluationPlan, sandbox: Sandbox | None
) -> int:
    engine = build_engine_from_options(options)
    methods = parse_methods(options.methods.split(","), engine.adapters())
    provenance = {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "architecture": engine.base.architecture,
        "versions": package_versions(),
    }
    described: list[dict[str, Any]] = [problem_record(problem) for problem in plan.problems]
    settings = plan.settings(engine.base)
    with open_run(options.output, settings, described, provenance, options.overwrite) as run:
        again = command.replace(" --overwrite", "")
        missing = sum(not run.has_result(method.name, problem.id) for method in methods for problem in plan.problems)
        progress = ProgressBar(missing)
        _read_code_again(run)
        try:
            generate_results(engine, plan, methods, run, progress.update)
        except KeyboardInterrupt:
            progress.close()
            return _report_interrupted(run, again)
        finally:
            progress.close()
        if not _score_missing(run, again, sandbox, options):
            return EXIT_INTERRUPTED
        _print_reports([run], options, command)
    return 0


def _build_plan(options: argparse.Namespace) -> EvaluationPlan:
    """Build the plan; raise PromptOrTuneError for bad options or data before a model is loaded."""
    from tasks.datasets.registry import dataset_digest, load_examples, load_problems

    if options.output.suffix != ".jsonl":
        raise PromptOrTuneError(f"--output {options.output} is no .jsonl file: name one, such as run.jsonl.")
    decoding = sampling_params_from_options(options)
    reference_limits_from_options(options)
    if options.batch < 1:
        raise PromptOrTuneError(f"A batch of {options.batch} problems is none: choose 1 or more.")
    problems = load_problems(options.data, options.split, options.data_dir, options.limit)
    return EvaluationPlan(
        options.data,
        options.split,
        problems,
        dataset_digest(problems),
        lambda: dataset_digest(load_examples(options.data, options.data_dir)),
        decoding,
        options.batch,
        options.seed,
    )


def _open_sandbox(options: argparse.Namespace, needed: bool) -> AbstractContextManager[Sandbox | None]:
    """Open the sandbox for tests, unless there are none or --no-tests is set.

    Raises PromptOrTuneError if no sandbox layer works.
    """
    if not needed or options.no_tests:
        return nullcontext()
    from evaluate.sandbox.sandbox import SandboxUnavailableError, open_sandbox

    try:
        return open_sandbox(options.sandbox)
    except SandboxUnavailableError as error:
        raise PromptOrTuneError(f"{str(error).rstrip('.')}; --no-tests goes without.") from error


def _read_code_again(run: Run) -> None:
    if changed := read_code_again(run):
        print(f"{run.path}: the code of {changed} answers was read again, and is scored anew.", file=sys.stderr)


def _score_missing(run: Run, command: str, sandbox: Sandbox | None, options: argparse.Namespace) -> bool:
    """Score what is not scored yet; if interrupted, print how to continue and return False."""
    try:
        _read_code_again(run)
        with _close_sandbox_on_interrupt(sandbox):
            limits = reference_limits_from_options(options)
            score_run(run, ProgressBar, sandbox, comparison=options.comparison, reference_limits=limits)
    except KeyboardInterrupt:
        print(f"Stopped while scoring; to go on: {command}", file=sys.stderr)
        return False
    return True


@contextmanager
def _close_sandbox_on_interrupt(sandbox: Sandbox | None) -> Iterator[None]:
    """On Ctrl-C, end the programs in the sandbox at once instead of waiting for their time limit."""
    if sandbox is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        sandbox.close()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _report_interrupted(run: Run, command: str) -> int:
    done = sum(len(run.results(method)) for method in run.methods)
    if not done:
        raise KeyboardInterrupt
    print(f"Stopped. {done} answers are in {run.path}; to go on: {command}", file=sys.stderr)
    return EXIT_INTERRUPTED


def _print_reports(runs: Sequence[Run], options: argparse.Namespace, command: str) -> None:
    # Print first: the tables are not lost if a file cannot be written.
    print(text_report(runs, pairs=options.compare))
    for path, content in (
        (options.markdown, lambda: markdown_report(runs, command, options.compare)),
        (options.csv, lambda: metrics_csv(runs)),
        (options.csv_problems, lambda: problems_csv(runs)),
        (options.json, lambda: json_report(runs, command, options.compare)),
        (options.png, lambda: plot_report_png(runs)),
    ):
        if path:
            atomic_write(path, content())


if __name__ == "__main__":
    sys.exit(main())
