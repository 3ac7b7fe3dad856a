"""A local job that trains on Hugging Face Jobs, run in the test's process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.hf_jobs.follow import PollIntervals
from jobs.hf_jobs.run import run_remote_job
from jobs.job import Job, ServingOptions

SHORT_INTERVALS = PollIntervals(
    status_seconds=0.02, log_retry_seconds=0.05, unreachable_timeout=0.3, log_wait_seconds=0.02
)
ROWS = "intent,snippet\nadd one to `x`,x += 1\nprint a list,print([1])\n"


class RemoteRun:
    """One job and its folder. `lines` are the lines that it has reported."""

    def __init__(self, home: Path, config: Mapping[str, Any] | None = None, **changes: Any) -> None:
        self.folder = home / "jobs" / "20300101-120000-000000-abc123"
        self.data = self.folder / "data" / "my rows.csv"
        self.data.parent.mkdir(parents=True)
        self.data.write_text(ROWS, encoding="utf-8")
        values = {"adapter_name": "lora-mine", "dataset_name": str(self.data), "device": "cpu", **(config or {})}
        given: dict[str, Any] = {"serving": ServingOptions(), "flavor": "a10g-small", **changes}
        self.job = Job(
            self.folder.name, str(values["adapter_name"]), values, data_name="my rows.csv", where="hub", **given
        )
        self.lines: list[str] = []

    @property
    def store(self) -> Path:
        return self.folder.parents[1] / "adapters"

    def run(self, stopped: Callable[[], bool] = lambda: False, intervals: PollIntervals = SHORT_INTERVALS) -> Path:
        """Run the job as its process does, and raise its errors."""
        return run_remote_job(self.job, self.folder, self.lines.append, stopped, intervals)

    def start(self, stopped: Callable[[], bool] = lambda: False) -> BackgroundCall:
        """Run the job in a thread."""
        return BackgroundCall(lambda: self.run(stopped))


class BackgroundCall:
    """A call in a separate thread; `result` returns its value or raises its error."""

    def __init__(self, call: Callable[[], Path]) -> None:
        self._call = call
        self._result: Path | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt too
            self._error = error

    def result(self, seconds: float = 20.0) -> Path:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "still running"
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result
