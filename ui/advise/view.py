"""HTML of the Advise page: the selected advice with its plan, its steps and the losses of its trainings.

The templates escape every text of a person, a file or a model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from advise.folder import AdviceProgress, AdviseOptions, Curve, StepProgress
from common.format import format_duration
from errors import PromptOrTuneError
from jobs.job import Job
from ui.components import render
from ui.train.jobs_view import job_base_label

NO_ADVICE_HTML = Markup(
    '<div class="empty"><h3>No advice yet</h3><p>Choose a data set above. The program measures this machine, plans '
    "what fits into the budget, and goes on when you close the page.</p></div>"
)
MAX_NAMED_CURVES = 8
_STATE_LABELS = {"queued": "Waiting", "stopping": "Stopping", "stopped": "Stopped", "failed": "Failed", "done": "Done"}
_MARKS = {"done": "✓", "running": "▸", "left out": "–", "waiting": "·"}
_MAX_TEXT_LENGTH = 600
# Pixels of the drawing of losses.
_WIDTH, _HEIGHT = 620, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 24, 22, 40
_TICKS = 4


def state_label(job: Job) -> str:
    """Return the state in one word."""
    if job.state == "running":
        return "Running" if job.stage else "Starting"
    return _STATE_LABELS[job.state]


def resume_label(job: Job, *, steps_done: bool) -> str:
    """Return the label of the button that resumes an ended advice."""
    if job.state == "failed":
        return "Retry"
    return "Resume" if steps_done else "Start again"


def state_message(job: Job, progress: AdviceProgress, *, has_result: bool) -> str:
    """Return a message about the state and what comes next; it changes with the state and not with every step."""
    steps_done = any(step.state == "done" for step in progress.steps)
    if job.state == "queued":
        ahead = {0: "it is next", 1: "one job is ahead of it"}
        return f"Waiting: {ahead.get(job.queue_position, f'{job.queue_position} jobs are ahead of it')}."
    if job.state == "running":
        if not progress.steps:
            return "Planning: the rows are split, and a few answers measure how fast this machine is."
        return "Running. You may close this page: it goes on without it."
    if job.state == "stopping":
        return "Stopping: what is finished is kept."
    if job.state == "done":
        return "Done. The answer is below."
    label = resume_label(job, steps_done=steps_done)
    begins = "goes on behind the last finished step" if steps_done else "begins anew"
    so_far = " What it found so far is below." if has_result else ""
    return f"{'This advice failed' if job.state == 'failed' else 'Stopped'}. '{label}' {begins}.{so_far}"


def state_html(job: Job, progress: AdviceProgress, *, has_result: bool) -> Markup:
    """Return the state message, after the error message of a failed advice."""
    state = Markup("<p>{}</p>").format(state_message(job, progress, has_result=has_result))
    if job.state != "failed":
        return state
    return Markup('<p class="error-message">{}</p>{}').format(_truncate(job.message), state)


def message_html(job: Job, progress: AdviceProgress) -> str:
    """Return what runs at this moment; '' while nothing does."""
    text = progress.message.strip() or job.message.strip()
    if job.state != "running" or not text:
        return ""
    return Markup('<p class="job-message">{}</p>').format(_truncate(text))


def list_value(jobs: Sequence[Job], selected: str, own_ids: Collection[str]) -> dict[str, Any]:
    """Return the value of the list's component; `own_ids` are the visitor's own jobs."""
    return {
        "jobs": [
            {
                "id": job.id,
                "adapter": job.data_name,
                "state": job.state,
                "word": state_label(job),
                "about": budget_label(job),
                "when": job.ended or job.started or job.created,
                "mine": job.id in own_ids,
                "shown": job.id == selected,
            }
            for job in jobs
        ]
    }


def budget_label(job: Job) -> str:
    """Return the budget and the seed; '' where the job's settings are lost."""
    try:
        options = AdviseOptions.from_json(job.config)
    except PromptOrTuneError:
        return ""
    return f"{options.minutes:g} minutes, seed {options.seed}"


def header_html(job: Job, progress: AdviceProgress, seconds: float) -> Markup:
    """Return data set, state, progress bar and figures; the advice has run for `seconds`."""
    steps = [step for step in progress.steps if step.state != "left out"]
    done = sum(step.state == "done" for step in steps)
    times = (("ended", job.ended), ("begun", job.started), ("asked for", job.created))
    time_label, time = next(((label, time) for label, time in times if time), ("", ""))
    facts = [budget_label(job), f"for {job_base_label(job)}"]
    return render(
        "advise/header.html.jinja",
        data=_truncate(job.data_name),
        state=job.state,
        state_label=state_label(job),
        facts=", ".join(fact for fact in facts if fact),
        time_label=time_label,
        time=time,
        attempts=job.attempts,
        steps=len(steps),
        done=done,
        fraction=f"{done / len(steps):.2%}" if steps else "0%",
        metrics=_metrics(job, progress, seconds, (done, len(steps))),
    )


