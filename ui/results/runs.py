"""Run library, cached score tables, and the table of problems of the Results page.

Only the .jsonl files in a few folders can be opened, whatever name a browser sends. A run over a data set of one's own
holds its rows, so only who may use these data sets sees it.
"""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from common.files import cache_dir
from errors import PromptOrTuneError, UnknownNameError
from evaluate.results import Result, Run, read_run
from evaluate.table import (
    MethodComparison,
    MethodRow,
    Recommendation,
    compare_methods,
    compare_runs,
    method_rows,
    recommend,
)
from tasks.datasets.registry import DATASETS
from ui import components
from ui.components import method_label

BUNDLED_RUNS_DIR = Path(__file__).resolve().parents[2] / "docs" / "results"
RUN_SUFFIXES = (".jsonl", ".jsonl.gz")
SCORE_SUFFIXES = (".scores.jsonl", ".scores.jsonl.gz")
MAX_DEPTH = 3
MAX_LISTED = 500
MAX_CACHED_RUNS = 8
_MAX_HEAD_BYTES = 1 << 20  # of the first line of a run


def default_runs_dir() -> Path:
    """Return the default folder of the user's own runs: `runs` in PROMPT_OR_TUNE_HOME."""
    return cache_dir() / "runs"


@dataclass(frozen=True)
class RunFile:
    """A file that may be a run. The page shows and sends `name`; the path is never sent to a browser.

    `data` is the name of its data set, '' if the file is no run.
    """

    name: str
    path: Path
    data: str = ""


class RunLibrary:
    """Lists the runs in its folders and reads them; a run is cached until its files change. Thread-safe."""

    def __init__(self, folders: Sequence[tuple[str, Path]]) -> None:
        self._folders = tuple(folders)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[object, ...], Run] = OrderedDict()
        self._data: dict[Path, tuple[object, str]] = {}

    @property
    def folders(self) -> tuple[tuple[str, Path], ...]:
        """The folders, each with the prefix of the names of its runs."""
        return self._folders

    def list_runs(self, *, own: bool = True) -> list[RunFile]:
        """List all files that may be runs, folder by folder, at most MAX_LISTED; those over own data sets if `own`.

        In each folder the files with the fewest parent folders come first, and of these the largest ones.
        """
        entries = []
        for label, folder in self._folders:
            files = sorted(_run_files(folder), key=lambda file: (len(file.parts), -_file_size(file), file.name))
            listed = (
                RunFile(f"{label}/{file.relative_to(folder).as_posix()}", file, self._data_of(file)) for file in files
            )
            entries += [entry for entry in listed if own or entry.data in DATASETS]
        return entries[:MAX_LISTED]

    def _data_of(self, path: Path) -> str:
        """Return the name of the data set in the first line of a file, read once; '' if the file is no run."""
        try:
            state = path.stat()
            key = (state.st_mtime_ns, state.st_size, state.st_ino)
            known = self._data.get(path)
            if known is None or known[0] != key:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    settings = json.loads(file.readline(_MAX_HEAD_BYTES))["settings"]
                known = self._data[path] = key, str(settings["data"])
        except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, RecursionError):
            return ""
        return known[1]

    def load_run(self, name: str, *, own: bool = True) -> Run:
        """Return the run of that name. Raises PromptOrTuneError if it is not listed or its file is broken."""
        path = next((entry.path for entry in self.list_runs(own=own) if entry.name == name), None)
        if path is None:
            raise UnknownNameError(f"There is no run '{name}' any more: choose another one.")
        key = _cache_key(path)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        try:
            run = read_run(path)
        except PromptOrTuneError as error:
            # The message goes to the browser: it must not contain paths of this machine.
            message = str(error).replace(str(path), f"'{name}'").replace(f"{path.parent}/", "")
            raise PromptOrTuneError(message) from error
        with self._lock:
            self._cache[key] = run
            while len(self._cache) > MAX_CACHED_RUNS:
                self._cache.popitem(last=False)
        return run


def _run_files(folder: Path) -> list[Path]:
    """Return the runs under the folder; links to files outside it are left out."""
    if not folder.is_dir():
        return []
    resolved = folder.resolve()
    files = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.name.endswith(RUN_SUFFIXES) or path.name.endswith(SCORE_SUFFIXES):
            continue
        shallow = len(path.relative_to(folder).parts) <= MAX_DEPTH
        if shallow and path.is_file() and path.resolve().is_relative_to(resolved):
            files.append(path)
    return files


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # deleted since it was listed


def _cache_key(path: Path) -> tuple[object, ...]:
    """Return a key that changes with the file of the run or of its scores."""
    prefix = path.name.removesuffix(".gz").removesuffix(".jsonl")
    files = (path, *(path.with_name(prefix + suffix) for suffix in SCORE_SUFFIXES))
    states = (file.stat() for file in files if file.is_file())
    return (path, *((state.st_mtime_ns, state.st_size, state.st_ino) for state in states))


