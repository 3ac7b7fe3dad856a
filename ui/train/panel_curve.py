"""The loss curve as js/curve.js draws it: few enough points to send every second, and one sentence that says it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from jobs.job import Progress

MAX_POINTS = 240

Point = tuple[int, float]


class LossCurve(TypedDict):
    """`training` and `validation` are [step, loss]; each point of `training` is the mean of `mean` logged ones."""

    training: list[list[float]]
    validation: list[list[float]]
    steps: int
    mean: int
    said: str


def loss_curve(progress: Progress) -> LossCurve:
    """What is drawn of a training's losses."""
    training, validation = finite_points(progress.losses), finite_points(progress.validation)
    mean = math.ceil(len(training) / MAX_POINTS) or 1
    return {
        "training": [[step, float(f"{loss:.6g}")] for step, loss in average_points(training, mean)],
        # As they are: the lowest one stays the lowest, however small all of them have become.
        "validation": [[step, loss] for step, loss in validation],
        "steps": max(progress.steps, *(step for step, _ in (*training, *validation, (0, 0.0)))),
        "mean": mean,
        "said": curve_description(training, validation, progress.steps),
    }


def finite_points(points: Sequence[Point]) -> list[Point]:
    """The points that have a place on a sheet."""
    return [(step, loss) for step, loss in points if math.isfinite(loss)]


def average_points(points: Sequence[Point], group_size: int) -> list[Point]:
    """Means of `mean` points in a row, each at the last of their steps."""
    groups = [points[at : at + group_size] for at in range(0, len(points), group_size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def lowest_point(points: Sequence[Point]) -> Point | None:
    """The first of the points with the lowest loss; None where there is none."""
    return min(points, key=lambda point: point[1], default=None)


def curve_description(training: Sequence[Point], validation: Sequence[Point], steps: int) -> str:
    """The curve in a sentence, for who cannot see it."""
    if not training and not validation:
        return ""
    parts = []
    if training:
        (first, before), (last, now) = training[0], training[-1]
        of = f" of {steps}" if steps else ""
        since = f"{before:.3g} at step {first}, " if last > first else ""
        parts.append(f"Training loss: {since}{now:.3g} at step {last}{of}.")
    best = lowest_point(validation)
    if best:
        count = f"{len(validation)} times" if len(validation) > 1 else "once"
        parts.append(f"Validation loss, measured {count}: lowest {best[1]:.3g} at step {best[0]}.")
    return " ".join(parts)
