"""Run library, problem table.

The runs that can be picked: the .jsonl files of a few folders, and nothing else whatever a browser asks for.

Rows and comparisons of runs, computed once: bootstraps over hundreds of problems take seconds.

The chosen runs as one table of problems and methods: who solved what, and which problems a person wants to see.

The list of problems as js/results.js draws it: a page of rows, each with who solved it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from common.paths import cache_dir
from errors import PromptOrTuneError, UnknownNameError
from evaluate.results import Result, Run, read_run
from evaluate.table import MethodComparison, MethodRow, compare_methods, compare_runs, method_rows
from ui import components
from ui.labels import method_label

BUNDLED_RUNS_DIR = Path(__file__).resolve().parents[2] / "docs" / "results"
RUN_SUFFIXES = (".jsonl", ".jsonl.gz")
SCORE_SUFFIXES = (".scores.jsonl", ".scores.jsonl.gz")
MAX_DEPTH = 3
MAX_LISTED = 500
MAX_CACHED_RUNS = 8


def default_runs_dir() -> Path:
    """The user's own runs unless --runs-dir names another folder: `runs` in PROMPT_OR_TUNE_HOME."""
    return cache_dir() / "runs"


@dataclass(frozen=True)
class RunFile:
    """A file that may be a run. `name` is what the page shows and sends back; the path never leaves this machine."""

    name: str
    path: Path


class RunLibrary:
    """Lists runs, and reads those that it listed. A run is read once while its files stay as they are."""

    def __init__(self, folders: Sequence[tuple[str, Path]]) -> None:
        self._folders = tuple(folders)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[object, ...], Run] = OrderedDict()

    @property
    def folders(self) -> tuple[tuple[str, Path], ...]:
        """The folders with the words that stand before their files' names."""
        return self._folders

    def list_runs(self) -> list[RunFile]:
        """All files that may be runs, folder by folder, at most MAX_LISTED; a folder that is missing has none.

        In each folder those that lie in no folder of their own come first, and of these the largest one.
        """
        found = []
        for label, folder in self._folders:
            files = sorted(_run_files(folder), key=lambda file: (len(file.parts), -_file_size(file), file.name))
            found += [RunFile(f"{label}/{file.relative_to(folder).as_posix()}", file) for file in files]
        return found[:MAX_LISTED]

    def load_run(self, name: str) -> Run:
        """The run of that name; PromptOrTuneError in one sentence where it is not listed or its file is broken."""
        path = next((entry.path for entry in self.list_runs() if entry.name == name), None)
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
            # Where it lies is this machine's business; the page names the file as it was listed.
            sentence = str(error).replace(str(path), f"'{name}'").replace(f"{path.parent}/", "")
            raise PromptOrTuneError(sentence) from error
        with self._lock:
            self._cache[key] = run
            while len(self._cache) > MAX_CACHED_RUNS:
                self._cache.popitem(last=False)
        return run


def _run_files(folder: Path) -> list[Path]:
    """Runs under the folder that really lie in it: a link that leads out of it is left out."""
    if not folder.is_dir():
        return []
    inside = folder.resolve()
    found = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.name.endswith(RUN_SUFFIXES) or path.name.endswith(SCORE_SUFFIXES):
            continue
        shallow = len(path.relative_to(folder).parts) <= MAX_DEPTH
        if shallow and path.is_file() and path.resolve().is_relative_to(inside):
            found.append(path)
    return found


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # gone since it was listed


def _cache_key(path: Path) -> tuple[object, ...]:
    """Changes whenever the run or the scores beside it do."""
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    around = (path, *(path.with_name(stem + ending) for ending in SCORE_SUFFIXES))
    found = (file.stat() for file in around if file.is_file())
    return (path, *((state.st_mtime_ns, state.st_size, state.st_ino) for state in found))


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


FILTERS = {
    "all": "All problems",
    "failures": "Failures of the method",
    "only": "Solved by this method alone",
    "some": "Solved by some, not by all",
    "none": "Solved by nobody",
}


@dataclass(frozen=True)
class MethodColumn:
    """One method of one run: a column of the table. `key` names it in the page, `label` is what a person reads."""

    key: str
    label: str
    method: str
    run: Run


@dataclass(frozen=True)
class ProblemRow:
    """One problem, and what each side answered; a side that has not come to it is missing."""

    problem: Mapping[str, Any]
    results: Mapping[str, Result]

    @property
    def id(self) -> str:
        return str(self.problem["id"])


@dataclass(frozen=True)
class ProblemTable:
    """Problems by sides. `left_out` names the runs over other problems: their answers cannot stand side by side."""

    columns: tuple[MethodColumn, ...] = ()
    rows: tuple[ProblemRow, ...] = ()
    excluded_runs: tuple[str, ...] = ()
    row_index: Mapping[str, int] = field(default_factory=dict)


def make_problem_table(runs: Sequence[tuple[str, Run]]) -> ProblemTable:
    """All methods of the runs that are over the same problems as the first one."""
    if not runs:
        return ProblemTable()
    first = runs[0][1]
    same = [(name, run) for name, run in runs if _problem_set(run) == _problem_set(first)]
    left_out = tuple(name for name, run in runs if _problem_set(run) != _problem_set(first))
    sides = tuple(side for name, run in same for side in _method_columns(name, run, several=len(same) > 1))
    answers = {side.key: {result.problem: result for result in side.run.results(side.method)} for side in sides}
    rows = tuple(
        ProblemRow(problem, {key: found[problem["id"]] for key, found in answers.items() if problem["id"] in found})
        for problem in first.problems
    )
    return ProblemTable(sides, rows, left_out, {row.id: place for place, row in enumerate(rows)})


