"""Runs as tables for other programs: CSV of every metric, CSV of every problem, JSON of all that a report says."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from errors import PromptOrTuneError
from evaluate.results import Run
from evaluate.score_run import require_scored
from evaluate.table import MethodComparison, MethodRow, compare_methods, compare_runs, method_rows

# Scores of a single problem that go into the table of problems, where a run has them.
_PROBLEM_METRICS = ("tests", "pass@1", "em@1", "em@{k}", "em_tree@1", "codebleu", "parses")
_FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


def metric_records(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """One record a method and metric: value, low and high of the 95 % interval over n problems; then what it cost.

    Scores lie in [0, 1]; seconds, tokens and memory (bytes) have no interval. With each comes what it depends on.
    """
    for run in runs:
        for row in method_rows(run):
            shared = _row_provenance(run, row)
            for found in row.metrics.values():
                interval = asdict(found.interval)
                yield shared | {"metric": found.metric, "n": found.n, **interval, "interval": found.kind}
            for metric, value in asdict(row.cost).items():
                if value is not None:
                    yield shared | {"metric": metric, "n": row.n - row.errors, "value": value}


def metrics_csv(runs: Sequence[Run]) -> str:
    """`metric_records` as CSV; PromptOrTuneError for a run that is not scored to its end."""
    require_scored(runs)
    return to_csv(metric_records(runs))


def problems_csv(runs: Sequence[Run]) -> str:
    """One row a problem, with each method's scores, first answer and error.

    PromptOrTuneError for runs over different problems, or not scored to their end.
    """
    require_scored(runs)
    first = runs[0]
    for run in runs[1:]:
        if [problem["id"] for problem in run.problems] != [problem["id"] for problem in first.problems]:
            raise PromptOrTuneError(
                f"{run.path} and {first.path} are over different problems: write a table of problems for each."
            )
    answers = {
        (f"{method} ({run.path.stem})" if len(runs) > 1 else method): (run, method)
        for run in runs
        for method in run.methods
    }
    found = {label: {each.problem: each for each in run.results(method)} for label, (run, method) in answers.items()}
    records = []
    for problem in first.problems:
        record = {name: problem.get(name) for name in ("id", "intent", "reference", "difficulty")}
        for label, (run, _) in answers.items():
            result = found[label].get(problem["id"])
            k = run.settings["decoding"]["candidates"]
            for metric in dict.fromkeys(name.format(k=k) for name in _PROBLEM_METRICS):
                record[f"{label}: {metric}"] = result.scores.get(metric) if result else None
            record[f"{label}: answer"] = result.candidates[0]["code"] if result and result.candidates else None
            record[f"{label}: error"] = result.error if result else None
        records.append(record)
    empty = {name for name in records[0] if all(record[name] is None for record in records)} if records else set()
    return to_csv({name: value for name, value in record.items() if name not in empty} for record in records)


def json_report(runs: Sequence[Run], command: str, pairs: Sequence[tuple[str, str]] | None = None) -> str:
    """All that a report says, as JSON: settings, provenance, methods, metrics, and comparisons.

    PromptOrTuneError for a run that is not scored to its end.
    """
    require_scored(runs)
    values = {
        "command": command,
        "runs": [
            {
                "file": run.path.name,
                "settings": run.settings,
                "provenance": run.provenance,
                "scored_with": run.scored_with,
                "methods": run.methods,
                "metrics": list(metric_records([run])),
                "comparisons": [_comparison_record(pair) for pair in compare_methods(run, pairs)],
            }
            for run in runs
        ],
        "across": [_comparison_record(pair) for pair in _cross_run_comparisons(runs)],
    }
    return json.dumps(values, indent=1) + "\n"


def _cross_run_comparisons(runs: Sequence[Run]) -> Sequence[MethodComparison]:
    same = {run.settings["data_digest"] for run in runs}
    try:
        return compare_runs(runs) if len(same) == 1 else []
    except PromptOrTuneError:  # not finished: one method has answered more problems than the other
        return []


def _row_provenance(run: Run, row: MethodRow) -> dict[str, Any]:
    settings, method = run.settings, run.methods[row.method]
    decoding = settings["decoding"]
    return {
        "file": run.path.name,
        "base": settings["base_id"],
        "revision": settings["base_revision"],
        "quantization": settings["quantization"],
        "device": settings["device"],
        "data": settings["data"],
        "split": settings["split"],
        "method": row.method,
        "adapter_digest": method.get("adapter_digest"),
        "prompt": method.get("fingerprint"),
        "mode": decoding["mode"],
        "candidates": decoding["candidates"],
        "seed": settings["seed"],
        "sandbox": run.scored_with.get("tests", {}).get("layer"),
    }


def _comparison_record(comparison: MethodComparison) -> dict[str, Any]:
    values = asdict(comparison)
    return {**values, "difference": values["difference"]["value"], "low": values["difference"]["low"],
            "high": values["difference"]["high"]}  # fmt: skip


def to_csv(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as CSV with a column for every name that any of them has; no cell can be taken for a formula."""
    rows = [dict(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _csv_cell(value: object) -> object:
    """A model wrote some of these texts: a spreadsheet must not take one for a formula (OWASP, CSV injection)."""
    if isinstance(value, str) and value.startswith(_FORMULA_PREFIXES):
        return "'" + value
    return value
