"""Client of the preview process: one request at a time, only the newest of each session, with a cache of answers.

`python -m ui.train.preview_process` is started with the first request and stopped when it is idle. Requests take turns,
shared between addresses and visitors as in ui/access/quota.py; only the thread that holds PreviewClient's lock talks
to the process. A request that is cancelled gets CANCEL_GRACE_SECONDS to end by itself; then the process is killed, as
nothing else can interrupt it. While somebody else waits a request has CONTENDED_SECONDS.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from common.hub import HubAccess, visitor_hub_access
from tasks.datasets.own import is_own_dataset
from tasks.datasets.registry import dataset_version
from ui.access.quota import AdmissionQueue, Ticket

_ROOT = Path(__file__).resolve().parents[2]
Event = dict[str, Any]
POLL_SECONDS = 0.2
# A cancelled request may end by itself for so long: a new process would have to import torch again.
CANCEL_GRACE_SECONDS = 4.0
MAX_SECONDS = 600.0
CONTENDED_SECONDS = 60.0
# Requests of one visitor, and of one address, that run or wait; the oldest is cancelled for a further one.
MAX_PER_VISITOR, MAX_PER_ADDRESS = 3, 12
_IDLE_SECONDS = 180.0
_MAX_CACHED = 24
_MAX_CACHED_CHARS = 8_000_000  # of all answers together
PROCESS_DIED = {
    "internal_error": "Reading your rows ended unexpectedly (perhaps for lack of memory): try again, or fewer rows."
}
TIMED_OUT = {
    "internal_error": "Reading your rows takes too long here: try fewer of them, or `python -m train --dry-run`."
}
TOO_MANY = "Rows are being read for too many other windows of yours or of your address: close some, and try again."
CONTENDED = {
    "internal_error": "Reading your rows takes long and others wait: try fewer of them, or again in a few minutes."
}
_log = logging.getLogger(__name__)


class PreviewRequest:
    """One request of one session; the next request of the same session cancels it."""

    def __init__(self, visitor: str = "", address: str = "") -> None:
        self.visitor, self.address = visitor, address or visitor
        self.refusal = ""  # why it was cancelled, unless by a newer one of its session
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Mark the request as no longer needed."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the answer is no longer needed."""
        return self._cancelled.is_set()

    def debounce(self, seconds: float) -> bool:
        """Wait for `seconds`; return False if the request was cancelled meanwhile."""
        return not self._cancelled.wait(seconds)


