"""App process of the load test: starts `python app.py` and samples its memory."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import cache_dir

PROJECT_ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300
SAMPLE_SECONDS = 1.0
MIB = 1 << 20


@dataclass
class AppProcess:
    """A running app with its address."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def crashed(self) -> bool:
        """Return whether the process has ended."""
        return self.process.poll() is not None


@contextmanager
def running_app(folder: Path, *options: str, root: Path = PROJECT_ROOT) -> Iterator[AppProcess]:
    """Run the app of the checkout `root` on the embedded base for the duration of the block, on a free port.

    Its home is `folder`, which shares converted bases and indexes with the user's cache. `options` are app.py's.
    """
    for shared in ("bases", "indexes"):
        (cache_dir() / shared).mkdir(parents=True, exist_ok=True)
        (folder / shared).symlink_to(cache_dir() / shared)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), *options]
    environment = {**os.environ, "PROMPT_OR_TUNE_HOME": str(folder)}
    with (folder / "app.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            app = AppProcess(f"http://127.0.0.1:{port}/", process)
            _wait_until_ready(app, folder / "app.log")
            yield app
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _wait_until_ready(app: AppProcess, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if app.crashed():
            raise SystemExit(f"app.py ended:\n{log.read_text()}")
        try:
            urllib.request.urlopen(app.url, timeout=5).close()
            if "Ready:" in log.read_text():
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"app.py was not ready after {START_SECONDS} s:\n{log.read_text()}")


@dataclass
class MemorySampler:
    """Samples the resident memory of a process once per second for the duration of the block."""

    pid: int
    samples: list[tuple[float, float]] = field(default_factory=list)
    _stop_event: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> MemorySampler:
        threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_event.set()

    def summary(self) -> dict[str, Any]:
        """Return the memory in MiB at the start, middle and end (medians of ten samples), and its slope.

        The slope is in MiB per minute, over the last two thirds of the time: lazy loading happens in the first third.
        """
        sizes = [size for _, size in self.samples]
        late = self.samples[len(self.samples) // 3 :]
        middle = len(sizes) // 2
        slope = statistics.linear_regression(*zip(*late, strict=True)).slope * 60 if len(late) > 1 else 0.0
        return {
            "memory_begin_mib": round(statistics.median(sizes[:10]), 1),
            "memory_middle_mib": round(statistics.median(sizes[middle : middle + 10]), 1),
            "memory_end_mib": round(statistics.median(sizes[-10:]), 1),
            "memory_slope_mib_per_minute": round(slope, 2),
        }

    def _sample(self) -> None:
        start = time.monotonic()
        while not self._stop_event.wait(SAMPLE_SECONDS):
            try:
                pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            except OSError:
                return  # the process has ended, see AppProcess.crashed
            self.samples.append((time.monotonic() - start, pages * os.sysconf("SC_PAGE_SIZE") / MIB))
