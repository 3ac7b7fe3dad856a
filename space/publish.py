"""Publishing of the Space: options, upload in one commit, settings, and waiting until it runs.

Publishing the same files again makes no commit and restarts nothing, except for secrets: their old values cannot be
read, so they are always set anew.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import ProgressFn
from common.format import format_bytes, format_duration, quote_untrusted
from common.hub import hub_errors
from errors import PromptOrTuneError, unknown_name_error
from space.build import MAX_BYTES, is_project_file, space_files
from space.settings import STORAGE_DIR
from train.hub_access import check_owner, check_scopes, find_token

if TYPE_CHECKING:
    from huggingface_hub import HfApi, SpaceRuntime


WAIT_MINUTES = 45.0
POLL_SECONDS = 5.0
# For this long after a commit the Hub may still report the former version as running, if it does not name the commit.
STALE_STATUS_SECONDS = 20.0
_MAX_LOG_WIDTH = 200
_FAILED_STAGES = {
    "BUILD_ERROR": "its build failed",
    "CONFIG_ERROR": "the Hub refuses its card",
    "RUNTIME_ERROR": "it ended with an error",
    "NO_APP_FILE": "the Hub finds no app.py in it",
}
_INACTIVE_STAGES = {
    "PAUSED": "is paused",
    "STOPPED": "is stopped",
    "SLEEPING": "is asleep",
    "DELETING": "is being deleted",
}


def wait_until_running(
    repo_id: str,
    commit: str,
    report: ProgressFn,
    *,
    timeout: float = 60 * WAIT_MINUTES,
    poll_seconds: float = POLL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    api: HfApi | None = None,
) -> str:
    """Wait until the Space runs `commit`, reporting the build log; return the name of its hardware.

    `timeout` and `poll_seconds` are in seconds. Raises PromptOrTuneError where the Space fails, stops or takes longer.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    started_at, stage = clock(), ""
    log = _BuildLog(api, repo_id, report)
    while True:
        with hub_errors(repo_id, "waiting for", error=PromptOrTuneError):
            runtime = api.get_space_runtime(repo_id)
        if _enum_value(runtime.stage) != stage:
            stage = _enum_value(runtime.stage)
            report(f"{stage.replace('_', ' ').capitalize()} ...")
        log.report_new()
        is_current = clock() - started_at >= STALE_STATUS_SECONDS
        if _is_final(runtime, stage, commit, is_current):
            break
        if clock() - started_at > timeout:
            raise PromptOrTuneError(
                f"'{repo_id}' does not run after {format_duration(timeout)} (it says {stage}): look at its logs at "
                f"{api.endpoint}/spaces/{repo_id}, it goes on there by itself."
            )
        time.sleep(poll_seconds)
    if stage == "RUNNING":
        return _enum_value(runtime.hardware or runtime.requested_hardware or "unknown hardware")
    raise PromptOrTuneError(_failure_message(runtime, stage, repo_id, log.last_message, api.endpoint))


def _is_final(runtime: SpaceRuntime, stage: str, commit: str, is_current: bool) -> bool:
    """Whether the stage is final and belongs to `commit`; the former version may still run, or have failed before."""
    sha = runtime.raw.get("sha")
    if stage == "RUNNING" and sha:
        return bool(sha == commit)
    return stage in ("RUNNING", *_FAILED_STAGES, *_INACTIVE_STAGES) and (is_current or sha == commit)


def _failure_message(runtime: SpaceRuntime, stage: str, repo_id: str, last_log: str, endpoint: str) -> str:
    address = f"{endpoint}/spaces/{repo_id}"
    if stage in _INACTIVE_STAGES:
        return f"'{repo_id}' {_INACTIVE_STAGES[stage]}: start it again in its settings at {address}."
    lines = str(runtime.raw.get("errorMessage") or last_log).strip().splitlines()
    reason = f": {quote_untrusted(lines[-1].strip(), _MAX_LOG_WIDTH)}" if lines else ""
    return f"'{repo_id}' does not run, {_FAILED_STAGES[stage]} ({stage}{reason}): read its logs at {address}."


