"""Results view: score tables, plots and comparisons of the chosen runs, and the answers to one problem.

Every text of a run's file is escaped by the templates. Plots are HTML and SVG, so that they follow the page's theme.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common.format import format_gigabytes
from evaluate.failures import count_unscored, engine_failures_note, missing_note
from evaluate.results import Result, Run
from evaluate.stats import Interval, metric_title
from evaluate.table import MethodRow, render_comparisons, table_footnote, table_metrics
from ui.compare.verdict import best_indices, verdict_text
from ui.compare.view import ComparisonView, finished_column, format_count_of_tests, header_html
from ui.components import decoding_label, format_date, method_label, model_label, render
from ui.results.runs import MethodColumn, ProblemRow, ProblemTable, cached_pairs, cached_pairs_across, cached_rows
from ui.test_bench import Record

# The ends that an axis may have, as shares.
_AXIS_ENDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
# Pixels of the drawing of curves: its size, and its margins (labels stand in the right one).
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 200, 12, 36
_COLOR_COUNT = 6
_LABEL_HEIGHT = 15
_LABEL_LENGTH = 26


@dataclass(frozen=True)
class Bar:
    """A method's value with its interval, both in [0, 1]; None without a value."""

    label: str
    interval: Interval | None


def interval_bars(title: str, bars: Sequence[Bar]) -> str:
    """Return a plot with a row for each method: a dot for the value, a bar for its interval; '' without values."""
    intervals = [bar.interval for bar in bars if bar.interval is not None]
    if not intervals:
        return ""
    end = axis_end(max(interval.high for interval in intervals))
    values = [_bar_values(bar, end) for bar in bars]
    return render("results/bars.html.jinja", title=title, bars=values, end=f"{end:.0%}")


def axis_end(maximum: float) -> float:
    """Return the end of an axis: the next round share at or above `maximum`."""
    return next((end for end in _AXIS_ENDS if end >= maximum), 1.0)


def _bar_values(bar: Bar, end: float) -> dict[str, Any]:
    if bar.interval is None:
        return {"label": bar.label, "figures": None}
    value, low, high = bar.interval.value, bar.interval.low, bar.interval.high
    return {
        "label": bar.label,
        "figures": (f"{100 * value:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]"),
        "left": f"{low / end:.2%}",
        "width": f"{max((high - low) / end, 0.002):.2%}",
        "dot": f"{value / end:.2%}",
    }


