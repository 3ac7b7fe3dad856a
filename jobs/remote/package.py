"""What is sent along with a job: the program as far as training needs it, the settings, and the rows.

One archive. Its bytes depend on what is in it alone, so what was sent before is not sent again. Nothing secret is in
it, and no path of this machine.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import TrainingError
from jobs.job import Job
from jobs.remote.command import resolve_remote_settings
from tasks.datasets import DATASETS, STARTER, available_datasets
from train.config import TrainConfig

PROJECT_ROOT = Path(__file__).resolve().parents[2]
ARCHIVE_NAME = "job.tar.gz"
SETTINGS_NAME = "config.yaml"
_PACKAGES = ("adapters", "serve", "tasks", "train")
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
