"""Jobs HTML and curve.

The panel's values: the list for js/job_list.js as plain texts, the chosen job as HTML in which all is escaped.

What the jobs' panel says: states, times, sizes, and what a press of a button will do. Plain text, not yet HTML.

The loss curve as js/loss_curve.js draws it: few enough points to send every second, and one sentence that says it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypedDict

from adapters.manifest import UNKNOWN
from jobs.job import Job, Progress, ScoreComparison, Verdict
from train.techniques import TECHNIQUES
from ui.labels import model_label

_STATE_LABELS = {"queued": "Waiting", "stopping": "Stopping", "stopped": "Stopped", "failed": "Failed", "done": "Done"}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True)
class JobArtifacts:
    """What an ended job left on disk: the step of its last checkpoint (0: none), and whether the adapter is made."""

    step: int = 0
    adapter: bool = False


def state_label(job: Job) -> str:
    """The state in one word, as the list shows it."""
    if job.state == "running":
        return {"training": "Training", "scoring": "Scoring"}.get(job.stage, "Starting")
    return _STATE_LABELS[job.state]


def state_message(job: Job, artifacts: JobArtifacts, steps: int) -> str:
    """Where the job stands and what comes next.

    It changes with the state and not with every step, so that a screen reader speaks it once.
    """
    if job.state == "queued":
        ahead = {0: "it is next", 1: "one job is ahead of it"}.get(
            job.queue_position, f"{job.queue_position} jobs are ahead of it"
        )
        return f"Waiting in line: {ahead}."
    if job.state == "running":
        return {
            "training": "Training. You may close this page: the job goes on without it.",
            "scoring": "Trained. Now it answers rows that it has not seen, beside the base without it.",
        }.get(job.stage, "Starting: the base is loaded and the rows are made ready.")
    if job.state == "stopping":
        return "Stopping: it finishes its step and saves a checkpoint."
    if job.state == "done":
        return f"Done. '{job.adapter}' is among the methods of the Compare page."
    ended = "This job failed" if job.state == "failed" else "Stopped"
    return f"{ended}. '{resume_label(job, artifacts)}' {_resume_message(artifacts, steps)}."


def resume_label(job: Job, artifacts: JobArtifacts) -> str:
    """What the button says that sets an ended job going again."""
    if job.state == "failed":
        return "Retry"
    return "Resume" if artifacts.step or artifacts.adapter else "Start again"


def technique_title(job: Job) -> str:
    """The technique as people write it."""
    name = str(job.config.get("technique") or "lora")
    return TECHNIQUES[name].title if name in TECHNIQUES else name


def base_label(job: Job) -> str:
    """The base that it is trained for."""
    name = "the embedded base" if job.serving.base == "embedded" else job.serving.base
    return model_label(name, job.serving.quantization, UNKNOWN)


def location_label(job: Job) -> str:
    """Where it is trained, if that is not here; '' if it is."""
    if job.where == "here":
        return ""
    return f"on Hugging Face Jobs ({job.flavor})" if job.flavor else "on Hugging Face Jobs"


def format_duration(seconds: float) -> str:
    """A time span in two units at most: 45 s, 3 min 07 s, 2 h 05 min, 1 d 04 h."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR:02d} h"


def format_size(count: int) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def join_nonempty(parts: Sequence[str]) -> str:
    """The parts that say something, behind one another."""
    return " ".join(part for part in parts if part)


def _resume_message(artifacts: JobArtifacts, steps: int) -> str:
    if artifacts.adapter:
        return "goes on with the scoring: the adapter is trained"
    if artifacts.step:
        return f"goes on from step {artifacts.step} of {steps}" if steps else f"goes on from step {artifacts.step}"
    return "begins anew with the same rows and settings: there is no checkpoint yet"


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


NO_JOBS_TITLE = "No training yet"
NO_JOBS_TEXT = (
    "Start one above: it runs in a process of its own, in a line with the others, and stays when you close the page."
)
METRIC_LABELS = {"em": "EM@1", "codebleu": "CodeBLEU"}
_LOG_TAIL_LINES = 12
_MAX_TEXT_LENGTH = 600


def job_list_value(jobs: Sequence[Job], selected: str, own_ids: Sequence[str]) -> dict[str, Any]:
    """The list: newest first, the shown one marked; `mine` are the ids of this visitor's own."""
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


def empty_html() -> str:
    """What stands here before the first job."""
    return f'<div class="empty"><h3>{NO_JOBS_TITLE}</h3><p>{NO_JOBS_TEXT}</p></div>'


def denied_html(reason: str) -> str:
    """For visitors who may not train: why, and nothing of anybody's data."""
    return f'<div class="empty"><h3>The jobs are not shown here</h3><p>{escape(reason)}</p></div>'


def job_header_html(job: Job, progress: Progress) -> str:
    """Name, data, bar and figures of the chosen job."""
    return (
        f'<h3 class="job-name">{escape(_truncate(job.adapter))}'
        f'<span class="job-state {job.state}">{state_label(job)}</span></h3>'
        f'<p class="job-about">{_job_facts(job)}</p>{_progress_bar(progress)}{_progress_metrics(job, progress)}'
    )


def job_state_html(job: Job, artifacts: JobArtifacts, steps: int) -> str:
    """Where it stands, in a sentence that screen readers speak."""
    line = f"<p>{escape(state_message(job, artifacts, steps))}</p>"
    if job.state == "failed":
        return f'<p class="error-message">{escape(_truncate(job.message))}</p>{line}'
    return line


