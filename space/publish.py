"""Create/update the Space, options, wait.

Publishes the Space: creates it where there is none, uploads its files in one commit, sets what was wished for.

Publishing the same again changes nothing: no commit is made and nothing restarts, except for secrets, whose old values
nobody can read and which are therefore set anew.

What a person wants of a Space besides its files: hardware, storage, secrets and variables, read from options.

Waits until the Hub runs a Space, with the lines of its build as far as the Hub gives them.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.format import quote_untrusted
from common.hub import hub_errors
from common.paths import ProgressFn
from errors import PromptOrTuneError, unknown_name_error
from space.build import MAX_BYTES, is_project_file, space_files
from space.settings import STORAGE_DIR
from train.hub_access import check_owner, check_scopes, find_token

if TYPE_CHECKING:
    from huggingface_hub import HfApi, SpaceRuntime


WAIT_MINUTES = 45.0
POLL_SECONDS = 5.0
# For so long after a commit the Hub may still show the former version as running, where it does not name the commit.
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
    """The hardware that runs `commit` of the Space; PromptOrTuneError in one sentence where it does not come to that.

    `patience` and `poll` are seconds.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    began, stage = clock(), ""
    log = _BuildLog(api, repo_id, report)
    while True:
        with hub_errors(repo_id, "waiting for", error=PromptOrTuneError):
            runtime = api.get_space_runtime(repo_id)
        if _enum_value(runtime.stage) != stage:
            stage = _enum_value(runtime.stage)
            report(f"{stage.replace('_', ' ').capitalize()} ...")
        log.report_new()
        settled = clock() - began >= STALE_STATUS_SECONDS
        if _is_final(runtime, stage, commit, settled):
            break
        if clock() - began > timeout:
            raise PromptOrTuneError(
                f"'{repo_id}' does not run after {timeout / 60:g} min (it says {stage}): look at its logs at "
                f"{api.endpoint}/spaces/{repo_id}, it goes on there by itself."
            )
        time.sleep(poll_seconds)
    if stage == "RUNNING":
        return _enum_value(runtime.hardware or runtime.requested_hardware or "unknown hardware")
    raise PromptOrTuneError(_failure_message(runtime, stage, repo_id, log.last_message, api.endpoint))


def _is_final(runtime: SpaceRuntime, stage: str, commit: str, is_current: bool) -> bool:
    """Whether this stage is the end, and that of this commit: the former version may run, or have failed, until now."""
    sha = runtime.raw.get("sha")
    if stage == "RUNNING" and sha:
        return bool(sha == commit)
    return stage in ("RUNNING", *_FAILED_STAGES, *_INACTIVE_STAGES) and (is_current or sha == commit)


def _failure_message(runtime: SpaceRuntime, stage: str, repo_id: str, last_log: str, endpoint: str) -> str:
    address = f"{endpoint}/spaces/{repo_id}"
    if stage in _INACTIVE_STAGES:
        return f"'{repo_id}' {_INACTIVE_STAGES[stage]}: start it again in its settings at {address}."
    said = str(runtime.raw.get("errorMessage") or last_log).strip().splitlines()
    reason = f": {quote_untrusted(said[-1].strip(), _MAX_LOG_WIDTH)}" if said else ""
    return f"'{repo_id}' does not run, {_FAILED_STAGES[stage]} ({stage}{reason}): read its logs at {address}."


class _BuildLog:
    """The build's lines, each told once. Not every Hub and token gives them; then there are none."""

    def __init__(self, api: HfApi, repo_id: str, report: ProgressFn) -> None:
        self._api = api
        self._repo_id = repo_id
        self._report = report
        self._num_reported = 0
        self.last_message = ""

    def report_new(self) -> None:
        """Reports the lines that are new since the last time."""
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
        except Exception:  # noqa: BLE001 - the log is a courtesy: whatever keeps it away must not end the waiting
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()]


def _ensure_newline(part: str) -> str:
    return part if part.endswith("\n") else f"{part}\n"


def _enum_value(each: Any) -> str:
    """The client has enumerations for what it knows and plain texts for what it does not."""
    return str(getattr(each, "value", each))


