"""Figures of the study's questions as PNG, drawn from the measured scores, with published values where they exist.

95 % intervals are drawn wherever they exist. The study prints no numbers for Figures 3 and 6 and the bars of Figure 7,
so only the values in its text are added there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluate.stats import metric_title
from evaluate.study import schema
from evaluate.study.config import DEFAULT_LORA_ALPHA, DEFAULT_LORA_RANK, METHOD_TITLES, StudyConfig, StudyModel
from evaluate.study.drawing import (
    COLORS,
    HOLLOW_MARKER,
    MARKERS,
    MAX_ERROR_BARS,
    MUTED_COLOR,
    PUBLISHED_COLOR,
    add_legend_entries,
    draw_bars,
    draw_line,
    draw_panels,
    draw_point,
    draw_points_with_intervals,
    label_axes,
    new_axes,
    render_png,
)
from evaluate.study.findings import LORA_TECHNIQUES, best_job, headline_metric
from evaluate.study.jobs import CollectedRuns, FinishedJob, datasets_present
from evaluate.study.tables import memory_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_figure6(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """Draw CodeBLEU against EM@k: the best ICL and LoRA of each model, with a line between the two."""
    marks = {"icl": HOLLOW_MARKER, **dict(zip(LORA_TECHNIQUES, MARKERS[1:], strict=False))}

    def panel(axes: Axes, data: str) -> None:
        finished = [
            item for item in collected.finished.values() if item.job.data.name == data and item.job.kind in marks
        ]
        models = list(dict.fromkeys(item.job.model for item in finished))
        for index, model in enumerate(models):
            model_jobs = [item for item in finished if item.job.model == model]
            icl_jobs = best_job(item for item in model_jobs if item.job.kind == "icl")
            points = []
            for item in [*([icl_jobs] if icl_jobs else []), *(item for item in model_jobs if item.job.kind != "icl")]:
                across, up = item.interval(headline_metric(item)), item.interval("codebleu")
                if across and up:
                    points.append((100 * across.value, 100 * up.value))
                    draw_point(axes, across, up, index, marks[item.job.kind], bars=len(models) <= MAX_ERROR_BARS)
            for one in points[1:] if icl_jobs else ():
                axes.plot(*zip(points[0], one, strict=True), color=COLORS[index % len(COLORS)], linewidth=0.8, zorder=1)
        add_legend_entries(axes, [("-", COLORS[index % len(COLORS)], model.name) for index, model in enumerate(models)])
        kinds = [kind for kind in marks if any(item.job.kind == kind for item in finished)]
        add_legend_entries(
            axes, [(marks[kind], MUTED_COLOR, "best ICL" if kind == "icl" else METHOD_TITLES[kind]) for kind in kinds]
        )
        label_axes(axes, data, f"{metric_title(headline_metric(finished[0]))}, %", "CodeBLEU, %")

    tuned = [item for item in collected.finished.values() if item.job.kind in marks]
    return draw_panels(datasets_present(tuned, datasets), panel)


def draw_figure7(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """Draw EM@k of RAG by number of examples, with lines for LoRA and the best ICL: a panel per data set and model."""
    rag_jobs = [item for item in collected.finished.values() if item.job.kind == "rag"]
    titles = _panel_titles(rag_jobs, datasets)

    def panel(axes: Axes, title: str) -> None:
        finished = [item for item in collected.finished.values() if _panel_title(item) == title]
        bars = sorted((item for item in finished if item.job.kind == "rag"), key=lambda item: item.job.k)
        k = headline_metric(bars[0])
        draw_bars(axes, range(len(bars)), [item.interval(k) for item in bars], COLORS[4], "RAG", width=0.7)
        axes.set_xticks(range(len(bars)), [str(item.job.k) for item in bars])
        lines = [
            best_job(item for item in finished if item.job.kind == "icl"),
            *(item for item in finished if item.job.kind in LORA_TECHNIQUES),
        ]
        styles = ("--", "-", "-.", ":")
        for index, item in enumerate(each for each in lines if each):
            value = item.mean(k) or 0.0
            label = f"{'best ' if item.job.examples else ''}{item.job.title}: {100 * value:.1f}"
            axes.axhline(100 * value, color=COLORS[index + 1], linestyle=styles[index % 4], linewidth=1.6, label=label)
        stated = [
            (label, schema.published_em10(bars[0].job.model.beside, bars[0].job.data.name, kind))
            for label, kind in (("LoRA", "lora"), ("best RAG", "rag"), ("best ICL", "icl"))
        ]
        words = ", ".join(f"{label} {value:g}" for label, value in stated if value is not None)
        label_axes(axes, title, "retrieved examples in the prompt", f"{metric_title(k)}, %")
        if words:
            axes.set_title(f"{title}\nthe study, {bars[0].job.model.beside}: {words}", fontsize=9)

    return draw_panels(titles, panel)


def draw_rank_alpha(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """Draw EM@k and CodeBLEU by LoRA's rank and alpha."""
    tried = [item for item in collected.finished.values() if item.job.pair]

    def panel(axes: Axes, data: str) -> None:
        variants = [item for item in tried if item.job.data.name == data]
        default_jobs = [
            item
            for item in collected.find(kind=variants[0].job.technique, pair=None, model=variants[0].job.model)
            if item.job.data.name == data
        ]
        finished = sorted([*variants, *default_jobs], key=_rank_and_alpha)
        names = [f"r {rank}\nα {alpha}" for rank, alpha in map(_rank_and_alpha, finished)]
        k = headline_metric(finished[0])
        for index, metric in enumerate((k, "codebleu")):
            draw_points_with_intervals(
                axes,
                [position + (index - 0.5) * 0.16 for position in range(len(finished))],
                [item.interval(metric) for item in finished],
                index,
                metric_title(metric),
            )
        axes.set_xticks(range(len(finished)), names, fontsize=8)
        label_axes(axes, f"{data} · {variants[0].job.model.name}, {METHOD_TITLES[variants[0].job.technique]}", "", "%")

    return draw_panels(datasets_present(tried, datasets), panel)


