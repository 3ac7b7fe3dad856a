"""The study's figures from our numbers, with the study's own values where it states them. Each is a PNG.

Intervals of 95 % are drawn wherever they exist. Figures 3, 6 and the bars of 7 have no numbers in the study's text, so
nothing of it stands in ours but what it states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluate.measures import title
from evaluate.study import published
from evaluate.study.cells import Found, having
from evaluate.study.config import TITLES, Model, StudyConfig
from evaluate.study.drawing import (
    COLOURS,
    CROWD,
    MARKS,
    QUIET,
    THEIRS,
    draw_bars,
    draw_line,
    draw_point,
    explain,
    labels,
    new_axes,
    panels,
    png,
)
from evaluate.study.figures_compared import draw_cost, draw_figure6, draw_figure7, draw_rank_alpha, draw_tests
from evaluate.study.findings import LORA, top_metric
from evaluate.study.tables import memory_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(config: StudyConfig, rq: str, found: Found) -> dict[str, bytes]:
    """File names and PNGs of a question; those for which there is nothing to draw are left out."""
    sets = config.question(rq).data
    if rq == "rq1":
        return _some({"rq1-figure3": _figure3(found, sets)})
    if rq == "rq2":
        return _some(
            {
                "rq2-figure1": _figure1(found),
                "rq2-figure4": _figure4(found, sets),
                "rq2-figure5": _figure5(found, sets),
                "rq2-rank-alpha": draw_rank_alpha(found, sets),
            }
        )
    if rq == "rq3":
        drawn = {"rq3-figure6": draw_figure6(found, sets), "rq3-figure7": draw_figure7(found, sets)}
        return _some(drawn | {"rq3-cost": draw_cost(found, sets)})
    return _some(
        {f"rq4-tests-{data}": draw_tests([c for c in found.cells.values() if c.job.data.name == data]) for data in sets}
    )


def _figure1(found: Found) -> bytes | None:
    """Peak memory of training: the study's bars, our estimate for the same run, and what was measured here."""
    rows = memory_rows(found)
    series = (("the study, one GPU", THEIRS), ("estimated here, one GPU", COLOURS[0]), ("measured here", COLOURS[1]))
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
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7, color=QUIET)
        axes.axvline(24, color=QUIET, linewidth=1, linestyle=":", label="24 GB, what the study had")
        axes.set_yticks(range(len(rows)), [f"{row[0]} · {published.TUNING[row[1]]}" for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.08, y=0.03)
        axes.legend(loc="lower right", fontsize=8, frameon=False)

    return png(draw, 9, 1.2 + 0.5 * len(rows)) if rows else None


def _figure3(found: Found, sets: Sequence[str]) -> bytes | None:
    """EM@k against the number of random examples, one line a model."""
    shots = [cell for cell in found.cells.values() if cell.job.kind in ("zero-shot", "icl")]

    def panel(axes: Axes, data: str) -> None:
        cells = [cell for cell in shots if cell.job.data.name == data]
        models = list(dict.fromkeys(cell.job.model for cell in cells))
        for at, model in enumerate(models):
            mine = sorted((cell for cell in cells if cell.job.model == model), key=lambda cell: cell.job.k)
            points = [(cell.job.k, cell.interval(top_metric(cell))) for cell in mine]
            draw_line(axes, points, at, model.name + _stated(model, data), band=len(models) <= CROWD)
        labels(axes, data, "random examples in the prompt", title(top_metric(cells[0])) + ", %")

    return panels(having(shots, sets), panel)


def _stated(model: Model, data: str) -> str:
    """What the study states for this model, or for the one that is set beside it."""
    kinds = (("zero-shot", "zero-shot"), ("best ICL", "icl"))
    stated = [(label, published.em10(model.beside, data, kind)) for label, kind in kinds]
    words = ", ".join(f"{label} {value:g}" for label, value in stated if value is not None)
    whose = "" if model.beside == model.name else f", {model.beside}"
    return f" (the study{whose}: {words})" if words else ""


def _figure4(found: Found, sets: Sequence[str]) -> bytes | None:
    """CodeBLEU against EM@k of LoRA, one point a model, the study's points in grey."""
    tuned = [cell for name in LORA for cell in found.matching(kind=name, pair=None)]

    def panel(axes: Axes, data: str) -> None:
        cells = [cell for cell in tuned if cell.job.data.name == data]
        _their_points(axes, data)
        for at, cell in enumerate(cells):
            across, up = cell.interval(top_metric(cell)), cell.interval("codebleu")
            if across and up:
                draw_point(axes, across, up, at, MARKS[1 + at % 8], bars=len(cells) <= CROWD)
                name = f"{cell.job.model.name}, {cell.job.title}"
                explain(axes, [(MARKS[1 + at % 8], COLOURS[at % len(COLOURS)], name)])
        labels(axes, data, f"{title(top_metric(cells[0]))}, %", "CodeBLEU, %")
        axes.set_title(f"{data}: ours in colour, the study's LoRA in grey", fontsize=9)

    return panels(having(tuned, sets), panel)


def _their_points(axes: Axes, data: str) -> None:
    """The study's models, by number: their names would lie on one another."""
    spots: dict[tuple[float, float], list[str]] = {}
    for model in published.models(data):
        row = published.tuned(model, "lora", data)
        if row:
            spots.setdefault((row.em10, row.codebleu), []).append(model)
    for number, ((x, y), models) in enumerate(spots.items(), start=1):
        below = any(0 < other[1] - y < 2 and abs(other[0] - x) < 2 for other in spots)
        axes.plot(x, y, ".", color=THEIRS, markersize=9)
        place = (3, -9 if below else 3)
        axes.annotate(str(number), (x, y), xytext=place, textcoords="offset points", fontsize=7, color=QUIET)
        explain(axes, [(".", THEIRS, f"{number} {' / '.join(models)}")])


def _figure5(found: Found, sets: Sequence[str]) -> bytes | None:
    """EM@k of LoRA in 16, 8 and 4 bits by model, and under it the peak memory of training where it is known."""
    every = [cell for name in LORA for cell in found.matching(kind=name, pair=None)]
    quantized = {(cell.job.model, cell.job.data) for cell in every if cell.job.technique != "lora"}
    tuned = [cell for cell in every if (cell.job.model, cell.job.data) in quantized]
    theirs = ("CodeLlama-7B-Python", "CodeLlama-13B-Python", "CodeLlama-34B-Python")

    def panel(axes: Axes, data: str) -> None:
        cells = [cell for cell in tuned if cell.job.data.name == data]
        models = list(dict.fromkeys(cell.job.model.name for cell in cells))
        names = [*models, *(name for name in theirs if published.quantized(name, data, "qlora-4bit") is not None)]
        for at, technique in enumerate(LORA):
            ours = {cell.job.model.name: cell for cell in cells if cell.job.technique == technique}
            places = [place for place, name in enumerate(names[: len(models)]) if name in ours]
            shown = [ours[names[place]] for place in places]
            shift = (at - 1) * 0.27
            draw_bars(
                axes,
                [place + shift for place in places],
                [cell.interval(top_metric(cell)) for cell in shown],
                COLOURS[at],
                TITLES[technique],
            )
            stated = [
                (place, published.quantized(names[place], data, technique)) for place in range(len(models), len(names))
            ]
            kept = [(place + shift, value) for place, value in stated if value is not None]
            label = "" if shown else TITLES[technique]
            bars = axes.bar(
                [x for x, _ in kept], [y for _, y in kept], 0.26, color=COLOURS[at], alpha=0.35, label=label
            )
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1, color=QUIET)
            for place, cell in zip(places, shown, strict=True):
                peak = cell.training.get("peak_memory_bytes")
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
        labels(axes, data, "", f"{title(top_metric(cells[0]))}, %")

    return panels(having(tuned, sets), panel, width=8)


def _some(drawn: dict[str, bytes | None]) -> dict[str, bytes]:
    return {f"{name}.png": data for name, data in drawn.items() if data}
