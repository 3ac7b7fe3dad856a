"""Draft of a training job per visitor: the uploaded file or named data set, its columns, and the settings.

A draft is stored in `<home>/uploads/<visitor>/`: draft.json, and an uploaded file in a folder named by its digest. A
job copies the file, so a new upload may replace it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from common.files import check_disk_space, make_dir, make_private_dir
from common.format import format_bytes
from errors import DataError, DiskSpaceError, PromptOrTuneError
from jobs.job import safe_file_name
from tasks.datasets.hub import is_hub_id
from tasks.datasets.own import is_own_dataset
from tasks.datasets.registry import DATASETS, TRAINING_DATASETS, require_training
from tasks.datasets.tables import FORMATS
from ui.access.bodies import ADDRESS_SHARE
from ui.access.quota import check_upload_size

_DRAFT_FILE = "draft.json"
_BLOCK_BYTES = 1 << 20
# Older drafts are deleted.
_MAX_AGE_DAYS = 30
MAX_DRAFTS = 5_000  # a draft of a few bytes takes a folder, too
_EVERYBODY_FULL = "ask the owner of this app to make room, or train with `python -m train` on a machine of your own."
_VISITOR_ID = re.compile(r"[a-z]+-[0-9a-f]{16}")


@dataclass(frozen=True)
class Draft:
    """Rows, columns and settings of a draft.

    `name` is a safe file name (with `digest` and `size` in bytes) or a data set's name. `columns` are the (intent,
    code) columns that the visitor chose; None means the `recognised` ones, which are set by the preview. `address` is a
    hash of the address that the rows came from, '' with a login.
    """

    name: str
    digest: str = ""
    size: int = 0
    columns: tuple[str, str] | None = None
    recognised: tuple[str, str] | None = None
    technique: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    address: str = ""

    @property
    def is_file(self) -> bool:
        """Whether the rows are an uploaded file."""
        return bool(self.digest)


class DraftStore:
    """All visitors' drafts on disk, of at most `total_bytes` (0: any size). Thread-safe.

    Those of one address have a part of the total, as cookies can be made up. Files are replaced atomically; one upload
    is copied at a time, so that two do not pass the total together.
    """

    def __init__(self, home: Path, total_bytes: int = 0) -> None:
        self._root = home / "uploads"
        self._total_bytes = total_bytes
        self._upload_lock = threading.Lock()

    def get(self, visitor: str) -> Draft | None:
        """Return the visitor's draft; None if there is none, or it is broken, or its file is gone."""
        try:
            values = json.loads((self._folder(visitor) / _DRAFT_FILE).read_text(encoding="utf-8"))
            if not (isinstance(values["name"], str) and isinstance(values.get("settings", {}), dict)):
                return None
            names = [field.name for field in fields(Draft) if field.name in values]
            draft = Draft(**{name: _list_to_tuple(values[name]) for name in names})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return None if draft.is_file and not self.path(visitor, draft).is_file() else draft

    def path(self, visitor: str, draft: Draft) -> Path:
        """Return the path of a draft's uploaded file."""
        return self._folder(visitor) / draft.digest / draft.name

    def save_upload(self, visitor: str, upload: Path, limit: int, address: str = "") -> Draft:
        """Copy an uploaded file of at most `limit` bytes (0: any size); it replaces the visitor's draft.

        `address` is that of a visitor without a login, '' with one.

        Raises PromptOrTuneError if it is too large, DiskSpaceError if it cannot be written.
        """
        size = upload.stat().st_size
        check_upload_size(size, limit, f"'{upload.name}'")
        with self._upload_lock:
            return self._save_upload(visitor, upload, size, address)

    def _save_upload(self, visitor: str, upload: Path, size: int, address: str) -> Draft:
        self._check_total(visitor, size, address)
        folder = self._make_folder(visitor)
        check_disk_space(folder, size)
        draft = Draft(safe_file_name(upload.name), _file_digest(upload), size, address=address)
        target = self.path(visitor, draft)
        part = make_dir(target.parent) / f".{draft.name}.part"
        try:
            shutil.copyfile(upload, part)
            part.chmod(0o600)
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DiskSpaceError(
                f"'{draft.name}' could not be saved ({error.strerror or error}): free some disk space, or ask the "
                "owner of this app to."
            ) from error
        self.save(visitor, draft)
        _delete_others(folder, draft.digest)
        return draft

    def select_dataset(self, visitor: str, name: str, address: str = "", *, own: bool = False) -> Draft:
        """Save a draft of a data set that has a name. Raises DataError as `check_dataset_name` does."""
        draft = Draft(check_dataset_name(name, own=own), address=address)
        self.save(visitor, draft)
        return draft

    def save(self, visitor: str, draft: Draft) -> None:
        """Write the draft. Raises DiskSpaceError if it cannot be written."""
        if not self._folder(visitor).is_dir():
            self._check_total(visitor, 0, draft.address)
        folder = self._make_folder(visitor)
        part = folder / f".{_DRAFT_FILE}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            part.write_text(json.dumps(asdict(draft)), encoding="utf-8")
            part.chmod(0o600)
            part.replace(folder / _DRAFT_FILE)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DiskSpaceError(f"Your settings could not be saved ({error.strerror or error}).") from error

    def delete(self, visitor: str) -> None:
        """Delete the visitor's draft and file."""
        shutil.rmtree(self._folder(visitor), ignore_errors=True)

    def _folder(self, visitor: str) -> Path:
        if not _VISITOR_ID.fullmatch(visitor):
            raise PromptOrTuneError("This visitor is not known: load the page again.")
        return self._root / visitor

    def _make_folder(self, visitor: str) -> Path:
        make_private_dir(self._root)
        return make_dir(self._folder(visitor))

    def _check_total(self, visitor: str, size: int, address: str = "") -> None:
        """Delete outdated drafts; raise PromptOrTuneError where the others and `size` more bytes exceed a total."""
        own = self._folder(visitor)
        others = [folder for folder in self._root.iterdir() if folder != own] if self._root.is_dir() else []
        for folder in others:
            if _age_seconds(folder / _DRAFT_FILE) > _MAX_AGE_DAYS * 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)
        others = [folder for folder in others if folder.is_dir()]
        if len(others) >= MAX_DRAFTS:
            raise PromptOrTuneError(f"{MAX_DRAFTS:,} people have rows here, which is the limit: {_EVERYBODY_FULL}")
        if 0 < self._total_bytes < size + sum(map(_folder_bytes, others)):
            raise PromptOrTuneError(
                f"The rows of all people here may take {format_bytes(self._total_bytes)}, and this file does not fit: "
                f"{_EVERYBODY_FULL}"
            )
        neighbours = list(filter(_is_of(address), others)) if address else []
        if address and len(neighbours) >= MAX_DRAFTS // ADDRESS_SHARE:
            raise PromptOrTuneError(
                f"{len(neighbours):,} people at your address have rows here, which is the limit for one address: "
                f"{_EVERYBODY_FULL}"
            )
        share = self._total_bytes // ADDRESS_SHARE
        if address and 0 < share < size + sum(map(_folder_bytes, neighbours)):
            raise PromptOrTuneError(
                f"The rows of all people at your address may take {format_bytes(share)}, and this file does not fit: "
                "take rows away that you do not need, or train with `python -m train` on a machine of your own."
            )


