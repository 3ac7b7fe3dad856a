"""Poll logs, curve, state.

Follows a job elsewhere: its lines as they come, its figures, and how it ends. Nothing here changes the job.

From the lines that a training prints elsewhere to the figures that a training writes here.

What this machine knows of a job that was sent away. It is on disk before it is acted upon.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from common.files import atomic_write
from common.paths import ProgressFn
from evaluate.journal import read_records
from jobs.hf_jobs.hardware import hf_jobs_errors, is_hub_unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo


# As train.callbacks.ProgressLine prints it.
_LOG_LINE = re.compile(
    r"\s*step (?P<step>\d+)/(?P<steps>\d+)  epoch [\d.]+  (?P<what>validation loss|loss) (?P<value>\S+)"
    r"  (?P<speed>\d+) tokens/s  (?P<minutes>\d+):(?P<seconds>\d\d) gone, about \S+ left"
)


def parse_log_line(line: str, epochs: float) -> dict[str, Any] | None:
    """What train.callbacks.LogFile would have written at that line; None for any other line.

    `epochs` is the length of the whole training: a line's own epoch is rounded.
    """
    match = _LOG_LINE.fullmatch(line)
    if match is None:
        return None
    try:
        value = float(match["value"])
    except ValueError:
        return None
    step, steps = int(match["step"]), int(match["steps"])
    entry: dict[str, Any] = {"step": step, "epoch": step / steps * epochs if steps else 0.0}
    # A loss that is no number has no place in a curve, or in JSON.
    if math.isfinite(value):
        entry["eval_loss" if match["what"] == "validation loss" else "loss"] = value
    entry |= {"tokens_per_second": float(match["speed"])}
    return entry | {"seconds": 60.0 * int(match["minutes"]) + int(match["seconds"])}


class LossCurveFile:
    """The figures of one attempt in a JSON Lines file, as a training here writes them."""

    def __init__(self, path: Path, epochs: float) -> None:
        self._path = path
        self._epochs = epochs
        self._seen_keys: set[tuple[Any, bool]] = set()
        if path.is_file():
            self._resume_file()

    def add_line(self, line: str) -> None:
        """Adds what the line says, unless it was added before."""
        entry = parse_log_line(line, self._epochs)
        if entry is None or _entry_key(entry) in self._seen_keys:
            return
        self._seen_keys.add(_entry_key(entry))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _resume_file(self) -> None:
        """A last line that a kill tore off goes; a file that is not of this kind is written anew."""
        try:
            records, whole = read_records(self._path)
        except ValueError:
            records, whole = [], 0
        os.truncate(self._path, whole)
        self._seen_keys = {_entry_key(record) for record in records}


def _entry_key(entry: Mapping[str, Any]) -> tuple[Any, bool]:
    return entry.get("step"), "eval_loss" in entry


_STATE_FILE = "remote.json"


@dataclass(frozen=True)
class RemoteJobState:
    """One job elsewhere.

    `attempt` counts the submissions; `label` marks the present one on the Hub, so that it is found again where its
    answer was lost. `source` is the data set that holds program and rows, as they are at `commit`; `adapter` is the
    `over` says that it ended without an adapter,
    so that the next run begins a new attempt. `installs`: the adapter's name in the store is this job's to fill.
    """

    namespace: str = ""
    attempt: int = 0
    label: str = ""
    source: str = ""
    commit: str = ""
    adapter: str = ""
    id: str = ""
    url: str = ""
    over: bool = False
    installs: bool = False


def read_remote_state(folder: Path) -> RemoteJobState:
    """What is known; an empty record for a job that was not sent yet."""
    try:
        return RemoteJobState(**json.loads((folder / _STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return RemoteJobState()


def write_remote_state(folder: Path, state: RemoteJobState) -> RemoteJobState:
    """Keeps it, and gives it back."""
    atomic_write(folder / _STATE_FILE, json.dumps(asdict(state), indent=1) + "\n")
    return state


_ENDED_STAGES = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
_LOG_NAME = "remote.log"
_LAST_LINES = 50


@dataclass(frozen=True)
class PollIntervals:
    """Seconds. `look`: between two questions how the job stands; `again`: before a log that broke is asked for again;
    `patience`: for how long the Hub may be out of reach.
    """

    status_seconds: float = 10.0
    log_retry_seconds: float = 15.0
    unreachable_timeout: float = 1800.0
    log_wait_seconds: float = 0.3


@dataclass(frozen=True)
class JobEnd:
    """How the job ended: the Hub's stage and message, and its last lines."""

    stage: str
    message: str | None
    lines: tuple[str, ...]


