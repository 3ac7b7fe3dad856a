"""Data set files on the Hugging Face Hub: our own data sets at pinned revisions, and any repository with table files.

Our data sets are read with `datasets`, which is imported here only and at first use. Every file is named with its
repository, a pinned revision and its path: `datasets` can then read repositories whose loading scripts it no longer
runs, fails at once when the Hub cannot be reached (a repository name alone is retried for half a minute), and finds
cached files without a request.

Any other data set is given as `user/name`, `user/name@revision`, or `user/name:path` (or `@revision:path`) for a file
or folder of it. Its training and validation files are chosen by their names. Scripts of a repository are never run.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from common.format import format_bytes
from common.hub import HubAccess, cache_error_message, cache_may_help, trim_visitor_cache, uncached_message
from errors import DataError
from tasks.datasets.base import DatasetRow
from tasks.datasets.tables import FORMATS, MAX_BYTES

# Access to data sets that are not our own. One for the process, as a process works for one person at a time.
_access = HubAccess()
_NOISY_LOGGERS = ("datasets", "huggingface_hub", "httpx", "httpx2", "fsspec")


@contextmanager
def use_hub_access(access: HubAccess) -> Iterator[None]:
    """Fetch data sets in this process with `access` during the block."""
    global _access  # noqa: PLW0603 - a context variable would be lost in threads, and with it the restriction
    previous, _access = _access, access
    try:
        yield
    finally:
        _access = previous


@dataclass(frozen=True)
class HubFile:
    """A file of a data set's repository; `format` is that of `datasets` ("json" or "parquet")."""

    repo: str
    revision: str
    path: str
    format: str

    @property
    def url(self) -> str:
        """The address that `datasets` takes as a data file."""
        return f"hf://datasets/{self.repo}@{self.revision}/{self.path}"


def load_table(file: HubFile, title: str) -> Any:
    """Load the file as a datasets.Dataset; raises DataError, which names --data-dir, for any failure."""
    try:
        return _load_dataset(file)
    except Exception as error:
        raise DataError(
            f"{title} ({file.path} of {file.repo}) could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}): give the folder with its files as --data-dir FOLDER (JSONL), or "
            "check the connection."
        ) from error


def load_rows(file: HubFile, title: str) -> list[DatasetRow]:
    """Load all rows of the file."""
    return [make_row(file, number, values) for number, values in enumerate(load_table(file, title), start=1)]


def make_row(file: HubFile, number: int, values: dict[str, Any]) -> DatasetRow:
    """Return a row of a table with its location."""
    return DatasetRow(f"{file.repo}, {file.path}, row {number}", values)


def _load_dataset(file: HubFile) -> Any:
    with silence_libraries():
        import datasets
        from huggingface_hub import try_to_load_from_cache

        with silence_libraries():  # again: the import above sets the libraries' own levels
            cached = try_to_load_from_cache(file.repo, file.path, revision=file.revision, repo_type="dataset")
            source = cached if isinstance(cached, str) else file.url
            # Our data sets are public: a token of this machine would only tell who asks.
            return datasets.load_dataset(file.format, data_files=source, split="train", token=False)


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Suppress the libraries' log lines and warnings; our error has what matters of them."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