def is_solved(result: Result) -> bool:
    """Whether the first candidate passes all tests or, where none ran, is the reference."""
    if result.checks:
        return bool(result.checks[0]) and all(check["passed"] for check in result.checks[0])
    return result.scores.get("em@1") == 1


def outcome(result: Result | None) -> str:
    """'solved', 'failed' (no answer at all), 'wrong', 'unscored', or 'missing' where the run has not come to it."""
    if result is None:
        return "missing"
    if result.error is not None:
        return "failed"
    if not result.checks and result.scores.get("em@1") is None:
        return "unscored"
    return "solved" if is_solved(result) else "wrong"


def filter_rows(table: ProblemTable, show: str, method: str, query: str) -> list[ProblemRow]:
    """The rows that a person asked for. `method` is a side's key, '' for all; `words` are all looked for."""
    wanted = query.casefold().split()
    return [
        row
        for row in table.rows
        if _matches_filter(table, row, show, method) and all(word in _searchable_text(row) for word in wanted)
    ]


def _matches_filter(table: ProblemTable, row: ProblemRow, show: str, method: str) -> bool:
    marks = {side.key: outcome(row.results.get(side.key)) for side in table.columns}
    winners = {key for key, found in marks.items() if found == "solved"}
    asked = {method} if method in marks else set(marks)
    if show == "failures":
        return any(marks[key] in ("wrong", "failed") for key in asked)
    if show == "only":
        return len(winners) == 1 and winners <= asked
    if show == "some":
        return 0 < len(winners) < len(marks) and (method not in marks or method in winners)
    return not winners if show == "none" else True


def _searchable_text(row: ProblemRow) -> str:
    """What is searched: the question, the reference, and what was answered first."""
    codes = [result.candidates[0]["code"] for result in row.results.values() if result.candidates]
    parts = (row.id, row.problem.get("intent"), row.problem.get("reference"), *codes)
    return "\n".join(str(part) for part in parts if part).casefold()


def _method_columns(name: str, run: Run, *, several: bool) -> list[MethodColumn]:
    end = f" ({_run_stem(name)})" if several else ""
    return [
        MethodColumn(f"{name}|{method}", method_label(method) + end, method, run)
        for method in run.methods
        if run.results(method)
    ]


def _run_stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".jsonl")


def _problem_set(run: Run) -> tuple[object, ...]:
    return run.settings.get("data"), run.settings.get("data_digest"), tuple(problem["id"] for problem in run.problems)


PAGE_SIZE = 25
_MAX_INTENT_LENGTH = 160


def problem_list_value(
    table: ProblemTable, rows: Sequence[ProblemRow], start: int = 0, selected: str = ""
) -> dict[str, Any]:
    """The value of the list: the rows from `start` on, at most PAGE_SIZE of them. `shown` is the open problem's id."""
    start = min(max(start, 0), max(len(rows) - 1, 0)) // PAGE_SIZE * PAGE_SIZE
    return {
        "head": _count_text(table, len(rows)),
        "columns": [side.label for side in table.columns],
        "rows": [_row_value(table, row) for row in rows[start : start + PAGE_SIZE]],
        "from": start,
        "size": PAGE_SIZE,
        "total": len(rows),
        "shown": selected,
    }


def summary_component(value: str) -> gr.HTML:
    """The tables and plots. Its value is HTML; a click on a method triggers `select` with {"method"}: a side's key."""
    return gr.HTML(
        value,
        html_template='<div role="status" aria-live="polite">${value}</div>',
        js_on_load=components.load_script("summary"),
        apply_default_css=False,
        elem_id="summary",
    )


def problem_list_component() -> gr.HTML:
    """The list. A click triggers `select` with {"id"} for a problem and {"from"} for another page."""
    template = (
        '<p class="result-count" role="status" aria-live="polite"></p><p class="legend muted"><span class="cells" '
        'aria-hidden="true"><span class="solved"></span></span> solved <span class="cells" aria-hidden="true">'
        '<span class="wrong"></span></span> not solved <span class="cells" aria-hidden="true">'
        '<span class="failed"></span></span> no answer; one cell a method, in the order of the table. Solved: the '
        'first candidate passes all tests or, where none ran, is the reference.</p><ol class="problems"></ol>'
        '<div class="pager"></div>'
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=components.load_script("results"),
        apply_default_css=False,
        elem_id="problems",
    )


def _count_text(table: ProblemTable, found: int) -> str:
    total = len(table.rows)
    if found == total:
        return f"{total} problem{'' if total == 1 else 's'}"
    return f"{found} of {total} problems" if found else f"None of {total} problems is like that: loosen the filter."


def _row_value(table: ProblemTable, row: ProblemRow) -> dict[str, Any]:
    marks = [outcome(row.results.get(side.key)) for side in table.columns]
    line = " ".join(str(row.problem["intent"]).split())
    return {
        "id": row.id,
        "intent": line if len(line) <= _MAX_INTENT_LENGTH else line[:_MAX_INTENT_LENGTH].rstrip() + " …",
        "marks": marks,
        "said": _solved_text(marks),
    }


def _solved_text(outcomes: Sequence[str]) -> str:
    known = sum(found not in ("missing", "unscored") for found in outcomes)
    if not known:
        return "not scored"
    return f"solved by {outcomes.count('solved')} of {known}"