def _rank_and_alpha(job: FinishedJob) -> tuple[int, int]:
    return job.job.pair or (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA)


def draw_cost(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """Draw EM@1 against the seconds per problem: a panel per data set and model."""
    every = [item for item in collected.finished.values() if not item.job.pair]

    def panel(axes: Axes, title: str) -> None:
        finished = [item for item in every if _panel_title(item) == title]
        for index, kind in enumerate(dict.fromkeys(item.job.kind for item in finished)):
            model_jobs = [item for item in finished if item.job.kind == kind]
            points = sorted((_mean_seconds(item), 100 * (item.mean("em@1") or 0.0), item.job.k) for item in model_jobs)
            name = (
                model_jobs[0].job.title
                if len(model_jobs) == 1
                else model_jobs[0].job.title.rpartition(" (")[0] + ", number of examples"
            )
            colour, mark = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            axes.plot([x for x, *_ in points], [y for _, y, _ in points], mark, color=colour, markersize=7, label=name)
            for x, y, k in points if len(model_jobs) > 1 else ():
                axes.annotate(str(k), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7, color=colour)
        axes.set_xlim(left=0)
        label_axes(axes, title, "seconds a problem, on the machine that answered", "EM@1, %")

    return draw_panels(_panel_titles(every, datasets), panel)


def _panel_title(job: FinishedJob) -> str:
    return f"{job.job.data.name} · {job.job.model.name}"


def _panel_titles(jobs: Sequence[FinishedJob], datasets: Sequence[str]) -> list[str]:
    """Return the titles of the panels, one per data set and model, in the order of the data sets."""
    return list(dict.fromkeys(_panel_title(item) for data in datasets for item in jobs if item.job.data.name == data))


def draw_tests(jobs: Sequence[FinishedJob]) -> bytes | None:
    """Draw the average of tests passed and Pass@k of each method."""
    metrics = [each for each in ("tests", "pass@1", "pass@2", "pass@5") if jobs and jobs[0].mean(each) is not None]

    def draw(figure: Figure) -> None:
        axes = new_axes(figure, jobs[0].job.data.name)
        width = 0.8 / len(jobs)
        for index, item in enumerate(jobs):
            positions = [position + (index - (len(jobs) - 1) / 2) * width for position in range(len(metrics))]
            label = f"{item.job.model.name}, {item.job.title} ({item.job.quantization})"
            draw_bars(
                axes,
                positions,
                [item.interval(metric) for metric in metrics],
                COLORS[index % len(COLORS)],
                label,
                width * 0.95,
            )
        axes.set_xticks(range(len(metrics)), [metric_title(metric) for metric in metrics])
        label_axes(axes, jobs[0].job.data.name, "", "%")

    return render_png(draw, 7.5, 4.5) if metrics else None


def _mean_seconds(job: FinishedJob) -> float:
    answered = [result.seconds for result in job.results if result.error is None]
    return sum(answered) / len(answered) if answered else 0.0


def build_figures(config: StudyConfig, rq: str, collected: CollectedRuns) -> dict[str, bytes]:
    """Return {file name: PNG} of a question; figures without data are left out."""
    sets = config.question(rq).data
    if rq == "rq1":
        return _drop_missing({"rq1-figure3": _draw_figure3(collected, sets)})
    if rq == "rq2":
        return _drop_missing(
            {
                "rq2-figure1": _draw_figure1(collected),
                "rq2-figure4": _draw_figure4(collected, sets),
                "rq2-figure5": _draw_figure5(collected, sets),
                "rq2-rank-alpha": draw_rank_alpha(collected, sets),
            }
        )
    if rq == "rq3":
        drawn = {"rq3-figure6": draw_figure6(collected, sets), "rq3-figure7": draw_figure7(collected, sets)}
        return _drop_missing(drawn | {"rq3-cost": draw_cost(collected, sets)})
    return _drop_missing(
        {
            f"rq4-tests-{data}": draw_tests([c for c in collected.finished.values() if c.job.data.name == data])
            for data in sets
        }
    )


def _draw_figure1(collected: CollectedRuns) -> bytes | None:
    """Draw the peak memory of training: published, estimated for the same run, and measured here."""
    rows = memory_rows(collected)
    series = (
        ("the study, one GPU", PUBLISHED_COLOR),
        ("estimated here, one GPU", COLORS[0]),
        ("measured here", COLORS[1]),
    )
    height = 0.27

    def draw(figure: Figure) -> None:
        axes = new_axes(figure, "Peak memory of training, GB")
        for column, (label, colour) in enumerate(series):
            points = []
            for index, row in enumerate(rows):
                there = [each for each in range(3) if row[2 + each] is not None]
                if column in there:
                    shift = (there.index(column) - (len(there) - 1) / 2) * height
                    points.append((index + shift, float(row[2 + column] or 0)))
            bars = axes.barh([y for y, _ in points], [size for _, size in points], 0.26, color=colour, label=label)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7, color=MUTED_COLOR)
        axes.axvline(24, color=MUTED_COLOR, linewidth=1, linestyle=":", label="24 GB, what the study had")
        axes.set_yticks(
            range(len(rows)), [f"{row[0]} · {schema.TABLE3_TECHNIQUES[row[1]]}" for row in rows], fontsize=8
        )
        axes.invert_yaxis()
        axes.margins(x=0.08, y=0.03)
        axes.legend(loc="lower right", fontsize=8, frameon=False)

    return render_png(draw, 9, 1.2 + 0.5 * len(rows)) if rows else None


