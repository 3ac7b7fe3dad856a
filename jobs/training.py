"""The training of one job: begun, continued, or already over; here or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from errors import TrainingError
from evaluate.files import atomic_write
from jobs.checkpoints import is_trained, last_complete_checkpoint, remove_leftovers
from jobs.folder import JobFolder
from jobs.job import Job
from jobs.request import job_config
from jobs.watch import JobStoppedError
from serve.home import ProgressFn
from train.workspace import run_directory


def train_job(job: Job, folder: JobFolder, home: Path, report: ProgressFn, stopped: Callable[[], bool]) -> Path:
    """The finished adapter's folder, trained as far as it was not yet.

    Killed at any moment and called again, the adapter has the same bytes in the end. Raises PromptOrTuneError in one
    sentence; JobStoppedError where SIGTERM stopped it, with a checkpoint.
    """
    standing, target = folder.read_state(), home / "adapters" / job.adapter
    if is_trained(job, standing, home):
        report("The adapter is trained already.")
    elif job.where == "hub":
        from jobs.remote.run import run_remote_job

        folder.remove_scores()
        target = run_remote_job(job, folder.path, report, stopped)
    else:
        target = _train_locally(job, folder, home, report, finish=standing.finish)
    _save_curve(target, folder)
    with suppress(TrainingError):
        run_directory(job_config(job, home)).remove()  # there still where a kill came between the adapter and its end
    remove_leftovers(target)
    return target


def _train_locally(job: Job, folder: JobFolder, home: Path, report: ProgressFn, finish: bool) -> Path:
    from train.run import TrainingStoppedError, train

    config = job_config(job, home)
    place = run_directory(config)
    remove_leftovers(place.target)
    checkpoint = last_complete_checkpoint(place)
    if checkpoint is None:
        if finish:
            raise TrainingError("There is no whole checkpoint to make an adapter of: resume the job.")
        folder.remove_scores()
        folder.curve_path.unlink(missing_ok=True)
    else:
        report(f"Going on from the checkpoint of step {place.last_step()}.")
    try:
        return train(config, report, resume=checkpoint is not None and not finish, finish=finish)
    except TrainingStoppedError as stop:
        raise JobStoppedError from stop


def _save_curve(adapter: Path, folder: JobFolder) -> None:
    """The job has a curve to show also when its adapter is deleted."""
    with suppress(FileNotFoundError):
        atomic_write(folder.curve_path, (adapter / "log.jsonl").read_bytes())
