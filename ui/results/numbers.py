"""Rows and comparisons of runs, computed once: bootstraps over hundreds of problems take seconds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from errors import PeftArenaError
from evaluate.results import Run
from evaluate.table import MethodRow, Pair, across, comparisons, method_rows

_KEPT = 32
_lock = threading.Lock()
# By the identity of the runs, which stay alive beside their numbers; the shelf gives the same run for the same file.
_known: OrderedDict[tuple[object, ...], tuple[tuple[Run, ...], Any]] = OrderedDict()


def rows_of(run: Run) -> list[MethodRow]:
    """One row a method that has scored results."""
    return list(_once("rows", (run,), lambda: method_rows(run)))


def pairs_of(run: Run) -> list[Pair]:
    """The comparisons that the run's table invites."""
    return list(_once("pairs", (run,), lambda: comparisons(run)))


def pairs_across(runs: Sequence[Run]) -> list[Pair]:
    """Methods that several runs share, against one another; none where the runs are over different problems."""

    def compute() -> list[Pair]:
        try:
            return list(across(runs)) if len(runs) > 1 else []
        except PeftArenaError:
            return []

    return list(_once("across", tuple(runs), compute))


def _once(kind: str, runs: tuple[Run, ...], compute: Callable[[], Any]) -> Any:
    key = (kind, *map(id, runs))
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key][1]
    value = compute()
    with _lock:
        _known[key] = runs, value
        while len(_known) > _KEPT:
            _known.popitem(last=False)
    return value
