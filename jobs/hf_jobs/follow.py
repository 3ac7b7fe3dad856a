"""Hugging Face Jobs: machines with prices, and following a job: its state on disk, log, loss curve and end.

Following never changes the job on the Hub. `remote.json` in the job's folder holds what is known of the remote job; it
is written before each action that depends on it.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from common.files import ProgressFn, atomic_write
from common.format import quote_untrusted
from common.hub import hub_errors, is_hub_unreachable
from errors import TrainingError, unknown_name_error
from evaluate.journal import read_records

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

DEFAULT_HARDWARE = "a10g-small"
# The Hub ends a job after this many hours, so a job costs at most this many hours of its machine.
MAX_HOURS = 6
_ERROR_PREFIX = "train: "
_BILLING_URL = "huggingface.co/settings/billing"
_STATE_FILE = "remote.json"
_LOG_NAME = "remote.log"
_ENDED_STAGES = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
_LAST_LINES = 50
# A progress line as train.trainer.ProgressReporter prints it.
_LOG_LINE = re.compile(
    r"\s*step (?P<step>\d+)/(?P<steps>\d+)  epoch [\d.]+  (?P<what>validation loss|loss) (?P<value>\S+)"
    r"  (?P<speed>\d+) tokens/s  (?P<minutes>\d+):(?P<seconds>\d\d) gone, about \S+ left"
)


@dataclass(frozen=True)
class RemoteHardware:
    """One machine. `price_per_hour` is in US dollars, None when the Hub was not asked."""

    name: str
    title: str
    memory: str = ""
    price_per_hour: float | None = None

    @property
    def label(self) -> str:
        """The machine's entry in a list: title, memory and price."""
        price = "" if self.price_per_hour is None else f"${self.price_per_hour:.2f} an hour"
        return " · ".join(part for part in (self.title, self.memory, price) if part)


def hardware_names() -> list[str]:
    """Return the names of all machines that the installed client knows, in its order."""
    from huggingface_hub import JobHardware

    return [hardware.value for hardware in JobHardware]


def check_hardware(name: str) -> None:
    """Raise UnknownNameError, with the nearest name, for a machine that does not exist."""
    if name not in hardware_names():
        raise unknown_name_error("machine of Hugging Face Jobs", name, hardware_names())


def list_hardware() -> list[RemoteHardware]:
    """Return all machines without prices; sends no request."""
    return [RemoteHardware(name, name) for name in hardware_names()]


def list_hardware_with_prices(token: str) -> list[RemoteHardware]:
    """Return all machines with prices as the Hub lists them now; TrainingError when the Hub does not answer."""
    from huggingface_hub import HfApi

    with hub_errors("the list of machines", "asking for", error=TrainingError):
        found = HfApi(token=token).list_jobs_hardware()
    factors = {"second": 3600.0, "minute": 60.0, "hour": 1.0}
    return [
        RemoteHardware(
            hardware.name,
            hardware.pretty_name,
            f"{hardware.accelerator.vram} GPU" if hardware.accelerator else f"{hardware.ram}, no GPU",
            hardware.unit_cost_usd * factors[hardware.unit_label] if hardware.unit_label in factors else None,
        )
        for hardware in found
    ]


def hf_jobs_errors(namespace: str, action: str) -> AbstractContextManager[None]:
    """Return a context that turns any exception of the client in its block into a TrainingError with one message."""
    forbidden = (
        f"The token of this machine may not use Hugging Face Jobs as '{namespace}' (HTTP 403): give it the right "
        "to run jobs at huggingface.co/settings/tokens."
    )
    messages = {402: no_credit_message(namespace), 403: forbidden}
    return hub_errors(f"{namespace}/jobs", action, error=TrainingError, status_messages=messages)


def no_credit_message(namespace: str) -> str:
    """Return the message for an account without credit."""
    return (
        f"Hugging Face Jobs is paid in advance and '{namespace}' has no credit left: add some at {_BILLING_URL}, or "
        "train on this machine."
    )


