"""Adapters from the Hugging Face Hub: listed, downloaded aside, checked, and only then put into the store.

Only the files that belong to an adapter are fetched, all from the one commit that the revision stood for at the
beginning. What the Hub says of a file (size, SHA-256) must be true of what arrived. Not protected against: a Hub that
lies about everything, and weights that are well-formed and bad.
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
from adapters.manifest import MANIFEST_NAME, write_origin
from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME
from common.format import quote_untrusted
from common.hub import hub_errors
from errors import AdapterError, DiskSpaceError

REQUIRED_FILES = (checks.CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)
ADAPTER_FILES = (*REQUIRED_FILES, "README.md", "config.yaml", "log.jsonl", "loss.png")
MAX_OTHER_BYTES = 32 << 20
STEP_NAME = "The name is free"
STEP_REPOSITORY = "The repository is on the Hub"
STEP_CONTENTS = "It is an adapter, without pickles and of a size that fits"
STEP_DOWNLOAD = "Every file arrived whole"
STEP_CONSISTENT = "Settings, weights and manifest belong together"
STEPS = (STEP_NAME, STEP_REPOSITORY, STEP_CONTENTS, STEP_DOWNLOAD, STEP_CONSISTENT)
# Seconds until a Hub that does not answer counts as unreachable.
REQUEST_TIMEOUT_S = 10
# The Hub's own rules for names (huggingface_hub.utils.validate_repo_id), with the owner always named.
_REPO = re.compile(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)
_LIMITS = {
    checks.CONFIG_NAME: checks.MAX_CONFIG_BYTES,
    MANIFEST_NAME: checks.MAX_MANIFEST_BYTES,
    WEIGHTS_NAME: checks.MAX_FOLDER_BYTES,
}


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub says of a file: its bytes, and the SHA-256 where it keeps the file as a large one."""

    size: int
    sha256: str = ""


def pull(
    spec: str,
    root: Path,
    report: Callable[[str], None],
    *,
    name: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    steps: StepFn = ignore_steps,
    reserved: Collection[str] = (),
) -> Path:
    """Installs `user/name@revision` as the folder `name` (default: the repository's name) under `root`.

    Without a revision, the newest commit at this moment. Names in `reserved` count as taken. `report` gets lines for
    people, `steps` each check of STEPS as it passes or fails. Raises PromptOrTuneError in one sentence; the folder is then
    as it was before, and nothing half-installed is left.
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
    with staging_folder(root, name) as aside:
        folder = aside / name
        with report_step(steps, STEP_DOWNLOAD):
            wanted = {path: files[path] for path in ADAPTER_FILES if path in files}
            download(repo, commit, wanted, folder, report, token=token)
        with report_step(steps, STEP_CONSISTENT):
            digest = inspect_verified(folder).digest
        write_origin(folder, "hub", f"{repo}@{commit}")
        install(folder, target, aside, overwrite)
    report(f"Installed '{name}' from {repo}@{commit} ({digest}).")
    return target


def default_name(repo: str) -> str:
    """What `user/Name` is called here unless somebody says otherwise."""
    return repo.split("/")[1].lower()


def file_limit(path: str) -> int:
    """How many bytes the file of that name may have."""
    return _LIMITS.get(path, MAX_OTHER_BYTES)


def parse_repo_spec(spec: str) -> tuple[str, str | None]:
    """Repository and revision of `user/name@revision`; AdapterError when it is something else."""
    repo, at, revision = spec.partition("@")
    # The Hub's own rules for names: huggingface_hub.utils.validate_repo_id.
    named = _REPO.fullmatch(repo) and "--" not in repo and ".." not in repo and not repo.endswith(".git")
    if not named or (at and (not revision or not revision.isprintable() or " " in revision)):
        raise AdapterError(
            f"{quote_untrusted(spec)!r} is no repository on the Hub: write user/name or user/name@revision, "
            "such as someone/lora-conala@main."
        )
    return repo, revision or None


def list_repo_files(repo: str, revision: str | None, token: str | None = None) -> tuple[str, dict[str, RemoteFile]]:
    """The commit that `revision` (default: main) stands for, and the files it has by their paths."""
    from huggingface_hub import HfApi

    with hub_errors(repo, "looking up", revision):
        found = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=REQUEST_TIMEOUT_S, token=token)
    files = {
        each.rfilename: RemoteFile(each.size or 0, each.lfs.sha256 if each.lfs else "") for each in found.siblings or ()
    }
    return str(found.sha), files


def download(
    repo: str,
    commit: str,
    files: Mapping[str, RemoteFile],
    folder: Path,
    report: Callable[[str], None],
    *,
    token: str | None = None,
) -> None:
    """Fetches these files at that commit into a new `folder`; each must have the size and SHA-256 of the listing."""
    from huggingface_hub import hf_hub_download

    total = sum(file.size for file in files.values())
    free = shutil.disk_usage(folder.parent).free
    if free < total:
        raise DiskSpaceError(
            f"'{repo}' has {total / 1e6:.0f} MB and {folder.parent} has {free / 1e6:.0f} MB free: free some room."
        )
    report(f"Downloading {len(files)} files ({total / 1e6:.1f} MB) of {repo}@{commit[:12]} ...")
    # The client keeps notes beside what it downloads, so it gets a folder of its own, which stays behind.
    workplace = folder.with_name(f"{folder.name}.download")
    folder.mkdir()
    for path, expected in files.items():
        with hub_errors(repo, "downloading", commit):
            fetched = Path(
                hf_hub_download(repo, path, revision=commit, local_dir=workplace, force_download=True, token=token)
            )
        _check_download(repo, path, fetched, expected)
        fetched.replace(folder / path)
        (folder / path).chmod(0o644)


def inspect_verified(folder: Path) -> AdapterFolder:
    """The adapter in `folder`, after the store's checks that need no base and with the weights of its manifest."""
    found = Store((folder.parent,)).inspect(folder.name)
    stated = found.manifest.weights_digest
    if stated and stated != found.digest:
        raise AdapterError(
            f"Adapter '{folder.name}': {WEIGHTS_NAME} is {found.digest} and {MANIFEST_NAME} states "
            f"{quote_untrusted(stated, 40)}: the weights are not those that were trained, ask whoever published it."
        )
    return found


def _check_file_list(repo: str, files: Mapping[str, RemoteFile]) -> None:
    """Refuses what could not be installed, before a byte of it is downloaded."""
    for path in sorted(files):
        if path.lower().endswith(checks.PICKLES):
            raise AdapterError(
                f"'{repo}' holds {quote_untrusted(path)}, a pickle, which can run code: ask its owner for a revision "
                f"with {WEIGHTS_NAME} alone."
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
                f"'{repo}': {path} has {files[path].size / 1e6:.1f} MB, the limit is {limit / 1e6:.1f} MB: "
                "it is not downloaded, ask its owner for a smaller one."
            )


def _check_download(repo: str, path: str, fetched: Path, expected: RemoteFile) -> None:
    size = fetched.stat().st_size
    if size == expected.size and expected.sha256:
        with fetched.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256
    else:
        whole = size == expected.size
    if not whole:
        raise AdapterError(
            f"{path} of '{repo}' arrived damaged ({size} of {expected.size} bytes, or other ones than the Hub "
            "announced): run the same command again."
        )
