"""Installation of adapters: staging folder, checks reported as steps, atomic rename; download from the Hub.

Adapters on the Hugging Face Hub: list a repository's files, download them into a staging folder, check and install.
Only the files of an adapter are downloaded, all from one commit, the one that the revision named at the beginning. The
size and the SHA-256 that the Hub states for a file are compared with what arrived. Not protected against: a Hub that
states wrong values, and weights that are well-formed and bad.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    MAX_CONFIG_BYTES,
    MAX_FOLDER_BYTES,
    MAX_MANIFEST_BYTES,
    NO_OWNER,
    PICKLES,
    Owner,
    check_name,
    write_origin,
)
from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME
from common.files import atomic_dir, atomic_write
from common.format import format_bytes, quote_untrusted
from common.hub import HubToken, disk_error, hub_errors
from errors import AdapterError, DiskSpaceError

# After this long no process is working in a staging folder any more.
ABANDONED_SECONDS = 24 * 3600
REQUIRED_FILES = (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)
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
    CONFIG_NAME: MAX_CONFIG_BYTES,
    MANIFEST_NAME: MAX_MANIFEST_BYTES,
    WEIGHTS_NAME: MAX_FOLDER_BYTES,
}


def target_folder(root: Path, name: str, overwrite: bool, reserved: Collection[str]) -> Path:
    """Return the folder `name` under `root`; raises AdapterError where the name is not valid or taken."""
    check_name(name)
    if name in reserved:
        raise AdapterError(f"There is an adapter '{name}' already: give this one another name, or delete that one.")
    if (root / name).exists() and not overwrite:
        raise AdapterError(
            f"There is an adapter '{name}' in {root} already: choose another one with --name, or add --overwrite."
        )
    return root / name


@contextmanager
def staging_folder(root: Path, name: str) -> Iterator[Path]:
    """Create a hidden folder under `root`, so that a rename installs, and remove it after the block."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-pull-", dir=root))
    except OSError as error:
        raise AdapterError(
            f"Cannot write to {root} ({error.strerror or error}): choose another folder with --root, "
            "or set PROMPT_OR_TUNE_HOME to one that you may write to."
        ) from error
    try:
        yield staging
    except OSError as error:
        raise disk_error(error, f"'{name}' could not be written to {root}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def install(folder: Path, target: Path, staging: Path, overwrite: bool) -> None:
    """Rename the folder to `target`; a folder that it replaces is restored if that fails."""
    old = staging / "replaced"
    replaced = overwrite and target.exists()
    if replaced:
        target.rename(old)
    try:
        folder.rename(target)
    except OSError as error:
        if replaced:
            old.rename(target)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise AdapterError(
                f"An adapter '{target.name}' was put into {target.parent} in the meantime: choose another name."
            ) from error
        raise


def copy_adapter(source: Path, target: Path) -> None:
    """Copy a trained adapter under another name, which its manifest gets too; the folder appears whole."""
    with atomic_dir(target) as building:
        shutil.copytree(source, building, dirs_exist_ok=True)
        values = json.loads((building / MANIFEST_NAME).read_text(encoding="utf-8"))
        values["name"] = target.name
        values["config"]["adapter_name"] = target.name
        atomic_write(building / MANIFEST_NAME, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _remove_abandoned(root: Path) -> None:
    """Remove staging folders of processes that were killed, once no process can be working in them."""
    for folder in root.glob(".*-pull-*"):
        if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Step:
    """A check and whether it passed. The error that follows a failed check says why."""

    name: str
    ok: bool


StepFn = Callable[[Step], None]


def ignore_steps(_: Step) -> None:
    """Do nothing: for callers that want errors only."""


@contextmanager
def report_step(report: StepFn, name: str) -> Iterator[None]:
    """Report the check as passed when the block ends, and as failed when it raises."""
    try:
        yield
    except BaseException:
        report(Step(name, ok=False))
        raise
    report(Step(name, ok=True))


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
        if path.lower().endswith(PICKLES):
            raise AdapterError(
                f"'{repo}' holds {quote_untrusted(path)}, a pickle, which can run code: ask its owner for a revision "
                f"with only {WEIGHTS_NAME}."
            )
    if CONFIG_NAME not in files and "config.json" in files:
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
