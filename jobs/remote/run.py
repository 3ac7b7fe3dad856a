"""One training job on Hugging Face Jobs: sent, followed, its adapter fetched and checked.

What is known is on disk before it is acted upon (record.py), so that a process which is killed at any moment goes on
where it was and never begins a second job. The token is the one of this machine's login; it goes along as a secret of
the job, and stands in no file, command or log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.hub import pull
from adapters.store import Store
from adapters.verify import verify
from errors import PeftArenaError, TrainingError
from jobs.job import Job
from jobs.remote.curve import Curve
from jobs.remote.faults import failure, jobs_errors
from jobs.remote.follow import Pace, Told, follow
from jobs.remote.hardware import check_flavor
from jobs.remote.package import check_sendable
from jobs.remote.record import Record, read_record, write_record
from jobs.remote.submit import begin, begun, send
from serve.home import Report
from train.settings import make_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The file by which a person asks a running job to stop (jobs.folder). Any other reason to end, such as a worker that
# dies, leaves the job elsewhere alone: it is followed again later.
_STOP = "stop"
_PUBLISHED = re.compile(r"Published as \S+/tree/([0-9a-f]{40})\.")


class RemoteStoppedError(PeftArenaError):
    """This process follows the job no more; whether the job was cancelled stands in the sentence."""


def run_remote(job: Job, folder: Path, report: Report, stopped: Callable[[], bool], pace: Pace | None = None) -> Path:
    """Trains elsewhere and gives the adapter's folder in `<home>/adapters`. `folder` is the job's: `<home>/jobs/<id>`.

    Takes up what an earlier process began. Raises PeftArenaError in one sentence; RemoteStoppedError, and whatever
    `stopped` interrupts it with, after the job elsewhere was cancelled where a person asked for that.
    """
    check_sendable(job)
    check_flavor(job.flavor)
    api = _client()
    record = read_record(folder)
    try:
        if record.over or not record.label:
            record = send(api, job, folder, record, report)
            _unless(stopped)
        record = begin(api, job, folder, record, report)
        return _finish(api, job, folder, record, report, stopped, pace or Pace())
    except (KeyboardInterrupt, RemoteStoppedError):
        if (folder / _STOP).exists():
            _cancel(api, folder, report)
        raise


def _client() -> HfApi:
    from huggingface_hub import HfApi

    from train.publish_access import find_token

    return HfApi(token=find_token("Hugging Face Jobs"))


def _unless(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise RemoteStoppedError("Stopped.")


def _finish(
    api: HfApi, job: Job, folder: Path, record: Record, report: Report, stopped: Callable[[], bool], pace: Pace
) -> Path:
    epochs = make_config(job.config).num_train_epochs
    told = Told(folder, Curve(folder / "log.jsonl", epochs), report)
    end = follow(api, record, told, report, stopped, pace)
    if end is None:
        raise RemoteStoppedError("Stopped.")
    if end.stage != "COMPLETED":
        write_record(folder, replace(record, over=True))
        raise TrainingError(failure(end.stage, end.message, end.lines, record.url))
    return _fetch(job, folder, record, told, report, str(api.token))


def _fetch(job: Job, folder: Path, record: Record, told: Told, report: Report, token: str) -> Path:
    """Installs exactly what the job published, and checks it."""
    root = folder.parents[1] / "adapters"
    if not record.installs and not (root / job.adapter).exists():
        record = write_record(folder, replace(record, installs=True))
    commit = next((match[1] for line in reversed(told.lines) if (match := _PUBLISHED.fullmatch(line.strip()))), "main")
    target = pull(f"{record.adapter}@{commit}", root, report, name=job.adapter, overwrite=record.installs, token=token)
    verify(Store((root,)).inspect(job.adapter))
    return target


def _cancel(api: HfApi, folder: Path, report: Report) -> None:
    """Gives the machine back, so that it costs nothing more."""
    record = read_record(folder)
    if record.over or not record.label:
        return
    try:
        with jobs_errors(record.namespace, "cancelling the job of"):
            # Stopped between the request and its answer, the id is the Hub's alone to tell.
            id = record.id or getattr(begun(api, record), "id", "")
            if id:
                api.cancel_job(job_id=id, namespace=record.namespace)
    except PeftArenaError as fault:
        place = record.url or "huggingface.co/settings/jobs"
        report(f"{fault} The job may run on, and cost, until you cancel it at {place}.")
        return
    write_record(folder, replace(record, over=True))
    if id:
        report("Cancelled on the Hub: the machine is given back. Resumed, the job begins again from its first step.")