class PreviewClient:
    """Sends requests to the preview process and yields its events. Thread-safe."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._turns = AdmissionQueue()
        self._lock = threading.Lock()  # held while the process works on a request
        self._requests: dict[str, PreviewRequest] = {}
        self._cache: OrderedDict[str, list[Event]] = OrderedDict()
        self._cached_chars: dict[str, int] = {}
        self._process: _PreviewProcess | None = None
        self._idle_timer: threading.Timer | None = None

    def new_request(self, session: str, visitor: str = "", address: str = "") -> PreviewRequest:
        """Create the session's request and cancel its earlier one, and the oldest of a visitor who has too many.

        `address` is that of a visitor without a login, '' with one.
        """
        request = PreviewRequest(visitor, address)
        previous = self._requests.pop(session, None)
        self._requests[session] = request
        if previous is not None:
            previous.cancel()
        for maximum, group in ((MAX_PER_VISITOR, "visitor"), (MAX_PER_ADDRESS, "address")):
            name = getattr(request, group)
            own = [key for key, other in list(self._requests.items()) if name and getattr(other, group) == name]
            for key in own[:-maximum]:
                self._requests[key].refusal = TOO_MANY
                self.cancel_session(key)
        return request

    def cancel_session(self, session: str) -> None:
        """Cancel the request of a session that has ended."""
        request = self._requests.pop(session, None)
        if request is not None:
            request.cancel()

    def preview(
        self, request: PreviewRequest, values: Mapping[str, Any], access: HubAccess | None = None
    ) -> Iterator[Event]:
        """Yield the events of the preview process for TrainConfig's fields; ends early if the request is cancelled.

        A data set of the Hub is fetched with `access`, by default that of a visitor without a token.
        """
        access = access or visitor_hub_access(self._home.absolute())
        hub_access = {"token": access.token, "cache": str(access.cache) if access.cache else None}
        line = json.dumps({**values, "hub_access": hub_access}, sort_keys=True, default=str)
        # A digest, as the line may hold a token. An answer is for those with the same access.
        # Rows of one's own may be replaced under their name: then the answer is another one.
        name = str(values.get("dataset_name", ""))
        version = dataset_version(name) if is_own_dataset(name) else ""
        key = hashlib.sha256(f"{version}{line}".encode()).hexdigest()
        cached = self._cache.get(key)
        if cached is not None:
            yield from cached
            return
        waited = False
        with self._turns.enqueue(request.visitor, request.address) as ticket:
            while ticket.wait(POLL_SECONDS):
                if request.cancelled:
                    return
                if not waited:
                    waited = True
                    yield {"progress": "Waiting for another preview to end ..."}
            with self._lock:
                events = []
                for event in self._stream_events(request, line, ticket):
                    if "progress" not in event:
                        events.append(event)
                    yield event
                if events and "internal_error" not in events[-1] and not request.cancelled:
                    self._cache_events(key, events)

    def close(self) -> None:
        """Stop the process."""
        with self._lock:
            self._stop()

    def _cache_events(self, key: str, events: list[Event]) -> None:
        self._cache[key] = events
        self._cached_chars[key] = len(key) + len(json.dumps(events))
        while len(self._cache) > _MAX_CACHED or sum(self._cached_chars.values()) > _MAX_CACHED_CHARS:
            oldest, _ = self._cache.popitem(last=False)
            del self._cached_chars[oldest]

    def _stream_events(self, request: PreviewRequest, line: str, ticket: Ticket) -> Iterator[Event]:
        """Send one line to the process and yield its events. Caller must hold the lock.

        The process is killed unless it answered completely: if it takes longer than MAX_SECONDS, or than
        CONTENDED_SECONDS while others wait, if the request has been cancelled for CANCEL_GRACE_SECONDS, or if the
        consumer closes this generator.
        """
        process, completed = self._ensure_process(), False
        started, cancelled_at = time.monotonic(), None
        try:
            process.send(line)
            while True:
                event = process.next_event(POLL_SECONDS)
                now = time.monotonic()
                if request.cancelled:
                    cancelled_at = cancelled_at or now
                contended = now - started >= CONTENDED_SECONDS and ticket.is_contended()
                is_late = contended or now - started >= MAX_SECONDS
                is_late = is_late or now - (cancelled_at or now) >= CANCEL_GRACE_SECONDS
                if event is not None and "exited" in event:
                    if not request.cancelled:
                        yield PROCESS_DIED
                    return
                if is_late and (event is None or "progress" in event):
                    if not request.cancelled:
                        yield CONTENDED if contended else TIMED_OUT
                    return
                if event is None:
                    continue
                if "done" in event:
                    completed = True
                    return
                if not request.cancelled:
                    yield event
        finally:
            if completed:
                self._idle_timer = threading.Timer(_IDLE_SECONDS, self._stop_if_idle)
                self._idle_timer.daemon = True
                self._idle_timer.start()
            else:
                self._stop()

    def _ensure_process(self) -> _PreviewProcess:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._process is None or not self._process.alive():
            self._process = _PreviewProcess(self._home)
        return self._process

    def _stop_if_idle(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._stop()
            finally:
                self._lock.release()

    def _stop(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._process is not None:
            self._process.kill()
            self._process = None


class _PreviewProcess:
    """The child process and a thread that reads its events. The child exits when its stdin is closed."""

    def __init__(self, home: Path) -> None:
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PROMPT_OR_TUNE_HOME": str(home.absolute()),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ui.train.preview_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._stdin, self._stdout = cast(IO[str], self._child.stdin), cast(IO[str], self._child.stdout)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="preview", daemon=True).start()

    def alive(self) -> bool:
        return self._child.poll() is None

    def send(self, request: str) -> None:
        try:
            self._stdin.write(request + "\n")
            self._stdin.flush()
        except OSError:
            self._events.put({"exited": True})

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event: None on timeout, {"exited"} when the process is gone."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._stdin, self._stdout):
            try:
                pipe.close()
            except OSError as error:  # a request that was not written completely
                _log.debug("%s", error)

    def _read(self) -> None:
        try:
            for line in self._stdout:
                self._events.put(json.loads(line))
        except ValueError as error:  # the pipe was closed, or the line is incomplete
            _log.debug("%s", error)
        self._events.put({"exited": True})
