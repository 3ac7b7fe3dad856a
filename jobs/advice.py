"""Jobs that give advice: they run advise.advisor in their process, and keep its files in the job's folder (`advice/`).

An advice has no checkpoint of its own kind: each finished step is a file, and a resumed advice continues behind these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.manifest import Owner, read_origin, write_origin
from advise.folder import AdviceFolder, AdviseOptions
from common.files import ProgressFn
from jobs.job import Job, Progress, model_options
from jobs.store import JobFolder

FOLDER = "advice"


def advice_folder(folder: JobFolder) -> AdviceFolder:
    """Return the files of the advice of this job."""
    return AdviceFolder(folder.path / FOLDER)


def finished_steps(advice: AdviceFolder) -> int:
    """Return how many results are stored (AdviceFolder.once): a step of the plan has one or more."""
    return sum(1 for _ in (advice.path / "steps").glob("*.json"))


def written_bytes(advice: AdviceFolder) -> int:
    """Return the bytes of answers and training logs: they grow within a step, so a crash counts less behind them."""
    sizes = []
    for path in advice.path.rglob("*.jsonl"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # replaced at this moment
            continue
    return sum(sizes)


def advice_progress(advice: AdviceFolder) -> Progress:
    """Return the finished steps of the plan, and the time: all seconds are those of the whole advice."""
    written = advice.read_progress()
    planned = [step for step in written.steps if step.state != "left out"]
    left = max(written.total_seconds - written.seconds, 0.0) if written.total_seconds else None
    return Progress(
        step=sum(step.state == "done" for step in planned),
        steps=len(planned),
        seconds=written.seconds,
        left_seconds=left,
    )


def advice_message(result: dict[str, Any]) -> str:
    """Return the recommendation as text; '' where the result has none."""
    return str((result.get("recommendation") or {}).get("sentence") or "")


def advise_job(job: Job, folder: JobFolder, home: Path, report: ProgressFn) -> dict[str, Any]:
    """Run the advice, from its last finished step on, and return the result.

    Raises PromptOrTuneError, and KeyboardInterrupt when it is stopped.
    """
    from advise.advisor import run_advice
    from train.run import TrainingStoppedError

    advice = advice_folder(folder)
    options = AdviseOptions.from_json(job.config)
    try:
        return dict(run_advice(options, model_options(job.serving), advice, home, report))
    except TrainingStoppedError as stop:
        raise KeyboardInterrupt from stop


def claim_adapter(job: Job, folder: JobFolder, home: Path) -> bool:
    """Record that the adapter of the advice is the owner's; return whether there is one.

    An adapter of this name with a record of something else was added while the advice was stopped, and is not its own.
    """
    target = home / "adapters" / job.adapter
    if advice_folder(folder).adapter() != job.adapter or not target.is_dir():
        return False
    origin = read_origin(target)
    if origin is not None:
        return (origin.kind, origin.what) == ("job", job.id)
    if job.owner:
        write_origin(target, "job", job.id, Owner(job.owner, job.owner_name))
    return True
