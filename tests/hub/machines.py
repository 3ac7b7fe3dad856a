"""Machines of Hugging Face Jobs on the local Hub.

A test decides what a job does: `Jobs.script` is called in place of the machine. `run_here` returns a script that runs
the job's command in a local subprocess. Without a script, the test changes the state of a job itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")


@dataclass
class RemoteJob:
    """A job: its specification, its stage and its log."""

    id: str
    owner: str
    spec: Mapping[str, Any]
    stage: str = "SCHEDULING"
    message: str | None = None
    lines: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    process: subprocess.Popen[str] | None = None

    @property
    def over(self) -> bool:
        return self.stage in _OVER

    def say(self, *lines: str) -> None:
        """Set the stage to running and append these lines to the log."""
        self.stage = "RUNNING"
        self.lines += lines

    def end(self, stage: str = "COMPLETED", message: str | None = None) -> None:
        """Set a final stage."""
        self.stage, self.message = stage, message

    def values(self) -> dict[str, Any]:
        """Return the job in the format of the Hub's API, without its secrets."""
        spec = {key: self.spec.get(key) for key in ("dockerImage", "command", "environment", "flavor", "labels")}
        owner = {"id": "0", "name": self.owner, "type": "user"}
        status = {"stage": self.stage, "message": self.message}
        return {"id": self.id, "createdAt": "2030-01-01T00:00:00.000Z", **spec, "owner": owner, "status": status}


@dataclass
class Jobs:
    """All jobs of the local Hub. Jobs are refused without `credit`; `script` is called with each new job."""

    known: dict[str, RemoteJob] = field(default_factory=dict)
    credit: bool = True
    script: Callable[[RemoteJob], None] | None = None

    def begin(self, owner: str, spec: Mapping[str, Any]) -> RemoteJob:
        """Add a job and start the script with it."""
        job = RemoteJob(f"{len(self.known):024x}", owner, spec)
        self.known[job.id] = job
        if self.script is not None:
            threading.Thread(target=self.script, args=(job,), daemon=True).start()
        return job

    def only(self) -> RemoteJob:
        """Return the only job."""
        (job,) = self.known.values()
        return job


def run_here(url: str, folder: Path, timeout: float = 120.0) -> Callable[[RemoteJob], None]:
    """Return a script that runs each job's command in a subprocess, with a fake `pip` that installs nothing.

    Its client uses the Hub at `url`, and its files are under `folder`.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True)
    pip = programs / "pip"
    pip.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    pip.chmod(0o755)

    def run(job: RemoteJob) -> None:
        job_dir = folder / job.id
        job_dir.mkdir()
        environment = {
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "HOME": str(job_dir),
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            **job.spec["environment"],
            **job.spec.get("secrets", {}),
        }
        with subprocess.Popen(
            job.spec["command"], cwd=job_dir, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            job.process = process
            job.stage = "RUNNING"
            threading.Thread(target=_end_early, args=(job, process, timeout), daemon=True).start()
            for line in process.stdout or ():
                job.lines.append(line.rstrip("\n"))
            status = process.wait()
        if job.cancelled.is_set():
            job.end("CANCELED")
        elif status:
            job.end("ERROR", f"Job failed with exit code: {status}")
        else:
            job.end()

    return run


def _end_early(job: RemoteJob, process: subprocess.Popen[str], timeout: float) -> None:
    """Kill the job's processes when it is cancelled or its time limit is reached."""
    deadline = time.monotonic() + timeout
    while process.poll() is None:
        if job.cancelled.wait(0.05) or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            return