def job_message_html(job: Job, progress: Progress) -> str:
    """The last line of progress, where nothing else says it: figures, a sentence, a verdict."""
    figures = job.stage == "training" and progress.step
    if job.state not in ("running", "stopping") or figures or not job.message.strip():
        return ""
    return f'<p class="job-message">{escape(_truncate(job.message.strip()))}</p>'


def log_tail_html(log: Sequence[str]) -> str:
    """The end of a failed job's log."""
    if not log:
        return ""
    text = escape("\n".join(line[:_MAX_TEXT_LENGTH] for line in log[-_LOG_TAIL_LINES:]))
    return f'<p class="muted">The end of its log:</p><pre class="log-tail" tabindex="0">{text}</pre>'


def verdict_html(verdict: Verdict) -> str:
    """The finding in words, its figures with their intervals, and what repeats them."""
    most = max([0.05, *(max(abs(one.low), abs(one.high)) for one in verdict.compared)])
    rows = "".join(_comparison_row(one, most) for one in verdict.compared)
    table = (
        '<div class="table-scroll" tabindex="0" role="group" aria-label="Scores"><table class="grid"><thead><tr>'
        '<th scope="col">Against</th><th scope="col">Score</th><th scope="col">Difference, 95 % interval</th>'
        '<th scope="col">The adapter</th><th scope="col">The other</th>'
        '<th scope="col">p (Holm)</th><th scope="col">Rows</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )
    note = (
        '<p class="muted">EM@1: the share of answers that equal the reference. CodeBLEU: how near they come to it. '
        "A difference is shown where its interval leaves out 0 and p is under 0.05.</p>"
        if rows
        else ""
    )
    return (
        f'<h4>Was it worth it?</h4><p class="job-verdict">{escape(verdict.sentence)}</p>{table}{note}'
        f"{_provenance_html(verdict.provenance)}"
    )


def _job_facts(job: Job) -> str:
    told = join_nonempty(
        [
            technique_title(job),
            "on",
            _truncate(job.data_name),
            "for",
            base_label(job),
            location_label(job),
        ]
    )
    what, when = next(
        (name, time)
        for name, time in (("ended", job.ended), ("begun", job.started), ("asked for", job.created))
        if time or name == "asked for"
    )
    tries = f", attempt {job.attempts}" if job.attempts > 1 else ""
    stamp = f', {what} <time datetime="{escape(when)}">{escape(when)}</time>' if when else ""
    return f"{escape(told)}{stamp}{tries}"


def _progress_bar(progress: Progress) -> str:
    if not progress.steps:
        return ""
    share = min(progress.step / progress.steps, 1.0)
    return (
        f'<div class="job-bar" role="progressbar" aria-label="Training" aria-valuemin="0" '
        f'aria-valuemax="{progress.steps}" aria-valuenow="{min(progress.step, progress.steps)}" '
        f'aria-valuetext="step {progress.step} of {progress.steps}"><span style="width:{share:.2%}"></span></div>'
    )


def _progress_metrics(job: Job, progress: Progress) -> str:
    if not progress.steps:
        return ""
    shown = [("Step", f"{progress.step} of {progress.steps}"), ("Time gone", format_duration(progress.seconds))]
    if job.state == "running" and job.stage == "training":
        left = progress.left_seconds
        shown.append(("Time left", "not known yet" if left is None else f"about {format_duration(left)}"))
    if progress.tokens_per_second:
        shown.append(("Tokens/s", f"{progress.tokens_per_second:,.0f}"))
    if progress.memory_bytes:
        shown.append(("Memory", format_size(progress.memory_bytes)))
    best = lowest_point(finite_points(progress.validation))
    if best:
        shown.append(("Best validation loss", f"{best[1]:.3g} (step {best[0]})"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in shown)
    return f'<dl class="job-numbers">{cells}</dl>'


def _comparison_row(comparison: ScoreComparison, maximum: float) -> str:
    points = f"{100 * comparison.value:+.1f} <span>[{100 * comparison.low:+.1f}, {100 * comparison.high:+.1f}]</span>"
    left, width, dot = (
        (comparison.low + maximum) / (2 * maximum),
        (comparison.high - comparison.low) / (2 * maximum),
        (comparison.value + maximum) / (2 * maximum),
    )
    track = (
        '<span class="job-span" aria-hidden="true"><span class="zero"></span>'
        f'<span class="range" style="left:{left:.2%};width:{max(width, 0.005):.2%}"></span>'
        f'<span class="dot" style="left:{dot:.2%}"></span></span>'
    )
    return (
        f'<tr><th scope="row">{escape(comparison.other)}</th><td>{escape(METRIC_LABELS.get(comparison.metric, comparison.metric))}</td>'
        f'<td class="difference">{points}{track}</td><td>{100 * comparison.adapter_score:.1f}</td>'
        f"<td>{100 * comparison.other_score:.1f}</td><td>{_format_p_value(comparison.p)}</td><td>{comparison.n}</td></tr>"
    )


def _format_p_value(p: float) -> str:
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def _provenance_html(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    cells = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd><code>{escape(str(value))}</code></dd></div>"
        for name, value in values.items()
        if value not in (None, "")
    )
    return f'<details><summary>What repeats this</summary><dl class="provenance">{cells}</dl></details>'


def _truncate(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_LENGTH else text[: _MAX_TEXT_LENGTH - 1] + "…"
