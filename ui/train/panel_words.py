"""What the jobs' panel says: states, times, sizes, and what a press of a button will do. Plain text, not yet HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.manifest import UNKNOWN
from jobs.job import Job
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
