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
from adapters.verify import verify_adapter
from common.paths import ProgressFn
from errors import PromptOrTuneError, TrainingError
from jobs.hf_jobs.follow import (
    LogEvent,
    LossCurveFile,
    PollIntervals,
    RemoteJobState,
    follow_job,
    read_remote_state,
    write_remote_state,
)
from jobs.hf_jobs.hardware import check_hardware, failure_message, hf_jobs_errors
from jobs.hf_jobs.submit import check_can_run_remotely, find_job, start_job, upload_job
from jobs.job import Job
from train.settings import make_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The file by which a person asks a running job to stop (jobs.store). Any other reason to end, such as a worker that
# dies, leaves the job elsewhere alone: it is followed again later.
_STOP_NAME = "stop"
_PUBLISHED_LINE = re.compile(r"Published as \S+/tree/([0-9a-f]{40})\.")


class RemoteJobStoppedError(PromptOrTuneError):
    """This process follows the job no more; whether the job was cancelled stands in the sentence."""


def run_remote_job(
    job: Job, folder: Path, report: ProgressFn, stopped: Callable[[], bool], intervals: PollIntervals | None = None
) -> Path:
    """Trains elsewhere and gives the adapter's folder in `<home>/adapters`. `folder` is the job's: `<home>/jobs/<id>`.

    Takes up what an earlier process began. Raises PromptOrTuneError in one sentence; RemoteJobStoppedError, and whatever
    `stopped` interrupts it with, after the job elsewhere was cancelled where a person asked for that.
    """
    check_can_run_remotely(job)
    check_hardware(job.flavor)
    api = _hub_client()
    record = read_remote_state(folder)
    try:
        if record.over or not record.label:
            record = upload_job(api, job, folder, record, report)
            _raise_if_stopped(stopped)
        record = start_job(api, job, folder, record, report)
        return _follow_and_fetch(api, job, folder, record, report, stopped, intervals or PollIntervals())
    except (KeyboardInterrupt, RemoteJobStoppedError):
        if (folder / _STOP_NAME).exists():
            _cancel_job(api, folder, report)
        raise


def _hub_client() -> HfApi:
    from huggingface_hub import HfApi

    from train.hub_access import find_token

    return HfApi(token=find_token("Hugging Face Jobs"))


def _raise_if_stopped(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise RemoteJobStoppedError("Stopped.")


def _follow_and_fetch(
    api: HfApi,
    job: Job,
    folder: Path,
    state: RemoteJobState,
    report: ProgressFn,
    stopped: Callable[[], bool],
    intervals: PollIntervals,
) -> Path:
    epochs = make_config(job.config).num_train_epochs
    told = LogEvent(folder, LossCurveFile(folder / "log.jsonl", epochs), report)
    end = follow_job(api, state, told, report, stopped, intervals)
    if end is None:
        raise RemoteJobStoppedError("Stopped.")
    if end.stage != "COMPLETED":
        write_remote_state(folder, replace(state, over=True))
        raise TrainingError(failure_message(end.stage, end.message, end.lines, state.url))
    return _install_adapter(job, folder, state, told, report, str(api.token))


def _install_adapter(
    job: Job, folder: Path, state: RemoteJobState, log_events: LogEvent, report: ProgressFn, token: str
) -> Path:
    """Installs exactly what the job published, and checks it."""
    root = folder.parents[1] / "adapters"
    if not state.installs and not (root / job.adapter).exists():
        state = write_remote_state(folder, replace(state, installs=True))
    commit = next(
        (match[1] for line in reversed(log_events.lines) if (match := _PUBLISHED_LINE.fullmatch(line.strip()))), "main"
    )
    target = pull(f"{state.adapter}@{commit}", root, report, name=job.adapter, overwrite=state.installs, token=token)
    verify_adapter(Store((root,)).inspect(job.adapter))
    return target


def _cancel_job(api: HfApi, folder: Path, report: ProgressFn) -> None:
    """Gives the machine back, so that it costs nothing more."""
    record = read_remote_state(folder)
    if record.over or not record.label:
        return
    try:
        with hf_jobs_errors(record.namespace, "cancelling the job of"):
            # Stopped between the request and its answer, the id is the Hub's alone to tell.
            id = record.id or getattr(find_job(api, record), "id", "")
            if id:
                api.cancel_job(job_id=id, namespace=record.namespace)
    except PromptOrTuneError as error:
        place = record.url or "huggingface.co/settings/jobs"
        report(f"{error} The job may run on, and cost, until you cancel it at {place}.")
        return
    write_remote_state(folder, replace(record, over=True))
    if id:
        report("Cancelled on the Hub: the machine is given back. Resumed, the job begins again from its first step.")
