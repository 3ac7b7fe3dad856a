"""One training job on Hugging Face Jobs: submit, follow, download and check the adapter.

`remote.json` (jobs.hf_jobs.follow) is written before each step that depends on it, so a process that is killed at any
moment continues at the same point and never begins a second remote job. The token is that of this machine's login. It
is sent as a secret of the job and is written to no file, command line or log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.install import pull
from adapters.store import Store
from adapters.verify import verify_adapter
from common.files import ProgressFn
from errors import PromptOrTuneError, TrainingError
from jobs.hf_jobs.follow import (
    LossCurveFile,
    PollIntervals,
    RemoteJobState,
    RemoteLog,
    check_hardware,
    failure_message,
    follow_job,
    hf_jobs_errors,
    read_remote_state,
    write_remote_state,
)
from jobs.hf_jobs.submit import check_can_run_remotely, find_job, start_job, upload_job
from jobs.job import Job
from train.settings import make_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The file by which a person asks a running job to stop (jobs.store). When the process ends for any other reason, such
# as the end of the worker, the remote job is left running and is followed again later.
_STOP_NAME = "stop"
_PUBLISHED_LINE = re.compile(r"Published as \S+/tree/([0-9a-f]{40})\.")


class RemoteJobStoppedError(PromptOrTuneError):
    """This process stopped following the job. The log says whether the remote job was cancelled."""


def run_remote_job(
    job: Job, folder: Path, report: ProgressFn, stopped: Callable[[], bool], intervals: PollIntervals | None = None
) -> Path:
    """Train on Hugging Face Jobs and return the adapter's folder in `<home>/adapters`.

    `folder` is the job's, `<home>/jobs/<id>`. Continues with a remote job that an earlier process began. Raises
    PromptOrTuneError for what prevents the training. Raises RemoteJobStoppedError when `stopped()` is true; the remote
    job is cancelled first when a person asked for the stop.
    """
    check_can_run_remotely(job)
    check_hardware(job.flavor)
    api = _hub_client()
    state = read_remote_state(folder)
    try:
        if state.over or not state.label:
            state = upload_job(api, job, folder, state, report)
            _raise_if_stopped(stopped)
        state = start_job(api, job, folder, state, report)
        return _follow_and_fetch(api, job, folder, state, report, stopped, intervals or PollIntervals())
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
    log = RemoteLog(folder, LossCurveFile(folder / "log.jsonl", epochs), report)
    end = follow_job(api, state, log, report, stopped, intervals)
    if end is None:
        raise RemoteJobStoppedError("Stopped.")
    if end.stage != "COMPLETED":
        write_remote_state(folder, replace(state, over=True))
        raise TrainingError(failure_message(end.stage, end.message, end.lines, state.url))
    return _install_adapter(job, folder, state, log, report, str(api.token))


def _install_adapter(
    job: Job, folder: Path, state: RemoteJobState, log: RemoteLog, report: ProgressFn, token: str
) -> Path:
    """Download and check the commit that the job published, as its log names it."""
    root = folder.parents[1] / "adapters"
    if not state.installs and not (root / job.adapter).exists():
        state = write_remote_state(folder, replace(state, installs=True))
    commit = next(
        (match[1] for line in reversed(log.lines) if (match := _PUBLISHED_LINE.fullmatch(line.strip()))), "main"
    )
    target = pull(f"{state.adapter}@{commit}", root, report, name=job.adapter, overwrite=state.installs, token=token)
    verify_adapter(Store((root,)).inspect(job.adapter))
    return target


def _cancel_job(api: HfApi, folder: Path, report: ProgressFn) -> None:
    """Cancel the remote job, so that it costs nothing more; report where to cancel it by hand if that fails."""
    state = read_remote_state(folder)
    if state.over or not state.label:
        return
    try:
        with hf_jobs_errors(state.namespace, "cancelling the job of"):
            # Stopped between the request and its answer, only the Hub knows the job's id.
            id = state.id or getattr(find_job(api, state), "id", "")
            if id:
                api.cancel_job(job_id=id, namespace=state.namespace)
    except PromptOrTuneError as error:
        page = state.url or "huggingface.co/settings/jobs"
        report(f"{error} The job may continue, and cost, until you cancel it at {page}.")
        return
    write_remote_state(folder, replace(state, over=True))
    if id:
        report("Cancelled on the Hub: the machine is released. A resumed job begins again from its first step.")
