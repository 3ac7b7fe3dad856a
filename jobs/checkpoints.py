"""What a job's training has left on disk: checkpoints to go on from, or the finished adapter."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from adapters.manifest import Manifest
from errors import PromptOrTuneError
from jobs.folder import JobState
from jobs.job import Job
from jobs.request import job_config
from train.config import TrainConfig
from train.workspace import RunDirectory, run_directory

# A run resolves these while it trains.
_RESOLVED_SETTINGS = ("model_name_or_path", "model_revision", "target_modules", "feedforward_modules")


def last_checkpoint(job: Job, home: Path) -> Path | None:
    """The last checkpoint of an unfinished job; None without one, and where the run on disk is another's."""
    place = _own_run_directory(job, home)
    return place.last_checkpoint() if place else None


def last_complete_checkpoint(run_dir: RunDirectory) -> Path | None:
    """The last checkpoint that was written to its end; those after it, cut short by a kill or a power cut, go."""
    while (last := run_dir.last_checkpoint()) is not None and not _is_complete(last):
        shutil.rmtree(last, ignore_errors=True)
    return last


def is_trained(job: Job, state: JobState, home: Path) -> bool:
    """Whether the finished adapter is there, and is this job's: the name may be another's by now.

    One that was trained elsewhere cannot be told by its settings, so what the job noted is believed.
    """
    folder = home / "adapters" / job.adapter
    if not job.config or not folder.is_dir():
        return False
    if job.where == "hub":
        return state.trained
    try:
        return was_made_by(folder, job_config(job, home))
    except PromptOrTuneError:
        return False


def was_made_by(folder: Path, config: TrainConfig) -> bool:
    """Whether a run with these settings wrote the folder: then it is what a run would write again."""
    try:
        written = Manifest.read(folder).config
    except PromptOrTuneError:
        return False
    asked: dict[str, Any] = {
        name: value for name, value in config.to_public_dict().items() if name not in _RESOLVED_SETTINGS
    }
    return all(written.get(name) == value for name, value in json.loads(json.dumps(asked)).items())


def remove_checkpoints(job: Job, home: Path) -> None:
    """Removes the job's unfinished run, if it is the job's."""
    if place := _own_run_directory(job, home):
        place.remove()


def remove_leftovers(target: Path) -> None:
    """Removes what a kill left of folders that were being written beside the adapter's."""
    name = re.escape(target.name)
    left = re.compile(rf"\.{name}\.(new|scored)|\.\.{name}\.(new|scored)-\w{{8}}|\.replaced-\w{{8}}")
    for path in target.parent.glob(".*"):
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _own_run_directory(job: Job, home: Path) -> RunDirectory | None:
    if job.state == "done" or not job.config:
        return None
    try:
        config = job_config(job, home)
        place = run_directory(config)
        place.check_settings(config)
        return place
    except PromptOrTuneError:
        return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return all(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    except (OSError, ValueError):
        return False
