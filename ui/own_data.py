"""Data sets that a visitor may use on the pages: those that everybody has, and to the owner of the app the own ones.

A name of the owner's is to everybody else a name that does not exist: it is neither listed nor confirmed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import unknown_name_error
from tasks.datasets.own import list_own_datasets
from tasks.datasets.registry import (
    DATASETS,
    TRAINING_DATASETS,
    available_datasets,
    dataset_version,
    is_dataset,
    load_problems,
)
from tasks.problem import Problem

if TYPE_CHECKING:
    from ui.access.policy import Visitor
    from ui.context import Context

# Of these only the ones on this machine are listed: their files are large, and mostly for `evaluate`.
_LOCAL_DATASETS = ("humaneval", "humanevalplus", "mbppplus", "leetcode")
Choices = list[tuple[str, str]]


def may_use_own(context: Context, visitor: Visitor) -> bool:
    """Return whether the visitor may use the data sets of the owner of the app."""
    return context.visitors.policy.may(visitor, "use own data sets")


def own_allowed(context: Context, request: Any) -> bool:
    """Return the same for the visitor of a request."""
    return may_use_own(context, context.visitors.identify(request))


def own_names(*, own: bool) -> list[str]:
    """Return the names of the owner's data sets, if `own` says that the visitor may use them."""
    return [info.name for info in list_own_datasets() if info.name not in DATASETS] if own else []


def check_dataset(name: object, *, own: bool, examples: bool = False) -> str:
    """Return the name of a data set that the visitor may use, with `examples` one that examples come from.

    Raises UnknownNameError for any other, also for those of the owner unless `own`.
    """
    known = TRAINING_DATASETS if examples else DATASETS
    name = str(name)
    if name in known or (own and name not in DATASETS and is_dataset(name)):
        return name
    raise unknown_name_error("data set for examples" if examples else "data set", name, [*known, *own_names(own=own)])


def load_split_problems(name: str, data_dir: Path | None, *, own: bool = False) -> tuple[Problem, ...]:
    """Return the test split of a data set, read once for each version of its rows.

    Raises UnknownNameError as `check_dataset` does, and DataError if it cannot be read.
    """
    return _load_version(check_dataset(name, own=own), data_dir, dataset_version(name))


@lru_cache(maxsize=16)
def _load_version(name: str, data_dir: Path | None, version: str) -> tuple[Problem, ...]:
    del version  # of the rows: replaced ones are read again
    return tuple(load_problems(name, "test", data_dir=data_dir))


def data_choices(data_dir: Path | None, *, own: bool = False) -> Choices:
    """Return the data sets as dropdown choices, own ones first; those that are not on this machine name the Hub."""
    available = available_datasets(data_dir)
    listed = [name for name in DATASETS if name in available or name not in _LOCAL_DATASETS]
    return [
        *((name, name) for name in own_names(own=own)),
        *((name if name in available else f"{name} (from the Hub)", name) for name in listed),
    ]


def pool_choices(data_dir: Path | None, *, own: bool = False) -> Choices:
    """Return the data sets that examples can come from, as dropdown choices."""
    return [choice for choice in data_choices(data_dir, own=own) if has_examples(choice[1])]


def has_examples(name: str) -> bool:
    """Return whether examples can come from the data set."""
    return name in TRAINING_DATASETS or name not in DATASETS
