"""Follows a job elsewhere: its lines as they come, its figures, and how it ends. Nothing here changes the job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from jobs.remote.curve import Curve
from jobs.remote.faults import is_unreachable, jobs_errors
from jobs.remote.record import Record
from serve.home import Report

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

_OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
_LOG = "remote.log"
_LAST_LINES = 50


@dataclass(frozen=True)
class Pace:
    """Seconds. `look`: between two questions how the job stands; `again`: before a log that broke is asked for again;
    `patience`: for how long the Hub may be out of reach.
    """

    look: float = 10.0
    again: float = 15.0
    patience: float = 1800.0
    wait: float = 0.3


@dataclass(frozen=True)
class End:
    """How the job ended: the Hub's stage and message, and its last lines."""

    stage: str
    message: str | None
    lines: tuple[str, ...]


class Told:
    """The lines of one attempt, kept on disk: a log is told from its beginning each time that it is asked for."""

    def __init__(self, folder: Path, curve: Curve, report: Report) -> None:
        self._path = folder / _LOG
        self._curve = curve
        self._report = report
        self.lines: list[str] = []
        if self._path.is_file():
            # A last line that a kill tore off comes again.
            whole = self._path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
            self.lines = whole.split("\n") if whole else []
            self._path.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        for line in self.lines:
            curve.take(line)

    def take(self, place: int, line: str) -> None:
        """Line number `place` of the log; those that were told before are left out."""
        if place < len(self.lines):
            return
        text = " ".join(line.splitlines()).rstrip()
        self.lines.append(text)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
        self._curve.take(text)
        if text.strip():
            self._report(text)

    @staticmethod
    def forget(folder: Path) -> None:
        """A new attempt tells its own lines."""
        (folder / _LOG).unlink(missing_ok=True)


def follow(
    api: HfApi, record: Record, told: Told, report: Report, stopped: Callable[[], bool], pace: Pace
) -> End | None:
    """Tells the job's lines until it is over; None as soon as `stopped` says so.

    TrainingError, in one sentence, where the Hub is out of reach for long or knows the job no more; the job itself
    may then run on.
    """
    log, stage, lost, looked = _Log(api, record, pace.again), "", 0.0, float("-inf")
    while True:
        if stopped():
            return None
        for place, line in log.lines(pace.wait):
            told.take(place, line)
        if time.monotonic() - looked < pace.look:
            continue
        looked = time.monotonic()
        try:
            info = api.inspect_job(job_id=record.id, namespace=record.namespace)
        except Exception as fault:
            lost = lost or looked
            if not is_unreachable(fault) or looked - lost >= pace.patience:
                with jobs_errors(record.namespace, "following the job of"):
                    raise
            if lost == looked:
                report("The Hub cannot be reached; the job runs on there, and is followed again as soon as it can be.")
            continue
        lost = 0.0
        if info.status.stage in _OVER:
            _tell_rest(api, record, told)
            return End(str(info.status.stage), info.status.message, tuple(told.lines[-_LAST_LINES:]))
        if info.status.stage != stage:
            stage = str(info.status.stage)
            report(_said(info))


def _said(info: JobInfo) -> str:
    if info.status.stage == "SCHEDULING":
        return f"Waits for a machine ({info.flavor or 'any'}) ..."
    return "The machine is there; what the training needs is installed first, which takes some minutes ..."


def _tell_rest(api: HfApi, record: Record, told: Told) -> None:
    """The lines that the stream still owed; without them the end is known all the same."""
    try:
        for place, line in enumerate(api.fetch_job_logs(job_id=record.id, namespace=record.namespace)):
            told.take(place, line)
    except Exception as fault:  # noqa: BLE001 - whatever the client raises
        told.take(len(told.lines), f"(The last lines of the log could not be read: {type(fault).__name__}.)")


class _Log:
    """The log as a stream in a thread of its own; where it breaks it is begun again."""

    def __init__(self, api: HfApi, record: Record, again: float) -> None:
        self._api = api
        self._record = record
        self._again = again
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
                lines = self._api.fetch_job_logs(job_id=self._record.id, namespace=self._record.namespace, follow=True)
                for place, line in enumerate(lines):
                    self._queue.put((place, line))
                return  # the client ends a stream when the job is over
            except Exception:  # noqa: BLE001 - how the job stands is asked for apart, and says what is wrong
                time.sleep(self._again)
