"""The figures that compare methods: LoRA beside ICL and RAG, its rank and alpha, time, and tests passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluate.measures import metric_title
from evaluate.study import published
from evaluate.study.cells import CollectedRuns, FinishedJob, datasets_present
from evaluate.study.config import DEFAULT_LORA_ALPHA, DEFAULT_LORA_RANK, METHOD_TITLES
from evaluate.study.drawing import (
    COLORS,
    HOLLOW_MARKER,
    MARKERS,
    MAX_ERROR_BARS,
    MUTED_COLOR,
    add_legend_entries,
    draw_bars,
    draw_panels,
    draw_point,
    draw_points_with_intervals,
    label_axes,
    new_axes,
    render_png,
)
from evaluate.study.findings import LORA_TECHNIQUES, best_job, headline_metric

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
