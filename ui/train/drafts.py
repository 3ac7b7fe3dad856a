"""What a visitor means to train on: the file they uploaded or the data set they named, kept over refreshes.

One draft a visitor, in `<home>/uploads/<visitor>/`: draft.json, and an uploaded file in a folder of its digest. A job
copies the file, so a new upload may replace it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from common.paths import check_disk_space, make_dir
from errors import DataError, DiskSpaceError, PromptOrTuneError
from tasks.datasets.hub import is_hub_id
from tasks.datasets.registry import DATASETS
from tasks.datasets.tables import FORMATS
from ui.visitors import check_upload_size

_DRAFT_FILE = "draft.json"
_MAX_NAME_LENGTH = 80
_BLOCK_BYTES = 1 << 20
# A draft that nobody came back to is thrown away.
_MAX_AGE_DAYS = 30
_VISITOR_ID = re.compile(r"[a-z]+-[0-9a-f]{16}")


@dataclass(frozen=True)
class Draft:
    """The rows, which columns are read, and what was filled in.

    `name` is a safe file name (with `digest` and `size`) or a data set's name. `columns` are those that a person
    chose as (intent, code), None for those that were recognised, which are `recognised` once they are known.
    """

    name: str
    digest: str = ""
    size: int = 0
    columns: tuple[str, str] | None = None
    recognised: tuple[str, str] | None = None
    technique: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        """Whether it was uploaded."""
        return bool(self.digest)


class DraftStore:
    """All visitors' drafts on disk. Thread-safe: files are replaced whole."""

    def __init__(self, home: Path) -> None:
        self._root = home / "uploads"

    def get(self, visitor: str) -> Draft | None:
        """The visitor's draft, None where there is none or its file is gone."""
        try:
            values = json.loads((self._folder(visitor) / _DRAFT_FILE).read_text(encoding="utf-8"))
            if not (isinstance(values["name"], str) and isinstance(values.get("settings", {}), dict)):
                return None
            draft = Draft(
                **{each.name: _list_to_tuple(values[each.name]) for each in fields(Draft) if each.name in values}
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return None if draft.is_file and not self.path(visitor, draft).is_file() else draft

    def path(self, visitor: str, draft: Draft) -> Path:
        """Where an uploaded draft's file lies."""
        return self._folder(visitor) / draft.digest / draft.name

    def save_upload(self, visitor: str, upload: Path, limit: int) -> Draft:
        """Copies an uploaded file; it replaces the visitor's earlier one. PromptOrTuneError where it is too large."""
        size = upload.stat().st_size
        check_upload_size(size, limit, f"'{upload.name}'")
        folder = make_dir(self._folder(visitor))
        check_disk_space(folder, size)
        draft = Draft(safe_file_name(upload.name), _file_digest(upload), size)
        target = self.path(visitor, draft)
        part = make_dir(target.parent) / f".{draft.name}.part"
        try:
            shutil.copyfile(upload, part)
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DiskSpaceError(
                f"'{draft.name}' could not be kept ({error.strerror or error}): free some room, or tell the owner of "
                "this app."
            ) from error
        self.save(visitor, draft)
        self._delete_outdated(folder, draft.digest)
        return draft

    def select_dataset(self, visitor: str, name: str) -> Draft:
        """A draft of one of our data sets or one of the Hub; DataError for any other name."""
        draft = Draft(check_dataset_name(name))
        self.save(visitor, draft)
        return draft

    def save(self, visitor: str, draft: Draft) -> None:
        """Keeps the draft as it is now."""
        folder = make_dir(self._folder(visitor))
        part = folder / f".{_DRAFT_FILE}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            part.write_text(json.dumps(asdict(draft)), encoding="utf-8")
            part.replace(folder / _DRAFT_FILE)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DiskSpaceError(f"What you filled in could not be kept ({error.strerror or error}).") from error

    def delete(self, visitor: str) -> None:
        """Removes the visitor's draft and file."""
        shutil.rmtree(self._folder(visitor), ignore_errors=True)

    def _folder(self, visitor: str) -> Path:
        if not _VISITOR_ID.fullmatch(visitor):
            raise PromptOrTuneError("Nobody is known by that name: load the page again.")
        return self._root / visitor

    def _delete_outdated(self, folder: Path, digest: str) -> None:
        for each in folder.iterdir():
            if each.is_dir() and each.name != digest:
                shutil.rmtree(each, ignore_errors=True)
        for other in self._root.iterdir():
            if other != folder and _age_seconds(other / _DRAFT_FILE) > _MAX_AGE_DAYS * 24 * 3600:
                shutil.rmtree(other, ignore_errors=True)


def safe_file_name(name: str) -> str:
    """The file's name without folders and without anything that is no letter, digit, dot, dash or underscore."""
    base = PurePosixPath(name.replace("\\", "/")).name
    clean = re.sub(r"[^\w.-]+", "_", base, flags=re.ASCII).lstrip(".-")
    ending = PurePosixPath(clean).suffix
    stem = clean.removesuffix(ending)[: _MAX_NAME_LENGTH - len(ending)]
    return f"{stem or 'upload'}{ending}" if len(ending) < _MAX_NAME_LENGTH else "upload"


def check_dataset_name(name: str) -> str:
    """A data set's name as a visitor may give it: one of ours, or one of the Hub; never a path of this machine."""
    name = name.strip()
    if name in DATASETS:
        return name
    repository = re.split("[@:]", name, maxsplit=1)[0]
    is_path = repository.startswith((".", "/", "~")) or "/." in repository or Path(repository).exists()
    if not is_hub_id(name) or is_path or PurePosixPath(name).suffix.casefold() in FORMATS:
        raise DataError(
            f"'{name[:80]}' is no data set: write user/name (or user/name@revision) as on the Hugging Face Hub, or one "
            f"of {', '.join(DATASETS)}; a file of your own can be dropped beside it."
        )
    return name


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