def failure_message(stage: str, message: str | None, lines: Sequence[str], url: str) -> str:
    """Return why an ended job has no adapter. `lines` are the last lines of its log."""
    if stage in ("CANCELED", "DELETED"):
        return f"The job was cancelled on the Hub ({url}): retry it to begin again."
    if "timeout" in (message or "").casefold().replace(" ", ""):
        return (
            f"The job was ended after {MAX_HOURS} hours, the most that it may take ({url}): choose fewer epochs or a "
            "faster machine."
        )
    error_line = next((line.strip() for line in reversed(lines) if line.startswith(_ERROR_PREFIX)), "")
    if error_line:
        return quote_untrusted(error_line.removeprefix(_ERROR_PREFIX), 500)
    reason = quote_untrusted((message or "").strip(" ."), 200) or "the Hub gives no reason"
    return f"The job failed on Hugging Face Jobs ({reason}): its log is at {url}; retry it to begin again."


@dataclass(frozen=True)
class RemoteJobState:
    """What is known of one remote job, as `remote.json` stores it.

    `attempt` counts the submissions. `label` marks the present attempt on the Hub, so that it can be found when the
    answer to its request was lost. `source` is the data set repository that holds program and rows, at `commit`.
    `adapter` is the model repository to publish to. `id` and `url` are the Hub's, empty before the job is created.
    `over` is true when the attempt ended without an adapter, so that the next run begins a new attempt. `installs` is
    true when this job may replace the adapter of its name in the local store.
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
    """Read `remote.json` in a job's folder; an empty state for a job that was never sent."""
    try:
        return RemoteJobState(**json.loads((folder / _STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return RemoteJobState()


def write_remote_state(folder: Path, state: RemoteJobState) -> RemoteJobState:
    """Write `remote.json` in a job's folder and return the state."""
    atomic_write(folder / _STATE_FILE, json.dumps(asdict(state), indent=1) + "\n")
    return state


@dataclass(frozen=True)
class PollIntervals:
    """Intervals in seconds.

    `status_seconds` passes between two requests for the job's status, `log_retry_seconds` before a broken log stream is
    opened again. `unreachable_timeout` is how long the Hub may be unreachable, `log_wait_seconds` how long one read of
    the log waits for a line.
    """

    status_seconds: float = 10.0
    log_retry_seconds: float = 15.0
    unreachable_timeout: float = 1800.0
    log_wait_seconds: float = 0.3


@dataclass(frozen=True)
class JobEnd:
    """How the job ended: the Hub's stage and message, and the last lines of its log."""

    stage: str
    message: str | None
    lines: tuple[str, ...]


def parse_log_line(line: str, epochs: float) -> dict[str, Any] | None:
    """Return the log.jsonl entry that train.trainer wrote for this progress line; None for any other line.

    `epochs` is the length of the training. The epoch is computed from it, because the one in the line is rounded.
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
    # NaN and infinity are no valid JSON and cannot be plotted.
    if math.isfinite(value):
        entry["eval_loss" if match["what"] == "validation loss" else "loss"] = value
    entry |= {"tokens_per_second": float(match["speed"])}
    return entry | {"seconds": 60.0 * int(match["minutes"]) + int(match["seconds"])}


class LossCurveFile:
    """The loss curve of one attempt as a JSON Lines file, in the format that a local training writes."""

    def __init__(self, path: Path, epochs: float) -> None:
        self._path = path
        self._epochs = epochs
        self._seen_keys: set[tuple[Any, bool]] = set()
        if path.is_file():
            self._resume_file()

    def add_line(self, line: str) -> None:
        """Append the entry of a progress line, unless the file has it already."""
        entry = parse_log_line(line, self._epochs)
        if entry is None or _entry_key(entry) in self._seen_keys:
            return
        self._seen_keys.add(_entry_key(entry))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _resume_file(self) -> None:
        """Cut off a last line that a kill left incomplete; empty a file that is not JSON Lines."""
        try:
            records, valid_bytes = read_records(self._path)
        except ValueError:
            records, valid_bytes = [], 0
        os.truncate(self._path, valid_bytes)
        self._seen_keys = {_entry_key(record) for record in records}


def _entry_key(entry: Mapping[str, Any]) -> tuple[Any, bool]:
    return entry.get("step"), "eval_loss" in entry


class RemoteLog:
    """The log of one attempt, stored in `remote.log`. The Hub sends a log from its first line on each request."""

    def __init__(self, folder: Path, curve: LossCurveFile, report: ProgressFn) -> None:
        self._path = folder / _LOG_NAME
        self._curve = curve
        self._report = report
        self.lines: list[str] = []
        if self._path.is_file():
            # A last line that a kill left incomplete is removed here and read again from the Hub.
            text = self._path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
            self.lines = text.split("\n") if text else []
            self._path.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        for line in self.lines:
            curve.add_line(line)

    def add_line(self, index: int, line: str) -> None:
        """Store and report line number `index` of the log; lines that are stored already are ignored."""
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
    def remove_file(folder: Path) -> None:
        """Delete the log of an earlier attempt."""
        (folder / _LOG_NAME).unlink(missing_ok=True)


def follow_job(
    api: HfApi,
    state: RemoteJobState,
    log: RemoteLog,
    report: ProgressFn,
    stopped: Callable[[], bool],
    intervals: PollIntervals,
) -> JobEnd | None:
    """Copy the job's log lines until the job has ended, and return its end; None as soon as `stopped()` is true.

    Raises TrainingError when the Hub is unreachable for `unreachable_timeout` seconds or no longer knows the job; the
    job itself may then still be running.
    """
    stream = _LogStream(api, state, intervals.log_retry_seconds)
    stage, unreachable_since, last_check = "", 0.0, float("-inf")
    while True:
        if stopped():
            return None
        for index, line in stream.lines(intervals.log_wait_seconds):
            log.add_line(index, line)
        if time.monotonic() - last_check < intervals.status_seconds:
            continue
        last_check = time.monotonic()
        try:
            info = api.inspect_job(job_id=state.id, namespace=state.namespace)
        except Exception as error:
            unreachable_since = unreachable_since or last_check
            if not is_hub_unreachable(error) or last_check - unreachable_since >= intervals.unreachable_timeout:
                with hf_jobs_errors(state.namespace, "following the job of"):
                    raise
            if unreachable_since == last_check:
                report(
                    "The Hub cannot be reached. The job continues there, and is followed again when the Hub answers."
                )
            continue
        unreachable_since = 0.0
        if info.status.stage in _ENDED_STAGES:
            _fetch_remaining_lines(api, state, log)
            return JobEnd(str(info.status.stage), info.status.message, tuple(log.lines[-_LAST_LINES:]))
        if info.status.stage != stage:
            stage = str(info.status.stage)
            report(_stage_message(info))


def _stage_message(info: JobInfo) -> str:
    if info.status.stage == "SCHEDULING":
        return f"Waiting for a machine ({info.flavor or 'any'}) ..."
    return "The machine has started; the program is being installed, which takes some minutes ..."


def _fetch_remaining_lines(api: HfApi, state: RemoteJobState, log: RemoteLog) -> None:
    """Add the lines that the stream did not deliver; a failure adds a note and does not hide how the job ended."""
    try:
        for index, line in enumerate(api.fetch_job_logs(job_id=state.id, namespace=state.namespace)):
            log.add_line(index, line)
    except Exception as error:  # noqa: BLE001 - the client raises errors of several libraries
        log.add_line(len(log.lines), f"(The last lines of the log could not be read: {type(error).__name__}.)")


class _LogStream:
    """The job's log, read in a thread of its own; the stream is opened again when the connection breaks."""

    def __init__(self, api: HfApi, state: RemoteJobState, retry_seconds: float) -> None:
        self._api = api
        self._state = state
        self._retry_seconds = retry_seconds
        self._queue: SimpleQueue[tuple[int, str]] = SimpleQueue()
        threading.Thread(target=self._read, name="follow-log", daemon=True).start()

    def lines(self, seconds: float) -> Iterator[tuple[int, str]]:
        """Yield the (index, line) pairs received so far; wait up to `seconds` for the first one."""
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
                for index, line in enumerate(lines):
                    self._queue.put((index, line))
                return  # the client ends the stream when the job has ended
            except Exception:  # noqa: BLE001 - follow_job asks for the status separately and reports what is wrong
                time.sleep(self._retry_seconds)
