"""Package and submit to HF Jobs.

Sends a job to Hugging Face Jobs: program and rows into a private data set, then one job that trains on them.

What is sent along with a job: the program as far as training needs it, the settings, and the rows.

One archive. Its bytes depend on what is in it alone, so what was sent before is not sent again. Nothing secret is in
it, and no path of this machine.

The commands that do by hand what the Train page does: on a machine of one's own, or on Hugging Face Jobs.
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

from common.paths import ProgressFn
from errors import TrainingError
from jobs.hf_jobs.follow import LogEvent, RemoteJobState, write_remote_state
from jobs.hf_jobs.hardware import DEFAULT_HARDWARE, MAX_HOURS, hf_jobs_errors, is_hub_unreachable
from jobs.job import Job, ServingOptions
from tasks.datasets.registry import DATASETS, STARTER, available_datasets
from train.config import TrainConfig
from train.hub_access import check_access, check_base_access
from train.settings import make_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo


DOCKER_IMAGE = "python:3.11"
JOBS_DATASET_NAME = "prompt-or-tune-jobs"
# What of the program a training needs; `*` stands for slashes too.
PROGRAM_PATTERNS = ("errors.py", "adapters/*.py", "serve/*.py", "tasks/*", "train/*", "requirements*.txt")
_EXCLUDED_PATTERN = "*.pyc"
_FIRST_SETTINGS = ("adapter_name", "dataset_name", "technique", "preset")
_MOUNT_PATH = "/prompt-or-tune"


def manual_commands(
    config: Mapping[str, Any], serving: ServingOptions, upload_name: str = "", flavor: str = DEFAULT_HARDWARE
) -> list[tuple[str, str]]:
    """What to run and its words: [(label, command for a POSIX shell)].

    `config` has TrainConfig's fields by name; `upload_name` is what the person calls the file, which must lie where
    the command is run. No folder of this machine is named. Raises PromptOrTuneError for settings that cannot train.
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
    """The settings, with the base that the app serves where they name none."""
    served: dict[str, Any] = {"trust_remote_code": serving.trust_remote_code}
    # Where another engine answers there is no base here.
    served |= {"model_name_or_path": serving.base} if serving.base else {}
    return {**served, **config}


def train_arguments(config: Mapping[str, Any], serving: ServingOptions, upload_name: str = "") -> list[list[str]]:
    """The flags of `python -m train` for what differs from its defaults, one list a setting."""
    wanted = make_config(resolve_remote_settings(config, serving))
    first = {name: getattr(wanted, name) for name in _FIRST_SETTINGS}
    plain, public = make_config(first), wanted.to_public_dict()
    if upload_name:
        public["dataset_name"] = upload_name
    found = []
    for field in dataclasses.fields(wanted):
        name = field.name
        differs = getattr(wanted, name) != getattr(plain, name) or name in ("adapter_name", "dataset_name")
        # A setting's default stands for itself, and None cannot be said on a command line.
        named_by_default = name in ("technique", "preset") and public.get(name) != field.default
        if name in public and public[name] is not None and (differs or named_by_default):
            found.append(_format_flag(name, public[name]))
    return found


