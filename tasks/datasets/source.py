"""What the package knows of one data set: how its folder is recognised, read, and fetched from the Hub instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from errors import DataError
from tasks.problem import Problem


@dataclass(frozen=True)
class DatasetSource:
    """One data set.

    `marks` are glob patterns of which the data set's own folder matches at least one, `layout` says the same to a
    person. `read` takes that folder and a split, `fetch` takes a split and asks the Hub.
    """

    name: str
    title: str
    patterns: tuple[str, ...]
    layout: str
    read: Callable[[Path, str], list[Problem]]
    fetch: Callable[[str], list[Problem]]

    def find(self, data_dir: Path, names: frozenset[str]) -> Path | None:
        """The folder in `data_dir`, or `data_dir` itself, that holds this data set; None when neither does.

        Several data sets have files of the same names, so a folder that is called like another one (`names`) is
        not taken for this one.
        """
        if self._matches(data_dir / self.name):
            return data_dir / self.name
        if data_dir.name not in names - {self.name} and self._matches(data_dir):
            return data_dir
        return None

    def folder(self, data_dir: Path, names: frozenset[str]) -> Path:
        """As `find`, with a DataError that says what is expected when there is nothing."""
        if not data_dir.is_dir():
            raise DataError(f"No such data folder: {data_dir} (--data-dir) should hold {self.layout}.")
        found = self.find(data_dir.resolve(), names)
        if found is None:
            raise DataError(f"{self.title} is not in {data_dir} (--data-dir): expected there is {self.layout}.")
        return found

    def _matches(self, folder: Path) -> bool:
        return folder.is_dir() and any(next(folder.glob(mark), None) is not None for mark in self.patterns)
