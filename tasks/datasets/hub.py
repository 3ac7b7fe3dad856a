"""Files of data sets on the Hugging Face Hub, read through `datasets`, which is imported here alone and only when used.

Every file is named with its repository, a pinned revision and its path. That is what `datasets` needs to read
repositories whose loading scripts it no longer runs, it fails at once when the Hub cannot be reached (a repository's
name alone is retried for half a minute), and it finds what an earlier call left in the cache without asking the Hub.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from errors import DataError
from tasks.datasets.jsonl import DatasetRow

_NOISY_LOGGERS = ("datasets", "huggingface_hub", "httpx", "httpx2", "fsspec")


@dataclass(frozen=True)
class HubFile:
    """One file of a data set's repository; `format` names the reader of `datasets` ("json" or "parquet")."""

    repo: str
    revision: str
    path: str
    format: str

    @property
    def url(self) -> str:
        """The address that `datasets` takes as a data file."""
        return f"hf://datasets/{self.repo}@{self.revision}/{self.path}"


def load_table(file: HubFile, title: str) -> Any:
    """The file as a datasets.Dataset. Whatever goes wrong becomes one DataError that names the other way."""
    try:
        return _load_dataset(file)
    except Exception as fault:
        raise DataError(
            f"{title} ({file.path} of {file.repo}) could not be loaded from the Hugging Face Hub "
            f"({_short_reason(fault)}): give the folder with its files as --data-dir FOLDER (JSONL), or check the connection."
        ) from fault


def load_rows(file: HubFile, title: str) -> list[DatasetRow]:
    """All rows of the file."""
    return [make_row(file, number, values) for number, values in enumerate(load_table(file, title), start=1)]


def make_row(file: HubFile, number: int, values: dict[str, Any]) -> DatasetRow:
    """A row of a table with its place."""
    return DatasetRow(f"{file.repo}, {file.path}, row {number}", values)


def _load_dataset(file: HubFile) -> Any:
    with silence_libraries():
        import datasets
        from huggingface_hub import try_to_load_from_cache

        with silence_libraries():  # again: the import above sets the libraries' own levels
            cached = try_to_load_from_cache(file.repo, file.path, revision=file.revision, repo_type="dataset")
            where = cached if isinstance(cached, str) else file.url
            return datasets.load_dataset(file.format, data_files=where, split="train")


def _short_reason(error: BaseException) -> str:
    """The first sentence of the fault's message, short: these libraries' messages can run over several."""
    text = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    if len(text) > 120:
        text = text[:119] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Keeps back the libraries' log lines and warnings: what matters of them is in our error."""
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
