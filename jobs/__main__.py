"""Command line of jobs (trainings and advice): lists, shows, runs, cancels, resumes, finishes and deletes them.

    python -m jobs list
    python -m jobs show ID | log ID | cancel ID | resume ID | finish ID | delete ID
    python -m jobs work          runs the jobs in the queue; the app starts this by itself
    python -m jobs run ID        runs one queued job in this process

Jobs are stored in the folder PROMPT_OR_TUNE_HOME (default: ~/.cache/prompt-or-tune).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from common.command import run_command
from common.files import cache_dir
from jobs.api import JobService
from jobs.job import Job, Progress

# The app answers requests while a job trains and has priority on the cores.
_NICE = 5
_JOB_COMMANDS = {
    "show": "show the state of a job",
    "log": "print the last lines of its log",
    "cancel": "stop it; a training saves a checkpoint first",
    "resume": "continue from the checkpoint or the last finished step, or begin again",
    "finish": "make an adapter of the best checkpoint of a training",
    "delete": "remove an ended job with its checkpoints or its advice",
    "run": "run one queued job in this process",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: _dispatch(JobService(cache_dir()), options), "jobs")


def _dispatch(service: JobService, options: argparse.Namespace) -> int:
    if options.command == "list":
        _print_jobs(service)
    elif options.command == "work":
        from jobs.worker import run_worker

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
        run_worker(service.home)
    elif options.command == "run":
        from common.command import configure_environment
        from jobs.runner import run_job

        configure_environment()
        if hasattr(os, "nice"):
            os.nice(_NICE)
        return run_job(service.home, options.id, options.attached)
    elif options.command == "delete":
        service.delete(options.id)
    elif options.command == "log":
        print("\n".join(service.log_lines(options.id)))
    else:
        actions = {
            "show": service.get_job,
            "cancel": service.cancel,
            "resume": service.resume,
            "finish": service.finish_from_checkpoint,
        }
        _print_job(service, actions[options.command](options.id))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jobs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="all jobs, newest first")
    commands.add_parser("work", help="run the jobs in the queue until it is empty")
    for name, help_text in _JOB_COMMANDS.items():
        command = commands.add_parser(name, help=help_text)
        command.add_argument("id", metavar="ID", help="the id that `list` prints")
        if name == "run":
            # Set by the worker, which keeps the standard input of this process open.
            command.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)
    return parser


def _print_jobs(service: JobService) -> None:
    jobs = service.list_jobs()
    if not jobs:
        print(f"There are no jobs in {service.root}.")
    for job in jobs:
        about = f"advice on {job.data_name}" if job.kind == "advise" else f"{job.adapter}  ({job.data_name})"
        print(f"{job.id}  {job.state:8}  {about}  {job.message}")


def _print_job(service: JobService, job: Job) -> None:
    progress, verdict, adapter = service.progress(job.id), service.verdict(job.id), service.adapter_folder(job.id)
    title = f"Advice on {job.data_name}" if job.kind == "advise" else job.adapter
    print(f"{title}: {job.state}{f', {job.stage}' if job.stage else ''}. {job.message}")
    if job.queue_position:
        print(f"{job.queue_position} {'job' if job.queue_position == 1 else 'jobs'} ahead of it.")
    if job.kind == "advise":
        _print_advice(service, job, progress)
    elif progress.step:
        left = "" if progress.left_seconds is None else f", about {progress.left_seconds:.0f} s left"
        print(
            f"Step {progress.step} of {progress.steps}, {progress.seconds:.0f} s of training, "
            f"{progress.tokens_per_second:.0f} tokens/s{left}."
        )
    if verdict is not None and verdict.sentence != job.message:
        print(verdict.sentence)
    if adapter is not None:
        print(f"Its adapter: {adapter}")


def _print_advice(service: JobService, job: Job, progress: Progress) -> None:
    advice = service.advice(job.id)
    if progress.steps:
        total = "" if progress.left_seconds is None else f", about {progress.left_seconds:.0f} s left"
        print(f"{progress.step} of {progress.steps} steps, {progress.seconds:.0f} s{total}.")
    if advice.report_path.is_file():
        print(f"Its report: {advice.report_path}")


if __name__ == "__main__":
    sys.exit(main())
