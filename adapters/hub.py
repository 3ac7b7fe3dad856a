"""Adapters on the Hugging Face Hub: list a repository's files, download them into a staging folder, check and install.

Only the files of an adapter are downloaded, all from one commit, the one that the revision named at the beginning. The
size and the SHA-256 that the Hub states for a file are compared with what arrived. Not protected against: a Hub that
states wrong values, and weights that are well-formed and bad.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters import checks
from adapters.install import StepFn, ignore_steps, install, report_step, staging_folder, target_folder
from adapters.manifest import MANIFEST_NAME, NO_OWNER, Owner, write_origin
from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME
from common.format import format_bytes, quote_untrusted
from common.hub import HubToken, hub_errors
from errors import AdapterError, DiskSpaceError

REQUIRED_FILES = (checks.CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)
ADAPTER_FILES = (*REQUIRED_FILES, "README.md", "config.yaml", "log.jsonl", "loss.png")
MAX_OTHER_BYTES = 32 << 20
STEP_NAME = "The name is free"
STEP_REPOSITORY = "The repository is on the Hub"
STEP_CONTENTS = "It is an adapter without pickles, and its size is within the limit"
STEP_DOWNLOAD = "Every file arrived complete"
STEP_CONSISTENT = "Settings, weights and manifest match each other"
STEPS = (STEP_NAME, STEP_REPOSITORY, STEP_CONTENTS, STEP_DOWNLOAD, STEP_CONSISTENT)
# After this long a Hub that does not answer counts as unreachable.
REQUEST_TIMEOUT_S = 10
# The Hub's rules for names (huggingface_hub.utils.validate_repo_id); the owner is required here.
_REPO = re.compile(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)
_LIMITS = {
    checks.CONFIG_NAME: checks.MAX_CONFIG_BYTES,
    MANIFEST_NAME: checks.MAX_MANIFEST_BYTES,
    WEIGHTS_NAME: checks.MAX_FOLDER_BYTES,
}


@dataclass(frozen=True)
class RemoteFile:
    """Size in bytes and, for large files, SHA-256 of a file, as the Hub states them."""

    size: int
    sha256: str = ""


def pull(
    spec: str,
    root: Path,
    report: Callable[[str], None],
    *,
    name: str | None = None,
    overwrite: bool = False,
    token: HubToken = None,
    steps: StepFn = ignore_steps,
    reserved: Collection[str] = (),
    owner: Owner = NO_OWNER,
) -> Path:
    """Install `user/name@revision` as the folder `name` (default: the repository's name) under `root`; return it.

    Without a revision, the newest commit is installed. Names in `reserved` count as taken. `report` gets progress
    messages, `steps` each check of STEPS as it passes or fails. Raises PromptOrTuneError; the store is then as it was
    before.
    """
    with report_step(steps, STEP_NAME):
        repo, revision = parse_repo_spec(spec)
        name = name or default_name(repo)
        target = target_folder(root, name, overwrite, reserved)
    with report_step(steps, STEP_REPOSITORY):
        report(f"Looking up {repo} on the Hugging Face Hub ...")
        commit, files = list_repo_files(repo, revision, token)
    with report_step(steps, STEP_CONTENTS):
        _check_file_list(repo, files)
    with staging_folder(root, name) as staging:
        folder = staging / name
        with report_step(steps, STEP_DOWNLOAD):
            adapter_files = {path: files[path] for path in ADAPTER_FILES if path in files}
            download(repo, commit, adapter_files, folder, report, token=token)
        with report_step(steps, STEP_CONSISTENT):
            digest = inspect_verified(folder).digest
        write_origin(folder, "hub", f"{repo}@{commit}", owner)
        install(folder, target, staging, overwrite)
    report(f"Installed '{name}' from {repo}@{commit} ({digest}).")
    return target


def default_name(repo: str) -> str:
    """Return the default name of the adapter `user/Name`: the repository's name in lowercase."""
    return repo.split("/")[1].lower()


def file_limit(path: str) -> int:
    """Return the largest size in bytes of the file of that name."""
    return _LIMITS.get(path, MAX_OTHER_BYTES)


def parse_repo_spec(spec: str) -> tuple[str, str | None]:
    """Split `user/name@revision` into repository and revision; raises AdapterError for anything else."""
    repo, at, revision = spec.partition("@")
    is_repo = bool(_REPO.fullmatch(repo)) and ("--" not in repo and ".." not in repo and not repo.endswith(".git"))
    if not is_repo or (at and (not revision or not revision.isprintable() or " " in revision)):
        raise AdapterError(
            f"{quote_untrusted(spec)!r} is no repository on the Hub: write user/name or user/name@revision, "
            "such as someone/lora-conala@main."
        )
    return repo, revision or None


def list_repo_files(repo: str, revision: str | None, token: HubToken = None) -> tuple[str, dict[str, RemoteFile]]:
    """Return the commit of `revision` (default: main), and its files by path."""
    from huggingface_hub import HfApi

    with hub_errors(repo, "looking up", revision):
        found = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=REQUEST_TIMEOUT_S, token=token)
    files = {
        file.rfilename: RemoteFile(file.size or 0, file.lfs.sha256 if file.lfs else "") for file in found.siblings or ()
    }
    return str(found.sha), files