_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,255}")


@dataclass(frozen=True)
class SpaceOptions:
    """Nothing is changed of what is not wished for. `storage` is a bucket, "user/name", mounted at /data.

    `private` matters for a new Space alone. Secrets' values appear in no message.
    """

    private: bool = False
    hardware: str | None = None
    storage: str | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict)


def add_space_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `read_wishes` reads."""
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
    """The options, checked; PromptOrTuneError in one sentence."""
    from huggingface_hub import SpaceHardware

    known = [str(each.value) for each in SpaceHardware]
    if args.hardware is not None and args.hardware not in known:
        raise unknown_name_error("hardware", args.hardware, known)
    secrets = _parse_pairs(args.secret, "--secret")
    variables = _parse_pairs(args.variable, "--variable")
    both = sorted(secrets.keys() & variables.keys())
    if both:
        raise PromptOrTuneError(f"{both[0]} is given as --secret and as --variable: give it once.")
    if args.storage is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.storage, re.ASCII):
        raise PromptOrTuneError("--storage names no bucket: write user/name, such as someone/prompt-or-tune-data.")
    return SpaceOptions(args.private, args.hardware, args.storage, secrets, variables)


def _parse_pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """KEY=VALUE, or KEY with its value in the environment. No message repeats a value."""
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


_MARKER_FILE = "serve/engine/llm_engine.py"  # every Space of this program has it
_NEW_SPACE_FILES = (".gitattributes", "README.md")  # what the Hub itself puts into a new Space


@dataclass(frozen=True)
class PublishedSpace:
    """Where the Space is, the commit that it shall run, and whether that commit is new."""

    repo_id: str
    commit: str
    url: str
    changed: bool


def publish_command(arguments: Sequence[str]) -> None:
    """`python -m space publish`; PromptOrTuneError in one sentence."""
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

    def report(line: str) -> None:
        print(line, flush=True)

    published = publish_space(options.repo_id, parse_space_options(options), report)
    if options.no_wait:
        report(f"Uploaded; the Hub builds it now: {published.url}")
        return
    hardware = wait_until_running(published.repo_id, published.commit, report, timeout=60 * options.patience)
    report(f"It runs on {hardware}: {published.url}")


def publish_space(
    repo_id: str, space_options: SpaceOptions, report: ProgressFn, token: str | None = None
) -> PublishedSpace:
    """Makes the Space hold exactly this checkout's program. PromptOrTuneError in one sentence.

    All that can be refused is refused before anything is sent: the card, the size, the token and its rights, and a
    Space that holds somebody's other program.
    """
    from huggingface_hub import HfApi

    check_name(repo_id)
    wanted = space_files(repo_id)
    size = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in wanted.values())
    if size > MAX_BYTES:
        raise PromptOrTuneError(f"The Space would have {size / 1e6:.1f} MB and {MAX_BYTES / 1e6:.0f} MB is the limit.")
    api = HfApi(token=find_token(repo_id, token))
    with _hub_errors(repo_id, "checking access to"):
        person = api.whoami()
    check_owner(repo_id, person)
    there = _remote_files(api, repo_id)
    if there is None:
        check_scopes(repo_id, person)
    elif _MARKER_FILE not in there and set(there) - set(_NEW_SPACE_FILES):
        strange = min(set(there) - set(_NEW_SPACE_FILES))
        raise PromptOrTuneError(
            f"The Space '{repo_id}' holds another program already ({strange}): publish under another name, or delete "
            "it there."
        )
    if space_options.storage:
        _make_bucket(api, space_options.storage, report)
    if there is None:
        _create_space(api, repo_id, space_options, report)
    else:
        _update_settings(api, repo_id, space_options, report)
    return _upload(api, repo_id, wanted, there or [], report)


def check_name(repo_id: str) -> None:
    """PromptOrTuneError unless it is `user/name` as the Hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = ""
    if repo_id.count("/") != 1:
        raise PromptOrTuneError("That cannot name a Space on the Hub: write user/name, such as someone/prompt-or-tune.")