_SPEC = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@\s]+))?(?::(?P<path>[^:\s]+))?")
# After this long a Hub that does not answer counts as unreachable.
_REQUEST_TIMEOUT_S = 10
_TRAIN, _VALIDATION, _TEST = {"train", "training"}, {"validation", "valid", "val", "dev"}, {"test", "eval"}
_METADATA_FILES = {"dataset_infos.json", "dataset_info.json", "state.json", "config.json"}
_DATASET_CARD = "README.md"
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\n---", re.DOTALL)
_LICENCE = re.compile(r"^license:[ \t]*(?:\r?\n[ \t]*-[ \t]*|\[[ \t]*)?['\"]?([\w.+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class HubTables:
    """Files of a data set in the Hub's cache; `licence` is "" where the card has none."""

    name: str
    revision: str
    licence: str
    train: tuple[Path, ...]
    validation: tuple[Path, ...]


def is_hub_id(text: str) -> bool:
    """Whether this can be the name of a data set on the Hub."""
    return _SPEC.fullmatch(text) is not None


def fetch_tables(spec: str) -> HubTables:
    """Download what is not in the cache yet. Without a connection to the Hub the cache is used.

    Raises DataError.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise DataError(f"'{spec}' is not a data set of the Hub: write user/name, or user/name@revision.")
    name, revision, within = match["name"], match["revision"], match["path"] or ""
    with silence_libraries():
        from huggingface_hub import HfApi

        try:
            info = HfApi().dataset_info(
                name, revision=revision, timeout=_REQUEST_TIMEOUT_S, files_metadata=True, token=_access.token
            )
        except Exception as error:  # errors of several libraries
            if not cache_may_help(error):
                raise DataError(cache_error_message(error, name, "looking up", revision, "data set")) from error
            return _find_cached(name, revision, within, error)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        train, validation = select_files(name, sizes, within)
        size = sum(sizes[path] for path in train)
        if size > MAX_BYTES:
            raise DataError(
                f"The training files of '{name}' have {format_bytes(size)} and the limit is {format_bytes(MAX_BYTES)}: "
                f"name one of them, as {name}:{train[0]}."
            )
        return _download(name, str(info.sha), train, validation, has_card=_DATASET_CARD in sizes)


def select_files(name: str, files: Iterable[str], within: str = "") -> tuple[list[str], list[str]]:
    """Choose training and validation files by their names; the shards of a file are one group."""
    tables = sorted(
        path
        for path in files
        if PurePosixPath(path).suffix in FORMATS
        and PurePosixPath(path).name not in _METADATA_FILES
        and (not within or path == within or path.startswith(within.rstrip("/") + "/"))
    )
    if not tables:
        location = f"under '{within}'" if within else "in it"
        raise DataError(
            f"The data set '{name}' has no {', '.join(FORMATS)} file {location}: check its page on the Hub."
        )
    if within in tables:
        return [within], []
    groups = _group_shards([path for path in tables if _name_words(path) & _TRAIN])
    if not groups:
        groups = _group_shards([path for path in tables if not _name_words(path) & (_VALIDATION | _TEST)])
    if len(groups) != 1:
        firsts = [group[0] for group in (groups or _group_shards(tables)).values()]
        listing = ", ".join(firsts[:8]) + (f" and {len(firsts) - 8} more" if len(firsts) > 8 else "")
        raise DataError(
            f"The data set '{name}' has several files that could be the training rows ({listing}): "
            f"name one, as {name}:{firsts[0]}."
        )
    ((key, train),) = groups.items()
    return train, _group_shards([path for path in tables if _name_words(path) & _VALIDATION]).get(key, [])


def _group_shards(paths: Sequence[str]) -> dict[str, list[str]]:
    """Group the files whose names differ only in their split and their numbers."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        words = "".join(
            "*" if word.casefold() in _TRAIN | _VALIDATION else word for word in re.split(r"([^A-Za-z]+)", path)
        )
        groups.setdefault(re.sub(r"\d+", "#", words), []).append(path)
    return groups


def _name_words(path: str) -> set[str]:
    return set(re.split(r"[^a-z]+", path.casefold()))


def _download(name: str, commit: str, train: Sequence[str], validation: Sequence[str], *, has_card: bool) -> HubTables:
    from huggingface_hub import hf_hub_download

    def get(path: str) -> Path:
        return Path(
            hf_hub_download(
                name, path, repo_type="dataset", revision=commit, token=_access.token, cache_dir=_access.cache
            )
        )

    try:
        trim_visitor_cache(_access)
        card = get(_DATASET_CARD) if has_card else None
        return HubTables(name, commit, _licence(card), tuple(map(get, train)), tuple(map(get, validation)))
    except Exception as error:
        raise DataError(cache_error_message(error, name, "downloading", commit, "data set")) from error


def _find_cached(name: str, revision: str | None, within: str, error: Exception) -> HubTables:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name, repo_type="dataset", revision=revision, local_files_only=True, cache_dir=_access.cache
            )
        )
    except Exception:  # noqa: BLE001 - as above
        raise DataError(uncached_message(error, f"the data set '{name}'", "give a file")) from error
    cached = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    train, validation = select_files(name, cached, within)
    card = folder / _DATASET_CARD if _DATASET_CARD in cached else None
    files = [tuple(folder / path for path in paths) for paths in (train, validation)]
    return HubTables(name, folder.name, _licence(card), files[0], files[1])


def _licence(card: Path | None) -> str:
    """Return the licence in the card's front matter, the first one of a list."""
    if card is None:
        return ""
    front = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    licence = _LICENCE.search(front[1]) if front else None
    return licence[1] if licence else ""