_MAX_CACHED_TABLES = 32
_table_cache_lock = threading.Lock()
# Bootstraps over hundreds of problems take seconds. The keys contain the ids of the runs, which the values keep alive;
# RunLibrary returns the same object for the same file.
_table_cache: OrderedDict[tuple[object, ...], tuple[tuple[Run, ...], Any]] = OrderedDict()


def cached_rows(run: Run) -> list[MethodRow]:
    """Return a row for each method with scored results."""
    return list(_compute_cached("rows", (run,), lambda: method_rows(run)))


def cached_pairs(run: Run) -> list[MethodComparison]:
    """Return the pairwise comparisons of the methods of a run."""
    return list(_compute_cached("pairs", (run,), lambda: compare_methods(run)))


def cached_recommendation(run: Run) -> Recommendation | None:
    """Return the recommendation of a scored run, None where there is none (evaluate.table.recommend)."""
    recommendation: Recommendation | None = _compute_cached("recommendation", (run,), lambda: recommend(run))
    return recommendation


def cached_pairs_across(runs: Sequence[Run]) -> tuple[list[MethodComparison], str]:
    """Compare the methods that several runs share; the text says why they are not compared, '' if they are.

    Runs over different problems share nothing to compare, and the page has a message about them already.
    """

    def compute() -> tuple[list[MethodComparison], str]:
        if len({run.settings.get("data_digest") for run in runs}) > 1:
            return [], ""
        try:
            return (list(compare_runs(runs)) if len(runs) > 1 else []), ""
        except PromptOrTuneError as error:
            return [], without_folders(str(error), runs)

    pairs, refusal = _compute_cached("across", tuple(runs), compute)
    return list(pairs), refusal


def without_folders(text: str, runs: Sequence[Run]) -> str:
    """Return a message without the folders of the runs, which a browser must not see."""
    for folder in {run.path.parent for run in runs if run.path.is_absolute()}:
        text = text.replace(f"{folder}/", "")
    return text


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


FILTERS = {
    "all": "All problems",
    "failures": "Failures of the method",
    "only": "Solved by this method alone",
    "some": "Solved by some, not by all",
    "none": "Solved by nobody",
}


@dataclass(frozen=True)
class MethodColumn:
    """One method of one run: a column of the table. `key` identifies it in the page, `label` is its title."""

    key: str
    label: str
    method: str
    run: Run


@dataclass(frozen=True)
class ProblemRow:
    """One problem and its result in each column (by key); columns that have not answered it are missing."""

    problem: Mapping[str, Any]
    results: Mapping[str, Result]

    @property
    def id(self) -> str:
        return str(self.problem["id"])


@dataclass(frozen=True)
class ProblemTable:
    """Problems by columns. `excluded_runs` are the names of runs with other problems, which have no columns."""

    columns: tuple[MethodColumn, ...] = ()
    rows: tuple[ProblemRow, ...] = ()
    excluded_runs: tuple[str, ...] = ()
    row_index: Mapping[str, int] = field(default_factory=dict)


def make_problem_table(runs: Sequence[tuple[str, Run]]) -> ProblemTable:
    """Build the table of all methods of the runs that have the same problems as the first one."""
    if not runs:
        return ProblemTable()
    first = runs[0][1]
    same = [(name, run) for name, run in runs if _problem_set(run) == _problem_set(first)]
    excluded = tuple(name for name, run in runs if _problem_set(run) != _problem_set(first))
    columns = tuple(column for name, run in same for column in _method_columns(name, run, several=len(same) > 1))
    results = {
        column.key: {result.problem: result for result in column.run.results(column.method)} for column in columns
    }
    rows = tuple(
        ProblemRow(
            problem,
            {key: by_problem[problem["id"]] for key, by_problem in results.items() if problem["id"] in by_problem},
        )
        for problem in first.problems
    )
    return ProblemTable(columns, rows, excluded, {row.id: i for i, row in enumerate(rows)})


def is_solved(result: Result) -> bool:
    """Return whether the first candidate passes all tests or, without tests, equals the reference."""
    if result.checks:
        return bool(result.checks[0]) and all(check["passed"] for check in result.checks[0])
    return result.scores.get("em@1") == 1


def outcome(result: Result | None) -> str:
    """Return 'solved', 'failed' (no answer), 'wrong', 'unscored', or 'missing' (not run yet)."""
    if result is None:
        return "missing"
    if result.error is not None:
        return "failed"
    if not result.checks and result.scores.get("em@1") is None:
        return "unscored"
    return "solved" if is_solved(result) else "wrong"


def filter_rows(table: ProblemTable, show: str, method: str, query: str) -> list[ProblemRow]:
    """Return the rows that match a filter and contain all words of `query`. `method` is a column's key, '' for all."""
    words = query.casefold().split()
    return [
        row
        for row in table.rows
        if _matches_filter(table, row, show, method) and all(word in _searchable_text(row) for word in words)
    ]


