"""HTML, texts and loss curve of the jobs panel: the list of jobs as values, the selected job as HTML.

The templates escape every text of a person, a file or a model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from markupsafe import Markup

from adapters.manifest import UNKNOWN
from common.format import format_bytes, format_duration
from jobs.job import Job, Progress, ScoreComparison, Verdict
from train.techniques import TECHNIQUES
from ui.components import model_label, render

MAX_POINTS = 240
OTHERS_JOB, OTHERS_ROWS = "Another visitor's job", "rows of their own"
NO_JOBS_TITLE = "No training yet"
NO_JOBS_TEXT = (
    "Start one above. It runs in a process of its own, one job after the other, and goes on when you close the page."
)
METRIC_LABELS = {"em": "EM@1", "codebleu": "CodeBLEU"}
_LOG_TAIL_LINES = 12
_MAX_TEXT_LENGTH = 600
# Half of the smallest width, in score difference, of the axis on which the differences are drawn.
_MIN_AXIS = 0.05
_MIN_RANGE_WIDTH = 0.005
_STATE_LABELS = {"queued": "Waiting", "stopping": "Stopping", "stopped": "Stopped", "failed": "Failed", "done": "Done"}


@dataclass(frozen=True)
class JobArtifacts:
    """Files of an ended job: the step of its last checkpoint (0: none), and whether its adapter is on disk."""

    step: int = 0
    adapter: bool = False


def state_label(job: Job) -> str:
    """Return the state in one word."""
    if job.state == "running":
        return {"training": "Training", "scoring": "Scoring"}.get(job.stage, "Starting")
    return _STATE_LABELS[job.state]


def state_message(job: Job, artifacts: JobArtifacts, steps: int) -> str:
    """Return a message about the job's state and what comes next.

    It changes with the state and not with every step, so that a screen reader speaks it once.
    """
    if job.state == "queued":
        ahead = {0: "it is next", 1: "one job is ahead of it"}.get(
            job.queue_position, f"{job.queue_position} jobs are ahead of it"
        )
        return f"Waiting: {ahead}."
    if job.state == "running":
        return {
            "training": "Training. You may close this page: the job goes on without it.",
            "scoring": "Trained. Now it answers the held-out rows; the base without it answers them too.",
        }.get(job.stage, "Starting: the base is loaded and the rows are made ready.")
    if job.state == "stopping":
        return "Stopping: it finishes its step and saves a checkpoint."
    if job.state == "done":
        return f"Done. '{job.adapter}' is among the methods of the Compare page."
    ended = "This job failed" if job.state == "failed" else "Stopped"
    return f"{ended}. '{resume_label(job, artifacts)}' {_resume_message(artifacts, steps)}."


def resume_label(job: Job, artifacts: JobArtifacts) -> str:
    """Return the label of the button that resumes an ended job."""
    if job.state == "failed":
        return "Retry"
    return "Resume" if artifacts.step or artifacts.adapter else "Start again"


def technique_title(job: Job) -> str:
    """Return the technique's title."""
    name = str(job.config.get("technique") or "lora")
    return TECHNIQUES[name].title if name in TECHNIQUES else name


def job_base_label(job: Job) -> str:
    """Return the base model that the adapter is trained for."""
    name = "the embedded base" if job.serving.base == "embedded" else job.serving.base
    return model_label(name, job.serving.quantization, UNKNOWN)


def location_label(job: Job) -> str:
    """Return where the job trains; '' for this machine."""
    if job.where == "here":
        return ""
    return f"on Hugging Face Jobs ({job.flavor})" if job.flavor else "on Hugging Face Jobs"


def join_nonempty(parts: Sequence[str]) -> str:
    """Join the parts that are not empty with spaces."""
    return " ".join(part for part in parts if part)


def _resume_message(artifacts: JobArtifacts, steps: int) -> str:
    if artifacts.adapter:
        return "goes on with the scoring: the adapter is trained"
    if artifacts.step:
        return f"goes on from step {artifacts.step} of {steps}" if steps else f"goes on from step {artifacts.step}"
    return "begins anew with the same rows and settings: there is no checkpoint yet"


Point = tuple[int, float]


