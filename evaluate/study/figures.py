"""Figures.

The study's figures from our numbers, with the study's own values where it states them. Each is a PNG.

Intervals of 95 % are drawn wherever they exist. Figures 3, 6 and the bars of 7 have no numbers in the study's text, so
nothing of it stands in ours but what it states.

The figures that compare methods: LoRA beside ICL and RAG, its rank and alpha, time, and tests passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluate.aggregate import metric_title
from evaluate.study import published
from evaluate.study.cells import CollectedRuns, FinishedJob, datasets_present
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
from evaluate.study.tables import memory_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_figure6(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """CodeBLEU against EM@k: the best ICL and LoRA of each model, with a line between the two."""
    marks = {"icl": HOLLOW_MARKER, **dict(zip(LORA_TECHNIQUES, MARKERS[1:], strict=False))}

    def panel(axes: Axes, data: str) -> None:
        cells = [cell for cell in collected.finished.values() if cell.job.data.name == data and cell.job.kind in marks]
        models = list(dict.fromkeys(cell.job.model for cell in cells))
        for at, model in enumerate(models):
            mine = [cell for cell in cells if cell.job.model == model]
            shots = best_job(cell for cell in mine if cell.job.kind == "icl")
            spots = []
            for cell in [*([shots] if shots else []), *(cell for cell in mine if cell.job.kind != "icl")]:
                across, up = cell.interval(headline_metric(cell)), cell.interval("codebleu")
                if across and up:
                    spots.append((100 * across.value, 100 * up.value))
                    draw_point(axes, across, up, at, marks[cell.job.kind], bars=len(models) <= MAX_ERROR_BARS)
            for one in spots[1:] if shots else ():
                axes.plot(*zip(spots[0], one, strict=True), color=COLORS[at % len(COLORS)], linewidth=0.8, zorder=1)
        add_legend_entries(axes, [("-", COLORS[at % len(COLORS)], model.name) for at, model in enumerate(models)])
        kinds = [kind for kind in marks if any(cell.job.kind == kind for cell in cells)]
        add_legend_entries(
            axes, [(marks[kind], MUTED_COLOR, "best ICL" if kind == "icl" else METHOD_TITLES[kind]) for kind in kinds]
        )
        label_axes(axes, data, f"{metric_title(headline_metric(cells[0]))}, %", "CodeBLEU, %")

    tuned = [cell for cell in collected.finished.values() if cell.job.kind in marks]
    return draw_panels(datasets_present(tuned, datasets), panel)


def draw_figure7(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """EM@k of RAG by the number of examples, with LoRA and the best ICL as lines: a panel a data set and model."""
    near = [cell for cell in collected.finished.values() if cell.job.kind == "rag"]
    places = _panel_titles(near, datasets)

    def panel(axes: Axes, place: str) -> None:
        cells = [cell for cell in collected.finished.values() if _panel_title(cell) == place]
        bars = sorted((cell for cell in cells if cell.job.kind == "rag"), key=lambda cell: cell.job.k)
        k = headline_metric(bars[0])
        draw_bars(axes, range(len(bars)), [cell.interval(k) for cell in bars], COLORS[4], "RAG", width=0.7)
        axes.set_xticks(range(len(bars)), [str(cell.job.k) for cell in bars])
        lines = [
            best_job(cell for cell in cells if cell.job.kind == "icl"),
            *(cell for cell in cells if cell.job.kind in LORA_TECHNIQUES),
        ]
        styles = ("--", "-", "-.", ":")
        for at, cell in enumerate(each for each in lines if each):
            value = cell.mean(k) or 0.0
            label = f"{'best ' if cell.job.examples else ''}{cell.job.title}: {100 * value:.1f}"
            axes.axhline(100 * value, color=COLORS[at + 1], linestyle=styles[at % 4], linewidth=1.6, label=label)
        stated = [
            (label, published.published_em10(bars[0].job.model.beside, bars[0].job.data.name, kind))
            for label, kind in (("LoRA", "lora"), ("best RAG", "rag"), ("best ICL", "icl"))
        ]
        words = ", ".join(f"{label} {value:g}" for label, value in stated if value is not None)
        label_axes(axes, place, "retrieved examples in the prompt", f"{metric_title(k)}, %")
        if words:
            axes.set_title(f"{place}\nthe study, {bars[0].job.model.beside}: {words}", fontsize=9)

    return draw_panels(places, panel)


def draw_rank_alpha(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """EM@k and CodeBLEU over LoRA's rank and alpha."""
    tried = [cell for cell in collected.finished.values() if cell.job.pair]

    def panel(axes: Axes, data: str) -> None:
        variants = [cell for cell in tried if cell.job.data.name == data]
        usual = [
            cell
            for cell in collected.find(kind=variants[0].job.technique, pair=None, model=variants[0].job.model)
            if cell.job.data.name == data
        ]
        cells = sorted([*variants, *usual], key=lambda cell: cell.job.pair or (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA))
        names = [
            f"r {(cell.job.pair or (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA))[0]}\nα {(cell.job.pair or (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA))[1]}"
            for cell in cells
        ]
        k = headline_metric(cells[0])
        for at, metric in enumerate((k, "codebleu")):
            draw_points_with_intervals(
                axes,
                [place + (at - 0.5) * 0.16 for place in range(len(cells))],
                [cell.interval(metric) for cell in cells],
                at,
                metric_title(metric),
            )
        axes.set_xticks(range(len(cells)), names, fontsize=8)
        label_axes(axes, f"{data} · {variants[0].job.model.name}, {METHOD_TITLES[variants[0].job.technique]}", "", "%")

    return draw_panels(datasets_present(tried, datasets), panel)


