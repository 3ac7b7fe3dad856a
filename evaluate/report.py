"""Reports of one or several runs: terminal text, Markdown, CSV, JSON and a PNG figure."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from common.format import format_bytes, records_csv
from errors import PromptOrTuneError
from evaluate.failures import engine_failures_note, missing_counts, missing_note, require_any_complete, require_scored
from evaluate.results import Run
from evaluate.scoring import has_tests
from evaluate.stats import metric_title
from evaluate.table import (
    MethodComparison,
    MethodRow,
    compare_methods,
    compare_runs,
    method_rows,
    recommend,
    render_comparisons,
    render_methods,
    table_footnote,
    table_metrics,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MethodPairs = Sequence[tuple[str, str]]


def text_report(runs: Sequence[Run], markdown: bool = False, pairs: MethodPairs | None = None) -> str:
    """Return the table and comparisons of each run, then comparisons of the methods that several runs share.

    `pairs` are the methods to compare, instead of the defaults of evaluate.table.compare_methods.
    """
    blocks = [_run_section(run, markdown, pairs) for run in runs]
    if len(runs) > 1:
        try:
            shared = compare_runs(runs)
        except PromptOrTuneError as error:
            blocks.append(str(error))
        else:
            table = render_comparisons(shared, markdown)
            blocks.append(f"Across files:\n\n{table}" if shared else "The files share no method.")
    return "\n\n".join(blocks)


def markdown_report(runs: Sequence[Run], command: str, pairs: MethodPairs | None = None) -> str:
    """Return the report as a Markdown page, with the commands that made the answers and the page."""
    title = ", ".join(dict.fromkeys(str(run.settings["data"]) for run in runs))
    tables = text_report(runs, markdown=True, pairs=pairs)
    run_commands = [str(run.provenance["command"]) for run in runs if run.provenance.get("command")]
    commands = "\n".join(dict.fromkeys([*run_commands, command]))
    return f"# Methods on {title}\n\n{tables}\n\nMade by:\n\n```sh\n{commands}\n```\n"


def _run_section(run: Run, markdown: bool, pairs: MethodPairs | None) -> str:
    try:
        require_scored([run])
    except PromptOrTuneError as error:
        return str(error)
    rows, missing = method_rows(run), missing_note(run)
    if not rows and not missing:
        return f"{run.path} holds no results yet."
    parts = [_provenance(run, markdown)]
    if rows:
        parts += [render_methods(rows, markdown), table_footnote(rows)]
    parts += [note for note in (engine_failures_note(run), missing) if note]
    if missing:
        return "\n\n".join(parts)
    failed = [result for name in run.methods for result in run.results(name) if result.error]
    if failed:
        first = f"{failed[0].method}, problem {failed[0].problem}: {failed[0].error}"
        parts.append(f"{len(failed)} failed, scored 0 and counted. The first: {first}")
    compared = compare_methods(run, pairs)
    if compared:
        parts.append(render_comparisons(compared, markdown))
        parts.append("Paired over the same problems; bootstrap 95 % intervals; * is a corrected p below 0.05.")
    recommendation = recommend(run)
    if recommendation is not None:
        parts.append(recommendation.sentence)
    return "\n\n".join(parts)


def _scoring_lines(run: Run) -> list[str]:
    """Return how tests were run, or that they were not; nothing for problems without tests."""
    tests = run.scored_with.get("tests")
    if not has_tests(run.problems):
        return []
    if tests is None:
        return [f"Tests: have not run; `python -m evaluate score {run.path}` runs them"]
    limits = tests["limits"]
    memory = format_bytes(limits["memory_bytes"], 1024)
    checks = [
        check for name in run.methods for result in run.results(name) for records in result.checks for check in records
    ]
    unprotected = sum(not check["protected"] for check in checks)
    refused = sum(check["status"] == "refused" for check in checks)
    notes = [
        f"{len(checks)} ran",
        *([f"{unprotected} with the expected value inside of the sandbox"] if unprotected else []),
        *([f"values compared by the rules of {tests['comparison']}"] if "comparison" in tests else []),
        *([_describe_reference_limits(tests["reference_limits"])] if "reference_limits" in tests else []),
        *([f"{refused} could not be run and count as failed"] if refused else []),
    ]
    return [
        f"Tests: sandbox layer {tests['layer']}, {limits['wall_seconds']:g} s and {memory} each; {', '.join(notes)}"
    ]


def _describe_reference_limits(limits: Mapping[str, Any]) -> str:
    return (
        f"{limits['factor']:g} times the reference's processor time a call, at least {limits['min_seconds']:g} s, and "
        f"{format_bytes(limits['memory_bytes'], 1024)} where calls are compared with a reference"
    )


def _provenance(run: Run, markdown: bool) -> str:
    settings, decoding = run.settings, run.settings["decoding"]
    kind = (
        f"{decoding['mode']}, {decoding['candidates']} candidates" if decoding["candidates"] > 1 else decoding["mode"]
    )
    styles: dict[str, list[str]] = {}
    for name, method in run.methods.items():
        styles.setdefault(f"{method.get('style', 'unknown')} {method.get('fingerprint', '')}".strip(), []).append(name)
    adapters = {value["adapter"]: value["adapter_digest"] for value in run.methods.values() if value.get("adapter")}
    versions = ", ".join(f"{name} {number}" for name, number in run.provenance.get("versions", {}).items())
    facts = [
        f"Base: {settings['base_id']} at {settings['base_revision']}, {settings['quantization']}, {settings['device']}",
        f"Data: {settings['data']} {settings['split']}, n = {settings['n']}, {settings['data_digest']}",
        f"Decoding: {kind}, at most {decoding['max_new_tokens']} new tokens; batch {settings['batch']}",
        f"Seed: {settings['seed']}",
        *(f"Prompt style: {style}: {', '.join(names)}" for style, names in styles.items()),
        *(f"Adapter: {name} {digest}" for name, digest in adapters.items()),
        *_scoring_lines(run),
        f"Versions: {versions}",
        f"Started: {run.provenance.get('started', 'unknown')}",
    ]
    return "\n".join(f"- {fact}" if markdown else fact for fact in facts)


# Scores of a single problem in the table of problems, if a run has them.
_PROBLEM_METRICS = ("tests", "pass@1", "em@1", "em@{k}", "em_tree@1", "codebleu", "parses")


def metric_records(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yield one record per method and metric: value, low and high of the 95 % interval over n problems; then costs.

    Scores are in [0, 1]; seconds, tokens and memory (bytes) have no interval. Each record has the settings of its run.
    """
    for run in runs:
        for row in method_rows(run):
            shared = _row_provenance(run, row)
            for summary in row.metrics.values():
                interval = asdict(summary.interval)
                yield shared | {"metric": summary.metric, "n": summary.n, **interval, "interval": summary.kind}
            for metric, value in asdict(row.cost).items():
                if value is not None:
                    yield shared | {"metric": metric, "n": row.n - row.errors, "value": value}


