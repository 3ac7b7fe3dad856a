"""What a job's training has left on disk: checkpoints to go on from, or the finished adapter."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from adapters.manifest import Manifest
from errors import PeftArenaError
from jobs.folder import Standing
from jobs.job import Job
from jobs.request import config_of
from train.config import TrainConfig
from train.workspace import Workspace, workspace

# A run resolves these while it trains.
_RESOLVED = ("model_name_or_path", "model_revision", "target_modules", "feedforward_modules")


def checkpoint_of(job: Job, home: Path) -> Path | None:
    """The last checkpoint of an unfinished job; None without one, and where the run on disk is another's."""
    place = _own_run(job, home)
    return place.last_checkpoint() if place else None


def sound_checkpoint(place: Workspace) -> Path | None:
    """The last checkpoint that was written to its end; those after it, cut short by a kill or a power cut, go."""
    while (last := place.last_checkpoint()) is not None and not _sound(last):
        shutil.rmtree(last, ignore_errors=True)
    return last


def is_trained(job: Job, standing: Standing, home: Path) -> bool:
    """Whether the finished adapter is there, and is this job's: the name may be another's by now.

    One that was trained elsewhere cannot be told by its settings, so what the job noted is believed.
    """
    folder = home / "adapters" / job.adapter
    if not job.config or not folder.is_dir():
        return False
    if job.where == "hub":
        return standing.trained
    try:
        return made_by(folder, config_of(job, home))
    except PeftArenaError:
        return False


def made_by(folder: Path, config: TrainConfig) -> bool:
    """Whether a run with these settings wrote the folder: then it is what a run would write again."""
    try:
        written = Manifest.read(folder).config
    except PeftArenaError:
        return False
    asked: dict[str, Any] = {name: value for name, value in config.public().items() if name not in _RESOLVED}
    return all(written.get(name) == value for name, value in json.loads(json.dumps(asked)).items())


def remove_checkpoints(job: Job, home: Path) -> None:
    """Removes the job's unfinished run, if it is the job's."""
    if place := _own_run(job, home):
        place.remove()


def remove_leftovers(target: Path) -> None:
    """Removes what a kill left of folders that were being written beside the adapter's."""
    name = re.escape(target.name)
    left = re.compile(rf"\.{name}\.(new|scored)|\.\.{name}\.(new|scored)-\w{{8}}|\.replaced-\w{{8}}")
    for path in target.parent.glob(".*"):
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _own_run(job: Job, home: Path) -> Workspace | None:
    if job.state == "done" or not job.config:
        return None
    try:
        config = config_of(job, home)
        place = workspace(config)
        place.check_same(config)
        return place
    except PeftArenaError:
        return None


def _sound(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return all(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    except (OSError, ValueError):
        return False
