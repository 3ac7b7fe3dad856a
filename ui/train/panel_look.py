"""One look at the jobs: what a visitor is shown, and which parts of it changed since their last look."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errors import PeftArenaError
from jobs.job import Job, Progress
from ui.train import panel_views as views
from ui.train import panel_words as words
from ui.train.panel_actions import Desk
from ui.train.panel_curve import curve
from ui.visitors import Visitor

# Seconds until the browser looks again: while something waits or runs, and while all is over.
BUSY_SECONDS, IDLE_SECONDS = 1.5, 10.0
LOG_LINES = 200
GONE = "The job that you asked for is not here any more: another one is shown."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """`job` is the shown job's id, '' for none. `changed` has the parts that the browser does not show yet.

    `pulse` is what js/job_pulse.js keeps and says at the next look: {"job", "seen": part -> stamp, "every", "number"}.
    """

    job: str
    changed: Mapping[str, Any]
    pulse: Mapping[str, Any]


def look(desk: Desk, visitor: Visitor, chosen: str | None, asked: Mapping[str, Any]) -> Look:
    """What there is to see. `asked` came from the browser: {"job": of the address, "seen": stamps, "log": open or not,
    "number": of the look}.

    The job is `chosen` (a click, or a start), else the address's, else one that runs, else the newest.
    """
    refused = desk.closed(visitor)
    if refused:
        return _made(asked, "", {"note": "", "empty": views.closed_html(refused)}, IDLE_SECONDS)
    jobs = desk.board.jobs()
    note = _woken(desk, jobs)
    if not jobs:
        return _made(asked, "", {"note": note, "empty": views.empty_html()}, IDLE_SECONDS)
    wanted = chosen or str(asked.get("job") or "")
    found = next((job for job in jobs if job.id == wanted), None)
    job = found or default(jobs)
    if wanted and not found and not chosen:
        note = note or GONE
    mine = [each.id for each in jobs if desk.mine(visitor, each)]
    values: dict[str, Any] = {"note": note, "empty": "", "list": views.list_value(jobs, job.id, mine)}
    values |= _of_job(desk, job, mine=job.id in mine, with_log=bool(asked.get("log")))
    busy = any(not each.over for each in jobs)
    return _made(asked, job.id, values, BUSY_SECONDS if busy else IDLE_SECONDS)


def no_look(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The pulse after a look that failed: it goes on, slowly."""
    return _pulse(asked, str(asked.get("job") or ""), {}, IDLE_SECONDS)


def default(jobs: Sequence[Job]) -> Job:
    """The job shown to somebody who named none: one that runs, else the newest."""
    return next((job for job in jobs if job.state in ("running", "stopping")), jobs[0])


def doing(job: Job, left: words.Left, *, mine: bool) -> dict[str, str]:
    """Each button's label, '' where it does not stand."""
    ended, finished = job.state in ("stopped", "failed"), job.state == "done" and left.adapter
    return {
        "open": "Open in Compare" if finished else "",
        "cancel": "Cancel" if mine and job.state in ("queued", "running") else "",
        "again": words.again_word(job, left) if mine and ended else "",
        "finish": "Make the adapter of the best checkpoint" if mine and job.state == "stopped" and left.step else "",
        "download": "Download as zip" if mine and finished else "",
        "delete": "Delete" if mine and job.over else "",
    }


def _of_job(desk: Desk, job: Job, *, mine: bool, with_log: bool) -> dict[str, Any]:
    board = desk.board
    progress = _progress(desk, job)
    left = desk.left(job)
    verdict = board.verdict(job.id) if job.state == "done" else None
    lines = board.log(job.id, LOG_LINES) if with_log or job.state == "failed" else []
    return {
        "head": views.head_html(job, progress),
        "line": views.line_html(job, left, progress.steps),
        "message": views.message_html(job, progress),
        "failed": views.failed_html(lines) if job.state == "failed" else "",
        "verdict": views.verdict_html(verdict) if verdict else "",
        "curve": {"job": job.id, **curve(progress)},
        "log": {"job": job.id, "lines": lines if with_log else None},
        "doing": doing(job, left, mine=mine),
    }


def _progress(desk: Desk, job: Job) -> Progress:
    try:
        return desk.board.progress(job.id)
    except PeftArenaError as fault:
        _log.warning("%s", fault)
        return Progress()


def _woken(desk: Desk, jobs: Sequence[Job]) -> str:
    """Sees to it that a worker lives; why there is none, where it cannot be started."""
    try:
        desk.wake(jobs)
    except PeftArenaError as fault:
        return str(fault)
    return ""


def _made(asked: Mapping[str, Any], job: str, values: Mapping[str, Any], every: float) -> Look:
    seen = asked.get("seen")
    seen = seen if isinstance(seen, dict) else {}
    stamps = {name: _stamp(value) for name, value in values.items()}
    changed = {name: value for name, value in values.items() if seen.get(name) != stamps[name]}
    return Look(job, changed, _pulse(asked, job, stamps, every))


def _pulse(asked: Mapping[str, Any], job: str, seen: Mapping[str, str], every: float) -> dict[str, Any]:
    number = asked.get("number")
    return {"job": job, "seen": dict(seen), "every": every, "number": number if isinstance(number, int) else 0}


def _stamp(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
