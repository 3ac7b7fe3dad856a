"""The figures that compare methods: LoRA beside ICL and RAG, its rank and alpha, time, and tests passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluate.measures import title
from evaluate.study import published
from evaluate.study.cells import Cell, Found, having
from evaluate.study.config import ALPHA, RANK, TITLES
from evaluate.study.drawing import (
    COLOURS,
    CROWD,
    HOLLOW,
    MARKS,
    QUIET,
    draw_bars,
    draw_dots,
    draw_point,
    explain,
    labels,
    new_axes,
    panels,
    png,
)
from evaluate.study.findings import LORA, best, top_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_figure6(found: Found, sets: Sequence[str]) -> bytes | None:
    """CodeBLEU against EM@k: the best ICL and LoRA of each model, with a line between the two."""
    marks = {"icl": HOLLOW, **dict(zip(LORA, MARKS[1:], strict=False))}

    def panel(axes: Axes, data: str) -> None:
        cells = [cell for cell in found.cells.values() if cell.job.data.name == data and cell.job.kind in marks]
        models = list(dict.fromkeys(cell.job.model for cell in cells))
        for at, model in enumerate(models):
            mine = [cell for cell in cells if cell.job.model == model]
            shots = best(cell for cell in mine if cell.job.kind == "icl")
            spots = []
            for cell in [*([shots] if shots else []), *(cell for cell in mine if cell.job.kind != "icl")]:
                across, up = cell.interval(top_metric(cell)), cell.interval("codebleu")
                if across and up:
                    spots.append((100 * across.value, 100 * up.value))
                    draw_point(axes, across, up, at, marks[cell.job.kind], bars=len(models) <= CROWD)
            for one in spots[1:] if shots else ():
                axes.plot(*zip(spots[0], one, strict=True), color=COLOURS[at % len(COLOURS)], linewidth=0.8, zorder=1)
        explain(axes, [("-", COLOURS[at % len(COLOURS)], model.name) for at, model in enumerate(models)])
        kinds = [kind for kind in marks if any(cell.job.kind == kind for cell in cells)]
        explain(axes, [(marks[kind], QUIET, "best ICL" if kind == "icl" else TITLES[kind]) for kind in kinds])
        labels(axes, data, f"{title(top_metric(cells[0]))}, %", "CodeBLEU, %")

    tuned = [cell for cell in found.cells.values() if cell.job.kind in marks]
    return panels(having(tuned, sets), panel)


def draw_figure7(found: Found, sets: Sequence[str]) -> bytes | None:
    """EM@k of RAG by the number of examples, with LoRA and the best ICL as lines: a panel a data set and model."""
    near = [cell for cell in found.cells.values() if cell.job.kind == "rag"]
    places = _places(near, sets)

    def panel(axes: Axes, place: str) -> None:
        cells = [cell for cell in found.cells.values() if _place(cell) == place]
        bars = sorted((cell for cell in cells if cell.job.kind == "rag"), key=lambda cell: cell.job.k)
        k = top_metric(bars[0])
        draw_bars(axes, range(len(bars)), [cell.interval(k) for cell in bars], COLOURS[4], "RAG", width=0.7)
        axes.set_xticks(range(len(bars)), [str(cell.job.k) for cell in bars])
        lines = [
            best(cell for cell in cells if cell.job.kind == "icl"),
            *(cell for cell in cells if cell.job.kind in LORA),
        ]
        styles = ("--", "-", "-.", ":")
        for at, cell in enumerate(each for each in lines if each):
            value = cell.mean(k) or 0.0
            label = f"{'best ' if cell.job.examples else ''}{cell.job.title}: {100 * value:.1f}"
            axes.axhline(100 * value, color=COLOURS[at + 1], linestyle=styles[at % 4], linewidth=1.6, label=label)
        stated = [
            (label, published.em10(bars[0].job.model.beside, bars[0].job.data.name, kind))
            for label, kind in (("LoRA", "lora"), ("best RAG", "rag"), ("best ICL", "icl"))
        ]
        words = ", ".join(f"{label} {value:g}" for label, value in stated if value is not None)
        labels(axes, place, "retrieved examples in the prompt", f"{title(k)}, %")
        if words:
            axes.set_title(f"{place}\nthe study, {bars[0].job.model.beside}: {words}", fontsize=9)

    return panels(places, panel)


def draw_rank_alpha(found: Found, sets: Sequence[str]) -> bytes | None:
    """EM@k and CodeBLEU over LoRA's rank and alpha."""
    tried = [cell for cell in found.cells.values() if cell.job.pair]

    def panel(axes: Axes, data: str) -> None:
        variants = [cell for cell in tried if cell.job.data.name == data]
        usual = [
            cell
            for cell in found.matching(kind=variants[0].job.technique, pair=None, model=variants[0].job.model)
            if cell.job.data.name == data
        ]
        cells = sorted([*variants, *usual], key=lambda cell: cell.job.pair or (RANK, ALPHA))
        names = [f"r {(cell.job.pair or (RANK, ALPHA))[0]}\nα {(cell.job.pair or (RANK, ALPHA))[1]}" for cell in cells]
        k = top_metric(cells[0])
        for at, metric in enumerate((k, "codebleu")):
            draw_dots(
                axes,
                [place + (at - 0.5) * 0.16 for place in range(len(cells))],
                [cell.interval(metric) for cell in cells],
                at,
                title(metric),
            )
        axes.set_xticks(range(len(cells)), names, fontsize=8)
        labels(axes, f"{data} · {variants[0].job.model.name}, {TITLES[variants[0].job.technique]}", "", "%")

    return panels(having(tried, sets), panel)