def failures_first(table: ProblemTable, method: str = "") -> list[ProblemRow]:
    """Return all rows, those that the fewest methods solved first; first of all the failures of the column `method`."""

    def key(row: ProblemRow) -> tuple[bool, int]:
        outcomes = {column.key: outcome(row.results.get(column.key)) for column in table.columns}
        return outcomes.get(method) == "solved", list(outcomes.values()).count("solved")

    return sorted(table.rows, key=key)


def _matches_filter(table: ProblemTable, row: ProblemRow, show: str, method: str) -> bool:
    outcomes = {column.key: outcome(row.results.get(column.key)) for column in table.columns}
    solved_by = {key for key, value in outcomes.items() if value == "solved"}
    selected = {method} if method in outcomes else set(outcomes)
    if show == "failures":
        return any(outcomes[key] in ("wrong", "failed") for key in selected)
    if show == "only":
        return len(solved_by) == 1 and solved_by <= selected
    if show == "some":
        return 0 < len(solved_by) < len(outcomes) and (method not in outcomes or method in solved_by)
    return not solved_by if show == "none" else True


def _searchable_text(row: ProblemRow) -> str:
    """Return the text that is searched: id, question, reference and first candidates."""
    codes = [result.candidates[0]["code"] for result in row.results.values() if result.candidates]
    parts = (row.id, row.problem.get("intent"), row.problem.get("reference"), *codes)
    return "\n".join(str(part) for part in parts if part).casefold()


def _method_columns(name: str, run: Run, *, several: bool) -> list[MethodColumn]:
    end = f" ({_run_file_name(name)})" if several else ""
    return [
        MethodColumn(f"{name}|{method}", method_label(method) + end, method, run)
        for method in run.methods
        if run.results(method)
    ]


def _run_file_name(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".jsonl")


def _problem_set(run: Run) -> tuple[object, ...]:
    return run.settings.get("data"), run.settings.get("data_digest"), tuple(problem["id"] for problem in run.problems)


PAGE_SIZE = 25
_MAX_INTENT_LENGTH = 160


def problem_list_value(
    table: ProblemTable, rows: Sequence[ProblemRow], start: int = 0, selected: str = ""
) -> dict[str, Any]:
    """Return the value of the list: the page of rows with index `start`. `selected` is the id of the open problem."""
    start = min(max(start, 0), max(len(rows) - 1, 0)) // PAGE_SIZE * PAGE_SIZE
    return {
        "head": _count_text(table, len(rows)),
        "columns": [column.label for column in table.columns],
        "rows": [_row_value(table, row) for row in rows[start : start + PAGE_SIZE]],
        "from": start,
        "size": PAGE_SIZE,
        "total": len(rows),
        "shown": selected,
    }


def summary_component(value: str, elem_id: str = "summary") -> gr.HTML:
    """Return the component of tables and plots. A click on a method triggers `select` with {"method": column key}."""
    return gr.HTML(
        value,
        html_template='<div role="status" aria-live="polite">${value}</div>',
        js_on_load=components.load_script("summary"),
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes="run-summary",
    )


def problem_list_component(elem_id: str = "problems") -> gr.HTML:
    """Return the list of problems. A click triggers `select` with {"id"} for a problem, {"from"} for another page."""
    template = (
        '<p class="result-count" role="status" aria-live="polite"></p><p class="legend muted"><span class="cells" '
        'aria-hidden="true"><span class="solved"></span></span> solved <span class="cells" aria-hidden="true">'
        '<span class="wrong"></span></span> not solved <span class="cells" aria-hidden="true">'
        '<span class="failed"></span></span> no answer; one cell per method, in the order of the table. Solved: the '
        'first candidate passes all tests or, where none ran, is the reference.</p><ol class="problems"></ol>'
        '<div class="pager"></div>'
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=components.load_script("results"),
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes="problem-list",
    )


def _count_text(table: ProblemTable, count: int) -> str:
    total = len(table.rows)
    if count == total:
        return f"{total} problem{'' if total == 1 else 's'}"
    return f"{count} of {total} problems" if count else f"None of {total} problems is like that: loosen the filter."


def _row_value(table: ProblemTable, row: ProblemRow) -> dict[str, Any]:
    outcomes = [outcome(row.results.get(column.key)) for column in table.columns]
    intent = " ".join(str(row.problem["intent"]).split())
    return {
        "id": row.id,
        "intent": intent if len(intent) <= _MAX_INTENT_LENGTH else intent[:_MAX_INTENT_LENGTH].rstrip() + " …",
        "marks": outcomes,
        "said": _solved_text(outcomes),
    }


def _solved_text(outcomes: Sequence[str]) -> str:
    scored = sum(value not in ("missing", "unscored") for value in outcomes)
    if not scored:
        return "not scored"
    return f"solved by {outcomes.count('solved')} of {scored}"