def _remote_files(api: HfApi, repo_id: str) -> list[str] | None:
    """The paths of the Space's files; None where there is no such Space."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with _hub_errors(repo_id, "looking up"):
        try:
            found = api.space_info(repo_id)
        except RepositoryNotFoundError:
            return None
    return [each.rfilename for each in found.siblings or ()]


def _make_bucket(api: HfApi, bucket: str, report: ProgressFn) -> None:
    with _hub_errors(bucket, "creating the bucket"):
        api.create_bucket(bucket, private=True, exist_ok=True)
    report(f"The bucket {bucket} is mounted at {STORAGE_DIR}.")


def _create_space(api: HfApi, repo_id: str, space_options: SpaceOptions, report: ProgressFn) -> None:
    """A new Space has everything from its first start on."""
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
    """Of an existing Space only what differs is set: every change restarts it."""
    with _hub_errors(repo_id, "changing the settings of"):
        runtime = api.get_space_runtime(repo_id)
        if space_options.hardware and space_options.hardware not in (runtime.requested_hardware, runtime.hardware):
            report(f"Asking for {space_options.hardware} ...")
            api.request_space_hardware(repo_id, space_options.hardware)  # type: ignore[arg-type]  # its value is what is sent
        known = api.get_space_variables(repo_id) if space_options.variables else {}
        for key, value in space_options.variables.items():
            if key not in known or known[key].value != value:
                report(f"Setting the variable {key} ...")
                api.add_space_variable(repo_id, key, value)
        for key, value in space_options.secrets.items():
            report(f"Setting the secret {key} ...")
            api.add_space_secret(repo_id, key, value)
        volumes = list(runtime.volumes or ())
        here = [each for each in volumes if each.mount_path == str(STORAGE_DIR)]
        if space_options.storage and [each.source for each in here] != [space_options.storage]:
            others = [each for each in volumes if each not in here]
            api.set_space_volumes(repo_id, [*others, _volume(space_options.storage)])


def _upload(
    api: HfApi, repo_id: str, files: dict[str, Path | bytes], remote_files: Sequence[str], report: ProgressFn
) -> PublishedSpace:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, each if isinstance(each, bytes) else str(each)) for name, each in files.items()
    ]
    operations += [CommitOperationDelete(path) for path in remote_files if is_project_file(path) and path not in files]
    report(f"Uploading {len(files)} files to {repo_id} ...")
    with _hub_errors(repo_id, "uploading to"):
        before = api.space_info(repo_id).sha
        # The client leaves out files that are there already, and makes no commit where all are.
        made = api.create_commit(repo_id, operations, commit_message="Publish Prompt or Tune", repo_type="space")
    changed = made.oid != before
    report(f"Published {repo_id}@{made.oid[:12]}." if changed else f"{repo_id} holds this program already.")
    return PublishedSpace(repo_id, made.oid, f"{api.endpoint}/spaces/{repo_id}", changed)


def _key_value_list(pairs: Any) -> list[dict[str, str]] | None:
    return [{"key": key, "value": value} for key, value in pairs] or None


def _volume(bucket: str) -> Any:
    from huggingface_hub import Volume

    return Volume(type="bucket", source=bucket, mount_path=str(STORAGE_DIR))


@contextmanager
def _hub_errors(repo_id: str, action: str) -> Iterator[None]:
    """Whatever the client raises, as one sentence; what the Hub says of names and money is said in our own words."""
    from huggingface_hub.errors import HfHubHTTPError

    with hub_errors(repo_id, action, error=PromptOrTuneError):
        try:
            yield
        except HfHubHTTPError as fault:
            status = fault.response.status_code
            if status == 402:
                raise PromptOrTuneError(
                    f"The Hub wants a subscription or a payment method for that (HTTP 402) while {action} '{repo_id}': "
                    "see huggingface.co/settings/billing, or choose other hardware with --hardware."
                ) from fault
            if status == 409 and action == "creating":
                raise PromptOrTuneError(
                    f"The name '{repo_id}' is taken on the Hub by a Space that this token may not see: choose another "
                    "one, or use a token with access to it."
                ) from fault
            raise