def check_dataset_name(name: str, *, own: bool = False) -> str:
    """Return the name of a built-in data set, of one of the Hub, or with `own` of one of the owner of the app.

    Raises DataError for any other name, above all for a path of this machine.
    """
    name = name.strip()
    if name in DATASETS or (own and is_own_dataset(name)):
        require_training(name)
        return name
    repository = re.split("[@:]", name, maxsplit=1)[0]
    is_path = repository.startswith((".", "/", "~")) or "/." in repository or Path(repository).exists()
    if not is_hub_id(name) or is_path or PurePosixPath(name).suffix.casefold() in FORMATS:
        raise DataError(
            f"'{name[:80]}' is not a data set: write user/name (or user/name@revision) as on the Hugging Face Hub, or "
            f"one of {', '.join(TRAINING_DATASETS)}; or upload a file of your own."
        )
    return name


def _delete_others(folder: Path, digest: str) -> None:
    """Delete the visitor's earlier files."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != digest:
            shutil.rmtree(path, ignore_errors=True)


def _is_of(address: str) -> Callable[[Path], bool]:
    """Return a function that says whether the draft in a folder came from this address."""

    def is_of(folder: Path) -> bool:
        try:
            return bool(json.loads((folder / _DRAFT_FILE).read_text(encoding="utf-8")).get("address") == address)
        except (OSError, ValueError, AttributeError):
            return False

    return is_of


def _folder_bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:  # deleted at this moment
        return 0


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _file_digest(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()[:16]


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
