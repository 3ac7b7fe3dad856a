r"""Repeats the study: runs what a question needs, and makes its tables, figures and findings.

    python -m evaluate.study rq3 --plan                                   what would run, how long, in how much memory
    python -m evaluate.study rq3 --data-dir ../shared/data --output runs/study
    python -m evaluate.study rq2 paper --train --output runs/paper        the study's own grid, missing adapters first
    python -m evaluate.study rq3 --tables --output runs/study             the pages again, without a model

rq1: zero-shot and ICL. rq2: fine-tuning, quantization, LoRA's rank and alpha. rq3: LoRA against ICL and RAG, and with
them. rq4: programs that must pass tests. CONFIG is a YAML file, or one that comes along: default, conala-full, paper.
Stopped or killed, the same command goes on where it was; a second question uses what the first has answered.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from errors import PeftArenaError
from evaluate.options import INTERRUPTED
from evaluate.progress import Progress
from evaluate.score_run import has_tests, score_run
from evaluate.study.cells import Found, collect, read_runs, require, unscored
from evaluate.study.config import RQS
from evaluate.study.generate import check_bases, generate, missing, opener
from evaluate.study.jobs import Job, jobs, limited
from evaluate.study.plan import Lesson, make_plan, plan_text
from evaluate.study.read_config import config_path, read_config
from evaluate.study.report import write_report

if TYPE_CHECKING:
    from evaluate.sandbox import Sandbox

# Data sets whose problems have tests.
TESTED = ("starter", "mbpp", "apps")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = ("python -m evaluate.study " + shlex.join(words)).replace(str(Path.home()), "~")
    options = _parser().parse_args(words)
    try:
        return _study(options, command)
    except PeftArenaError as fault:
        print(f"study: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Stopped; what was answered is kept. To go on: {command}", file=sys.stderr)
        return INTERRUPTED


def _study(options: argparse.Namespace, command: str) -> int:
    config = read_config(config_path(options.config))
    if options.limit is not None and options.limit < 1:
        raise PeftArenaError(f"A limit of {options.limit} problems asks for none: choose 1 or more.")
    folder: Path = options.output or Path("runs") / f"study-{Path(config.name).stem}"
    wanted = limited(jobs(config, options.rq), options.limit)
    if not options.tables:
        plan = make_plan(config, options.rq, wanted, _found(wanted, folder), options.data_dir)
        print(plan_text(plan, folder), flush=True)
        if options.plan:
            return 0
        check_bases(wanted)
        if options.train:
            for lesson in plan.lessons:
                _train(lesson)
        with _sandbox(any(job.data.name in TESTED for job in wanted)) as sandbox:
            engines = opener(config, options.data_dir, _say)
            generate(config, missing(wanted, folder), options.data_dir, command, engines, sandbox)
    _score(wanted, folder)
    found = _found(wanted, folder)
    require(found, options.rq, folder)
    pages = write_report(config, options.rq, found, folder, command.replace(" --tables", ""))
    print("\n".join(["", *map(str, pages)]))
    return 0


def _found(wanted: Sequence[Job], folder: Path) -> Found:
    return collect(wanted, read_runs(folder) if folder.is_dir() else [], folder)


def _score(wanted: Sequence[Job], folder: Path) -> None:
    """Scores what was answered and not scored yet, as after a kill between the two."""
    waiting = [run for run in (read_runs(folder) if folder.is_dir() else []) if unscored(run)]
    data = {job.data.name for job in wanted}
    waiting = [run for run in waiting if run.settings["data"] in data]
    with _sandbox(any(has_tests(run.problems) for run in waiting)) as sandbox:
        for run in waiting:
            score_run(run, Progress, sandbox)


@contextmanager
def _sandbox(is_needed: bool) -> Iterator[Sandbox | None]:
    """Opened before anything is answered: where no sandbox works, tests cannot be run, and that is said first."""
    if not is_needed:
        yield None
        return
    from evaluate.sandbox import open_sandbox

    with open_sandbox() as sandbox:
        yield sandbox


def _train(lesson: Lesson) -> None:
    """In a process of its own: this room does not import train, and a run's memory goes with its process."""
    if lesson.adapter.problem:
        raise PeftArenaError(lesson.adapter.problem)
    _say("$ python -m train " + shlex.join(lesson.command))
    process = subprocess.Popen([sys.executable, "-m", "train", *lesson.command])
    interrupted, status = False, None
    while status is None:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            interrupted = True  # it has heard Ctrl-C as well, and needs its time to save a checkpoint
    if interrupted or status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise PeftArenaError(f"Training {lesson.adapter.name} ended with status {status}: see what it said.")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evaluate.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rq", choices=RQS, help="the research question")
    parser.add_argument("config", nargs="?", default="default", metavar="CONFIG", help="YAML file, or default, paper")
    parser.add_argument("--plan", action="store_true", help="print what would run, and stop")
    parser.add_argument("--train", action="store_true", help="train the missing adapters first")
    parser.add_argument("--tables", action="store_true", help="make the pages from the results, without a model")
    parser.add_argument("--data-dir", type=Path, help="folder with a folder for each data set; else the Hub is read")
    parser.add_argument("--output", type=Path, help="folder of results and pages; runs/study-CONFIG by default")
    parser.add_argument("--limit", type=int, help="only the first N problems of each data set")
    return parser


if __name__ == "__main__":
    sys.exit(main())