def _metrics(job: Job, progress: AdviceProgress, seconds: float, steps: tuple[int, int]) -> list[tuple[str, str]]:
    metrics = [("Steps", f"{steps[0]} of {steps[1]}")] if steps[1] else []
    if seconds:
        metrics.append(("Time gone", format_duration(seconds)))
    if job.state == "running" and progress.total_seconds:
        left = progress.total_seconds - seconds
        metrics.append(("Time left", f"about {format_duration(left)}" if left > 0 else "longer than planned"))
    if progress.budget_seconds:
        metrics.append(("Budget", format_duration(progress.budget_seconds)))
    return metrics


def plan_html(plan: Mapping[str, Any] | None, progress: AdviceProgress, *, folded: bool) -> str:
    """Return the plan with the state of its steps; '' before it. `folded` puts it behind a summary."""
    if plan is None:
        return ""
    now = {step.id: step for step in progress.steps}
    try:
        steps = [_step_values(step, now.get(str(step["id"]))) for step in plan["steps"]]
        seconds = float(plan["seconds"])
    except (KeyError, TypeError, ValueError):
        return ""
    left_out = sum(step["css"] == "left-out" for step in steps)
    summary = f"{len(steps) - left_out} steps" + (f", {left_out} left out" if left_out else "")
    return render(
        "advise/plan.html.jinja",
        folded=folded,
        summary=summary,
        about=" ".join(filter(None, [str(plan.get("sentence") or ""), _estimate_text(seconds, progress)])),
        steps=steps,
        power=_text_of(plan.get("power")),
        memory=_text_of(plan.get("memory")),
    )


def _estimate_text(seconds: float, progress: AdviceProgress) -> str:
    budget = f" of a budget of {format_duration(progress.budget_seconds)}" if progress.budget_seconds else ""
    return f"Estimated: {format_duration(seconds)}{budget}."


def _text_of(value: Any) -> str:
    return str(value.get("text") or "") if isinstance(value, Mapping) else str(value or "")


def _step_values(step: Mapping[str, Any], now: StepProgress | None) -> dict[str, str]:
    included = bool(step.get("included", True))
    state = now.state if now else ("waiting" if included else "left out")
    detail = now.detail if now and now.detail else str(step.get("note") or "")
    return {
        "css": state.replace(" ", "-"),
        "state": state,
        "mark": _MARKS[state],
        "title": str(step["title"]),
        "time": "left out" if state == "left out" else f"about {format_duration(float(step['seconds']))}",
        "detail": _truncate(detail),
    }


def curves_html(curves: Sequence[Curve], *, folded: bool) -> str:
    """Return one drawing of all validation losses; '' before the first.

    The MAX_NAMED_CURVES that run or have the lowest last loss are named, the others are grey.
    """
    drawn = [(curve, points) for curve in curves if (points := _finite(curve.points))]
    if not drawn:
        return ""
    by_rank = sorted(range(len(drawn)), key=lambda at: (drawn[at][0].state != "running", drawn[at][1][-1][1]))
    named = sorted(by_rank[:MAX_NAMED_CURVES])
    losses = [loss for _, points in drawn for _, loss in points]
    low, high = min(losses), max(losses)
    room = max((high - low) * 0.08, 0.01)
    bottom, top = max(0.0, low - room), high + room
    values = []
    for at, (curve, points) in enumerate(drawn):
        css = f"advise-curve c{named.index(at)}" if at in named else "advise-curve other"
        spots = [(_x(share), _y(loss, bottom, top)) for share, loss in points]
        values.append(
            {
                "css": css,
                "name": _truncate(curve.name),
                "loss": f"{points[-1][1]:.3f}",
                "note": "" if curve.state == "done" else curve.state,
                "points": " ".join(f"{x},{y}" for x, y in spots),
                "end_x": spots[-1][0],
                "end_y": spots[-1][1],
            }
        )
    best, best_points = min(drawn, key=lambda pair: pair[1][-1][1])
    lowest = f"the lowest last loss is {best_points[-1][1]:.3f}, of {_truncate(best.name)}"
    return render(
        "advise/curves.html.jinja",
        folded=folded,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        bottom=_HEIGHT - _BOTTOM,
        x_ticks=[(f"{share:.0%}", _x(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        y_ticks=[_y_tick(bottom + (top - bottom) * step / _TICKS, bottom, top) for step in range(_TICKS + 1)],
        # The grey ones are drawn first, behind the others.
        curves=sorted(values, key=lambda value: not value["css"].endswith("other")),
        named=[values[at] for at in named],
        unnamed=len(drawn) - len(named),
        description=f"{len(drawn)} trainings; {lowest}.",
    )


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(share, loss) for share, loss in points if math.isfinite(share) and math.isfinite(loss)]


def _x(share: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(share, 0.0), 1.0), 1)


def _y(loss: float, bottom: float, top: float) -> float:
    return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (loss - bottom) / (top - bottom)), 1)


def _y_tick(loss: float, bottom: float, top: float) -> tuple[str, float]:
    return f"{loss:.2f}", _y(loss, bottom, top)


def _truncate(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_LENGTH else text[: _MAX_TEXT_LENGTH - 1] + "…"
