"""Actions of visitors on advice, the state of the page for a poll of the browser, and the page's API endpoints.

The page and programs (ui/advise/events.py) use the same actions. All state comes from the disk.

API endpoints of the Advise page: `/advise` starts an advice, `/advice` returns its state and its result. Both have the
rights and the limits of the page.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from adapters.manifest import Owner
from advise.folder import DEFAULT_MINUTES, AdviceFolder, AdviceProgress, AdviseOptions
from errors import DataError, PromptOrTuneError, unknown_name_error
from jobs.job import Job, JobKind
from tasks.datasets.registry import TRAINING_DATASETS, available_datasets
from ui.access.guard import action, may_use_own, own_names
from ui.access.policy import Visitor
from ui.advise.view import (
    NO_ADVICE_HTML,
    curves_html,
    header_html,
    list_value,
    message_html,
    plan_html,
    resume_label,
    state_html,
)
from ui.context import Context
from ui.train.form import NO_LOCAL_BASE
from ui.train.jobs_events import (
    BUSY_SECONDS,
    IDLE_SECONDS,
    LOG_LINES,
    JobActions,
    PanelUpdate,
    default_job,
    ensure_worker,
    make_update,
)
from ui.train.jobs_view import denied_html, log_tail_html
from ui.train.settings import find_unused_name

DEFAULT_DATA = "house"
_MAX_NAME_LENGTH = 40  # of the data set's part of an adapter's name
MAX_SEED = 2**31 - 1
ADVICE_NOT_FOUND = "The advice of this address no longer exists: another one is selected."
UNREADABLE_RESULT = "This result cannot be shown: download it as JSON, or delete this advice and ask again."
NO_RESULT = "There is no result yet: the first one comes with the answers to the test rows."
BUTTONS = {
    "open": "Open the winner in Compare",
    "again": "Resume",
    "cancel": "Stop",
    "page": "Download the report",
    "json": "Download the result as JSON",
    "delete": "Delete",
}

_log = logging.getLogger(__name__)


def data_names(context: Context, visitor: Visitor) -> list[str]:
    """Return the data sets that the visitor may ask about; own ones come first, then DEFAULT_DATA."""
    here = [name for name in available_datasets(context.data_dir) if name in TRAINING_DATASETS]
    here.sort(key=lambda name: name != DEFAULT_DATA)
    return [*own_names(own=may_use_own(context, visitor)), *here]


def check_data(context: Context, visitor: Visitor, name: object) -> str:
    """Return the name of a data set that the visitor may ask about.

    Raises UnknownNameError for any other: to others the names of the owner's data sets do not exist.
    """
    names = data_names(context, visitor)
    if not isinstance(name, str) or not name:
        raise DataError("Choose a data set, or upload a file with your rows.")
    if name not in names:
        raise unknown_name_error("data set", name[:100], names)
    return name


def free_adapter_name(data: str, home: Path, jobs: Iterable[Job]) -> str:
    """Return a name for the adapter of an advice about this data set that no adapter and no job has."""
    slug = re.sub(r"[^a-z0-9]+", "-", data).strip("-")[:_MAX_NAME_LENGTH].strip("-")
    return find_unused_name(f"{slug}-advised", home, jobs)


@dataclass
class AdviceActions(JobActions):
    """Actions of visitors on advice. Thread-safe."""

    kind: JobKind = "advise"
    _submit_lock: threading.Lock = field(default_factory=threading.Lock)

    def start_denied_reason(self, visitor: Visitor) -> str | None:
        """Return why this visitor may not start an advice; None if they may."""
        denied = self.context.visitors.policy.denied_reason(visitor, "train")
        return denied or (None if self.context.serving.base else NO_LOCAL_BASE)

    def start(self, request: Any, data: object, minutes: object, seed: object, memory_gb: object = 0) -> Job:
        """Queue an advice about a data set. Raises PromptOrTuneError for values or a visitor it cannot be for."""
        visitor = self.context.visitors.identify(request)
        if denied := self.start_denied_reason(visitor):
            raise PromptOrTuneError(denied)
        name = check_data(self.context, visitor, data)
        values = _number(minutes, "budget in minutes"), _whole_number(seed), _number(memory_gb, "memory in GB")
        with self._submit_lock:
            self.check_job_limit(request)
            adapter = free_adapter_name(name, self.context.home, self.job_service.list_jobs())
            options = AdviseOptions(name, adapter, *values)
            return self.job_service.submit_advice(
                options, self.context.serving, owner=Owner(visitor.id, visitor.name), data_name=name
            )

    def status(self, request: Any, job_id: str) -> dict[str, Any]:
        """Return the state of an advice as values for JSON: `state`, `message`, `progress` and `result`."""
        job = self.require_job(request, job_id, "see a job")
        advice = self.job_service.advice(job.id)
        progress = advice.read_progress()
        return {
            "state": job.state,
            "message": job.message,
            "progress": asdict(progress) | {"seconds": live_seconds(job, advice, progress)},
            "result": advice.read_result(),
        }

    def result(self, request: Any, job_id: str | None) -> tuple[Job, dict[str, Any]]:
        """Return an advice and its result. Raises PromptOrTuneError before there is one."""
        job = self.require_job(request, job_id, "see a job")
        result = self.job_service.advice(job.id).read_result()
        if result is None:
            raise PromptOrTuneError(NO_RESULT)
        return job, result


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"The {name} must be a number.")
    return float(value)


def _whole_number(value: object) -> int:
    number = _number(value, "seed")
    if not (number.is_integer() and 0 <= number <= MAX_SEED):
        raise DataError(f"The seed must be a whole number from 0 to {MAX_SEED}.")
    return int(number)


def winner(result: Mapping[str, Any]) -> str | None:
    """Return the name of the recommended method; None without one, or if its adapter was not kept."""
    found = result.get("recommendation") or {}
    method, adapter = found.get("method"), found.get("adapter")
    if not isinstance(method, str) or not method:
        return None
    first = method.partition("+")[0]
    is_prompt = first == "zero-shot" or first.partition("-")[0] in ("icl", "rag")
    return method if is_prompt or first == adapter else None


def live_seconds(job: Job, advice: AdviceFolder, progress: AdviceProgress) -> float:
    """Return the seconds that the advice has run, in all its attempts, up to now."""
    if job.state != "running" or job.stage != "advising":
        return progress.seconds
    try:
        since = max(time.time() - (advice.path / "progress.json").stat().st_mtime, 0.0)
    except OSError:
        return progress.seconds
    return round(progress.seconds + since, 1)


def panel_update(
    actions: AdviceActions, visitor: Visitor, selected_job: str | None, poll: Mapping[str, Any]
) -> PanelUpdate:
    """Return the state of the page for a visitor, who sees their own advice, and the owner of the app all.

    `poll` comes from the browser as in ui.train.jobs_events.panel_update.
    """
    denied = actions.denied_reason(visitor)
    if denied:
        return make_update(poll, "", {"note": "", "empty": denied_html(denied)}, IDLE_SECONDS)
    all_jobs = actions.job_service.list_jobs()
    note = ensure_worker(actions, all_jobs)
    jobs = [job for job in all_jobs if job.kind == "advise" and actions.may_see(visitor, job)]
    if not jobs:
        return make_update(poll, "", {"note": note, "empty": NO_ADVICE_HTML}, IDLE_SECONDS)
    wanted_id = selected_job or str(poll.get("job") or "")
    wanted = next((job for job in jobs if job.id == wanted_id), None)
    job = wanted or default_job(jobs)
    if wanted_id and not wanted and not selected_job:
        note = note or ADVICE_NOT_FOUND
    own_ids = {each.id for each in jobs if each.owner == visitor.id or not each.owner}
    values = {"note": note, "empty": "", "list": list_value(jobs, job.id, own_ids)}
    values |= _advice_values(actions, job, with_log=bool(poll.get("log")))
    busy = any(not each.is_ended for each in jobs)
    return make_update(poll, job.id, values, BUSY_SECONDS if busy else IDLE_SECONDS)


def _advice_values(actions: AdviceActions, job: Job, *, with_log: bool) -> dict[str, Any]:
    service = actions.job_service
    advice = service.advice(job.id)
    progress = advice.read_progress()
    result = advice.read_result() if job.is_ended else None
    lines = service.log_lines(job.id, LOG_LINES) if with_log or job.state == "failed" else []
    return {
        "head": header_html(job, progress, live_seconds(job, advice, progress)),
        "line": state_html(job, progress, has_result=result is not None),
        "message": message_html(job, progress),
        "failed": log_tail_html(lines) if job.state == "failed" else "",
        "report": report_html(advice) if result is not None else "",
        "plan": plan_html(advice.read_plan(), progress, folded=job.is_ended),
        "curves": curves_html(progress.curves, folded=job.is_ended),
        "log": {"job": job.id, "lines": lines if with_log else None},
        "doing": button_labels(job, progress, result),
    }


def button_labels(job: Job, progress: AdviceProgress, result: Mapping[str, Any] | None) -> dict[str, str]:
    """Return each button's label; '' hides the button."""
    steps_done = any(step.state == "done" for step in progress.steps)
    visible = {
        "open": bool(result and winner(result)),
        "again": job.state in ("stopped", "failed"),
        "cancel": job.state in ("queued", "running"),
        "page": result is not None,
        "json": result is not None,
        "delete": job.is_ended,
    }
    labels = {**BUTTONS, "again": resume_label(job, steps_done=steps_done)}
    return {name: labels[name] if is_visible else "" for name, is_visible in visible.items()}


