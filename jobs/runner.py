"""The process of one job: trains, scores, and writes what came of it. Killed at any moment, it is begun again."""

from __future__ import annotations

import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import PeftArenaError
from jobs.checkpoints import checkpoint_of, is_trained, remove_leftovers
from jobs.folder import JobFolder, Standing, changing, now
from jobs.job import Job, Stage, Verdict
from jobs.locks import take
from jobs.progress import last_step
from jobs.training import train_job
from jobs.watch import Watch

if TYPE_CHECKING:
    from train.config import TrainConfig

DONE, FAILED, STOPPED = 0, 1, 130
_STEPS = re.compile(r"step (\d+)/(\d+)")
_TOLD_EVERY = 0.5  # seconds between two lines that state.json hears of


def run_job(home: Path, id: str, attached: bool = False) -> int:
    """Works on a job that waits, to its end; the exit status. `attached`: a worker holds standard input.

    PeftArenaError where there is nothing to do: another process works on the job, or it does not wait.
    """
    folder = JobFolder(home / "jobs", id)
    job = folder.job()
    lock = take(folder.running)
    if lock is None:
        raise PeftArenaError(
            f"Another process works on the job '{job.adapter}': `python -m jobs cancel {id}` stops it."
        )
    with lock:
        return _Runner(home, folder, attached).run()


