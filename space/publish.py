"""Publishes the Space: creates it where there is none, uploads its files in one commit, sets what was wished for.

Publishing the same again changes nothing: no commit is made and nothing restarts, except for secrets, whose old values
nobody can read and which are therefore set anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.hub_errors import client_errors
from errors import PeftArenaError
from serve.home import Report
from serve.space import STORAGE
from space.build import MAX_BYTES, contents, ours
from space.running import PATIENCE_MINUTES, wait_until_it_runs
from space.wishes import Wishes, add_wish_options, read_wishes
from train.publish_access import check_owner, check_scopes, find_token

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MARK = "serve/engine.py"  # every Space of this program has it
_EMPTY = (".gitattributes", "README.md")  # what the Hub itself puts into a new Space


@dataclass(frozen=True)
class Published:
    """Where the Space is, the commit that it shall run, and whether that commit is new."""

    repo_id: str
    commit: str
    url: str
    changed: bool


def publish_command(arguments: Sequence[str]) -> None:
    """`python -m space publish`; PeftArenaError in one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m space publish",
        description="Creates or updates a Space on the Hugging Face Hub and waits until it runs. The token is the one "
        "of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("repo_id", metavar="user/name", help="the Space; it is created where it does not exist")
    add_wish_options(parser)
    parser.add_argument("--no-wait", action="store_true", help="end after the upload")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_MINUTES, metavar="MINUTES", help="how long to wait (%(default)g)"
    )
    options = parser.parse_args(arguments)

    def report(line: str) -> None:
        print(line, flush=True)

    published = publish(options.repo_id, read_wishes(options), report)
    if options.no_wait:
        report(f"Uploaded; the Hub builds it now: {published.url}")
        return
    hardware = wait_until_it_runs(published.repo_id, published.commit, report, patience=60 * options.patience)
    report(f"It runs on {hardware}: {published.url}")


def publish(repo_id: str, wishes: Wishes, report: Report, token: str | None = None) -> Published:
    """Makes the Space hold exactly this checkout's program. PeftArenaError in one sentence.

    All that can be refused is refused before anything is sent: the card, the size, the token and its rights, and a
    Space that holds somebody's other program.
    """
    from huggingface_hub import HfApi

    check_name(repo_id)
    wanted = contents(repo_id)
    size = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in wanted.values())
    if size > MAX_BYTES:
        raise PeftArenaError(f"The Space would have {size / 1e6:.1f} MB and {MAX_BYTES / 1e6:.0f} MB is the limit.")
    api = HfApi(token=find_token(repo_id, token))
    with _errors(repo_id, "checking access to"):
        person = api.whoami()
    check_owner(repo_id, person)
    there = _files_there(api, repo_id)
    if there is None:
        check_scopes(repo_id, person)
    elif _MARK not in there and set(there) - set(_EMPTY):
        strange = min(set(there) - set(_EMPTY))
        raise PeftArenaError(
            f"The Space '{repo_id}' holds another program already ({strange}): publish under another name, or delete "
            "it there."
        )
    if wishes.storage:
        _make_bucket(api, wishes.storage, report)
    if there is None:
        _create(api, repo_id, wishes, report)
    else:
        _change(api, repo_id, wishes, report)
    return _upload(api, repo_id, wanted, there or [], report)


def check_name(repo_id: str) -> None:
    """PeftArenaError unless it is `user/name` as the Hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = ""
    if repo_id.count("/") != 1:
        raise PeftArenaError("That cannot name a Space on the Hub: write user/name, such as someone/peft-arena.")


def _files_there(api: HfApi, repo_id: str) -> list[str] | None:
    """The paths of the Space's files; None where there is no such Space."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with _errors(repo_id, "looking up"):
        try:
            found = api.space_info(repo_id)
        except RepositoryNotFoundError:
            return None
    return [each.rfilename for each in found.siblings or ()]


def _make_bucket(api: HfApi, bucket: str, report: Report) -> None:
    with _errors(bucket, "creating the bucket"):
        api.create_bucket(bucket, private=True, exist_ok=True)
    report(f"The bucket {bucket} is mounted at {STORAGE}.")