def _draw_figure3(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """Draw EM@k against the number of random examples, one line per model."""
    icl_jobs = [item for item in collected.finished.values() if item.job.kind in ("zero-shot", "icl")]

    def panel(axes: Axes, data: str) -> None:
        finished = [item for item in icl_jobs if item.job.data.name == data]
        models = list(dict.fromkeys(item.job.model for item in finished))
        for index, model in enumerate(models):
            model_jobs = sorted((item for item in finished if item.job.model == model), key=lambda item: item.job.k)
            points = [(item.job.k, item.interval(headline_metric(item))) for item in model_jobs]
            draw_line(
                axes, points, index, model.name + _published_label(model, data), band=len(models) <= MAX_ERROR_BARS
            )
        label_axes(axes, data, "random examples in the prompt", metric_title(headline_metric(finished[0])) + ", %")

    return draw_panels(datasets_present(icl_jobs, datasets), panel)


def _published_label(model: StudyModel, data: str) -> str:
    """Return the published values for this model, or for the one beside it, as the end of a label."""
    kinds = (("zero-shot", "zero-shot"), ("best ICL", "icl"))
    stated = [(label, schema.published_em10(model.beside, data, kind)) for label, kind in kinds]
    words = ", ".join(f"{label} {value:g}" for label, value in stated if value is not None)
    whose = "" if model.beside == model.name else f", {model.beside}"
    return f" (the study{whose}: {words})" if words else ""


def _draw_figure4(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """Draw CodeBLEU against EM@k of LoRA, one point per model, the published points in grey."""
    tuned = [item for name in LORA_TECHNIQUES for item in collected.find(kind=name, pair=None)]

    def panel(axes: Axes, data: str) -> None:
        finished = [item for item in tuned if item.job.data.name == data]
        _draw_published_points(axes, data)
        for index, item in enumerate(finished):
            across, up = item.interval(headline_metric(item)), item.interval("codebleu")
            if across and up:
                draw_point(axes, across, up, index, MARKERS[1 + index % 8], bars=len(finished) <= MAX_ERROR_BARS)
                name = f"{item.job.model.name}, {item.job.title}"
                add_legend_entries(axes, [(MARKERS[1 + index % 8], COLORS[index % len(COLORS)], name)])
        label_axes(axes, data, f"{metric_title(headline_metric(finished[0]))}, %", "CodeBLEU, %")
        axes.set_title(f"{data}: ours in colour, the study's LoRA in grey", fontsize=9)

    return draw_panels(datasets_present(tuned, datasets), panel)


def _draw_published_points(axes: Axes, data: str) -> None:
    """Draw the published points with numbers, because names would overlap."""
    points: dict[tuple[float, float], list[str]] = {}
    for model in schema.published_models(data):
        row = schema.published_score(model, "lora", data)
        if row:
            points.setdefault((row.em10, row.codebleu), []).append(model)
    for number, ((x, y), models) in enumerate(points.items(), start=1):
        below = any(0 < other[1] - y < 2 and abs(other[0] - x) < 2 for other in points)
        axes.plot(x, y, ".", color=PUBLISHED_COLOR, markersize=9)
        offset = (3, -9 if below else 3)
        axes.annotate(str(number), (x, y), xytext=offset, textcoords="offset points", fontsize=7, color=MUTED_COLOR)
        add_legend_entries(axes, [(".", PUBLISHED_COLOR, f"{number} {' / '.join(models)}")])


def _draw_figure5(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """Draw EM@k of LoRA in 16, 8 and 4 bits by model, with the peak memory of training where known."""
    every = [item for name in LORA_TECHNIQUES for item in collected.find(kind=name, pair=None)]
    quantized = {(item.job.model, item.job.data) for item in every if item.job.technique != "lora"}
    tuned = [item for item in every if (item.job.model, item.job.data) in quantized]
    theirs = ("CodeLlama-7B-Python", "CodeLlama-13B-Python", "CodeLlama-34B-Python")

    def panel(axes: Axes, data: str) -> None:
        finished = [item for item in tuned if item.job.data.name == data]
        models = list(dict.fromkeys(item.job.model.name for item in finished))
        names = [
            *models,
            *(name for name in theirs if schema.published_quantized_em10(name, data, "qlora-4bit") is not None),
        ]
        for index, technique in enumerate(LORA_TECHNIQUES):
            ours = {item.job.model.name: item for item in finished if item.job.technique == technique}
            positions = [position for position, name in enumerate(names[: len(models)]) if name in ours]
            drawn = [ours[names[position]] for position in positions]
            shift = (index - 1) * 0.27
            draw_bars(
                axes,
                [position + shift for position in positions],
                [item.interval(headline_metric(item)) for item in drawn],
                COLORS[index],
                METHOD_TITLES[technique],
            )
            stated = [
                (position, schema.published_quantized_em10(names[position], data, technique))
                for position in range(len(models), len(names))
            ]
            published_points = [(position + shift, value) for position, value in stated if value is not None]
            label = "" if drawn else METHOD_TITLES[technique]
            bars = axes.bar(
                [x for x, _ in published_points],
                [y for _, y in published_points],
                0.26,
                color=COLORS[index],
                alpha=0.35,
                label=label,
            )
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1, color=MUTED_COLOR)
            for position, item in zip(positions, drawn, strict=True):
                peak = item.training_facts.get("peak_memory_bytes")
                if peak:
                    axes.annotate(
                        f"{peak / 1e9:.1f} GB",
                        (position + shift, 0),
                        xytext=(0, 3),
                        textcoords="offset points",
                        ha="center",
                        fontsize=7,
                        rotation=90,
                        color="white",
                    )
        short = [name.replace("CodeLlama-", "CL-") for name in names]  # as in the study's figure
        ticks = [f"{name}\n(the study)" if position >= len(models) else name for position, name in enumerate(short)]
        axes.set_xticks(range(len(names)), ticks, fontsize=7)
        label_axes(axes, data, "", f"{metric_title(headline_metric(finished[0]))}, %")

    return draw_panels(datasets_present(tuned, datasets), panel, width=8)


def _drop_missing(drawn: dict[str, bytes | None]) -> dict[str, bytes]:
    return {f"{name}.png": data for name, data in drawn.items() if data}