def report_html(advice: AdviceFolder) -> Markup:
    """Return the report of the present result, which is read and rendered once; '' if it cannot be."""
    try:
        changed = advice.result_path.stat().st_mtime_ns
    except OSError:
        return Markup("")
    return _render_report(advice.path, changed)


@lru_cache(maxsize=8)
def _render_report(folder: Path, changed: int) -> Markup:
    from advise.report import render_body

    del changed  # of the file: a later result is rendered anew
    result = AdviceFolder(folder).read_result()
    try:
        return Markup("") if result is None else render_body(result)
    except Exception:  # noqa: BLE001 - a result of another version must not take the page with it; it is logged
        _log.exception("The result in %s cannot be shown.", folder)
        return Markup('<p class="error-message">{}</p>').format(UNREADABLE_RESULT)


def build_endpoints(actions: AdviceActions) -> None:
    """Add both endpoints to the current Blocks."""
    gr.api(advise_endpoint(actions), api_name="advise", concurrency_id="advice-programs")
    gr.api(advice_endpoint(actions), api_name="advice", concurrency_id="advice-programs")


def advise_endpoint(actions: AdviceActions) -> Any:
    """Return the function behind `/advise`."""

    @action("train")
    def advise(
        request: gr.Request, data: str, minutes: float = DEFAULT_MINUTES, seed: int = 42, memory_gb: float = 0.0
    ) -> str:
        """Queues an advice about a data set, and returns its id for /advice.

        `data` is the name of a data set: house, starter, or one of your own. `minutes` is the budget for everything,
        `memory_gb` the most memory of a training, 0 for all that is free.
        """
        return actions.start(request, data, minutes, seed, memory_gb).id

    return advise


def advice_endpoint(actions: AdviceActions) -> Any:
    """Return the function behind `/advice`."""

    @action("see a job")
    def advice(request: gr.Request, id: str) -> dict[str, Any]:
        """Returns an advice of yours as {"state", "message", "progress", "result"}.

        `state` is queued, running, stopping, stopped, failed or done. `result` is None before the first one, and
        complete where its `finished` is true.
        """
        return actions.status(request, str(id))

    return advice