def _format_flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag.removeprefix("--")]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    text = str(value)
    # A file that is called like a flag is still a file.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _hf_jobs_command(settings: Sequence[Sequence[str]], upload_name: str, flavor: str) -> str:
    """Uploads program and file into a private data set, and runs the training on what was uploaded."""
    sent = [*PROGRAM_PATTERNS, *([_glob_escape(upload_name)] if upload_name else [])]
    upload = _format_command(
        ["hf", "upload"],
        [
            ["--repo-type", "dataset"],
            ["--private"],
            *(["--include", each] for each in sent),
            ["--exclude", _EXCLUDED_PATTERN],
        ],
        raw=[f'"$me/{JOBS_DATASET_NAME}" . .'],
    )
    train = " ".join(shlex.join(each) for each in settings)
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
    """The glob pattern that means this very file."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _format_command(
    command: Sequence[str], settings: Sequence[Sequence[str]], raw: Sequence[str] = (), trailing: Sequence[str] = ()
) -> str:
    """A command with a setting a line; `raw` is written as it stands, all else is quoted."""
    parts = [
        shlex.join(command),
        *raw,
        *(shlex.join(each) for each in settings),
        *([shlex.join(trailing)] if trailing else []),
    ]
    return " \\\n  ".join(parts)


PROJECT_ROOT = Path(__file__).resolve().parents[2]
ARCHIVE_NAME = "job.tar.gz"
SETTINGS_NAME = "config.yaml"
_PACKAGES = ("adapters", "common", "models", "serve", "tasks", "train")
_FILE_SUFFIXES = (".py", ".yaml", ".json", ".jsonl")
_TOP_LEVEL_FILES = ("errors.py", "requirements.txt", "requirements-embedded.txt")
_ADAPTER_LIBRARY = Path("adapters") / "library"
_MAX_ARCHIVE_BYTES = 500 << 20
# Settings that hold for this machine alone, and those that sending decides.
_LOCAL_SETTINGS = ("data_dir", "output_dir", "overwrite", "device", "push_to_hub", "hub_model_id", "hub_private_repo")


def check_can_run_remotely(job: Job) -> None:
    """TrainingError in one sentence for a job whose base lies on this machine alone, or that makes a whole model."""
    if job.config.get("technique") == "full":
        raise TrainingError(
            "Full fine-tuning makes a whole model, which is not fetched from elsewhere: train here, or by a command."
        )
    base = job_base(job)
    if base.endswith(".gguf") or base.startswith((".", "/", "~")) or Path(base).exists():
        raise TrainingError(
            f"The base {Path(base).name} lies on this machine and is not sent: train here, or start the app with a "
            "base of the Hub."
        )


def job_base(job: Job) -> str:
    """The base that the job trains, as `--base` names it."""
    return str(
        resolve_remote_settings(job.config, job.serving).get("model_name_or_path", TrainConfig.model_name_or_path)
    )


def remote_settings(job: Job, adapter: str) -> dict[str, Any]:
    """The settings as the machine elsewhere reads them; `adapter` is the repository to publish to."""
    values = {
        name: value
        for name, value in resolve_remote_settings(job.config, job.serving).items()
        if name not in _LOCAL_SETTINGS
    }
    if name := _data_dir(job, values):
        values["data_dir"] = f"data/{name}"
    elif str(values["dataset_name"]) not in DATASETS and Path(str(values["dataset_name"])).is_file():
        values["dataset_name"] = f"data/{Path(str(values['dataset_name'])).name}"
    values |= {"push_to_hub": True, "hub_model_id": adapter, "hub_private_repo": True}
    return {name: value for name, value in values.items() if value is not None}


def build_archive(job: Job, adapter: str) -> bytes:
    """The archive (.tar.gz): program, settings and rows."""
    import yaml

    text = yaml.safe_dump(_yaml_types(remote_settings(job, adapter)), sort_keys=True, allow_unicode=True)
    contents = {SETTINGS_NAME: text.encode()}
    contents |= {path.relative_to(PROJECT_ROOT).as_posix(): path.read_bytes() for path in program_files()}
    size = 0
    for name, path in _data_files(job):
        size += path.stat().st_size
        if size > _MAX_ARCHIVE_BYTES:
            raise TrainingError(
                f"The rows of '{job.data_name}' have more than {_MAX_ARCHIVE_BYTES >> 20} MB, too much to send along: put "
                "them on the Hub as a data set, and name that."
            )
        contents[name] = path.read_bytes()
    return _make_tar(contents)


def program_files() -> list[Path]:
    """The program's own files that a training needs; an installation without git has them too."""
    files = [PROJECT_ROOT / name for name in _TOP_LEVEL_FILES]
    for room in _PACKAGES:
        files += [path for path in (PROJECT_ROOT / room).rglob("*") if path.suffix in _FILE_SUFFIXES and path.is_file()]
    inside = (path for path in files if not path.is_relative_to(PROJECT_ROOT / _ADAPTER_LIBRARY))
    return sorted(
        path for path in inside if not any(part.startswith(".") for part in path.relative_to(PROJECT_ROOT).parts)
    )


def _data_files(job: Job) -> Iterator[tuple[str, Path]]:
    """The files that hold the rows, under their names in the archive."""
    values = resolve_remote_settings(job.config, job.serving)
    if name := _data_dir(job, values):
        folder = Path(str(values["data_dir"])).expanduser()
        folder = folder / name if (folder / name).is_dir() else folder
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield f"data/{name}/{path.relative_to(folder).as_posix()}", path
        return
    path = Path(str(values["dataset_name"]))
    if str(values["dataset_name"]) not in DATASETS and path.is_file():
        yield f"data/{path.name}", path


def _data_dir(job: Job, values: Mapping[str, Any]) -> str:
    """The name of the data set of ours that the job reads from a folder of this machine; '' for any other."""
    folder, name = resolve_remote_settings(job.config, job.serving).get("data_dir"), str(values["dataset_name"])
    return name if folder and name in DATASETS and name != STARTER and name in available_datasets(folder) else ""


def _make_tar(contents: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    # Without times, owners and the order of a disk, equal contents make equal bytes.
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name in sorted(contents):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(contents[name]), 0o644
            archive.addfile(entry, io.BytesIO(contents[name]))
    return packed.getvalue()


def _yaml_types(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


JOB_LABEL = "prompt-or-tune"
# What runs there. All that belongs to one job comes as variables, so nothing of it is read as a command.
JOB_SCRIPT = f"""set -e
cd "$(mktemp -d)"
pip install --quiet "huggingface_hub==$PROMPT_OR_TUNE_CLIENT"
hf download "$PROMPT_OR_TUNE_SOURCE" "$PROMPT_OR_TUNE_JOB/{ARCHIVE_NAME}" --repo-type dataset --revision "$PROMPT_OR_TUNE_COMMIT" \
--local-dir sent --format quiet
mkdir program
tar -xzf "sent/$PROMPT_OR_TUNE_JOB/{ARCHIVE_NAME}" -C program
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
    """The job of this attempt, if the Hub has it."""
    with hf_jobs_errors(state.namespace, "looking for the job of"):
        return next(iter(api.list_jobs(labels={JOB_LABEL: state.label}, namespace=state.namespace)), None)
