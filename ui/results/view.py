"""The chosen runs as one table of problems and methods: who solved what, and which problems a person wants to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluate.results import Result, Run
from ui.labels import method_label

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
