"""Rows and comparisons of runs, computed once: bootstraps over hundreds of problems take seconds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from errors import PromptOrTuneError
from evaluate.results import Run
from evaluate.table import MethodComparison, MethodRow, compare_methods, compare_runs, method_rows

_MAX_CACHED_TABLES = 32
_table_cache_lock = threading.Lock()
# By the identity of the runs, which stay alive beside their numbers; the shelf gives the same run for the same file.
_table_cache: OrderedDict[tuple[object, ...], tuple[tuple[Run, ...], Any]] = OrderedDict()


def cached_rows(run: Run) -> list[MethodRow]:
    """One row a method that has scored results."""
    return list(_compute_cached("rows", (run,), lambda: method_rows(run)))


def cached_pairs(run: Run) -> list[MethodComparison]:
    """The comparisons that the run's table invites."""
    return list(_compute_cached("pairs", (run,), lambda: compare_methods(run)))


def cached_pairs_across(runs: Sequence[Run]) -> list[MethodComparison]:
    """Methods that several runs share, against one another; none where the runs are over different problems."""

    def compute() -> list[MethodComparison]:
        try:
            return list(compare_runs(runs)) if len(runs) > 1 else []
        except PromptOrTuneError:
            return []

    return list(_compute_cached("across", tuple(runs), compute))


def _compute_cached(kind: str, runs: tuple[Run, ...], compute: Callable[[], Any]) -> Any:
    key = (kind, *map(id, runs))
    with _table_cache_lock:
        if key in _table_cache:
            _table_cache.move_to_end(key)
            return _table_cache[key][1]
    value = compute()
    with _table_cache_lock:
        _table_cache[key] = runs, value
        while len(_table_cache) > _MAX_CACHED_TABLES:
            _table_cache.popitem(last=False)
    return value
