r"""Command line of the study: runs the jobs of a research question and makes its tables, figures and findings.

    python -m evaluate.study rq3 --plan                                   what would run, with time and memory
    python -m evaluate.study rq3 --data-dir ../shared/data --output runs/study
    python -m evaluate.study rq2 paper --train --output runs/paper        the study's own grid, missing adapters first
    python -m evaluate.study rq3 --tables --output runs/study             the report again, without a model

rq1: zero-shot and ICL. rq2: fine-tuning, quantization, LoRA's rank and alpha. rq3: LoRA against ICL and RAG, and with
them. rq4: programs that must pass tests. CONFIG is a YAML file or a built-in one: default, conala-full, paper. After
an interruption the same command continues where it was; a second question reuses the answers of the first.
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

from common.command import EXIT_INTERRUPTED, run_command
from errors import PromptOrTuneError
from evaluate.generate import ProgressBar
from evaluate.scoring import has_tests, score_run
from evaluate.study.config import RESEARCH_QUESTIONS
from evaluate.study.generate import check_base_revisions, engine_opener, generate_missing, missing_jobs
from evaluate.study.jobs import (
    CollectedRuns,
    StudyJob,
    collect_jobs,
    has_unscored,
    limit_problems,
    read_runs,
    require_results,
    study_jobs,
)
from evaluate.study.plan import AdapterToTrain, build_plan, render_plan
from evaluate.study.read_config import read_study_config, resolve_config_path
from evaluate.study.report import write_report

if TYPE_CHECKING:
    from evaluate.sandbox.sandbox import Sandbox

# Data sets whose problems have tests.
DATASETS_WITH_TESTS = ("starter", "house", "mbpp", "apps", "leetcode")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = ("python -m evaluate.study " + shlex.join(words)).replace(str(Path.home()), "~")
    options = _parser().parse_args(words)
    stopped = f"Stopped; what was answered is kept. To go on: {command}"
    return run_command(lambda: _run_study(options, command), "study", stopped)


def _run_study(options: argparse.Namespace, command: str) -> int:
    config = read_study_config(resolve_config_path(options.config))
    if options.limit is not None and options.limit < 1:
        raise PromptOrTuneError(f"A limit of {options.limit} problems asks for none: choose 1 or more.")
    folder: Path = options.output or Path("runs") / f"study-{Path(config.name).stem}"
    jobs = limit_problems(study_jobs(config, options.rq), options.limit)
    if not options.tables:
        plan = build_plan(config, options.rq, jobs, _collect_runs(jobs, folder), options.data_dir)
        print(render_plan(plan, folder), flush=True)
        if options.plan:
            return 0
        check_base_revisions(jobs)
        if options.train:
            for adapter in plan.adapters_to_train:
                _train_adapter(adapter)
        with _open_sandbox(any(job.data.name in DATASETS_WITH_TESTS for job in jobs)) as sandbox:
            engines = engine_opener(config, options.data_dir, _print_line)
            generate_missing(config, missing_jobs(jobs, folder), options.data_dir, command, engines, sandbox)
    _score_runs(jobs, folder)
    collected = _collect_runs(jobs, folder)
    require_results(collected, options.rq, folder)
    pages = write_report(config, options.rq, collected, folder, command.replace(" --tables", ""))
    print("\n".join(["", *map(str, pages)]))
    return 0


def _collect_runs(jobs: Sequence[StudyJob], folder: Path) -> CollectedRuns:
    return collect_jobs(jobs, read_runs(folder) if folder.is_dir() else [], folder)


def _score_runs(jobs: Sequence[StudyJob], folder: Path) -> None:
    """Score the answers that have no scores yet, as after a kill between answering and scoring."""
    data = {job.data.name for job in jobs}
    runs = read_runs(folder) if folder.is_dir() else []
    unscored = [run for run in runs if has_unscored(run) and run.settings["data"] in data]
    with _open_sandbox(any(has_tests(run.problems) for run in unscored)) as sandbox:
        for run in unscored:
            score_run(run, ProgressBar, sandbox)


@contextmanager
def _open_sandbox(is_needed: bool) -> Iterator[Sandbox | None]:
    """Open the sandbox, if tests are needed, before anything is answered, so that its absence is reported first."""
    if not is_needed:
        yield None
        return
    from evaluate.sandbox.sandbox import open_sandbox

    with open_sandbox() as sandbox:
        yield sandbox


def _train_adapter(adapter: AdapterToTrain) -> None:
    """Train in a process of its own: evaluate does not import train, and the process frees its memory at its end."""
    if adapter.adapter.problem:
        raise PromptOrTuneError(adapter.adapter.problem)
    _print_line("$ python -m train " + shlex.join(adapter.command))
    process = subprocess.Popen([sys.executable, "-m", "train", *adapter.command])
    interrupted, status = False, None
    while status is None:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            interrupted = True  # the training got Ctrl-C too and needs time to save a checkpoint
    if interrupted or status == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise PromptOrTuneError(f"Training {adapter.adapter.name} ended with status {status}: see its output above.")


def _print_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evaluate.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rq", choices=RESEARCH_QUESTIONS, help="the research question")
    parser.add_argument(
        "config", nargs="?", default="default", metavar="CONFIG", help="YAML file, or default, conala-full, paper"
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, and stop")
    parser.add_argument("--train", action="store_true", help="train the missing adapters first")
    parser.add_argument("--tables", action="store_true", help="make the report from the results, without a model")
    parser.add_argument("--data-dir", type=Path, help="folder with a folder for each data set; else the Hub is read")
    parser.add_argument("--output", type=Path, help="folder for results and report; runs/study-CONFIG by default")
    parser.add_argument("--limit", type=int, help="only the first N problems of each data set")
    return parser


if __name__ == "__main__":
    sys.exit(main())
