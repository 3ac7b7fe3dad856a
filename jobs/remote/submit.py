"""Sends a job to Hugging Face Jobs: program and rows into a private data set, then one job that trains on them."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from errors import TrainingError
from jobs.job import Job
from jobs.remote.command import DOCKER_IMAGE, JOBS_DATASET_NAME
from jobs.remote.faults import hf_jobs_errors, is_hub_unreachable
from jobs.remote.follow import LogEvent
from jobs.remote.hardware import MAX_HOURS
from jobs.remote.package import ARCHIVE_NAME, SETTINGS_NAME, build_archive, job_base
from jobs.remote.record import RemoteJobState, write_remote_state
from serve.home import ProgressFn
from train.publish_access import check_access, check_base_access

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

JOB_LABEL = "peft-arena"
# What runs there. All that belongs to one job comes as variables, so nothing of it is read as a command.
JOB_SCRIPT = f"""set -e
cd "$(mktemp -d)"
pip install --quiet "huggingface_hub==$PEFT_ARENA_CLIENT"
hf download "$PEFT_ARENA_SOURCE" "$PEFT_ARENA_JOB/{ARCHIVE_NAME}" --repo-type dataset --revision "$PEFT_ARENA_COMMIT" \
--local-dir sent --format quiet
mkdir program
tar -xzf "sent/$PEFT_ARENA_JOB/{ARCHIVE_NAME}" -C program
cd program
pip install --quiet -r requirements.txt
pip install --quiet --no-deps -r requirements-embedded.txt
exec python -m train {SETTINGS_NAME}
"""


def upload_job(api: HfApi, job: Job, folder: Path, previous: RemoteJobState, report: ProgressFn) -> RemoteJobState:
    """Uploads what the job needs and keeps where it is; a new attempt, not begun yet."""
    token = str(api.token)
    with hf_jobs_errors("you", "looking up the owner of the token for"):
        namespace = str(api.whoami()["name"])
    adapter = previous.adapter or _new_adapter_repo_id(api, namespace, job)
    check_access(adapter, token)
    check_base_access(job_base(job), token)
    source = f"{namespace}/{JOBS_DATASET_NAME}"
    commit = _upload_archive(api, source, job, build_archive(job, adapter), report)
    attempt = previous.attempt + 1
    LogEvent.remove_log(folder)
    (folder / "log.jsonl").unlink(missing_ok=True)
    return write_remote_state(
        folder,
        RemoteJobState(namespace, attempt, f"{job.id}-{attempt}", source, commit, adapter, installs=previous.installs),
    )


def start_job(api: HfApi, job: Job, folder: Path, state: RemoteJobState, report: ProgressFn) -> RemoteJobState:
    """The job on the Hub: the one that was begun already, or else a new one. Its id is on disk when this returns."""
    if state.id:
        report(f"Following the job that runs on Hugging Face Jobs: {state.url}")
        return state
    found = find_job(api, state) or _run_job(api, job, state)
    state = write_remote_state(folder, replace(state, id=found.id, url=found.url))
    report(f"Sent to Hugging Face Jobs: {state.url} (on {job.flavor}, for {MAX_HOURS} hours at most).")
    return state


def _new_adapter_repo_id(api: HfApi, namespace: str, job: Job) -> str:
    """A repository that does not exist yet: what somebody published before is not this job's to change."""
    name = re.sub(r"[.-]{2,}", "-", job.adapter).strip(".-")
    wanted = f"{namespace}/{name}"
    with hf_jobs_errors(namespace, "looking for a free repository of"):
        return f"{wanted}-{job.id[-6:]}" if api.repo_exists(wanted) else wanted


def _upload_archive(api: HfApi, source: str, job: Job, archive: bytes, report: ProgressFn) -> str:
    """Puts the archive under the job's id; the commit that holds it."""
    from huggingface_hub import CommitOperationAdd

    report(f"Sending the program and the rows to {source}, a private data set ({len(archive) / 1e6:.1f} MB) ...")
    with hf_jobs_errors(source.partition("/")[0], "sending the rows for"):
        api.create_repo(source, repo_type="dataset", private=True, exist_ok=True)
        if not api.dataset_info(source).private:
            raise TrainingError(
                f"The data set {source} is public, so everybody could read the rows: make it private in its settings."
            )
        operation = CommitOperationAdd(f"{job.id}/{ARCHIVE_NAME}", archive)
        made = api.create_commit(source, [operation], commit_message=f"Send {job.adapter}", repo_type="dataset")
    return str(made.oid)


def _run_job(api: HfApi, job: Job, state: RemoteJobState) -> JobInfo:
    """Begins the job; where the answer was lost on the way, the Hub is asked for it."""
    with hf_jobs_errors(state.namespace, "beginning a job of"):
        try:
            return api.run_job(
                image=DOCKER_IMAGE,
                command=["bash", "-c", JOB_SCRIPT],
                env={
                    "PEFT_ARENA_SOURCE": state.source,
                    "PEFT_ARENA_COMMIT": state.commit,
                    "PEFT_ARENA_JOB": job.id,
                    "PEFT_ARENA_CLIENT": version("huggingface-hub"),
                    "PIP_ROOT_USER_ACTION": "ignore",
                    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                    "PYTHONUNBUFFERED": "1",
                },
                secrets={"HF_TOKEN": str(api.token)},
                flavor=job.flavor,
                timeout=f"{MAX_HOURS}h",
                name=re.sub(r"[^a-zA-Z0-9_-]", "-", f"peft-arena-{job.adapter}"),
                labels={JOB_LABEL: state.label},
                namespace=state.namespace,
            )
        except Exception as fault:
            found = find_job(api, state) if is_hub_unreachable(fault) else None
            if found is None:
                raise
            return found


def find_job(api: HfApi, state: RemoteJobState) -> JobInfo | None:
    """The job of this attempt, if the Hub has it."""
    with hf_jobs_errors(state.namespace, "looking for the job of"):
        return next(iter(api.list_jobs(labels={JOB_LABEL: state.label}, namespace=state.namespace)), None)