class _BuildLog:
    """Reports each line of the build log once. Not every Hub and token gives access to it; then there are none."""

    def __init__(self, api: HfApi, repo_id: str, report: ProgressFn) -> None:
        self._api = api
        self._repo_id = repo_id
        self._report = report
        self._num_reported = 0
        self.last_message = ""

    def report_new(self) -> None:
        """Report the lines that are new since the last call."""
        lines = self._fetch()
        if len(lines) < self._num_reported:  # another build has begun
            self._num_reported = 0
        for line in lines[self._num_reported :]:
            self._report(f"  {quote_untrusted(line, _MAX_LOG_WIDTH)}")
            self.last_message = line
        self._num_reported = len(lines)

    def _fetch(self) -> list[str]:
        try:
            text = "".join(_ensure_newline(part) for part in self._api.fetch_space_logs(self._repo_id, build=True))
        except Exception:  # noqa: BLE001 - without a log the wait goes on
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()]


def _ensure_newline(part: str) -> str:
    return part if part.endswith("\n") else f"{part}\n"


def _enum_value(value: Any) -> str:
    """The text of a stage or hardware: the client has an enumeration for known ones and a str for others."""
    return str(getattr(value, "value", value))


_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,255}")


@dataclass(frozen=True)
class SpaceOptions:
    """Settings to apply to a Space; those left out stay as they are.

    `storage` is a bucket, "user/name", mounted at /data. `private` applies to a new Space only. Values of secrets
    appear in no message.
    """

    private: bool = False
    hardware: str | None = None
    storage: str | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict)


def add_space_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `parse_space_options` reads."""
    parser.add_argument("--private", action="store_true", help="a new Space is private")
    parser.add_argument(
        "--hardware", metavar="NAME", help="such as cpu-basic, t4-small, l4x1, or zero-a10g for ZeroGPU"
    )
    parser.add_argument(
        "--storage",
        metavar="user/bucket",
        help=f"a storage bucket to mount at {STORAGE_DIR}, so that jobs, votes and adapters outlive a restart; it is "
        "created, private, where there is none",
    )
    for option, words in (
        ("--secret", "repeatable; KEY alone takes the value from this environment"),
        ("--variable", "repeatable; everybody can read variables"),
    ):
        parser.add_argument(option, action="append", metavar="KEY=VALUE", default=[], help=words)


def parse_space_options(args: argparse.Namespace) -> SpaceOptions:
    """Check and return the options; raises PromptOrTuneError."""
    from huggingface_hub import SpaceHardware

    names = [str(hardware.value) for hardware in SpaceHardware]
    if args.hardware is not None and args.hardware not in names:
        raise unknown_name_error("hardware", args.hardware, names)
    secrets = _parse_pairs(args.secret, "--secret")
    variables = _parse_pairs(args.variable, "--variable")
    both = sorted(secrets.keys() & variables.keys())
    if both:
        raise PromptOrTuneError(f"{both[0]} is given as --secret and as --variable: give it once.")
    if args.storage is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.storage, re.ASCII):
        raise PromptOrTuneError("--storage names no bucket: write user/name, such as someone/prompt-or-tune-data.")
    return SpaceOptions(args.private, args.hardware, args.storage, secrets, variables)


def _parse_pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """Parse KEY=VALUE, or KEY with its value in the environment. No message repeats a value."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not _KEY.fullmatch(key):
            raise PromptOrTuneError(
                f"{option} wants KEY=VALUE, and a key has letters, digits and '_' only: correct it."
            )
        if not equals:
            if key not in os.environ:
                raise PromptOrTuneError(
                    f"{option} {key} has no value: write {key}=VALUE, or set it in the environment."
                )
            value = os.environ[key]
        if key in found:
            raise PromptOrTuneError(f"{option} {key} is given twice: give it once.")
        found[key] = value
    return found


