"""Sends a job to Hugging Face Jobs: program and rows into a private data set, then one job that trains on them."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from errors import TrainingError
from jobs.job import Job
from jobs.remote.command import IMAGE, REPOSITORY
from jobs.remote.faults import is_unreachable, jobs_errors
from jobs.remote.follow import Told
from jobs.remote.hardware import MOST_HOURS
from jobs.remote.package import ARCHIVE, SETTINGS, base_of, pack
from jobs.remote.record import Record, write_record
from serve.home import Report
from train.publish_access import check_access, check_base_access

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

LABEL = "peft-arena"
# What runs there. All that belongs to one job comes as variables, so nothing of it is read as a command.
SCRIPT = f"""set -e
cd "$(mktemp -d)"
pip install --quiet "huggingface_hub==$PEFT_ARENA_CLIENT"
hf download "$PEFT_ARENA_SOURCE" "$PEFT_ARENA_JOB/{ARCHIVE}" --repo-type dataset --revision "$PEFT_ARENA_COMMIT" \
--local-dir sent --format quiet
mkdir program
tar -xzf "sent/$PEFT_ARENA_JOB/{ARCHIVE}" -C program
cd program
pip install --quiet -r requirements.txt
pip install --quiet --no-deps -r requirements-embedded.txt
exec python -m train {SETTINGS}
"""


def send(api: HfApi, job: Job, folder: Path, before: Record, report: Report) -> Record:
    """Uploads what the job needs and keeps where it is; a new attempt, not begun yet."""
    token = str(api.token)
    with jobs_errors("you", "looking up the owner of the token for"):
        namespace = str(api.whoami()["name"])
    adapter = before.adapter or _free_repository(api, namespace, job)
    check_access(adapter, token)
    check_base_access(base_of(job), token)
    source = f"{namespace}/{REPOSITORY}"
    commit = _upload(api, source, job, pack(job, adapter), report)
    attempt = before.attempt + 1
    Told.forget(folder)
    (folder / "log.jsonl").unlink(missing_ok=True)
    return write_record(
        folder,
        Record(namespace, attempt, f"{job.id}-{attempt}", source, commit, adapter, installs=before.installs),
    )


def begin(api: HfApi, job: Job, folder: Path, record: Record, report: Report) -> Record:
    """The job on the Hub: the one that was begun already, or else a new one. Its id is on disk when this returns."""
    if record.id:
        report(f"Following the job that runs on Hugging Face Jobs: {record.url}")
        return record
    found = begun(api, record) or _run(api, job, record)
    record = write_record(folder, replace(record, id=found.id, url=found.url))
    report(f"Sent to Hugging Face Jobs: {record.url} (on {job.flavor}, for {MOST_HOURS} hours at most).")
    return record


def _free_repository(api: HfApi, namespace: str, job: Job) -> str:
    """A repository that does not exist yet: what somebody published before is not this job's to change."""
    name = re.sub(r"[.-]{2,}", "-", job.adapter).strip(".-")
    wanted = f"{namespace}/{name}"
    with jobs_errors(namespace, "looking for a free repository of"):
        return f"{wanted}-{job.id[-6:]}" if api.repo_exists(wanted) else wanted


def _upload(api: HfApi, source: str, job: Job, archive: bytes, report: Report) -> str:
    """Puts the archive under the job's id; the commit that holds it."""
    from huggingface_hub import CommitOperationAdd

    report(f"Sending the program and the rows to {source}, a private data set ({len(archive) / 1e6:.1f} MB) ...")
    with jobs_errors(source.partition("/")[0], "sending the rows for"):
        api.create_repo(source, repo_type="dataset", private=True, exist_ok=True)
        if not api.dataset_info(source).private:
            raise TrainingError(
                f"The data set {source} is public, so everybody could read the rows: make it private in its settings."
            )
        operation = CommitOperationAdd(f"{job.id}/{ARCHIVE}", archive)
        made = api.create_commit(source, [operation], commit_message=f"Send {job.adapter}", repo_type="dataset")
    return str(made.oid)


def _run(api: HfApi, job: Job, record: Record) -> JobInfo:
    """Begins the job; where the answer was lost on the way, the Hub is asked for it."""
    with jobs_errors(record.namespace, "beginning a job of"):
        try:
            return api.run_job(
                image=IMAGE,
                command=["bash", "-c", SCRIPT],
                env={
                    "PEFT_ARENA_SOURCE": record.source,
                    "PEFT_ARENA_COMMIT": record.commit,
                    "PEFT_ARENA_JOB": job.id,
                    "PEFT_ARENA_CLIENT": version("huggingface-hub"),
                    "PIP_ROOT_USER_ACTION": "ignore",
                    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                    "PYTHONUNBUFFERED": "1",
                },
                secrets={"HF_TOKEN": str(api.token)},
                flavor=job.flavor,
                timeout=f"{MOST_HOURS}h",
                name=re.sub(r"[^a-zA-Z0-9_-]", "-", f"peft-arena-{job.adapter}"),
                labels={LABEL: record.label},
                namespace=record.namespace,
            )
        except Exception as fault:
            found = begun(api, record) if is_unreachable(fault) else None
            if found is None:
                raise
            return found


def begun(api: HfApi, record: Record) -> JobInfo | None:
    """The job of this attempt, if the Hub has it."""
    with jobs_errors(record.namespace, "looking for the job of"):
        return next(iter(api.list_jobs(labels={LABEL: record.label}, namespace=record.namespace)), None)
