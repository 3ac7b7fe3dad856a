"""Asks `python -m ui.train.preview_process` about rows: one request at a time, the newest of each visitor, answers remembered."""

from __future__ import annotations

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

_ROOT = Path(__file__).resolve().parents[2]
Event = dict[str, Any]
POLL_SECONDS = 0.2
# What is no longer wanted may end by itself for so long, as a new process has to import torch again.
CANCEL_GRACE_SECONDS = 4.0
MAX_SECONDS = 600.0
_IDLE_SECONDS = 180.0
_MAX_CACHED = 24
PROCESS_DIED = {
    "defect": "The look at your rows ended unexpectedly (perhaps for want of memory): try again, or fewer rows."
}
TIMED_OUT = {"defect": "Looking at your rows takes too long here: try fewer of them, or `python -m train --dry-run`."}
_log = logging.getLogger(__name__)


class PreviewRequest:
    """One look of one visitor; it is over when the same visitor asks for another one."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled.is_set()

    def debounce(self, seconds: float) -> bool:
        """Waits for a moment; False when the visitor has changed something meanwhile."""
        return not self._cancelled.wait(seconds)


class PreviewClient:
    """Thread-safe. The process starts with the first question and ends when none has come for a while."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()  # held while the process works
        self._requests: dict[str, PreviewRequest] = {}
        self._cache: OrderedDict[str, list[Event]] = OrderedDict()
        self._process: _PreviewProcess | None = None
        self._idle_timer: threading.Timer | None = None

    def new_request(self, session: str) -> PreviewRequest:
        """A new turn, which ends the asker's earlier one."""
        turn = PreviewRequest()
        before = self._requests.get(session)
        self._requests[session] = turn
        if before is not None:
            before.cancel()
        return turn

    def cancel_session(self, session: str) -> None:
        """The asker is gone: nobody waits for their look."""
        turn = self._requests.pop(session, None)
        if turn is not None:
            turn.cancel()

    def preview(self, preview_request: PreviewRequest, request: Mapping[str, Any]) -> Iterator[Event]:
        """The events of `ui.train.preview_process`; none any more when the turn is over."""
        key = json.dumps(request, sort_keys=True, default=str)
        known = self._cache.get(key)
        if known is not None:
            yield from known
            return
        waited = False
        while not self._lock.acquire(timeout=POLL_SECONDS):
            if preview_request.cancelled:
                return
            if not waited:
                waited = True
                yield {"line": "Waiting for another look to end ..."}
        try:
            said = []
            for event in self._stream_events(preview_request, key):
                if "line" not in event:
                    said.append(event)
                yield event
            if said and "defect" not in said[-1] and not preview_request.cancelled:
                self._cache_events(key, said)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._stop()

    def _cache_events(self, key: str, events: list[Event]) -> None:
        self._cache[key] = events
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)

    def _stream_events(self, preview_request: PreviewRequest, request: str) -> Iterator[Event]:
        """Gives up, and ends the process, when the turn has been over for a while or the reader is gone."""
        process, whole = self._ensure_process(), False
        began, unwanted = time.monotonic(), None
        try:
            process.send(request)
            while True:
                event = process.next_event(POLL_SECONDS)
                now = time.monotonic()
                if preview_request.cancelled:
                    unwanted = unwanted or now
                if event is None and now - began < MAX_SECONDS and now - (unwanted or now) < CANCEL_GRACE_SECONDS:
                    continue
                if event is None or "ended" in event:
                    if not preview_request.cancelled:
                        yield TIMED_OUT if event is None else PROCESS_DIED
                    return
                if "over" in event:
                    whole = True
                    return
                if not preview_request.cancelled:
                    yield event
        finally:
            if whole:
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
    """The child and a thread that reads what it says. It ends by itself when its parent is gone."""

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
        # Both are pipes, as asked for.
        self._stdin, self._stdout = cast(IO[str], self._child.stdin), cast(IO[str], self._child.stdout)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="look", daemon=True).start()

    def alive(self) -> bool:
        return self._child.poll() is None

    def send(self, request: str) -> None:
        try:
            self._stdin.write(request + "\n")
            self._stdin.flush()
        except OSError:
            self._events.put({"ended": True})

    def next_event(self, timeout: float) -> Event | None:
        """The next event, None where none comes in time; {"ended"} when the process is gone."""
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
            except OSError as error:  # what was still to be written
                _log.debug("%s", error)

    def _read(self) -> None:
        try:
            for line in self._stdout:
                self._events.put(json.loads(line))
        except ValueError as error:  # closed while it was read, or not whole
            _log.debug("%s", error)
        self._events.put({"ended": True})