def draw_cost(found: Found, sets: Sequence[str]) -> bytes | None:
    """EM@1 against the seconds that a problem takes: a panel a data set and model."""
    every = [cell for cell in found.cells.values() if not cell.job.pair]

    def panel(axes: Axes, place: str) -> None:
        cells = [cell for cell in every if _place(cell) == place]
        for at, kind in enumerate(dict.fromkeys(cell.job.kind for cell in cells)):
            mine = [cell for cell in cells if cell.job.kind == kind]
            spots = sorted((_seconds(cell), 100 * (cell.mean("em@1") or 0.0), cell.job.k) for cell in mine)
            name = (
                mine[0].job.title if len(mine) == 1 else mine[0].job.title.rpartition(" (")[0] + ", number of examples"
            )
            colour, mark = COLOURS[at % len(COLOURS)], MARKS[at % len(MARKS)]
            axes.plot([x for x, *_ in spots], [y for _, y, _ in spots], mark, color=colour, markersize=7, label=name)
            for x, y, k in spots if len(mine) > 1 else ():
                axes.annotate(str(k), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7, color=colour)
        axes.set_xlim(left=0)
        labels(axes, place, "seconds a problem, on the machine that answered", "EM@1, %")

    return panels(_places(every, sets), panel)


def _place(cell: Cell) -> str:
    return f"{cell.job.data.name} · {cell.job.model.name}"


def _places(cells: Sequence[Cell], sets: Sequence[str]) -> list[str]:
    """A panel a data set and model, in the order of the data sets."""
    return list(dict.fromkeys(_place(cell) for data in sets for cell in cells if cell.job.data.name == data))


def draw_tests(cells: Sequence[Cell]) -> bytes | None:
    """The average of tests passed and Pass@k of each method."""
    metrics = [each for each in ("tests", "pass@1", "pass@2", "pass@5") if cells and cells[0].mean(each) is not None]

    def draw(figure: Figure) -> None:
        axes = new_axes(figure, cells[0].job.data.name)
        width = 0.8 / len(cells)
        for at, cell in enumerate(cells):
            places = [place + (at - (len(cells) - 1) / 2) * width for place in range(len(metrics))]
            label = f"{cell.job.model.name}, {cell.job.title} ({cell.job.quantization})"
            draw_bars(
                axes,
                places,
                [cell.interval(metric) for metric in metrics],
                COLOURS[at % len(COLOURS)],
                label,
                width * 0.95,
            )
        axes.set_xticks(range(len(metrics)), [title(metric) for metric in metrics])
        labels(axes, cells[0].job.data.name, "", "%")

    return png(draw, 7.5, 4.5) if metrics else None


def _seconds(cell: Cell) -> float:
    answered = [result.seconds for result in cell.results if result.error is None]
    return sum(answered) / len(answered) if answered else 0.0