# A Space with one of these files was published by this program; the second one by versions before the engine moved.
_MARKER_FILES = ("serve/engine/llm_engine.py", "serve/engine.py")
_NEW_SPACE_FILES = (".gitattributes", "README.md")  # what the Hub itself puts into a new Space


@dataclass(frozen=True)
class PublishedSpace:
    """Address of the Space, the commit that it should run, and whether that commit is new."""

    repo_id: str
    commit: str
    url: str
    changed: bool


def publish_command(arguments: Sequence[str]) -> None:
    """Run `python -m space publish`; raises PromptOrTuneError."""
    parser = argparse.ArgumentParser(
        prog="python -m space publish",
        description="Creates or updates a Space on the Hugging Face Hub and waits until it runs. The token is the one "
        "of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("repo_id", metavar="user/name", help="the Space; it is created where it does not exist")
    add_space_options(parser)
    parser.add_argument("--no-wait", action="store_true", help="end after the upload")
    parser.add_argument(
        "--patience", type=float, default=WAIT_MINUTES, metavar="MINUTES", help="how long to wait (%(default)g)"
    )
    options = parser.parse_args(arguments)

    def report(message: str) -> None:
        print(message, flush=True)

    published = publish_space(options.repo_id, parse_space_options(options), report)
    if options.no_wait:
        report(f"Uploaded; the Hub builds it now: {published.url}")
        return
    hardware = wait_until_running(published.repo_id, published.commit, report, timeout=60 * options.patience)
    report(f"It runs on {hardware}: {published.url}")


def publish_space(
    repo_id: str, space_options: SpaceOptions, report: ProgressFn, token: str | None = None
) -> PublishedSpace:
    """Upload this checkout's program to the Space, creating it where it does not exist, and apply the options.

    Raises PromptOrTuneError. The card, the size, the token with its rights and a Space that holds another program are
    checked before anything is sent.
    """
    from huggingface_hub import HfApi

    check_repo_id(repo_id)
    files = space_files(repo_id)
    size = sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values())
    if size > MAX_BYTES:
        raise PromptOrTuneError(
            f"The Space would have {format_bytes(size)} and {format_bytes(MAX_BYTES)} is the limit."
        )
    api = HfApi(token=find_token(repo_id, token))
    with _hub_errors(repo_id, "checking access to"):
        account = api.whoami()
    check_owner(repo_id, account)
    remote_files = _remote_files(api, repo_id)
    if remote_files is None:
        check_scopes(repo_id, account)
    elif not set(remote_files) & set(_MARKER_FILES) and set(remote_files) - set(_NEW_SPACE_FILES):
        foreign = min(set(remote_files) - set(_NEW_SPACE_FILES))
        raise PromptOrTuneError(
            f"The Space '{repo_id}' holds another program already ({foreign}): publish under another name, or delete "
            "it there."
        )
    if space_options.storage:
        _make_bucket(api, space_options.storage, report)
    if remote_files is None:
        _create_space(api, repo_id, space_options, report)
    else:
        _update_settings(api, repo_id, space_options, report)
    return _upload(api, repo_id, files, remote_files or [], report)


def check_repo_id(repo_id: str) -> None:
    """Raise PromptOrTuneError unless it is `user/name` as the Hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = ""
    if repo_id.count("/") != 1:
        raise PromptOrTuneError("That cannot name a Space on the Hub: write user/name, such as someone/prompt-or-tune.")


def _remote_files(api: HfApi, repo_id: str) -> list[str] | None:
    """Return the paths of the Space's files; None where there is no such Space."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with _hub_errors(repo_id, "looking up"):
        try:
            found = api.space_info(repo_id)
        except RepositoryNotFoundError:
            return None
    return [file.rfilename for file in found.siblings or ()]


