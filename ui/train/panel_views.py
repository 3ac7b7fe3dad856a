"""The panel's values: the list for js/job_list.js as plain texts, the chosen job as HTML in which all is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jobs.job import Job, Progress, ScoreComparison, Verdict
from ui.train import panel_words as words
from ui.train.panel_curve import finite_points, lowest_point

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
                "word": words.state_label(job),
                "about": f"{words.technique_title(job)} on {job.data_name}",
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
        f'<span class="job-state {job.state}">{words.state_label(job)}</span></h3>'
        f'<p class="job-about">{_job_facts(job)}</p>{_progress_bar(progress)}{_progress_metrics(job, progress)}'
    )


def job_state_html(job: Job, artifacts: words.JobArtifacts, steps: int) -> str:
    """Where it stands, in a sentence that screen readers speak."""
    line = f"<p>{escape(words.state_message(job, artifacts, steps))}</p>"
    if job.state == "failed":
        return f'<p class="sentence">{escape(_truncate(job.message))}</p>{line}'
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
    return f'<p class="quiet">The end of its log:</p><pre class="job-end" tabindex="0">{text}</pre>'


def verdict_html(verdict: Verdict) -> str:
    """The finding in words, its figures with their intervals, and what repeats them."""
    most = max([0.05, *(max(abs(one.low), abs(one.high)) for one in verdict.compared)])
    rows = "".join(_comparison_row(one, most) for one in verdict.compared)
    table = (
        '<div class="sheet" tabindex="0" role="group" aria-label="Scores"><table class="grid"><thead><tr>'
        '<th scope="col">Against</th><th scope="col">Score</th><th scope="col">Difference, 95 % interval</th>'
        '<th scope="col">The adapter</th><th scope="col">The other</th>'
        '<th scope="col">p (Holm)</th><th scope="col">Rows</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )
    note = (
        '<p class="quiet">EM@1: the share of answers that equal the reference. CodeBLEU: how near they come to it. '
        "A difference is shown where its interval leaves out 0 and p is under 0.05.</p>"
        if rows
        else ""
    )
    return (
        f'<h4>Was it worth it?</h4><p class="verdict-said">{escape(verdict.sentence)}</p>{table}{note}'
        f"{_provenance_html(verdict.provenance)}"
    )


def _job_facts(job: Job) -> str:
    told = words.join_nonempty(
        [
            words.technique_title(job),
            "on",
            _truncate(job.data_name),
            "for",
            words.base_label(job),
            words.location_label(job),
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
    shown = [("Step", f"{progress.step} of {progress.steps}"), ("Time gone", words.format_duration(progress.seconds))]
    if job.state == "running" and job.stage == "training":
        left = progress.left_seconds
        shown.append(("Time left", "not known yet" if left is None else f"about {words.format_duration(left)}"))
    if progress.tokens_per_second:
        shown.append(("Tokens/s", f"{progress.tokens_per_second:,.0f}"))
    if progress.memory_bytes:
        shown.append(("Memory", words.format_size(progress.memory_bytes)))
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
