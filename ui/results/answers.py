"""One problem with all methods' answers, as the board that Compare shows."""

from __future__ import annotations

from html import escape
from typing import Any

from evaluate.results import Result
from ui.board import ComparisonView, reference_details
from ui.columns import finished_column
from ui.records import Record
from ui.results.view import MethodColumn, ProblemRow, ProblemTable
from ui.tests_html import format_count_of_tests
from ui.verdict import best_indices, verdict_text

MAX_INTENT = 4_000
# In a run's file a score is named by how many candidates count; a column shows the first candidate's.
_FIRST_CANDIDATE_METRICS = {"em@1": "em", "em_tree@1": "em_tree"}


def problem_view(table: ProblemTable, row: ProblemRow, method: str) -> ComparisonView:
    """The answers of all sides to one problem; the side `method` comes first. Everything is escaped."""
    sides = sorted((side for side in table.columns if side.key in row.results), key=lambda side: side.key != method)
    records = [result_record(side, row, row.results[side.key]) for side in sides]
    marked = best_indices(records)
    cards = [
        finished_column(record, is_best=place in marked, label=side.label)
        for place, (side, record) in enumerate(zip(sides, records, strict=True))
    ]
    run = "|".join([row.id, method, *(side.key for side in sides)])
    return ComparisonView(
        run=run, head=_problem_header(row, records), cards=cards, reference=row.problem.get("reference")
    )


def result_record(column: MethodColumn, row: ProblemRow, result: Result) -> Record:
    """A result as the record that columns, verdicts and exports know. A run keeps no prompt and no raw examples."""
    first = result.candidates[0] if result.candidates else {"code": "", "text": ""}
    checks = [dict(check) for check in result.checks[0]] if result.checks else []
    settings, method = column.run.settings, column.run.methods[column.method]
    return Record(
        method=column.method,
        text=first["text"],
        code=first["code"],
        prompt="",
        examples=[],
        tokens=result.tokens,
        seconds=result.seconds,
        tokens_per_second=None,
        scores=_record_scores(result, checks),
        score_reasons={},
        error=result.error,
        cancelled=False,
        notes=list(result.notes),
        candidates=[_candidate_record(result, place) for place in range(len(result.candidates))],
        prompt_tokens=result.prompt_tokens,
        adapter=method.get("adapter"),
        examples_kind="",
        examples_k=len(result.examples),
        pool=settings["data"],
        prompt_style=method.get("style"),
        prompt_fingerprint=method.get("fingerprint"),
        decoding=settings["decoding"],
        problem_id=row.id,
        intent=row.problem["intent"],
        reference=row.problem.get("reference"),
        asked_tests=[],
        tests_text="",
        tests=checks,
        tests_note="",
        sandbox=column.run.scored_with.get("tests", {}).get("layer"),
        base_id=settings["base_id"],
        base_revision=settings["base_revision"],
        architecture="",
        quantization=settings["quantization"],
        device=settings["device"],
        created=str(column.run.provenance.get("started", "")),
    )


def _record_scores(result: Result, checks: list[dict[str, Any]]) -> dict[str, float | None]:
    """The first candidate's scores under the names of a column, then all others as the run names them."""
    first = {"tests": sum(check["passed"] for check in checks) / len(checks)} if checks else {}
    named = {
        _FIRST_CANDIDATE_METRICS.get(name, name): value for name, value in result.scores.items() if name != "tests"
    }
    over_all = {"tests, all candidates": result.scores["tests"]} if "tests" in result.scores else {}
    return {**first, **named, **over_all}


def _candidate_record(result: Result, index: int) -> dict[str, Any]:
    checks = result.checks[index] if index < len(result.checks) else ()
    return {**result.candidates[index], "tests": [dict(check) for check in checks]}


def _problem_header(row: ProblemRow, records: list[Record]) -> str:
    problem = row.problem
    facts = [row.id, str(problem.get("difficulty") or "")]
    tests = problem.get("tests", ())
    if tests:
        layer = next((record["sandbox"] for record in records if record["tests"] and record["sandbox"]), None)
        facts.append(
            format_count_of_tests(len(tests)) + (f" in the sandbox ({layer})" if layer else ", which have not run")
        )
    fold = reference_details(problem["reference"]) if problem.get("reference") else ""
    intent = str(problem["intent"])
    shown = intent if len(intent) <= MAX_INTENT else intent[:MAX_INTENT] + " …"
    about = escape(" · ".join(filter(None, facts)))
    return (
        f'<h2 class="asked long">{escape(shown)}</h2><div class="about"><p>{about}</p>{fold}</div>'
        f'<p class="said">{escape(verdict_text(records))}</p>'
    )
