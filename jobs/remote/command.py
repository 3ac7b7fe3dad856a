"""The commands that do by hand what the Train page does: on a machine of one's own, or on Hugging Face Jobs."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.job import ServingOptions
from jobs.remote.hardware import DEFAULT_HARDWARE, MAX_HOURS
from train.settings import make_config

DOCKER_IMAGE = "python:3.11"
JOBS_DATASET_NAME = "peft-arena-jobs"
# What of the program a training needs; `*` stands for slashes too.
PROGRAM_PATTERNS = ("errors.py", "adapters/*.py", "serve/*.py", "tasks/*", "train/*", "requirements*.txt")
_EXCLUDED_PATTERN = "*.pyc"
_FIRST_SETTINGS = ("adapter_name", "dataset_name", "technique", "preset")
_MOUNT_PATH = "/peft-arena"


def manual_commands(
    config: Mapping[str, Any], serving: ServingOptions, upload_name: str = "", flavor: str = DEFAULT_HARDWARE
) -> list[tuple[str, str]]:
    """What to run and its words: [(label, command for a POSIX shell)].

    `config` has TrainConfig's fields by name; `upload_name` is what the person calls the file, which must lie where
    the command is run. No folder of this machine is named. Raises PromptOrTuneError for settings that cannot train.
    """
    settings = train_arguments(config, serving, upload_name)
    return [
        ("On a machine of your own, in the folder of Peft Arena", _format_command(["python", "-m", "train"], settings)),
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