def _make_bucket(api: HfApi, bucket: str, report: ProgressFn) -> None:
    with _hub_errors(bucket, "creating the bucket"):
        api.create_bucket(bucket, private=True, exist_ok=True)
    report(f"The bucket {bucket} is mounted at {STORAGE_DIR}.")


def _create_space(api: HfApi, repo_id: str, space_options: SpaceOptions, report: ProgressFn) -> None:
    """Create the Space with all settings, so that its first start has them."""
    options: dict[str, Any] = {
        "space_hardware": space_options.hardware,
        "space_secrets": _key_value_list(space_options.secrets.items()),
        "space_variables": _key_value_list(space_options.variables.items()),
        "space_volumes": [_volume(space_options.storage)] if space_options.storage else None,
    }
    report(f"Creating the Space {repo_id} ...")
    with _hub_errors(repo_id, "creating"):
        api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=space_options.private or None, **options
        )


def _update_settings(api: HfApi, repo_id: str, space_options: SpaceOptions, report: ProgressFn) -> None:
    """Set what differs from the Space's current settings; every change restarts it."""
    with _hub_errors(repo_id, "changing the settings of"):
        runtime = api.get_space_runtime(repo_id)
        if space_options.hardware and space_options.hardware not in (runtime.requested_hardware, runtime.hardware):
            report(f"Asking for {space_options.hardware} ...")
            api.request_space_hardware(repo_id, space_options.hardware)  # type: ignore[arg-type]  # its value is what is sent
        current = api.get_space_variables(repo_id) if space_options.variables else {}
        for key, value in space_options.variables.items():
            if key not in current or current[key].value != value:
                report(f"Setting the variable {key} ...")
                api.add_space_variable(repo_id, key, value)
        for key, value in space_options.secrets.items():
            report(f"Setting the secret {key} ...")
            api.add_space_secret(repo_id, key, value)
        volumes = list(runtime.volumes or ())
        mounted = [volume for volume in volumes if volume.mount_path == str(STORAGE_DIR)]
        if space_options.storage and [volume.source for volume in mounted] != [space_options.storage]:
            others = [volume for volume in volumes if volume not in mounted]
            api.set_space_volumes(repo_id, [*others, _volume(space_options.storage)])


def _upload(
    api: HfApi, repo_id: str, files: dict[str, Path | bytes], remote_files: Sequence[str], report: ProgressFn
) -> PublishedSpace:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()
    ]
    operations += [CommitOperationDelete(path) for path in remote_files if is_project_file(path) and path not in files]
    report(f"Uploading {len(files)} files to {repo_id} ...")
    with _hub_errors(repo_id, "uploading to"):
        before = api.space_info(repo_id).sha
        # The client skips files that have not changed, and makes no commit where none has.
        commit = api.create_commit(repo_id, operations, commit_message="Publish Prompt or Tune", repo_type="space")
    changed = commit.oid != before
    report(f"Published {repo_id}@{commit.oid[:12]}." if changed else f"{repo_id} holds this program already.")
    return PublishedSpace(repo_id, commit.oid, f"{api.endpoint}/spaces/{repo_id}", changed)


def _key_value_list(pairs: Any) -> list[dict[str, str]] | None:
    return [{"key": key, "value": value} for key, value in pairs] or None


def _volume(bucket: str) -> Any:
    from huggingface_hub import Volume

    return Volume(type="bucket", source=bucket, mount_path=str(STORAGE_DIR))


def _hub_errors(repo_id: str, action: str) -> AbstractContextManager[None]:
    """Return a context that turns what the client raises into PromptOrTuneError."""
    messages = {
        402: f"The Hub wants a subscription or a payment method for that (HTTP 402) while {action} '{repo_id}': "
        "see huggingface.co/settings/billing, or choose other hardware with --hardware."
    }
    if action == "creating":
        messages[409] = (
            f"The name '{repo_id}' is taken on the Hub by a Space that this token may not see: choose another "
            "one, or use a token with access to it."
        )
    return hub_errors(repo_id, action, error=PromptOrTuneError, status_messages=messages)
