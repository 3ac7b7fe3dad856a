"""The training of one job: begun, continued, or already over; here or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from errors import TrainingError
from evaluate.files import write_atomically
from jobs.checkpoints import is_trained, remove_leftovers, sound_checkpoint
from jobs.folder import JobFolder
from jobs.job import Job
from jobs.request import config_of
from jobs.watch import StoppedError
from serve.home import Report
from train.workspace import workspace


def train_job(job: Job, folder: JobFolder, home: Path, report: Report, stopped: Callable[[], bool]) -> Path:
    """The finished adapter's folder, trained as far as it was not yet.

    Killed at any moment and called again, the adapter has the same bytes in the end. Raises PeftArenaError in one
    sentence; StoppedError where SIGTERM stopped it, with a checkpoint.
    """
    standing, target = folder.standing(), home / "adapters" / job.adapter
    if is_trained(job, standing, home):
        report("The adapter is trained already.")
    elif job.where == "hub":
        from jobs.remote.run import run_remote

        folder.forget_scores()
        target = run_remote(job, folder.path, report, stopped)
    else:
        target = _train_here(job, folder, home, report, finish=standing.finish)
    _keep_curve(target, folder)
    with suppress(TrainingError):
        workspace(config_of(job, home)).remove()  # there still where a kill came between the adapter and its end
    remove_leftovers(target)
    return target


def _train_here(job: Job, folder: JobFolder, home: Path, report: Report, finish: bool) -> Path:
    from train.run import TrainingStoppedError, train

    config = config_of(job, home)
    place = workspace(config)
    remove_leftovers(place.target)
    checkpoint = sound_checkpoint(place)
    if checkpoint is None:
        if finish:
            raise TrainingError("There is no whole checkpoint to make an adapter of: resume the job.")
        folder.forget_scores()
        folder.curve.unlink(missing_ok=True)
    else:
        report(f"Going on from the checkpoint of step {place.step()}.")
    try:
        return train(config, report, resume=checkpoint is not None and not finish, finish=finish)
    except TrainingStoppedError as stop:
        raise StoppedError from stop


def _keep_curve(adapter: Path, folder: JobFolder) -> None:
    """The job has a curve to show also when its adapter is deleted."""
    with suppress(FileNotFoundError):
        write_atomically(folder.curve, (adapter / "log.jsonl").read_bytes())
