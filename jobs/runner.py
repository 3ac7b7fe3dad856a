"""One job process: train, score.

The process of one job: trains, scores, and writes what came of it. Killed at any moment, it is begun again.

The training of one job: begun, continued, or already over; here or elsewhere.

Ends a job's process in good order: when a person asks for it, when its worker dies, when the system shuts down.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from common.files import acquire_lock, atomic_write
from common.paths import ProgressFn
from errors import PromptOrTuneError, TrainingError
from jobs.job import Job, JobStage, Verdict, job_config
from jobs.store import (
    JobFolder,
    JobState,
    exclusive,
    is_trained,
    last_checkpoint,
    last_complete_checkpoint,
    last_step,
    remove_leftovers,
    utc_timestamp,
)
from train.checkpoints import run_directory

if TYPE_CHECKING:
    from train.config import TrainConfig


_POLL_SECONDS = 0.3
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Who wants the process to end: a person, who stops the job, or the system, after which it goes on by itself.
StopReason = Literal["", "person", "system"]


class JobStoppedError(KeyboardInterrupt):
    """Raised in the main thread where no training is there to end its step. Libraries let it pass, as Ctrl-C."""


class StopWatcher:
    """Looks for a reason to end while the block lasts, and then stops the main thread once.

    While train trains, its own signal handlers stand: the step ends and a checkpoint is saved. Elsewhere JobStoppedError
    is raised. `attached`: the worker holds the other end of standard input, which ends with the worker however that
    dies; a Ctrl-C then is not meant for the job alone. `tick` is called every 0.3 seconds.
    """

    def __init__(self, stop_path: Path, attached: bool, on_poll: Callable[[], None]) -> None:
        self.stop_reason: StopReason = ""
        self._stop_path = stop_path
        self._attached = attached
        self._on_poll = on_poll
        self._closed = threading.Event()
        self._raised = False
        self._ignoring_stops = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> StopWatcher:
        for number in _STOP_SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        threading.Thread(target=self._poll, name="look-for-stop", daemon=True).start()
        if self._attached:
            threading.Thread(target=self._wait_for_worker_exit, name="look-for-worker", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def stop_requested(self) -> bool:
        """Whether the work is to end."""
        return bool(self.stop_reason)

    def ignore_stops(self) -> None:
        """From now on nothing is stopped: what is left takes moments."""
        self._ignoring_stops = True

    def _poll(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            if self._stop_path.exists():
                self._request_stop("person")
            self._on_poll()

    def _wait_for_worker_exit(self) -> None:
        # Not through sys.stdin, whose lock a thread that waits would still hold when Python ends.
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        self._request_stop("system")

    def _request_stop(self, reason: StopReason) -> None:
        if self.stop_reason or self._closed.is_set():
            return
        self.stop_reason = reason
        # To the main thread, so that a wait in it ends.
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGTERM)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self.stop_reason:
            self.stop_reason = "person" if number == signal.SIGINT and not self._attached else "system"
        if not self._raised and not self._ignoring_stops:
            self._raised = True
            raise JobStoppedError


def train_job(job: Job, folder: JobFolder, home: Path, report: ProgressFn, stopped: Callable[[], bool]) -> Path:
    """The finished adapter's folder, trained as far as it was not yet.

    Killed at any moment and called again, the adapter has the same bytes in the end. Raises PromptOrTuneError in one
    sentence; JobStoppedError where SIGTERM stopped it, with a checkpoint.
    """
    standing, target = folder.read_state(), home / "adapters" / job.adapter
    if is_trained(job, standing, home):
        report("The adapter is trained already.")
    elif job.where == "hub":
        from jobs.hf_jobs.run import run_remote_job

        folder.remove_scores()
        target = run_remote_job(job, folder.path, report, stopped)
    else:
        target = _train_locally(job, folder, home, report, finish=standing.finish)
    _save_curve(target, folder)
    with suppress(TrainingError):
        run_directory(job_config(job, home)).remove()  # there still where a kill came between the adapter and its end
    remove_leftovers(target)
    return target


def _train_locally(job: Job, folder: JobFolder, home: Path, report: ProgressFn, finish: bool) -> Path:
    from train.run import TrainingStoppedError, train

    config = job_config(job, home)
    place = run_directory(config)
    remove_leftovers(place.target)
    checkpoint = last_complete_checkpoint(place)
    if checkpoint is None:
        if finish:
            raise TrainingError("There is no whole checkpoint to make an adapter of: resume the job.")
        folder.remove_scores()
        folder.curve_path.unlink(missing_ok=True)
    else:
        report(f"Going on from the checkpoint of step {place.last_step()}.")
    try:
        return train(config, report, resume=checkpoint is not None and not finish, finish=finish)
    except TrainingStoppedError as stop:
        raise JobStoppedError from stop


def _save_curve(adapter: Path, folder: JobFolder) -> None:
    """The job has a curve to show also when its adapter is deleted."""
    with suppress(FileNotFoundError):
        atomic_write(folder.curve_path, (adapter / "log.jsonl").read_bytes())


EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 130
_STEP_LINE = re.compile(r"step (\d+)/(\d+)")
_REPORT_INTERVAL_SECONDS = 0.5  # seconds between two lines that state.json hears of


def run_job(home: Path, id: str, attached: bool = False) -> int:
    """Works on a job that waits, to its end; the exit status. `attached`: a worker holds standard input.

    PromptOrTuneError where there is nothing to do: another process works on the job, or it does not wait.
    """
    folder = JobFolder(home / "jobs", id)
    job = folder.read_job()
    lock = acquire_lock(folder.lock_path)
    if lock is None:
        raise PromptOrTuneError(
            f"Another process works on the job '{job.adapter}': `python -m jobs cancel {id}` stops it."
        )
    with lock:
        return _JobRunner(home, folder, attached).run()


class _JobRunner:
    """One attempt at one job."""

    def __init__(self, home: Path, folder: JobFolder, attached: bool) -> None:
        self._home = home
        self._folder = folder
        self._attached = attached
        self._last_report = 0.0
        self._started_at = time.time()
        self._first_step = 0

    def run(self) -> int:
        job = self._start()
        with StopWatcher(self._folder.stop_path, self._attached, self._record_first_step) as watch:
            try:
                adapter = self._train(job, watch)
                verdict = self._score(job, adapter)
                watch.ignore_stops()
                self._finish(adapter, *verdict)
                return EXIT_DONE
            except KeyboardInterrupt:  # JobStoppedError, or a second Ctrl-C while a checkpoint was being saved
                return self._handle_stop(watch)
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of any failure; it is logged whole
                watch.ignore_stops()
                return self._handle_stop(watch) if watch.stop_reason else self._handle_error(error)

    def _start(self) -> Job:
        """The job is ours from now on; an attempt that got further than those before makes their ends forgotten."""
        with exclusive(self._folder.path.parent):
            job, standing = self._folder.read_job(), self._folder.read_state()
            if job.state != "queued":
                raise PromptOrTuneError(f"The job '{job.adapter}' does not wait to be run: it is {job.state}.")
            trained = is_trained(job, standing, self._home)
            self._first_step = self._start_step(job)
            # Past all steps once it is trained, and then as far as the scoring is.
            reached = (sys.maxsize if trained else self._first_step), self._scored_bytes()
            self._folder.stop_path.unlink(missing_ok=True)
            self._folder.write_state(
                replace(
                    standing,
                    state="running",
                    stage="",
                    message="Starting.",
                    started=standing.started or utc_timestamp(),
                    attempts=standing.attempts + 1,
                    trained=trained,
                    crashes=standing.crashes if reached <= standing.reached else 0,
                    reached=max(reached, standing.reached),
                    anchor=(0, 0.0),
                )
            )
        return self._folder.read_job()

    def _start_step(self, job: Job) -> int:
        """The step from which this attempt goes on."""
        checkpoint = last_checkpoint(job, self._home)
        return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else last_step(self._folder.curve_path)

    def _scored_bytes(self) -> int:
        scores = self._folder.scores_path
        return scores.stat().st_size if scores.exists() else 0

    def _train(self, job: Job, stop_watcher: StopWatcher) -> Path:
        self._set_stage("training")
        adapter = train_job(job, self._folder, self._home, self.report, stop_watcher.stop_requested)
        self._update_state(lambda standing: replace(standing, trained=True))
        gc.collect()  # the model that learned goes before the one that is scored comes
        return adapter

    def _score(self, job: Job, adapter: Path) -> tuple[Verdict | None, list[dict[str, Any]]]:
        from jobs.job import job_config
        from jobs.scoring import (
            adapter_scores,
            build_scoring_engine,
            generate_and_score,
            load_held_out_rows,
            make_verdict,
            max_new_tokens_for,
        )
        from train.techniques import get_technique

        config: TrainConfig = job_config(job, self._home)
        if config.technique == "full":
            self.report("A whole model is a base of its own, so it is not scored on this one.")
            return None, []
        self._set_stage("scoring")
        rows = load_held_out_rows(config)
        self.report(f"Scoring on {len(rows.problems)} held-out rows.")
        engine = build_scoring_engine(job.serving, self._home, rows.example_pool, self.report)
        try:
            tokens = max_new_tokens_for(engine.count_tokens, rows.problems)
            run = generate_and_score(
                engine, rows, adapter.name, self._folder.scores_path, config.seed, tokens, self.report
            )
        finally:
            engine.close()
        return make_verdict(run, adapter.name, get_technique(config.technique).title), adapter_scores(run, adapter.name)

    def _finish(self, adapter: Path, verdict: Verdict | None, scores: list[dict[str, Any]]) -> None:
        from train.save import record_scores

        message = f"The model is ready: serve it with --base {adapter}."
        if verdict is not None:
            remove_leftovers(adapter)
            record_scores(adapter, scores)
            self._folder.write_verdict(verdict)
            message = verdict.sentence
        self._log(message)
        self._end_job(
            replace(self._folder.read_state(), state="done", stage="", message=self._strip_home_path(message))
        )

    def _handle_stop(self, stop_watcher: StopWatcher) -> int:
        """Stopped by a person the job waits for one; stopped by the system it goes on as soon as there is a worker."""
        self._log("Stopped.")
        if stop_watcher.stop_reason == "person" or not (stop_watcher.stop_reason or self._attached):
            job = self._folder.read_job()
            checkpoint = last_checkpoint(job, self._home)
            kept = f"Stopped; the checkpoint of step {checkpoint.name.rsplit('-', 1)[1]} is kept." if checkpoint else ""
            trained = "Stopped; the adapter is trained, and its scoring goes on where it was."
            standing = self._folder.read_state()
            message = trained if standing.trained else kept or "Stopped before the first checkpoint."
            self._end_job(replace(standing, state="stopped", stage="", message=message))
        return EXIT_STOPPED

    def _handle_error(self, error: Exception) -> int:
        if isinstance(error, PromptOrTuneError):
            message = str(error)
        else:
            self._log("".join(traceback.format_exception(error)).rstrip())
            message = f"The job ended with an error that nobody foresaw ({type(error).__name__}: {error}): see its log."
        self._log(message)
        self._end_job(replace(self._folder.read_state(), state="failed", message=self._strip_home_path(message)))
        return EXIT_FAILED

    def report(self, line: str) -> None:
        """One line of progress, for the log and for whoever looks at the job."""
        self._log(line)
        steps = _STEP_LINE.search(line)
        if steps or time.monotonic() - self._last_report >= _REPORT_INTERVAL_SECONDS:
            self._last_report = time.monotonic()
            length = int(steps[2]) if steps else 0
            message = self._strip_home_path(" ".join(line.split()))
            with suppress(PromptOrTuneError):  # a line that cannot be shown is no reason to end
                self._update_state(lambda standing: replace(standing, message=message, steps=length or standing.steps))

    def _set_stage(self, stage: JobStage) -> None:
        self._update_state(lambda standing: replace(standing, stage=stage))

    def _record_first_step(self) -> None:
        """Remembers the first step of this attempt, from which its pace is counted."""
        standing = self._folder.read_state()
        if standing.stage != "training" or standing.anchor[1]:
            return
        log = self._home / "adapters" / f".{self._folder.read_job().adapter}.run" / "log.jsonl"
        with suppress(OSError, PromptOrTuneError):
            written = log.stat().st_mtime
            if written > self._started_at and (step := last_step(log)) > self._first_step:
                self._update_state(lambda standing: replace(standing, anchor=(step, written)))

    def _update_state(self, change: Callable[[JobState], JobState]) -> None:
        """Changes how a running job stands; one that is being stopped keeps saying so."""
        with exclusive(self._folder.path.parent):
            standing = self._folder.read_state()
            changed = change(standing)
            if standing.state == "stopping":
                changed = replace(changed, message=standing.message)
            self._folder.write_state(changed)

    def _end_job(self, state: JobState) -> None:
        with exclusive(self._folder.path.parent):
            self._folder.write_state(replace(state, ended=utc_timestamp(), crashes=0, anchor=(0, 0.0)))
            self._folder.stop_path.unlink(missing_ok=True)

    def _log(self, text: str) -> None:
        text = self._strip_home_path(text)
        with suppress(OSError), self._folder.log_path.open("a", encoding="utf-8", errors="replace") as file:
            file.write("".join(f"{time.strftime('%H:%M:%S')}  {line}\n" for line in text.splitlines()))
        if not self._attached:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def _strip_home_path(self, text: str) -> str:
        """Without the folders of this machine, which nobody else need know."""
        return text.replace(f"{self._home}{os.sep}", "")
