r"""Scores methods over the problems of a data set.

    python -m evaluate --data conala --data-dir ../shared/data --limit 60 --output run.json \
        --methods zero-shot,icl-8,rag-8,lora-conala,lora-conala+rag-8
    python -m evaluate report run.json [more.json]

The first answers and scores, saving after every batch: stopped or killed, the same command goes on where it was. The
second prints the tables again from the files, without a model.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from errors import PeftArenaError
from evaluate.options import INTERRUPTED, add_base_options, make_engine
from evaluate.progress import Progress
from evaluate.report import markdown_report, text_report
from evaluate.results import check_writable, open_run, read_run, write_atomically
from evaluate.run import Plan, decoding_for, parse_methods, run_methods, versions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A home folder is one person's; the shell that repeats the command fills in its own.
    command = ("python -m evaluate " + shlex.join(words)).replace(str(Path.home()), "~")
    try:
        if words[:1] == ["report"]:
            return _report(_report_parser().parse_args(words[1:]), command)
        return _run(_run_parser().parse_args(words), command)
    except PeftArenaError as fault:
        print(fault, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped before the first batch: nothing was saved.", file=sys.stderr)
        return INTERRUPTED


def _report(options: argparse.Namespace, command: str) -> int:
    runs = [read_run(path) for path in options.files]
    print(text_report(runs))
    if options.markdown:
        write_atomically(options.markdown, markdown_report(runs, command))
    return 0


def _run(options: argparse.Namespace, command: str) -> int:
    from tasks.datasets import digest, load_examples, load_problems

    # What can go wrong without a model goes wrong before a model is loaded.
    check_writable(options.output)
    decoding = decoding_for(options.beams, options.max_new_tokens, options.seed)
    if options.batch < 1:
        raise PeftArenaError(f"A batch of {options.batch} problems is none: choose 1 or more.")
    problems = load_problems(options.data, options.split, options.data_dir, options.limit)
    plan = Plan(
        options.data,
        options.split,
        problems,
        digest(problems),
        lambda: digest(load_examples(options.data, options.data_dir)),
        decoding,
        options.batch,
        options.seed,
    )
    engine = make_engine(options)
    methods = parse_methods(options.methods.split(","), engine.adapters())
    described = [{"id": each.id, "intent": each.intent, "reference": each.reference} for each in problems]
    provenance = {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "architecture": engine.base.architecture,
        "versions": versions(),
    }
    run = open_run(options.output, plan.settings(engine.base), described, provenance, options.overwrite)
    missing = sum(not run.has(method.name, problem.id) for method in methods for problem in problems)
    progress = Progress(missing)
    try:
        run_methods(engine, plan, methods, run, progress.step)
    except KeyboardInterrupt:
        progress.end()
        done = sum(len(run.results(method)) for method in run.methods)
        if not done:
            raise
        print(
            f"Stopped. {done} answers are in {options.output}; to go on: {command.replace(' --overwrite', '')}",
            file=sys.stderr,
        )
        return INTERRUPTED
    finally:
        progress.end()
    print(text_report([run]))
    if options.markdown:
        write_atomically(options.markdown, markdown_report([run], command))
    return 0


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_base_options(parser)
    parser.add_argument("--methods", required=True, help="comma-separated: zero-shot,icl-8,lora-conala+rag-8")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--beams", type=int, default=10, help="beams, and candidates a problem; 1 is greedy")
    parser.add_argument("--output", type=Path, required=True, help="JSON file with all candidates and scores")
    parser.add_argument("--overwrite", action="store_true", help="start anew where the file holds another run")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this Markdown file")
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m evaluate report", description="Prints the tables of finished runs.")
    parser.add_argument("files", nargs="+", type=Path, help="files that `python -m evaluate` wrote")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this Markdown file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
