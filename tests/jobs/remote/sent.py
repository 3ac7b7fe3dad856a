"""A job of this machine that is to train elsewhere, and what its process would do with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.hf_jobs.follow import PollIntervals
from jobs.hf_jobs.run import run_remote_job
from jobs.job import Job, ServingOptions

QUICK = PollIntervals(status_seconds=0.02, log_retry_seconds=0.05, unreachable_timeout=0.3, log_wait_seconds=0.02)
ROWS = "intent,snippet\nadd one to `x`,x += 1\nprint a list,print([1])\n"


class Sent:
    """One job and its folder. `lines` are what it reported."""

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

    def run(self, stopped: Callable[[], bool] = lambda: False, pace: PollIntervals = QUICK) -> Path:
        """What the job's process does; its errors come out."""
        return run_remote_job(self.job, self.folder, self.lines.append, stopped, pace)

    def start(self, stopped: Callable[[], bool] = lambda: False) -> Running:
        """The same in a thread."""
        return Running(lambda: self.run(stopped))


class Running:
    """A call in a thread of its own: what it gives or raises is had by `result`."""

    def __init__(self, call: Callable[[], Path]) -> None:
        self._call = call
        self._result: Path | None = None
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 - a Ctrl-C too
            self._fault = error

    def result(self, seconds: float = 20.0) -> Path:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "still running"
        if self._fault is not None:
            raise self._fault
        assert self._result is not None
        return self._result