def _create(api: HfApi, repo_id: str, wishes: Wishes, report: Report) -> None:
    """A new Space has everything from its first start on."""
    options: dict[str, Any] = {
        "space_hardware": wishes.hardware,
        "space_secrets": _listed(wishes.secrets.items()),
        "space_variables": _listed(wishes.variables.items()),
        "space_volumes": [_volume(wishes.storage)] if wishes.storage else None,
    }
    report(f"Creating the Space {repo_id} ...")
    with _errors(repo_id, "creating"):
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=wishes.private or None, **options)


def _change(api: HfApi, repo_id: str, wishes: Wishes, report: Report) -> None:
    """Of an existing Space only what differs is set: every change restarts it."""
    with _errors(repo_id, "changing the settings of"):
        runtime = api.get_space_runtime(repo_id)
        if wishes.hardware and wishes.hardware not in (runtime.requested_hardware, runtime.hardware):
            report(f"Asking for {wishes.hardware} ...")
            api.request_space_hardware(repo_id, wishes.hardware)  # type: ignore[arg-type]  # its value is what is sent
        known = api.get_space_variables(repo_id) if wishes.variables else {}
        for key, value in wishes.variables.items():
            if key not in known or known[key].value != value:
                report(f"Setting the variable {key} ...")
                api.add_space_variable(repo_id, key, value)
        for key, value in wishes.secrets.items():
            report(f"Setting the secret {key} ...")
            api.add_space_secret(repo_id, key, value)
        volumes = list(runtime.volumes or ())
        here = [each for each in volumes if each.mount_path == str(STORAGE)]
        if wishes.storage and [each.source for each in here] != [wishes.storage]:
            others = [each for each in volumes if each not in here]
            api.set_space_volumes(repo_id, [*others, _volume(wishes.storage)])


def _upload(
    api: HfApi, repo_id: str, wanted: dict[str, Path | bytes], there: Sequence[str], report: Report
) -> Published:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, each if isinstance(each, bytes) else str(each)) for name, each in wanted.items()
    ]
    operations += [CommitOperationDelete(path) for path in there if ours(path) and path not in wanted]
    report(f"Uploading {len(wanted)} files to {repo_id} ...")
    with _errors(repo_id, "uploading to"):
        before = api.space_info(repo_id).sha
        # The client leaves out files that are there already, and makes no commit where all are.
        made = api.create_commit(repo_id, operations, commit_message="Publish Peft Arena", repo_type="space")
    changed = made.oid != before
    report(f"Published {repo_id}@{made.oid[:12]}." if changed else f"{repo_id} holds this program already.")
    return Published(repo_id, made.oid, f"{api.endpoint}/spaces/{repo_id}", changed)


def _listed(pairs: Any) -> list[dict[str, str]] | None:
    return [{"key": key, "value": value} for key, value in pairs] or None


def _volume(bucket: str) -> Any:
    from huggingface_hub import Volume

    return Volume(type="bucket", source=bucket, mount_path=str(STORAGE))


@contextmanager
def _errors(repo_id: str, doing: str) -> Iterator[None]:
    """Whatever the client raises, as one sentence; what the Hub says of names and money is said in our own words."""
    from huggingface_hub.errors import HfHubHTTPError

    with client_errors(repo_id, doing, error=PeftArenaError):
        try:
            yield
        except HfHubHTTPError as fault:
            status = fault.response.status_code
            if status == 402:
                raise PeftArenaError(
                    f"The Hub wants a subscription or a payment method for that (HTTP 402) while {doing} '{repo_id}': "
                    "see huggingface.co/settings/billing, or choose other hardware with --hardware."
                ) from fault
            if status == 409 and doing == "creating":
                raise PeftArenaError(
                    f"The name '{repo_id}' is taken on the Hub by a Space that this token may not see: choose another "
                    "one, or use a token with access to it."
                ) from fault
            raise