def metrics_csv(runs: Sequence[Run]) -> str:
    """Return `metric_records` as CSV. Raises PromptOrTuneError for unscored results and for no complete method."""
    require_scored(runs)
    require_any_complete(runs)
    return records_csv(metric_records(runs))


def problems_csv(runs: Sequence[Run]) -> str:
    """Return CSV with one row per problem: each method's scores, first answer and error.

    Raises PromptOrTuneError for runs over different problems, or with unscored results.
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
    results = {
        label: {result.problem: result for result in run.results(method)} for label, (run, method) in answers.items()
    }
    records = []
    for problem in first.problems:
        record = {name: problem.get(name) for name in ("id", "intent", "reference", "difficulty")}
        for label, (run, _) in answers.items():
            result = results[label].get(problem["id"])
            k = run.settings["decoding"]["candidates"]
            for metric in dict.fromkeys(name.format(k=k) for name in _PROBLEM_METRICS):
                record[f"{label}: {metric}"] = result.scores.get(metric) if result else None
            record[f"{label}: answer"] = result.candidates[0]["code"] if result and result.candidates else None
            record[f"{label}: error"] = result.error if result else None
        records.append(record)
    empty = {name for name in records[0] if all(record[name] is None for record in records)} if records else set()
    return records_csv({name: value for name, value in record.items() if name not in empty} for record in records)


def json_report(runs: Sequence[Run], command: str, pairs: Sequence[tuple[str, str]] | None = None) -> str:
    """Return settings, provenance, methods, metrics and comparisons of the runs as JSON.

    Raises PromptOrTuneError for a run with unscored results.
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
                "missing": missing_counts(run),
                "metrics": list(metric_records([run])),
                "comparisons": [_comparison_record(pair) for pair in compare_methods(run, pairs)],
                "recommendation": asdict(found) if (found := recommend(run)) else None,
            }
            for run in runs
        ],
        "across": [_comparison_record(pair) for pair in _cross_run_comparisons(runs)],
    }
    return json.dumps(values, indent=1) + "\n"


def _cross_run_comparisons(runs: Sequence[Run]) -> Sequence[MethodComparison]:
    digests = {run.settings["data_digest"] for run in runs}
    try:
        return compare_runs(runs) if len(digests) == 1 else []
    except PromptOrTuneError:  # a method of one of the runs lacks answers
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


_DPI = 110
_PANEL_INCHES = 5.2
_PANELS_PER_ROW = 3
# Okabe and Ito's colours, distinguishable with any colour vision; more than eight methods differ by dashes.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f6672", "#b8a900")
_LINE_STYLES = ("-", "--", ":", "-.")
_MUTED_COLOR, _GRID_COLOR = "#5f6672", "#d9dce1"
_MAX_LABEL_LENGTH = 40  # characters

LabelledRows = list[tuple[str, MethodRow]]