class LogEvent:
    """The lines of one attempt, kept on disk: a log is told from its beginning each time that it is asked for."""

    def __init__(self, folder: Path, curve: LossCurveFile, report: ProgressFn) -> None:
        self._path = folder / _LOG_NAME
        self._curve = curve
        self._report = report
        self.lines: list[str] = []
        if self._path.is_file():
            # A last line that a kill tore off comes again.
            whole = self._path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
            self.lines = whole.split("\n") if whole else []
            self._path.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        for line in self.lines:
            curve.add_line(line)

    def add_line(self, index: int, line: str) -> None:
        """Line number `place` of the log; those that were told before are left out."""
        if index < len(self.lines):
            return
        text = " ".join(line.splitlines()).rstrip()
        self.lines.append(text)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
        self._curve.add_line(text)
        if text.strip():
            self._report(text)

    @staticmethod
    def remove_log(folder: Path) -> None:
        """A new attempt tells its own lines."""
        (folder / _LOG_NAME).unlink(missing_ok=True)


def follow_job(
    api: HfApi,
    state: RemoteJobState,
    log_events: LogEvent,
    report: ProgressFn,
    stopped: Callable[[], bool],
    intervals: PollIntervals,
) -> JobEnd | None:
    """Tells the job's lines until it is over; None as soon as `stopped` says so.

    TrainingError, in one sentence, where the Hub is out of reach for long or knows the job no more; the job itself
    may then run on.
    """
    log, stage, lost, looked = _LogStream(api, state, intervals.log_retry_seconds), "", 0.0, float("-inf")
    while True:
        if stopped():
            return None
        for place, line in log.lines(intervals.log_wait_seconds):
            log_events.add_line(place, line)
        if time.monotonic() - looked < intervals.status_seconds:
            continue
        looked = time.monotonic()
        try:
            info = api.inspect_job(job_id=state.id, namespace=state.namespace)
        except Exception as error:
            lost = lost or looked
            if not is_hub_unreachable(error) or looked - lost >= intervals.unreachable_timeout:
                with hf_jobs_errors(state.namespace, "following the job of"):
                    raise
            if lost == looked:
                report("The Hub cannot be reached; the job runs on there, and is followed again as soon as it can be.")
            continue
        lost = 0.0
        if info.status.stage in _ENDED_STAGES:
            _fetch_remaining_lines(api, state, log_events)
            return JobEnd(str(info.status.stage), info.status.message, tuple(log_events.lines[-_LAST_LINES:]))
        if info.status.stage != stage:
            stage = str(info.status.stage)
            report(_stage_message(info))


def _stage_message(info: JobInfo) -> str:
    if info.status.stage == "SCHEDULING":
        return f"Waits for a machine ({info.flavor or 'any'}) ..."
    return "The machine is there; what the training needs is installed first, which takes some minutes ..."


def _fetch_remaining_lines(api: HfApi, state: RemoteJobState, log_events: LogEvent) -> None:
    """The lines that the stream still owed; without them the end is known all the same."""
    try:
        for place, line in enumerate(api.fetch_job_logs(job_id=state.id, namespace=state.namespace)):
            log_events.add_line(place, line)
    except Exception as error:  # noqa: BLE001 - whatever the client raises
        log_events.add_line(
            len(log_events.lines), f"(The last lines of the log could not be read: {type(error).__name__}.)"
        )


class _LogStream:
    """The log as a stream in a thread of its own; where it breaks it is begun again."""

    def __init__(self, api: HfApi, state: RemoteJobState, retry_seconds: float) -> None:
        self._api = api
        self._state = state
        self._retry_seconds = retry_seconds
        self._queue: SimpleQueue[tuple[int, str]] = SimpleQueue()
        threading.Thread(target=self._read, name="follow-log", daemon=True).start()

    def lines(self, seconds: float) -> Iterator[tuple[int, str]]:
        """What came, with its place in the log; waits so long for the first one."""
        try:
            yield self._queue.get(timeout=seconds)
            while True:
                yield self._queue.get_nowait()
        except Empty:
            return

    def _read(self) -> None:
        while True:
            try:
                lines = self._api.fetch_job_logs(job_id=self._state.id, namespace=self._state.namespace, follow=True)
                for place, line in enumerate(lines):
                    self._queue.put((place, line))
                return  # the client ends a stream when the job is over
            except Exception:  # noqa: BLE001 - how the job stands is asked for apart, and says what is wrong
                time.sleep(self._retry_seconds)