def draw_cost(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """EM@1 against the seconds that a problem takes: a panel a data set and model."""
    every = [cell for cell in collected.finished.values() if not cell.job.pair]

    def panel(axes: Axes, place: str) -> None:
        cells = [cell for cell in every if _panel_title(cell) == place]
        for at, kind in enumerate(dict.fromkeys(cell.job.kind for cell in cells)):
            mine = [cell for cell in cells if cell.job.kind == kind]
            spots = sorted((_mean_seconds(cell), 100 * (cell.mean("em@1") or 0.0), cell.job.k) for cell in mine)
            name = (
                mine[0].job.title if len(mine) == 1 else mine[0].job.title.rpartition(" (")[0] + ", number of examples"
            )
            colour, mark = COLORS[at % len(COLORS)], MARKERS[at % len(MARKERS)]
            axes.plot([x for x, *_ in spots], [y for _, y, _ in spots], mark, color=colour, markersize=7, label=name)
            for x, y, k in spots if len(mine) > 1 else ():
                axes.annotate(str(k), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7, color=colour)
        axes.set_xlim(left=0)
        label_axes(axes, place, "seconds a problem, on the machine that answered", "EM@1, %")

    return draw_panels(_panel_titles(every, datasets), panel)


def _panel_title(job: FinishedJob) -> str:
    return f"{job.job.data.name} · {job.job.model.name}"


def _panel_titles(jobs: Sequence[FinishedJob], datasets: Sequence[str]) -> list[str]:
    """A panel a data set and model, in the order of the data sets."""
    return list(dict.fromkeys(_panel_title(cell) for data in datasets for cell in jobs if cell.job.data.name == data))


def draw_tests(jobs: Sequence[FinishedJob]) -> bytes | None:
    """The average of tests passed and Pass@k of each method."""
    metrics = [each for each in ("tests", "pass@1", "pass@2", "pass@5") if jobs and jobs[0].mean(each) is not None]

    def draw(figure: Figure) -> None:
        axes = new_axes(figure, jobs[0].job.data.name)
        width = 0.8 / len(jobs)
        for at, cell in enumerate(jobs):
            places = [place + (at - (len(jobs) - 1) / 2) * width for place in range(len(metrics))]
            label = f"{cell.job.model.name}, {cell.job.title} ({cell.job.quantization})"
            draw_bars(
                axes,
                places,
                [cell.interval(metric) for metric in metrics],
                COLORS[at % len(COLORS)],
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
    """File names and PNGs of a question; those for which there is nothing to draw are left out."""
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
    """Peak memory of training: the study's bars, our estimate for the same run, and what was measured here."""
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
            for at, row in enumerate(rows):
                there = [each for each in range(3) if row[2 + each] is not None]
                if column in there:
                    shift = (there.index(column) - (len(there) - 1) / 2) * height
                    points.append((at + shift, float(row[2 + column] or 0)))
            bars = axes.barh([at for at, _ in points], [size for _, size in points], 0.26, color=colour, label=label)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7, color=MUTED_COLOR)
        axes.axvline(24, color=MUTED_COLOR, linewidth=1, linestyle=":", label="24 GB, what the study had")
        axes.set_yticks(
            range(len(rows)), [f"{row[0]} · {published.TABLE3_TECHNIQUES[row[1]]}" for row in rows], fontsize=8
        )
        axes.invert_yaxis()
        axes.margins(x=0.08, y=0.03)
        axes.legend(loc="lower right", fontsize=8, frameon=False)

    return render_png(draw, 9, 1.2 + 0.5 * len(rows)) if rows else None


def _draw_figure3(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """EM@k against the number of random examples, one line a model."""
    shots = [cell for cell in collected.finished.values() if cell.job.kind in ("zero-shot", "icl")]

    def panel(axes: Axes, data: str) -> None:
        cells = [cell for cell in shots if cell.job.data.name == data]
        models = list(dict.fromkeys(cell.job.model for cell in cells))
        for at, model in enumerate(models):
            mine = sorted((cell for cell in cells if cell.job.model == model), key=lambda cell: cell.job.k)
            points = [(cell.job.k, cell.interval(headline_metric(cell))) for cell in mine]
            draw_line(axes, points, at, model.name + _published_label(model, data), band=len(models) <= MAX_ERROR_BARS)
        label_axes(axes, data, "random examples in the prompt", metric_title(headline_metric(cells[0])) + ", %")

    return draw_panels(datasets_present(shots, datasets), panel)


def _published_label(model: StudyModel, data: str) -> str:
    """What the study states for this model, or for the one that is set beside it."""
    kinds = (("zero-shot", "zero-shot"), ("best ICL", "icl"))
    stated = [(label, published.published_em10(model.beside, data, kind)) for label, kind in kinds]
    words = ", ".join(f"{label} {value:g}" for label, value in stated if value is not None)
    whose = "" if model.beside == model.name else f", {model.beside}"
    return f" (the study{whose}: {words})" if words else ""


def _draw_figure4(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """CodeBLEU against EM@k of LoRA, one point a model, the study's points in grey."""
    tuned = [cell for name in LORA_TECHNIQUES for cell in collected.find(kind=name, pair=None)]

    def panel(axes: Axes, data: str) -> None:
        cells = [cell for cell in tuned if cell.job.data.name == data]
        _draw_published_points(axes, data)
        for at, cell in enumerate(cells):
            across, up = cell.interval(headline_metric(cell)), cell.interval("codebleu")
            if across and up:
                draw_point(axes, across, up, at, MARKERS[1 + at % 8], bars=len(cells) <= MAX_ERROR_BARS)
                name = f"{cell.job.model.name}, {cell.job.title}"
                add_legend_entries(axes, [(MARKERS[1 + at % 8], COLORS[at % len(COLORS)], name)])
        label_axes(axes, data, f"{metric_title(headline_metric(cells[0]))}, %", "CodeBLEU, %")
        axes.set_title(f"{data}: ours in colour, the study's LoRA in grey", fontsize=9)

    return draw_panels(datasets_present(tuned, datasets), panel)


def _draw_published_points(axes: Axes, data: str) -> None:
    """The study's models, by number: their names would lie on one another."""
    spots: dict[tuple[float, float], list[str]] = {}
    for model in published.published_models(data):
        row = published.published_score(model, "lora", data)
        if row:
            spots.setdefault((row.em10, row.codebleu), []).append(model)
    for number, ((x, y), models) in enumerate(spots.items(), start=1):
        below = any(0 < other[1] - y < 2 and abs(other[0] - x) < 2 for other in spots)
        axes.plot(x, y, ".", color=PUBLISHED_COLOR, markersize=9)
        place = (3, -9 if below else 3)
        axes.annotate(str(number), (x, y), xytext=place, textcoords="offset points", fontsize=7, color=MUTED_COLOR)
        add_legend_entries(axes, [(".", PUBLISHED_COLOR, f"{number} {' / '.join(models)}")])


def _draw_figure5(collected: CollectedRuns, datasets: Sequence[str]) -> bytes | None:
    """EM@k of LoRA in 16, 8 and 4 bits by model, and under it the peak memory of training where it is known."""
    every = [cell for name in LORA_TECHNIQUES for cell in collected.find(kind=name, pair=None)]
    quantized = {(cell.job.model, cell.job.data) for cell in every if cell.job.technique != "lora"}
    tuned = [cell for cell in every if (cell.job.model, cell.job.data) in quantized]
    theirs = ("CodeLlama-7B-Python", "CodeLlama-13B-Python", "CodeLlama-34B-Python")

    def panel(axes: Axes, data: str) -> None:
        cells = [cell for cell in tuned if cell.job.data.name == data]
        models = list(dict.fromkeys(cell.job.model.name for cell in cells))
        names = [
            *models,
            *(name for name in theirs if published.published_quantized_em10(name, data, "qlora-4bit") is not None),
        ]
        for at, technique in enumerate(LORA_TECHNIQUES):
            ours = {cell.job.model.name: cell for cell in cells if cell.job.technique == technique}
            places = [place for place, name in enumerate(names[: len(models)]) if name in ours]
            shown = [ours[names[place]] for place in places]
            shift = (at - 1) * 0.27
            draw_bars(
                axes,
                [place + shift for place in places],
                [cell.interval(headline_metric(cell)) for cell in shown],
                COLORS[at],
                METHOD_TITLES[technique],
            )
            stated = [
                (place, published.published_quantized_em10(names[place], data, technique))
                for place in range(len(models), len(names))
            ]
            kept = [(place + shift, value) for place, value in stated if value is not None]
            label = "" if shown else METHOD_TITLES[technique]
            bars = axes.bar([x for x, _ in kept], [y for _, y in kept], 0.26, color=COLORS[at], alpha=0.35, label=label)
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1, color=MUTED_COLOR)
            for place, cell in zip(places, shown, strict=True):
                peak = cell.training_facts.get("peak_memory_bytes")
                if peak:
                    axes.annotate(
                        f"{peak / 1e9:.1f} GB",
                        (place + shift, 0),
                        xytext=(0, 3),
                        textcoords="offset points",
                        ha="center",
                        fontsize=7,
                        rotation=90,
                        color="white",
                    )
        short = [name.replace("CodeLlama-", "CL-") for name in names]  # as the study's own figure has them
        ticks = [f"{name}\n(the study)" if place >= len(models) else name for place, name in enumerate(short)]
        axes.set_xticks(range(len(names)), ticks, fontsize=7)
        label_axes(axes, data, "", f"{metric_title(headline_metric(cells[0]))}, %")

    return draw_panels(datasets_present(tuned, datasets), panel, width=8)


def _drop_missing(drawn: dict[str, bytes | None]) -> dict[str, bytes]:
    return {f"{name}.png": data for name, data in drawn.items() if data}