class LossCurve(TypedDict):
    """Loss curve of one job.

    `training` and `validation` have [step, loss]; each point of `training` is the mean of `mean` logged ones. `said` is
    the curve in words.
    """

    training: list[list[float]]
    validation: list[list[float]]
    steps: int
    mean: int
    said: str


def loss_curve(progress: Progress) -> LossCurve:
    """Return the losses to be drawn: at most MAX_POINTS means of the training losses, and all validation losses."""
    training, validation = finite_points(progress.losses), finite_points(progress.validation)
    mean = math.ceil(len(training) / MAX_POINTS) or 1
    return {
        "training": [[step, float(f"{loss:.6g}")] for step, loss in average_points(training, mean)],
        # Not rounded: the lowest one stays the lowest, however small all of them have become.
        "validation": [[step, loss] for step, loss in validation],
        "steps": max(progress.steps, *(step for step, _ in (*training, *validation, (0, 0.0)))),
        "mean": mean,
        "said": curve_description(training, validation, progress.steps),
    }


def finite_points(points: Sequence[Point]) -> list[Point]:
    """Return the points whose loss is finite."""
    return [(step, loss) for step, loss in points if math.isfinite(loss)]


def average_points(points: Sequence[Point], group_size: int) -> list[Point]:
    """Return the mean loss of each `group_size` successive points, at the last of their steps."""
    groups = [points[start : start + group_size] for start in range(0, len(points), group_size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def lowest_point(points: Sequence[Point]) -> Point | None:
    """Return the first of the points with the lowest loss; None if there is none."""
    return min(points, key=lambda point: point[1], default=None)


def curve_description(training: Sequence[Point], validation: Sequence[Point], steps: int) -> str:
    """Return the curve in words, for people who cannot see it."""
    if not training and not validation:
        return ""
    parts = []
    if training:
        (first_step, first_loss), (last_step, last_loss) = training[0], training[-1]
        of_steps = f" of {steps}" if steps else ""
        first = f"{first_loss:.3g} at step {first_step}, " if last_step > first_step else ""
        parts.append(f"Training loss: {first}{last_loss:.3g} at step {last_step}{of_steps}.")
    best = lowest_point(validation)
    if best:
        count = f"{len(validation)} times" if len(validation) > 1 else "once"
        parts.append(f"Validation loss, measured {count}: lowest {best[1]:.3g} at step {best[0]}.")
    return " ".join(parts)


def job_list_value(jobs: Sequence[Job], selected: str, own_ids: Collection[str]) -> dict[str, Any]:
    """Return the value of the job list's component; `selected` is a job's id, `own_ids` are the visitor's own jobs."""
    return {
        "jobs": [
            {
                "id": job.id,
                "adapter": job.adapter,
                "state": job.state,
                "word": state_label(job),
                "about": f"{technique_title(job)} on {job.data_name}",
                "when": job.ended or job.started or job.created,
                "mine": job.id in own_ids,
                "shown": job.id == selected,
            }
            for job in jobs
        ]
    }


def reduced_job(job: Job) -> Job:
    """Return what another visitor may know of a job: how it trains, its state, and its position in the queue."""
    config = {name: job.config[name] for name in ("technique",) if name in job.config}
    return replace(job, adapter=OTHERS_JOB, config=config, data_name=OTHERS_ROWS, owner="", owner_name="", message="")


def reduced_progress(progress: Progress) -> Progress:
    """Return the progress without losses."""
    return replace(progress, losses=(), validation=())


def empty_html() -> str:
    """Return the panel before the first job."""
    return f'<div class="empty"><h3>{NO_JOBS_TITLE}</h3><p>{NO_JOBS_TEXT}</p></div>'


def denied_html(reason: str) -> Markup:
    """Return the panel for visitors who may not train: the reason, and nothing of others' data."""
    return Markup('<div class="empty"><h3>The jobs are not shown here</h3><p>{}</p></div>').format(reason)


def job_header_html(job: Job, progress: Progress) -> Markup:
    """Return name, state, data, progress bar and figures of a job."""
    facts = [technique_title(job), "on", _truncate(job.data_name), "for", job_base_label(job), location_label(job)]
    times = (("ended", job.ended), ("begun", job.started), ("asked for", job.created))
    time_label, time = next(((label, time) for label, time in times if time), ("", ""))
    return render(
        "train/job_header.html.jinja",
        adapter=_truncate(job.adapter),
        state=job.state,
        state_label=state_label(job),
        facts=join_nonempty(facts),
        time_label=time_label,
        time=time,
        attempts=job.attempts,
        progress=progress,
        fraction=f"{min(progress.step / progress.steps, 1.0):.2%}" if progress.steps else "",
        metrics=_progress_metrics(job, progress),
    )


def job_state_html(job: Job, artifacts: JobArtifacts, steps: int) -> Markup:
    """Return the state message, after the error message of a failed job."""
    state = Markup("<p>{}</p>").format(state_message(job, artifacts, steps))
    if job.state != "failed":
        return state
    return Markup('<p class="error-message">{}</p>{}').format(_truncate(job.message), state)


def job_message_html(job: Job, progress: Progress) -> str:
    """Return the job's last message while no figures, state or verdict say the same; else ''."""
    has_figures = job.stage == "training" and progress.step
    if job.state not in ("running", "stopping") or has_figures or not job.message.strip():
        return ""
    return Markup('<p class="job-message">{}</p>').format(_truncate(job.message.strip()))


def log_tail_html(log: Sequence[str]) -> str:
    """Return the end of a failed job's log; '' for an empty log."""
    if not log:
        return ""
    text = "\n".join(line[:_MAX_TEXT_LENGTH] for line in log[-_LOG_TAIL_LINES:])
    return Markup('<p class="muted">The end of its log:</p><pre class="log-tail" tabindex="0">{}</pre>').format(text)


def verdict_html(verdict: Verdict) -> Markup:
    """Return the finding in words, the score differences with their intervals, and what is needed to repeat them."""
    limits = [max(abs(comparison.low), abs(comparison.high)) for comparison in verdict.compared]
    axis = max([_MIN_AXIS, *limits])
    return render(
        "train/job_verdict.html.jinja",
        message=verdict.sentence,
        rows=[_comparison_row(comparison, axis) for comparison in verdict.compared],
        provenance=[
            (name.replace("_", " "), value) for name, value in verdict.provenance.items() if value not in (None, "")
        ],
    )


def _progress_metrics(job: Job, progress: Progress) -> list[tuple[str, str]]:
    metrics = [("Step", f"{progress.step} of {progress.steps}"), ("Time gone", format_duration(progress.seconds))]
    if job.state == "running" and job.stage == "training":
        left = progress.left_seconds
        metrics.append(("Time left", "not known yet" if left is None else f"about {format_duration(left)}"))
    if progress.tokens_per_second:
        metrics.append(("Tokens/s", f"{progress.tokens_per_second:,.0f}"))
    if progress.memory_bytes:
        metrics.append(("Memory", format_bytes(progress.memory_bytes)))
    best = lowest_point(finite_points(progress.validation))
    if best:
        metrics.append(("Best validation loss", f"{best[1]:.3g} (step {best[0]})"))
    return metrics


def _comparison_row(comparison: ScoreComparison, axis: float) -> dict[str, Any]:
    """Return one row of the verdict's table: scores in points of 100, lengths in % of an axis from -axis to axis."""
    width = max((comparison.high - comparison.low) / (2 * axis), _MIN_RANGE_WIDTH)
    return {
        "other": comparison.other,
        "metric": METRIC_LABELS.get(comparison.metric, comparison.metric),
        "value": f"{100 * comparison.value:+.1f}",
        "low": f"{100 * comparison.low:+.1f}",
        "high": f"{100 * comparison.high:+.1f}",
        "range_left": f"{(comparison.low + axis) / (2 * axis):.2%}",
        "range_width": f"{width:.2%}",
        "dot_left": f"{(comparison.value + axis) / (2 * axis):.2%}",
        "adapter_score": f"{100 * comparison.adapter_score:.1f}",
        "other_score": f"{100 * comparison.other_score:.1f}",
        "p": "< 0.001" if comparison.p < 0.001 else f"{comparison.p:.3f}",
        "n": comparison.n,
    }


def _truncate(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_LENGTH else text[: _MAX_TEXT_LENGTH - 1] + "…"