def plot_report_png(runs: Sequence[Run]) -> bytes:
    """Return the figure of all methods of the runs as PNG bytes, the same for the same runs."""
    buffer = io.BytesIO()
    build_figure(runs).savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def build_figure(runs: Sequence[Run]) -> Figure:
    """Build a figure with one panel per metric of the table, then curves of EM@k and Pass@k over k.

    PromptOrTuneError where a run has no complete method yet, or is not scored to its end.
    """
    require_scored(runs)
    require_any_complete(runs)
    # Not pyplot, whose global state is shared with all other plots of the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _label_rows(runs)
    if not rows:
        raise PromptOrTuneError("There is nothing to draw: the files hold no answers yet.")
    metrics = table_metrics([row for _, row in rows])
    curves = [name for name in ("pass", "em") if _is_curve(rows, name, metrics)]
    panels = len(metrics) + len(curves)
    across = min(_PANELS_PER_ROW, panels)
    down = math.ceil(panels / across)
    height = max(2.6, 1.2 + 0.34 * len(rows))
    figure = Figure(
        figsize=(_PANEL_INCHES * across, height * down + 0.6), dpi=_DPI, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    for at, metric in enumerate(metrics):
        _draw_bars(figure.add_subplot(down, across, at + 1), rows, metric, first=at % across == 0)
    for at, name in enumerate(curves, start=len(metrics)):
        _draw_curves(figure.add_subplot(down, across, at + 1), rows, name)
    figure.suptitle(_heading(runs), fontsize=11, x=0.01, ha="left")
    return figure


def _label_rows(runs: Sequence[Run]) -> LabelledRows:
    """Label each row with its method, and with its file if several files have that method."""
    rows = [(run.path.name.removesuffix(".gz").removesuffix(".jsonl"), row) for run in runs for row in method_rows(run)]
    counts = Counter(row.method for _, row in rows)
    return [
        (_shorten_label(row.method if counts[row.method] == 1 else f"{row.method} ({file})"), row) for file, row in rows
    ]


def _is_curve(rows: LabelledRows, name: str, metrics: Sequence[str]) -> bool:
    """Return whether the metric is in the table and has more than one k."""
    return f"{name}@1" in metrics and any(f"{name}@2" in row.metrics for _, row in rows)


def _draw_bars(axes: Axes, rows: LabelledRows, metric: str, first: bool) -> None:
    highest = 0.0
    for at, (_, row) in enumerate(rows):
        found = row.interval(metric)
        if found is None:
            continue
        value, low, high = (100 * each for each in (found.value, found.low, found.high))
        # Rounding can put an end of the interval slightly on the wrong side of the value.
        axes.errorbar(value, at, xerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt="o", markersize=6,
                      color=_color(at), capsize=3, linewidth=1.8, clip_on=False)  # fmt: skip
        # At the left edge of the panel a centred number would be cut off.
        side = "left" if value < low + 0.01 else "center"
        axes.annotate(f"{value:.1f}", (value, at), textcoords="offset points", xytext=(0, 6), ha=side, fontsize=8)
        highest = max(highest, high)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows] if first else [])
    axes.set_ylim(len(rows) - 0.4, -0.7)  # the first method on top
    axes.set_xlim(0, min(100, 1.08 * highest) if highest else 100)
    axes.margins(x=0.02)
    axes.set_title(f"{metric_title(metric)}, %, with 95 % intervals", fontsize=10, loc="left")
    _style_axes(axes)


def _draw_curves(axes: Axes, rows: LabelledRows, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for at, (label, row) in enumerate(rows):
        points = [(k, row.interval(f"{name}@{k}")) for k in range(1, row.k + 1)]
        curve = [(k, 100 * found.value) for k, found in points if found is not None]
        if curve:
            axes.plot(*zip(*curve, strict=True), marker="o", markersize=4, color=_color(at), label=label,
                      linestyle=_LINE_STYLES[at // len(_COLORS) % len(_LINE_STYLES)])  # fmt: skip
    axes.set_title(f"{metric_title(name)}@k, %", fontsize=10, loc="left")
    axes.set_xlabel("k", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _style_axes(axes)


def _style_axes(axes: Axes) -> None:
    axes.grid(color=_GRID_COLOR, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=_MUTED_COLOR)
    axes.spines[["top", "right"]].set_visible(False)


def _heading(runs: Sequence[Run]) -> str:
    """Return the settings of the runs, one line per distinct setting."""
    descriptions = (
        f"{run.settings['data']} {run.settings['split']}, n = {run.settings['n']}, {run.settings['base_id']}, "
        f"{run.settings['quantization']}, {run.settings['decoding']['mode']}, seed {run.settings['seed']}"
        for run in runs
    )
    return "\n".join(dict.fromkeys(descriptions))


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _shorten_label(label: str) -> str:
    return (
        label
        if len(label) <= _MAX_LABEL_LENGTH
        else f"{label[: _MAX_LABEL_LENGTH // 2]}…{label[1 - _MAX_LABEL_LENGTH // 2 :]}"
    )
