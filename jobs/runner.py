"""The process of one job: train and score, or advise, store the result, and stop cleanly when asked.

The process may be killed at any moment; the worker starts it again, and it continues from the last checkpoint, the
last scored batch, or the last finished step of an advice.
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

from adapters.manifest import Owner, write_origin
from common.files import ProgressFn, acquire_lock, atomic_write
from common.format import utc_timestamp
from common.hub import HubAccess, visitor_hub_access
from errors import PromptOrTuneError, TrainingError
from jobs.api import (
    advice_folder,
    advice_message,
    advice_progress,
    advise_job,
    claim_adapter,
    finished_steps,
    written_bytes,
)
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
)
from tasks.datasets.hub import use_hub_access
from train.config import run_directory

if TYPE_CHECKING:
    from train.config import TrainConfig

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 130
_STEP_LINE = re.compile(r"step (\d+)/(\d+)")
_REPORT_INTERVAL_SECONDS = 0.5  # minimum time between two progress lines that state.json stores
_POLL_SECONDS = 0.3
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Who asked the process to end. A job that a person stopped waits; one that the system stopped continues by itself.
StopReason = Literal["", "person", "system"]


class JobStoppedError(KeyboardInterrupt):
    """Raised in the main thread while no training runs. A KeyboardInterrupt, so that libraries do not catch it."""


class StopWatcher:
    """Watches for a reason to stop during the block, and then interrupts the main thread once.

    The reasons are the stop file, SIGINT, SIGTERM, and the end of the worker. During a training the signal handlers of
    train are installed: they finish the step and save a checkpoint. Otherwise JobStoppedError is raised. With
    `attached` the worker holds the other end of standard input, which closes when the worker ends in any way; Ctrl-C
    then counts as a stop by the system. `on_poll` is called every 0.3 seconds.
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
        """Return whether the job is to stop."""
        return bool(self.stop_reason)

    def ignore_stops(self) -> None:
        """Ignore stops from now on, because the remaining work takes moments."""
        self._ignoring_stops = True

    def _poll(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            if self._stop_path.exists():
                self._request_stop("person")
            self._on_poll()

    def _wait_for_worker_exit(self) -> None:
        # os.read instead of sys.stdin: this thread would hold the lock of sys.stdin while Python shuts down.
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        self._request_stop("system")

    def _request_stop(self, reason: StopReason) -> None:
        if self.stop_reason or self._closed.is_set():
            return
        self.stop_reason = reason
        # Sent to the main thread, so that it interrupts a wait there.
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
    """Train the job's adapter, locally or remotely, from its last checkpoint on; return the adapter's folder.

    Interrupted at any moment and called again, it gives an adapter with the same bytes. Raises PromptOrTuneError, and
    JobStoppedError after SIGTERM, when a checkpoint has been saved.
    """
    state, target = folder.read_state(), home / "adapters" / job.adapter
    if is_trained(job, state, home):
        report("The adapter is trained already.")
    elif job.where == "hub":
        from jobs.hf_jobs.run import run_remote_job

        folder.remove_scores()
        target = run_remote_job(job, folder.path, report, stopped)
    else:
        target = _train_locally(job, folder, home, report, finish=state.finish)
    if job.owner:
        write_origin(target, "job", job.id, Owner(job.owner, job.owner_name))
    _save_curve(target, folder)
    with suppress(TrainingError):
        run_directory(job_config(job, home)).remove()  # left by a kill right after the adapter was written
    remove_leftovers(target)
    return target


def _train_locally(job: Job, folder: JobFolder, home: Path, report: ProgressFn, finish: bool) -> Path:
    from train.run import TrainingStoppedError, train

    config = job_config(job, home)
    run = run_directory(config)
    remove_leftovers(run.target)
    checkpoint = last_complete_checkpoint(run)
    if checkpoint is None:
        if finish:
            raise TrainingError("There is no complete checkpoint to make an adapter of: resume the job.")
        folder.remove_scores()
        folder.curve_path.unlink(missing_ok=True)
    else:
        report(f"Continuing from the checkpoint of step {run.last_step()}.")
    try:
        return train(config, report, resume=checkpoint is not None and not finish, finish=finish)
    except TrainingStoppedError as stop:
        raise JobStoppedError from stop


def _save_curve(adapter: Path, folder: JobFolder) -> None:
    """Copy the adapter's log.jsonl to the job's folder, so that the curve outlives the adapter."""
    with suppress(FileNotFoundError):
        atomic_write(folder.curve_path, (adapter / "log.jsonl").read_bytes())


def run_job(home: Path, id: str, attached: bool = False) -> int:
    """Run a queued job to its end and return the exit status. `attached`: a worker holds standard input open.

    Raises PromptOrTuneError when another process runs the job, or the job is not queued.
    """
    folder = JobFolder(home / "jobs", id)
    job = folder.read_job()
    lock = acquire_lock(folder.lock_path)
    if lock is None:
        raise PromptOrTuneError(f"Another process runs the job '{job.adapter}': `python -m jobs cancel {id}` stops it.")
    access = visitor_hub_access(home.absolute()) if job.visitor_data else HubAccess()
    with lock, use_hub_access(access):
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
        with StopWatcher(self._folder.stop_path, self._attached, self._record_first_step) as watcher:
            try:
                if job.kind == "advise":
                    self._advise(job, watcher)
                else:
                    adapter = self._train(job, watcher)
                    verdict = self._score(job, adapter)
                    watcher.ignore_stops()
                    self._finish(adapter, *verdict)
                return EXIT_DONE
            except KeyboardInterrupt:  # JobStoppedError, or a second Ctrl-C while a checkpoint was being saved
                return self._handle_stop(watcher)
            except Exception as error:  # noqa: BLE001 - any failure must end up in the job's state; the log has the traceback
                watcher.ignore_stops()
                return self._handle_stop(watcher) if watcher.stop_reason else self._handle_error(error)

    def _start(self) -> Job:
        """Mark the job as running; reset its crash count if this attempt begins further than the earlier ones did."""
        with exclusive(self._folder.path.parent):
            job, state = self._folder.read_job(), self._folder.read_state()
            if job.state != "queued":
                raise PromptOrTuneError(f"The job '{job.adapter}' is not queued: it is {job.state}.")
            trained = is_trained(job, state, self._home)
            self._first_step = self._start_step(job)
            reached = self._reached(job, trained)
            self._folder.stop_path.unlink(missing_ok=True)
            self._folder.write_state(
                replace(
                    state,
                    state="running",
                    stage="",
                    message="Starting.",
                    started=state.started or utc_timestamp(),
                    attempts=state.attempts + 1,
                    trained=trained,
                    crashes=state.crashes if reached <= state.reached else 0,
                    reached=max(reached, state.reached),
                    anchor=(0, 0.0),
                )
            )
        return self._folder.read_job()

    def _reached(self, job: Job, trained: bool) -> tuple[int, int]:
        """Return how far the earlier attempts came (JobState.reached)."""
        if job.kind == "advise":
            return self._first_step, written_bytes(advice_folder(self._folder))
        # A trained job has passed all steps, so only its scoring can get further.
        return (sys.maxsize if trained else self._first_step), self._scored_bytes()

    def _start_step(self, job: Job) -> int:
        """Return the step from which this attempt continues."""
        if job.kind == "advise":
            return finished_steps(advice_folder(self._folder))
        checkpoint = last_checkpoint(job, self._home)
        return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else last_step(self._folder.curve_path)

    def _scored_bytes(self) -> int:
        scores = self._folder.scores_path
        return scores.stat().st_size if scores.exists() else 0

    def _advise(self, job: Job, stop_watcher: StopWatcher) -> None:
        self._set_stage("advising")
        result = advise_job(job, self._folder, self._home, self.report)
        stop_watcher.ignore_stops()
        self._end_done(job, advice_message(result) or "The advice is ready.")

    def _train(self, job: Job, stop_watcher: StopWatcher) -> Path:
        self._set_stage("training")
        adapter = train_job(job, self._folder, self._home, self.report, stop_watcher.stop_requested)
        self._update_state(lambda state: replace(state, trained=True))
        gc.collect()  # free the trained model before the scoring loads its own
        return adapter

    def _score(self, job: Job, adapter: Path) -> tuple[Verdict | None, list[dict[str, Any]]]:
        from evaluate.generate import max_new_tokens_for
        from jobs.scoring import (
            adapter_scores,
            build_scoring_engine,
            generate_and_score,
            load_held_out_rows,
            make_verdict,
        )
        from train.techniques import get_technique

        config: TrainConfig = job_config(job, self._home)
        if config.technique == "full":
            self.report("A fully fine-tuned model is a base of its own, so it is not scored on the present base.")
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
        self._end_done(self._folder.read_job(), message)

    def _end_done(self, job: Job, message: str) -> None:
        self._log(message)
        state = replace(self._folder.read_state(), state="done", stage="", message=self._strip_home_path(message))
        if job.kind == "advise":
            state = replace(state, trained=claim_adapter(job, self._folder, self._home))
        self._end_job(state)

    def _handle_stop(self, stop_watcher: StopWatcher) -> int:
        """End the job if a person stopped it; if the system did, leave it running for the next worker to continue."""
        self._log("Stopped.")
        if stop_watcher.stop_reason == "person" or not (stop_watcher.stop_reason or self._attached):
            job = self._folder.read_job()
            checkpoint = last_checkpoint(job, self._home)
            state = self._folder.read_state()
            if job.kind == "advise":
                state = replace(state, trained=claim_adapter(job, self._folder, self._home))
                message = self._stopped_advice_message()
            elif state.trained:
                message = "Stopped; the adapter is trained, and a resumed job continues its scoring."
            elif checkpoint:
                message = f"Stopped; the checkpoint of step {checkpoint.name.rsplit('-', 1)[1]} is saved."
            else:
                message = "Stopped before the first checkpoint."
            self._end_job(replace(state, state="stopped", stage="", message=message))
        return EXIT_STOPPED

    def _stopped_advice_message(self) -> str:
        count = advice_progress(advice_folder(self._folder)).step
        if not count:
            return "Stopped before the first step was finished."
        return f"Stopped; {count} finished step{' is' if count == 1 else 's are'} stored, and a resumed advice goes on."

    def _handle_error(self, error: Exception) -> int:
        if isinstance(error, PromptOrTuneError):
            message = str(error)
        else:
            self._log("".join(traceback.format_exception(error)).rstrip())
            message = f"The job ended with an unexpected error ({type(error).__name__}: {error}): see its log."
        self._log(message)
        self._end_job(replace(self._folder.read_state(), state="failed", message=self._strip_home_path(message)))
        return EXIT_FAILED

    def report(self, line: str) -> None:
        """Write a progress line to the log and, at most every 0.5 seconds, to the job's state."""
        self._log(line)
        steps = _STEP_LINE.search(line)
        if steps or time.monotonic() - self._last_report >= _REPORT_INTERVAL_SECONDS:
            self._last_report = time.monotonic()
            total = int(steps[2]) if steps else 0
            message = self._strip_home_path(" ".join(line.split()))
            with suppress(PromptOrTuneError):  # a progress line that cannot be stored does not end the job
                self._update_state(lambda state: replace(state, message=message, steps=total or state.steps))

    def _set_stage(self, stage: JobStage) -> None:
        self._update_state(lambda state: replace(state, stage=stage))

    def _record_first_step(self) -> None:
        """Store the first step of this attempt with its time, from which the remaining time is estimated."""
        state = self._folder.read_state()
        if state.stage != "training" or state.anchor[1]:
            return
        log = self._home / "adapters" / f".{self._folder.read_job().adapter}.run" / "log.jsonl"
        with suppress(OSError, PromptOrTuneError):
            modified_at = log.stat().st_mtime
            if modified_at > self._started_at and (step := last_step(log)) > self._first_step:
                self._update_state(lambda state: replace(state, anchor=(step, modified_at)))

    def _update_state(self, change: Callable[[JobState], JobState]) -> None:
        """Change the state of a running job; one that is being stopped keeps its message."""
        with exclusive(self._folder.path.parent):
            state = self._folder.read_state()
            changed = change(state)
            if state.state == "stopping":
                changed = replace(changed, message=state.message)
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
        """Remove the path of the home folder, which visitors must not see."""
        return text.replace(f"{self._home}{os.sep}", "")
