"""What the numbers of the chosen runs say: where they come from, a table with intervals, plots, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from html import escape

from evaluate.grid import format_gigabytes
from evaluate.measures import metric_title
from evaluate.results import Run
from evaluate.stats import Interval
from evaluate.table import MethodComparison, MethodRow, render_comparisons, table_footnote, table_metrics
from ui.labels import decoding_label, format_date, method_label, model_label
from ui.results.numbers import cached_pairs, cached_pairs_across, cached_rows
from ui.results.plots import Bar, curves, interval_bars
from ui.results.view import ProblemTable

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
    notes = f'<p class="quiet">{escape(table_footnote(rows))}</p>{_unfinished_note(run)}'
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
        return '<p class="quiet">This run holds no results yet.</p>'
    file = escape(name.rsplit("/", 1)[-1])
    return f'<p class="quiet">{count} answers, not scored yet: <code>python -m evaluate score {file}</code></p>'


def _unfinished_note(run: Run) -> str:
    missing = [
        f"{method_label(method)} {len(run.results(method))}"
        for method in run.methods
        if len(run.results(method)) < len(run.problems)
    ]
    text = f"Not finished, of {len(run.problems)} problems: {', '.join(missing)}." if missing else ""
    return f'<p class="quiet">{escape(text)}</p>' if text else ""


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
        '<div class="sheet" tabindex="0" role="region" aria-label="Scores of all methods"><table class="grid">'
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
        f'<details><summary>{name} <span class="count">{len(pairs)}</span></summary><p class="quiet">{note}</p>'
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