def download(
    repo: str,
    commit: str,
    files: Mapping[str, RemoteFile],
    folder: Path,
    report: Callable[[str], None],
    *,
    token: HubToken = None,
) -> None:
    """Download the files at that commit into a new `folder`, checking each one's size and SHA-256."""
    from huggingface_hub import hf_hub_download

    total = sum(file.size for file in files.values())
    free = shutil.disk_usage(folder.parent).free
    if free < total:
        raise DiskSpaceError(
            f"'{repo}' has {format_bytes(total)} and {folder.parent} has {format_bytes(free)} free: free some space."
        )
    report(f"Downloading {len(files)} files ({format_bytes(total)}) of {repo}@{commit[:12]} ...")
    # The client writes metadata beside what it downloads, so it gets a folder of its own in the staging folder.
    download_dir = folder.with_name(f"{folder.name}.download")
    folder.mkdir()
    for path, expected in files.items():
        with hub_errors(repo, "downloading", commit):
            fetched = Path(
                hf_hub_download(repo, path, revision=commit, local_dir=download_dir, force_download=True, token=token)
            )
        _check_download(repo, path, fetched, expected)
        fetched.replace(folder / path)
        (folder / path).chmod(0o644)


def inspect_verified(folder: Path) -> AdapterFolder:
    """Check the adapter in `folder` without a base, and its weights against the manifest's digest; return it."""
    found = Store((folder.parent,)).inspect(folder.name)
    stated = found.manifest.weights_digest
    if stated and stated != found.digest:
        raise AdapterError(
            f"Adapter '{folder.name}': {WEIGHTS_NAME} is {found.digest} and {MANIFEST_NAME} states "
            f"{quote_untrusted(stated, 40)}: the weights are not those that were trained, ask its publisher."
        )
    return found


def _check_file_list(repo: str, files: Mapping[str, RemoteFile]) -> None:
    """Raise AdapterError for what could not be installed, before a byte of it is downloaded."""
    for path in sorted(files):
        if path.lower().endswith(checks.PICKLES):
            raise AdapterError(
                f"'{repo}' holds {quote_untrusted(path)}, a pickle, which can run code: ask its owner for a revision "
                f"with only {WEIGHTS_NAME}."
            )
    if checks.CONFIG_NAME not in files and "config.json" in files:
        raise AdapterError(f"'{repo}' is a whole model, not an adapter: use it as a base, with --base {repo}.")
    for path in REQUIRED_FILES:
        if path not in files:
            raise AdapterError(
                f"'{repo}' has no {path}, so it is no adapter of Prompt or Tune: check the name, or train one with "
                "`python -m train`."
            )
    for path in ADAPTER_FILES:
        limit = file_limit(path)
        if path in files and files[path].size > limit:
            raise AdapterError(
                f"'{repo}': {path} has {format_bytes(files[path].size)}, the limit is {format_bytes(limit)}: "
                "it is not downloaded, ask its owner for a smaller one."
            )


def _check_download(repo: str, path: str, fetched: Path, expected: RemoteFile) -> None:
    size = fetched.stat().st_size
    if size == expected.size and expected.sha256:
        with fetched.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256
    else:
        intact = size == expected.size
    if not intact:
        raise AdapterError(
            f"{path} of '{repo}' arrived damaged ({size} of {expected.size} bytes, or not those that the Hub "
            "states): run the same command again."
        )
