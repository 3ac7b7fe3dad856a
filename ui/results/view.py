"""Summary, plots, answers.

What the numbers of the chosen runs say: where they come from, a table with intervals, plots, comparisons.

One problem with all methods' answers, as the board that Compare shows.

Plots as HTML and SVG that follow the page's theme: interval bars, and curves over k. All texts are escaped.

The numbers come finished from evaluate; here they only become places on a sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import Any

from common.format import format_gigabytes
from evaluate.aggregate import metric_title
from evaluate.results import Result, Run
from evaluate.stats import Interval
from evaluate.table import MethodComparison, MethodRow, render_comparisons, table_footnote, table_metrics
from ui.compare.test_results import format_count_of_tests
from ui.compare.verdict import best_indices, verdict_text
from ui.compare.view import ComparisonView, finished_column, reference_details
from ui.labels import decoding_label, format_date, method_label, model_label
from ui.records import Record
from ui.results.runs import MethodColumn, ProblemRow, ProblemTable, cached_pairs, cached_pairs_across, cached_rows

_SCALES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 200, 12, 36
_COLOR_COUNT = 6
_LABEL_HEIGHT = 15
_LABEL_LENGTH = 26


@dataclass(frozen=True)
class Bar:
    """A method's value with its interval, both in [0, 1]; None where it has none."""

    label: str
    interval: Interval | None


def interval_bars(title: str, bars: Sequence[Bar]) -> str:
    """One line a method: a dot for the value, a bar for its interval, and both in figures."""
    known = [bar.interval for bar in bars if bar.interval is not None]
    if not known:
        return ""
    most = axis_end(max(interval.high for interval in known))
    lines = "".join(_bar_row(bar, most) for bar in bars)
    ends = f'<div class="axis" aria-hidden="true"><span>0</span><span>{most:.0%}</span></div>'
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return f'<figure class="plot" tabindex="0">{caption}<ul class="bars">{lines}</ul>{ends}</figure>'


def axis_end(maximum: float) -> float:
    """The end of an axis: the next round share at or above `most`."""
    return next((end for end in _SCALES if end >= maximum), 1.0)


def curves(title: str, axis: str, lines: Mapping[str, Sequence[float]]) -> str:
    """One curve a method over k = 1, 2, ...; '' where no method has two points.

    Each curve has its name at its end, and a dash of its own besides its colour.
    """
    drawn = {label: points for label, points in lines.items() if len(points) > 1}
    if not drawn:
        return ""
    most = axis_end(max(max(points) for points in drawn.values()) or _SCALES[0])
    longest = max(len(points) for points in drawn.values())
    heights = _spread_labels({label: _y_position(points[-1], most) for label, points in drawn.items()})
    body = "".join(
        _curve_svg(place, label, points, longest, most, heights[label])
        for place, (label, points) in enumerate(drawn.items())
    )
    last = max(_HEIGHT, max(heights.values()) + _LABEL_HEIGHT)
    return (
        f'<figure class="plot" tabindex="0"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {last:.0f}" role="img" aria-label="{escape(title)}">'
        f"{_axes_svg(axis, longest, most)}{body}</svg></figure>"
    )


def _bar_row(bar: Bar, maximum: float) -> str:
    if bar.interval is None:
        return f'<li><span class="name">{escape(bar.label)}</span><span class="value">none</span></li>'
    value, low, high = bar.interval.value, bar.interval.low, bar.interval.high
    figures = f"{100 * value:.1f} <span>[{100 * low:.1f}, {100 * high:.1f}]</span>"
    width = max((high - low) / maximum, 0.002)
    label = escape(bar.label)
    return (
        f'<li><span class="name" title="{label}">{label}</span><span class="track" aria-hidden="true">'
        f'<span class="range" style="left:{low / maximum:.2%};width:{width:.2%}"></span>'
        f'<span class="dot" style="left:{value / maximum:.2%}"></span></span><span class="value">{figures}</span></li>'
    )


