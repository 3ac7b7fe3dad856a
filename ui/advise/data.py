"""Data sets of the Advise page: those on this machine with training rows, and to the owner of the app their own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from errors import DataError, unknown_name_error
from jobs.job import Job
from tasks.datasets.registry import TRAINING_DATASETS, available_datasets
from ui.access.policy import Visitor
from ui.context import Context
from ui.own_data import may_use_own, own_names
from ui.train.settings import find_unused_name

DEFAULT_DATA = "house"
_MAX_NAME_LENGTH = 40  # of the data set's part of an adapter's name


def data_names(context: Context, visitor: Visitor) -> list[str]:
    """Return the data sets that the visitor may ask about; own ones come first, then DEFAULT_DATA."""
    here = [name for name in available_datasets(context.data_dir) if name in TRAINING_DATASETS]
    here.sort(key=lambda name: name != DEFAULT_DATA)
    return [*own_names(own=may_use_own(context, visitor)), *here]


def check_data(context: Context, visitor: Visitor, name: object) -> str:
    """Return the name of a data set that the visitor may ask about.

    Raises UnknownNameError for any other: to others the names of the owner's data sets do not exist.
    """
    names = data_names(context, visitor)
    if not isinstance(name, str) or not name:
        raise DataError("Choose a data set, or upload a file with your rows.")
    if name not in names:
        raise unknown_name_error("data set", name[:100], names)
    return name


def free_adapter_name(data: str, home: Path, jobs: Iterable[Job]) -> str:
    """Return a name for the adapter of an advice about this data set that no adapter and no job has."""
    slug = re.sub(r"[^a-z0-9]+", "-", data).strip("-")[:_MAX_NAME_LENGTH].strip("-")
    return find_unused_name(f"{slug}-advised", home, jobs)
