"""Publishing of a finished adapter by `python -m train publish` in a process of its own.

The token is passed in the environment of that process only. It appears in no command line, file or stored line.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from common.files import atomic_write
from common.hub import hub_errors
from errors import PromptOrTuneError, TrainingError
from train.hub_access import check_repo_id, find_token

PROJECT_ROOT = Path(__file__).resolve().parents[1]
_MAX_LINES = 200
_ERROR_PREFIX = "train: "
_PUBLISHED_URL = re.compile(r"Published as (https?://\S+)\.")
_TERMINATE_TIMEOUT_SECONDS = 10.0

PublishStatus = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class PublishRequest:
    """The adapter folder to publish and its repository. Without a token the login of this machine is used.

    `base` is the base as `--base` names it, needed when the adapter's base came from a local folder or file.
    """

    folder: Path
    repo_id: str
    private: bool = True
    base: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False
    token: str | None = field(default=None, repr=False)

    def command(self) -> list[str]:
        """Return the program and its arguments, which hold no secret."""
        words = [sys.executable, "-m", "train", "publish", str(self.folder), self.repo_id, "--device", self.device]
        words += ["--private"] if self.private else []
        words += ["--base", self.base] if self.base else []
        return words + (["--trust-remote-code"] if self.trust_remote_code else [])

    def environment(self) -> dict[str, str]:
        """Return this process's environment, with the request's token instead of any other."""
        values = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.token:
            values.pop("HUGGING_FACE_HUB_TOKEN", None)
            values["HF_TOKEN"] = self.token
        return values


@dataclass(frozen=True)
class PublishRecord:
    """The stored record of a publication: repository, page of the published commit, time (ISO 8601, UTC)."""

    repo_id: str
    url: str
    when: str


@dataclass(frozen=True)
class PublishProgress:
    """State of a publication. `message` is its last line or the error; `url` is the page of what was published."""

    state: PublishStatus
    message: str
    lines: tuple[str, ...] = ()
    url: str = ""


class PublishProcess:
    """One running publication. Thread-safe."""

    def __init__(self, request: PublishRequest, record_path: Path | None = None) -> None:
        """Start the process. `record_path` is the file to which a successful publication is recorded."""
        check_repo_id(request.repo_id)
        self.request = request
        self._record_path = record_path
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._final_progress: PublishProgress | None = None
        self._stopped = False
        self._process = subprocess.Popen(
            request.command(),
            cwd=PROJECT_ROOT,
            env=request.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="publish", daemon=True)
        self._reader.start()

    def progress(self) -> PublishProgress:
        """Return the present state."""
        with self._lock:
            lines = tuple(self._lines)
            last = lines[-1].removeprefix(_ERROR_PREFIX) if lines else "Checking what would be sent ..."
            return self._final_progress or PublishProgress("running", last, lines)

    def stop(self) -> None:
        """End the process. The Hub is not changed, because all files are committed in one last step."""
        with self._lock:
            if self._final_progress is not None:
                return
            self._stopped = True
        self._signal(signal.SIGTERM)
        self._reader.join(_TERMINATE_TIMEOUT_SECONDS)
        if self._reader.is_alive():
            self._signal(signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> PublishProgress:
        """Wait for the end, or for so many seconds, and return the state."""
        self._reader.join(seconds)
        return self.progress()

    def _signal(self, number: signal.Signals) -> None:
        # While `poll` gives None the process is not reaped, so its id cannot belong to another process.
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        stream = self._process.stdout
        for line in stream or ():
            text = self._redact_token(line.strip())
            if text:
                with self._lock:
                    self._lines.append(text)
        status = self._process.wait()
        if stream:
            stream.close()
        with self._lock:
            self._final_progress = self._finish(status, tuple(self._lines))

    def _finish(self, status: int, lines: tuple[str, ...]) -> PublishProgress:
        published = next(
            (_PUBLISHED_URL.fullmatch(line) for line in reversed(lines) if _PUBLISHED_URL.fullmatch(line)), None
        )
        if status == 0 and published:
            self._write_record(published[1])
            return PublishProgress("done", f"Published as {self.request.repo_id}.", lines, published[1])
        if self._stopped:
            return PublishProgress("stopped", "Stopped before anything was published.", lines)
        error_line = next(
            (line.removeprefix(_ERROR_PREFIX) for line in reversed(lines) if line.startswith(_ERROR_PREFIX)), ""
        )
        reason = (
            error_line
            or f"Publishing '{self.request.repo_id}' failed (exit status {status}): see the log, then try again."
        )
        return PublishProgress("failed", reason, lines)

    def _write_record(self, url: str) -> None:
        if self._record_path is None or not self._record_path.parent.is_dir():
            return
        # The publication succeeded even if its record cannot be written.
        with suppress(PromptOrTuneError):
            record = PublishRecord(self.request.repo_id, url, datetime.now(UTC).isoformat(timespec="seconds"))
            atomic_write(self._record_path, json.dumps(asdict(record)) + "\n")

    def _redact_token(self, line: str) -> str:
        token = self.request.token
        return line.replace(token, "[token]") if token else line


class PublishService:
    """The publications of one app by job id. One runs at a time, because each loads the base again. Thread-safe."""

    def __init__(self, jobs_dir: Path) -> None:
        """`jobs_dir` has the folder of each job, to which its publication is recorded."""
        self._jobs = jobs_dir
        self._lock = threading.Lock()
        self._processes: dict[str, PublishProcess] = {}

    def start(self, id: str, request: PublishRequest) -> PublishProcess:
        """Start to publish the adapter of a job; raises PromptOrTuneError while another publication runs."""
        with self._lock:
            if any(process.progress().state == "running" for process in self._processes.values()):
                raise PromptOrTuneError("An adapter is being published already: wait until that has ended, or stop it.")
            self._processes[id] = PublishProcess(request, self._jobs / id / "published.json")
            return self._processes[id]

    def get(self, id: str) -> PublishProcess | None:
        """Return the last publication of that job in this app; None without one."""
        with self._lock:
            return self._processes.get(id)

    def record(self, id: str) -> PublishRecord | None:
        """Return the record of the job's last successful publication; None without one."""
        try:
            values = json.loads((self._jobs / id / "published.json").read_text(encoding="utf-8"))
            return PublishRecord(str(values["repo_id"]), str(values["url"]), str(values["when"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def full_repo_id(name: str, token: str | None) -> str:
    """Return `user/name` for a repository id or a name alone, which gets the owner of the token as its user.

    Raises PromptOrTuneError for an invalid name, without a token, and when the Hub does not answer.
    """
    repo = name.strip()
    if "/" in repo:
        check_repo_id(repo)
        return repo
    check_repo_id(f"you/{repo}")
    return f"{token_owner(find_token(repo, token), repo)}/{repo}"


def token_owner(token: str, what: str) -> str:
    """Return the user name of the token's owner; raises TrainingError when the Hub does not answer."""
    from huggingface_hub import HfApi

    with hub_errors(what, "looking up the owner of", error=TrainingError):
        user: Mapping[str, object] = HfApi().whoami(token=token)
    return str(user.get("name", ""))