def _x_position(k: int, max_k: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (k - 1) / max(max_k - 1, 1)


def _y_position(value: float, maximum: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / maximum)


def _axes_svg(axis: str, max_k: int, maximum: float) -> str:
    rows = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y_position(share, maximum):.1f}" y2="{_y_position(share, maximum):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{_y_position(share, maximum) + 4:.1f}" text-anchor="end">{100 * share:.3g} %</text>'
        for share in (0.0, maximum / 2, maximum)
    )
    steps = sorted({1, (max_k + 1) // 2, max_k})
    columns = "".join(
        f'<text x="{_x_position(k, max_k):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{k}</text>'
        for k in steps
    )
    name = f'<text x="{_LEFT}" y="{_HEIGHT - 2}">{escape(axis)}</text>'
    return f'<g class="axes">{rows}{columns}{name}</g>'


def _curve_svg(index: int, label: str, points: Sequence[float], max_k: int, maximum: float, height: float) -> str:
    path = " ".join(
        f"{_x_position(k, max_k):.1f},{_y_position(value, maximum):.1f}" for k, value in enumerate(points, start=1)
    )
    end_x, end_y = _x_position(len(points), max_k), _y_position(points[-1], maximum)
    short = label if len(label) <= _LABEL_LENGTH else label[: _LABEL_LENGTH - 1] + "…"
    return (
        f'<g class="curve c{index % _COLOR_COUNT} d{index // _COLOR_COUNT % 3}"><polyline points="{path}"/>'
        f'<polyline class="lead" points="{end_x:.1f},{end_y:.1f} {_WIDTH - _RIGHT + 12},{height:.1f}"/>'
        f'<text x="{_WIDTH - _RIGHT + 16}" y="{height + 4:.1f}">{escape(short)}</text></g>'
    )


def _spread_labels(heights: Mapping[str, float]) -> dict[str, float]:
    """The same heights, moved down as far as labels need not to lie on one another."""
    placed: dict[str, float] = {}
    free = float(_TOP)
    for label, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[label] = max(height, free)
        free = placed[label] + _LABEL_HEIGHT
    return placed


DASH = "–"
# Each a plot of intervals where any method has it.
PLOTTED_METRICS = ("tests", "pass@1", "em@1", "codebleu")
# What a method costs, as text; None where it was not measured.
COST_COLUMNS: tuple[tuple[str, Callable[[MethodRow], str | None]], ...] = (
    ("s/problem", lambda row: f"{row.cost.seconds:.2f}"),
    ("tokens in", lambda row: f"{row.cost.prompt_tokens:.0f}"),
    ("out", lambda row: f"{row.cost.tokens:.0f}"),
    ("memory", lambda row: format_gigabytes(row.cost.peak_memory_bytes) if row.cost.peak_memory_bytes else None),
    ("no answer", lambda row: str(row.errors) if row.errors else None),
)
NO_RUNS_HTML = (
    "<h2>No results yet</h2><p>This page shows the runs of <code>python -m evaluate</code>: every method's scores with "
    "their intervals, and behind each number the problems and the answers.</p>"
    '<p>Make one with, for example:</p><pre class="code"><code>python -m evaluate --data starter --methods '
    "zero-shot,rag-8,lora-starter --limit 20 --output {folder}/first.jsonl</code></pre>"
)
CHOOSE_RUN_HTML = "<p>Choose a run above to see its table, its plots and its problems.</p>"


def empty_html(folder: str) -> str:
    """What a person sees where there is no run at all: what this page is for, and how to fill it."""
    return f'<div class="empty">{NO_RUNS_HTML.format(folder=escape(folder))}</div>'


def choose_html() -> str:
    """What a person sees while no run is chosen."""
    return f'<div class="empty">{CHOOSE_RUN_HTML}</div>'


def loading_html(runs: Sequence[tuple[str, Run]]) -> str:
    """What stands there while intervals are computed, which takes seconds for a large run."""
    count = sum(len(run.results(method)) for _, run in runs for method in run.methods)
    caret = '<span class="caret" aria-hidden="true"></span>'
    return f'<div class="empty"><p>Computing the intervals of {count:,} answers {caret}</p></div>'


def summary_html(runs: Sequence[tuple[str, Run]], table: ProblemTable, *, with_comparisons: bool) -> str:
    """All of it as HTML, the comparisons if `compared`; every text of a run's file is escaped."""
    several = len(runs) > 1
    tables = "".join(
        _run_section(name, run, table, several=several, with_comparisons=with_comparisons) for name, run in runs
    )
    shared = cached_pairs_across([run for _, run in runs]) if with_comparisons else []
    return f"{tables}{_plots_html(table)}{_pairs_details('The same methods across runs', shared)}"


def _run_section(name: str, run: Run, table: ProblemTable, *, several: bool, with_comparisons: bool) -> str:
    title = f"<h2>{escape(name)}</h2>" if several else ""
    rows = cached_rows(run)
    keys = {side.method: side.key for side in table.columns if side.run is run}
    about = f'<p class="about">{escape(_run_facts(run))}</p>'
    if not rows:
        return f"<section>{title}{about}{_unscored_note(run, name)}</section>"
    pairs = _pairs_details("Comparisons", cached_pairs(run)) if with_comparisons else ""
    notes = f'<p class="muted">{escape(table_footnote(rows))}</p>{_unfinished_note(run)}'
    return f"<section>{title}{about}{_score_table(rows, keys)}{notes}{pairs}</section>"


def _run_facts(run: Run) -> str:
    settings = run.settings
    model = model_label(settings["base_id"], settings["quantization"], settings["device"])
    facts = [model, f"{settings['data']} {settings['split']}, {settings['n']} problems"]
    facts.append(decoding_label(settings["decoding"]))
    layer = run.scored_with.get("tests", {}).get("layer")
    facts += [f"tests in the sandbox ({layer})"] if layer else []
    with suppress(KeyError, ValueError):  # a file without a date is a run all the same
        facts.append(format_date(str(run.provenance["started"])))
    return " · ".join(facts)


def _unscored_note(run: Run, name: str) -> str:
    count = sum(len(run.results(method)) for method in run.methods)
    if not count:
        return '<p class="muted">This run holds no results yet.</p>'
    file = escape(name.rsplit("/", 1)[-1])
    return f'<p class="muted">{count} answers, not scored yet: <code>python -m evaluate score {file}</code></p>'


def _unfinished_note(run: Run) -> str:
    missing = [
        f"{method_label(method)} {len(run.results(method))}"
        for method in run.methods
        if len(run.results(method)) < len(run.problems)
    ]
    text = f"Not finished, of {len(run.problems)} problems: {', '.join(missing)}." if missing else ""
    return f'<p class="muted">{escape(text)}</p>' if text else ""


def _method_cell(method: str, keys: Mapping[str, str]) -> str:
    """The method's name; where its problems are listed below, a button that shows those where it fails."""
    label = escape(method_label(method))
    if method not in keys:
        return label
    return f'<button type="button" data-method="{escape(keys[method])}" title="Show its failures">{label}</button>'


def _score_table(rows: Sequence[MethodRow], keys: Mapping[str, str]) -> str:
    shown = table_metrics(rows)
    costs = [cost for cost in COST_COLUMNS if any(cost[1](row) is not None for row in rows)]
    names = ["n", *map(metric_title, shown), *(name for name, _ in costs)]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{_method_cell(row.method, keys)}</th><td>{row.n}</td>'
        + "".join(f"<td>{_score_cell(row.interval(metric))}</td>" for metric in shown)
        + "".join(f"<td>{escape(value(row) or DASH)}</td>" for _, value in costs)
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="table-scroll" tabindex="0" role="region" aria-label="Scores of all methods"><table class="grid">'
        f'<thead><tr><th scope="col">method</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _score_cell(interval: Interval | None) -> str:
    """A value in percent with its interval beneath it."""
    if interval is None:
        return DASH
    return f"{100 * interval.value:.1f}<span>{100 * interval.low:.1f} to {100 * interval.high:.1f}</span>"


def _pairs_details(name: str, pairs: Sequence[MethodComparison]) -> str:
    if not pairs:
        return ""
    note = "Paired over the same problems, in points; bootstrap 95 % intervals; * is a corrected p below 0.05."
    return (
        f'<details><summary>{name} <span class="count">{len(pairs)}</span></summary><p class="muted">{note}</p>'
        f'<pre class="code wide" tabindex="0"><code>{escape(render_comparisons(pairs))}</code></pre></details>'
    )


def _plots_html(table: ProblemTable) -> str:
    """Bars for the headline metrics, and the curve over k where there are several candidates."""
    found = {side.key: row for side in table.columns for row in cached_rows(side.run) if row.method == side.method}
    rows = [(side.label, found[side.key]) for side in table.columns if side.key in found]
    bars = [
        interval_bars(
            f"{metric_title(metric)}, percent with 95 % interval",
            [Bar(name, row.interval(metric)) for name, row in rows],
        )
        for metric in PLOTTED_METRICS
        if any(metric in row.metrics for _, row in rows)
    ]
    return f'<div class="plots">{"".join(bars)}{_curves_html(rows)}</div>'


def _curves_html(rows: Sequence[tuple[str, MethodRow]]) -> str:
    for name in ("pass", "em"):
        lines = {label: _values_over_k(row, name) for label, row in rows}
        plot = curves(f"{metric_title(name)}@k", "k, candidates looked at", lines)
        if plot:
            return plot
    return ""


def _values_over_k(row: MethodRow, name: str) -> list[float]:
    found = (row.interval(f"{name}@{k}") for k in range(1, row.k + 1))
    return [interval.value for interval in found if interval is not None]


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
        f'<h2 class="question long">{escape(shown)}</h2><div class="about"><p>{about}</p>{fold}</div>'
        f'<p class="verdict-text">{escape(verdict_text(records))}</p>'
    )