class _Runner:
    """One attempt at one job."""

    def __init__(self, home: Path, folder: JobFolder, attached: bool) -> None:
        self._home = home
        self._folder = folder
        self._attached = attached
        self._told = 0.0
        self._began = time.time()
        self._first = 0

    def run(self) -> int:
        job = self._begin()
        with Watch(self._folder.stop, self._attached, self._note_pace) as watch:
            try:
                adapter = self._train(job, watch)
                verdict = self._score(job, adapter)
                watch.shield()
                self._finish(adapter, *verdict)
                return DONE
            except KeyboardInterrupt:  # StoppedError, or a second Ctrl-C while a checkpoint was being saved
                return self._stopped(watch)
            except Exception as fault:  # noqa: BLE001 - whoever waits must hear of any failure; it is logged whole
                watch.shield()
                return self._stopped(watch) if watch.asked else self._failed(fault)

    def _begin(self) -> Job:
        """The job is ours from now on; an attempt that got further than those before makes their ends forgotten."""
        with changing(self._folder.path.parent):
            job, standing = self._folder.job(), self._folder.standing()
            if job.state != "queued":
                raise PeftArenaError(f"The job '{job.adapter}' does not wait to be run: it is {job.state}.")
            trained = is_trained(job, standing, self._home)
            self._first = self._step(job)
            # Past all steps once it is trained, and then as far as the scoring is.
            reached = (sys.maxsize if trained else self._first), self._scored()
            self._folder.stop.unlink(missing_ok=True)
            self._folder.write_standing(
                replace(
                    standing,
                    state="running",
                    stage="",
                    message="Starting.",
                    started=standing.started or now(),
                    attempts=standing.attempts + 1,
                    trained=trained,
                    crashes=standing.crashes if reached <= standing.reached else 0,
                    reached=max(reached, standing.reached),
                    anchor=(0, 0.0),
                )
            )
        return self._folder.job()

    def _step(self, job: Job) -> int:
        """The step from which this attempt goes on."""
        checkpoint = checkpoint_of(job, self._home)
        return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else last_step(self._folder.curve)

    def _scored(self) -> int:
        scores = self._folder.scores
        return scores.stat().st_size if scores.exists() else 0

    def _train(self, job: Job, watch: Watch) -> Path:
        self._enter("training")
        adapter = train_job(job, self._folder, self._home, self.report, watch.stopped)
        self._update(lambda standing: replace(standing, trained=True))
        gc.collect()  # the model that learned goes before the one that is scored comes
        return adapter

    def _score(self, job: Job, adapter: Path) -> tuple[Verdict | None, list[dict[str, Any]]]:
        from jobs.request import config_of
        from jobs.scoring import answer_and_score, held_out, open_engine, scores_of, token_limit
        from jobs.verdict import verdict_of
        from train.techniques import technique_named

        config: TrainConfig = config_of(job, self._home)
        if config.technique == "full":
            self.report("A whole model is a base of its own, so it is not scored on this one.")
            return None, []
        self._enter("scoring")
        rows = held_out(config)
        self.report(f"Scoring on {len(rows.problems)} held-out rows.")
        engine = open_engine(job.serving, self._home, rows.pool, self.report)
        try:
            tokens = token_limit(engine.count_tokens, rows.problems)
            run = answer_and_score(engine, rows, adapter.name, self._folder.scores, config.seed, tokens, self.report)
        finally:
            engine.close()
        return verdict_of(run, adapter.name, technique_named(config.technique).title), scores_of(run, adapter.name)

    def _finish(self, adapter: Path, verdict: Verdict | None, scores: list[dict[str, Any]]) -> None:
        from train.scores import record_scores

        message = f"The model is ready: serve it with --base {adapter}."
        if verdict is not None:
            remove_leftovers(adapter)
            record_scores(adapter, scores)
            self._folder.write_verdict(verdict)
            message = verdict.sentence
        self._log(message)
        self._end(replace(self._folder.standing(), state="done", stage="", message=self._public(message)))

    def _stopped(self, watch: Watch) -> int:
        """Stopped by a person the job waits for one; stopped by the system it goes on as soon as there is a worker."""
        self._log("Stopped.")
        if watch.asked == "person" or not (watch.asked or self._attached):
            job = self._folder.job()
            checkpoint = checkpoint_of(job, self._home)
            kept = f"Stopped; the checkpoint of step {checkpoint.name.rsplit('-', 1)[1]} is kept." if checkpoint else ""
            trained = "Stopped; the adapter is trained, and its scoring goes on where it was."
            standing = self._folder.standing()
            message = trained if standing.trained else kept or "Stopped before the first checkpoint."
            self._end(replace(standing, state="stopped", stage="", message=message))
        return STOPPED

    def _failed(self, fault: Exception) -> int:
        if isinstance(fault, PeftArenaError):
            message = str(fault)
        else:
            self._log("".join(traceback.format_exception(fault)).rstrip())
            message = f"The job ended with an error that nobody foresaw ({type(fault).__name__}: {fault}): see its log."
        self._log(message)
        self._end(replace(self._folder.standing(), state="failed", message=self._public(message)))
        return FAILED

    def report(self, line: str) -> None:
        """One line of progress, for the log and for whoever looks at the job."""
        self._log(line)
        steps = _STEPS.search(line)
        if steps or time.monotonic() - self._told >= _TOLD_EVERY:
            self._told = time.monotonic()
            length = int(steps[2]) if steps else 0
            message = self._public(" ".join(line.split()))
            with suppress(PeftArenaError):  # a line that cannot be shown is no reason to end
                self._update(lambda standing: replace(standing, message=message, steps=length or standing.steps))

    def _enter(self, stage: Stage) -> None:
        self._update(lambda standing: replace(standing, stage=stage))

    def _note_pace(self) -> None:
        """Remembers the first step of this attempt, from which its pace is counted."""
        standing = self._folder.standing()
        if standing.stage != "training" or standing.anchor[1]:
            return
        log = self._home / "adapters" / f".{self._folder.job().adapter}.run" / "log.jsonl"
        with suppress(OSError, PeftArenaError):
            written = log.stat().st_mtime
            if written > self._began and (step := last_step(log)) > self._first:
                self._update(lambda standing: replace(standing, anchor=(step, written)))

    def _update(self, change: Callable[[Standing], Standing]) -> None:
        """Changes how a running job stands; one that is being stopped keeps saying so."""
        with changing(self._folder.path.parent):
            standing = self._folder.standing()
            changed = change(standing)
            if standing.state == "stopping":
                changed = replace(changed, message=standing.message)
            self._folder.write_standing(changed)

    def _end(self, standing: Standing) -> None:
        with changing(self._folder.path.parent):
            self._folder.write_standing(replace(standing, ended=now(), crashes=0, anchor=(0, 0.0)))
            self._folder.stop.unlink(missing_ok=True)

    def _log(self, text: str) -> None:
        text = self._public(text)
        with suppress(OSError), self._folder.log.open("a", encoding="utf-8", errors="replace") as file:
            file.write("".join(f"{time.strftime('%H:%M:%S')}  {line}\n" for line in text.splitlines()))
        if not self._attached:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def _public(self, text: str) -> str:
        """Without the folders of this machine, which nobody else need know."""
        return text.replace(f"{self._home}{os.sep}", "")