def curves(title: str, axis: str, lines: Mapping[str, Sequence[float]]) -> str:
    """Return a plot with a curve for each method over k = 1, 2, ...; '' where no method has two points.

    Each curve has its name at its end, and a dash pattern of its own besides its colour.
    """
    drawn = {label: points for label, points in lines.items() if len(points) > 1}
    if not drawn:
        return ""
    end = axis_end(max(max(points) for points in drawn.values()) or _AXIS_ENDS[0])
    max_k = max(len(points) for points in drawn.values())
    heights = _spread_labels({label: _y_position(points[-1], end) for label, points in drawn.items()})
    height = max(_HEIGHT, max(heights.values()) + _LABEL_HEIGHT)
    return render(
        "results/curves.html.jinja",
        title=title,
        axis=axis,
        width=_WIDTH,
        height=f"{height:.0f}",
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        bottom=_HEIGHT - _BOTTOM,
        axis_y=_HEIGHT - 2,
        y_ticks=[(f"{100 * share:.3g} %", _y_position(share, end)) for share in (0.0, end / 2, end)],
        x_ticks=[(k, _x_position(k, max_k)) for k in sorted({1, (max_k + 1) // 2, max_k})],
        curves=[
            _curve_values(i, label, points, max_k, end, heights[label])
            for i, (label, points) in enumerate(drawn.items())
        ],
    )


def _x_position(k: int, max_k: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (k - 1) / max(max_k - 1, 1)


def _y_position(value: float, end: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / end)


def _curve_values(
    index: int, label: str, points: Sequence[float], max_k: int, end: float, label_y: float
) -> dict[str, Any]:
    pixels = [f"{_x_position(k, max_k):.1f},{_y_position(value, end):.1f}" for k, value in enumerate(points, start=1)]
    return {
        "color": index % _COLOR_COUNT,
        "dash": index // _COLOR_COUNT % 3,
        "points": " ".join(pixels),
        "end": pixels[-1],
        "label": label if len(label) <= _LABEL_LENGTH else label[: _LABEL_LENGTH - 1] + "…",
        "label_y": label_y,
    }


def _spread_labels(heights: Mapping[str, float]) -> dict[str, float]:
    """Return the heights of the labels, moved down where labels would overlap."""
    spread: dict[str, float] = {}
    free = float(_TOP)
    for label, height in sorted(heights.items(), key=lambda item: item[1]):
        spread[label] = max(height, free)
        free = spread[label] + _LABEL_HEIGHT
    return spread


DASH = "–"
# Each is a plot of intervals if any method has the metric.
PLOTTED_METRICS = ("tests", "pass@1", "em@1", "codebleu")
# The cost of a method as text; None where it was not measured.
COST_COLUMNS: tuple[tuple[str, Callable[[MethodRow], str | None]], ...] = (
    ("s/problem", lambda row: f"{row.cost.seconds:.2f}"),
    ("tokens in", lambda row: f"{row.cost.prompt_tokens:.0f}"),
    ("out", lambda row: f"{row.cost.tokens:.0f}"),
    ("memory", lambda row: format_gigabytes(row.cost.peak_memory_bytes) if row.cost.peak_memory_bytes else None),
    ("no answer", lambda row: str(row.errors) if row.errors else None),
)
CHOOSE_RUN_HTML = "<p>Choose a run above to see its table, its plots and its problems.</p>"


def empty_html(folder: str) -> str:
    """Return the text of a page without any run: what it is for, and how to make a run in `folder`."""
    return render("results/empty.html.jinja", folder=folder)


def choose_html() -> str:
    """Return the text of a page where no run is chosen."""
    return f'<div class="empty">{CHOOSE_RUN_HTML}</div>'


def loading_html(runs: Sequence[tuple[str, Run]]) -> str:
    """Return the text of a page while intervals are computed, which takes seconds for a large run."""
    count = sum(len(run.results(method)) for _, run in runs for method in run.methods)
    caret = '<span class="caret" aria-hidden="true"></span>'
    return f'<div class="empty"><p>Computing the intervals of {count:,} answers {caret}</p></div>'


def summary_html(runs: Sequence[tuple[str, Run]], table: ProblemTable, *, with_comparisons: bool) -> str:
    """Return the tables, the plots and, if `with_comparisons`, the paired comparisons of all runs."""
    pairs, refusal = cached_pairs_across([run for _, run in runs]) if with_comparisons else ([], "")
    return render(
        "results/summary.html.jinja",
        several=len(runs) > 1,
        runs=[_run_values(name, run, table, with_comparisons=with_comparisons) for name, run in runs],
        plots=_plots(table),
        pairs=pairs,
        pairs_text=render_comparisons(pairs) if pairs else "",
        refusal=refusal,
    )


def _run_values(name: str, run: Run, table: ProblemTable, *, with_comparisons: bool) -> dict[str, Any]:
    """Return the values that the template needs for one run."""
    rows, missing, unscored = cached_rows(run), missing_note(run), count_unscored(run)
    values = {
        "name": name,
        "facts": _run_facts(run),
        "rows": [],
        "unscored_count": unscored,
        "notes": [note for note in (engine_failures_note(run), missing) if note],
        "file_name": name.rsplit("/", 1)[-1],
    }
    if not rows:
        return values
    metrics = table_metrics(rows)
    costs = [cost for cost in COST_COLUMNS if any(cost[1](row) is not None for row in rows)]
    keys = {column.method: column.key for column in table.columns if column.run is run}
    pairs = cached_pairs(run) if with_comparisons and not missing and not unscored else []
    return values | {
        "columns": ["n", *map(metric_title, metrics), *(title for title, _ in costs)],
        "rows": [
            {
                "key": keys.get(row.method, ""),
                "label": method_label(row.method),
                "n": row.n,
                "scores": [_score_cell(row.interval(metric)) for metric in metrics],
                "costs": [value(row) or DASH for _, value in costs],
            }
            for row in rows
        ],
        "footnote": table_footnote(rows),
        "pairs": pairs,
        "pairs_text": render_comparisons(pairs) if pairs else "",
    }


def _run_facts(run: Run) -> str:
    settings = run.settings
    model = model_label(settings["base_id"], settings["quantization"], settings["device"])
    facts = [model, f"{settings['data']} {settings['split']}, {settings['n']} problems"]
    facts.append(decoding_label(settings["decoding"]))
    layer = run.scored_with.get("tests", {}).get("layer")
    facts += [f"tests in the sandbox ({layer})"] if layer else []
    with suppress(KeyError, ValueError):  # a file without a date is valid
        facts.append(format_date(str(run.provenance["started"])))
    return " · ".join(facts)


def _score_cell(interval: Interval | None) -> tuple[str, str]:
    """Return a value in percent and its interval."""
    if interval is None:
        return DASH, ""
    return f"{100 * interval.value:.1f}", f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _plots(table: ProblemTable) -> list[str]:
    """Return bars of the main metrics, and the curve over k where there are several candidates."""
    scored = {
        column.key: row for column in table.columns for row in cached_rows(column.run) if row.method == column.method
    }
    rows = [(column.label, scored[column.key]) for column in table.columns if column.key in scored]
    bars = [
        interval_bars(
            f"{metric_title(metric)}, percent with 95 % interval",
            [Bar(name, row.interval(metric)) for name, row in rows],
        )
        for metric in PLOTTED_METRICS
        if any(metric in row.metrics for _, row in rows)
    ]
    return [plot for plot in (*bars, _curves_over_k(rows)) if plot]


def _curves_over_k(rows: Sequence[tuple[str, MethodRow]]) -> str:
    for name in ("pass", "em"):
        lines = {label: _values_over_k(row, name) for label, row in rows}
        plot = curves(f"{metric_title(name)}@k", "k, candidates looked at", lines)
        if plot:
            return plot
    return ""


def _values_over_k(row: MethodRow, name: str) -> list[float]:
    intervals = (row.interval(f"{name}@{k}") for k in range(1, row.k + 1))
    return [interval.value for interval in intervals if interval is not None]


MAX_INTENT = 4_000
# The names of scores of the first candidate: in the file of a run, and in a record.
_FIRST_CANDIDATE_METRICS = {"em@1": "em", "em_tree@1": "em_tree"}


def problem_view(table: ProblemTable, row: ProblemRow, method: str) -> ComparisonView:
    """Return the answers of all methods to one problem; the column with the key `method` comes first."""
    columns = [column for column in table.columns if column.key in row.results]
    columns.sort(key=lambda column: column.key != method)
    records = [result_record(column, row, row.results[column.key]) for column in columns]
    best = best_indices(records)
    cards = [
        finished_column(record, is_best=i in best, label=column.label)
        for i, (column, record) in enumerate(zip(columns, records, strict=True))
    ]
    run = "|".join([row.id, method, *(column.key for column in columns)])
    return ComparisonView(
        run=run, head=_problem_header(row, records), cards=cards, reference=row.problem.get("reference")
    )


def result_record(column: MethodColumn, row: ProblemRow, result: Result) -> Record:
    """Return a result as a record, for columns, verdicts and exports. Runs store no prompts and no examples."""
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
        candidates=[_candidate_record(result, i) for i in range(len(result.candidates))],
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
    """Return the first candidate's scores under the names of a record, then all others under those of the run."""
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
    intent = str(problem["intent"])
    return header_html(
        intent if len(intent) <= MAX_INTENT else intent[:MAX_INTENT] + " …",
        " · ".join(filter(None, facts)),
        problem.get("reference"),
        is_long=True,
        verdict=verdict_text(records),
    )
