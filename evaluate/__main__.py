r"""Scores methods over the problems of a data set.

    python -m evaluate --data conala --data-dir ../shared/data --limit 60 --output run.jsonl \
        --methods zero-shot,icl-8,rag-8,lora-conala,lora-conala+rag-8
    python -m evaluate score run.jsonl
    python -m evaluate report run.jsonl [more.jsonl]

The first answers, then scores, saving after every batch: stopped or killed, the same command goes on where it was. The
second scores the candidates in a file again, the third prints the tables again, both without a model.
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

from errors import PeftArenaError
from evaluate.export import csv_metrics, csv_problems, json_report
from evaluate.files import write_atomically
from evaluate.options import INTERRUPTED, decoding_of, make_engine, report_parser, run_parser, score_parser
from evaluate.plots import png_report
from evaluate.progress import Progress
from evaluate.report import markdown_report, text_report
from evaluate.results import Run, open_run, problem_record, read_run
from evaluate.run import Plan, parse_methods, run_methods, versions
from evaluate.score_run import has_tests, score_run

if TYPE_CHECKING:
    from evaluate.sandbox import Sandbox


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A home folder is one person's; the shell that repeats the command fills in its own.
    command = ("python -m evaluate " + shlex.join(words)).replace(str(Path.home()), "~")
    try:
        if words[:1] == ["report"]:
            return _report(report_parser().parse_args(words[1:]), command)
        if words[:1] == ["score"]:
            return _score(score_parser().parse_args(words[1:]), command)
        return _run(run_parser(__doc__ or "").parse_args(words), command)
    except PeftArenaError as fault:
        print(fault, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped before anything new was saved.", file=sys.stderr)
        return INTERRUPTED


def _report(options: argparse.Namespace, command: str) -> int:
    _show([read_run(path) for path in options.files], options, command)
    return 0


def _score(options: argparse.Namespace, command: str) -> int:
    runs = [read_run(path) for path in options.files]
    with _sandbox(options, any(has_tests(run.problems) for run in runs)) as sandbox:
        for run in runs:
            if not _scored(run, command, sandbox):
                return INTERRUPTED
    _show(runs, options, command)
    return 0


def _run(options: argparse.Namespace, command: str) -> int:
    plan = _plan(options)
    # Where no code can be run, that is said before anything is generated.
    with _sandbox(options, any(problem.tests for problem in plan.problems)) as sandbox:
        return _generate_and_score(options, command, plan, sandbox)


def _generate_and_score(options: argparse.Namespace, command: str, plan: Plan, sandbox: Sandbox | None) -> int:
    engine = make_engine(options)
    methods = parse_methods(options.methods.split(","), engine.adapters())
    provenance = {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "architecture": engine.base.architecture,
        "versions": versions(),
    }
    described: list[dict[str, Any]] = [problem_record(problem) for problem in plan.problems]
    settings = plan.settings(engine.base)
    with open_run(options.output, settings, described, provenance, options.overwrite) as run:
        again = command.replace(" --overwrite", "")
        missing = sum(not run.has(method.name, problem.id) for method in methods for problem in plan.problems)
        progress = Progress(missing)
        try:
            run_methods(engine, plan, methods, run, progress.step)
        except KeyboardInterrupt:
            progress.end()
            return _stopped(run, again)
        finally:
            progress.end()
        if not _scored(run, again, sandbox):
            return INTERRUPTED
        _show([run], options, command)
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    """What can go wrong without a model goes wrong here, before one is loaded."""
    from tasks.datasets import digest, load_examples, load_problems

    if options.output.suffix != ".jsonl":
        raise PeftArenaError(f"--output {options.output} is no .jsonl file: name one, such as run.jsonl.")
    decoding = decoding_of(options)
    if options.batch < 1:
        raise PeftArenaError(f"A batch of {options.batch} problems is none: choose 1 or more.")
    problems = load_problems(options.data, options.split, options.data_dir, options.limit)
    return Plan(
        options.data,
        options.split,
        problems,
        digest(problems),
        lambda: digest(load_examples(options.data, options.data_dir)),
        decoding,
        options.batch,
        options.seed,
    )


def _sandbox(options: argparse.Namespace, needed: bool) -> AbstractContextManager[Sandbox | None]:
    """The sandbox in which tests run, if there are any and they are wanted; PeftArenaError where none works."""
    if not needed or options.no_tests:
        return nullcontext()
    from evaluate.sandbox import SandboxUnavailableError, open_sandbox

    try:
        return open_sandbox(options.sandbox)
    except SandboxUnavailableError as fault:
        raise PeftArenaError(f"{str(fault).rstrip('.')}; --no-tests goes without.") from fault


def _scored(run: Run, again: str, sandbox: Sandbox | None) -> bool:
    """Scores what is not scored yet; False, with how to go on, where that was stopped."""
    try:
        with _programs_stop_too(sandbox):
            score_run(run, Progress, sandbox)
    except KeyboardInterrupt:
        print(f"Stopped while scoring; to go on: {again}", file=sys.stderr)
        return False
    return True


@contextmanager
def _programs_stop_too(sandbox: Sandbox | None) -> Iterator[None]:
    """Ctrl-C ends the programs in the sandbox at once; else it would wait for their time limit."""
    if sandbox is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        sandbox.close()
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _stopped(run: Run, again: str) -> int:
    done = sum(len(run.results(method)) for method in run.methods)
    if not done:
        raise KeyboardInterrupt
    print(f"Stopped. {done} answers are in {run.path}; to go on: {again}", file=sys.stderr)
    return INTERRUPTED


def _show(runs: Sequence[Run], options: argparse.Namespace, command: str) -> None:
    # The tables are printed first: a file that cannot be written costs none of them.
    print(text_report(runs, pairs=options.compare))
    for path, content in (
        (options.markdown, lambda: markdown_report(runs, command, options.compare)),
        (options.csv, lambda: csv_metrics(runs)),
        (options.csv_problems, lambda: csv_problems(runs)),
        (options.json, lambda: json_report(runs, command, options.compare)),
        (options.png, lambda: png_report(runs)),
    ):
        if path:
            write_atomically(path, content())


if __name__ == "__main__":
    sys.exit(main())
