"""Publishes a finished adapter in a process of its own, as `python -m train publish` does, and keeps its lines.

The token stands in that process's environment alone: in no command line, no file, no line that is kept.
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
    """What is to be published and where. Without a token it is the login of this machine.

    `base` is the base as `--base` names it; it matters where the adapter's base came from a folder or file.
    """

    folder: Path
    repo_id: str
    private: bool = True
    base: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False
    token: str | None = field(default=None, repr=False)

    def command(self) -> list[str]:
        """The program and its arguments; nothing in them is secret."""
        words = [sys.executable, "-m", "train", "publish", str(self.folder), self.repo_id, "--device", self.device]
        words += ["--private"] if self.private else []
        words += ["--base", self.base] if self.base else []
        return words + (["--trust-remote-code"] if self.trust_remote_code else [])

    def environment(self) -> dict[str, str]:
        """This process's own, with the token in place of every other one."""
        values = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.token:
            values.pop("HUGGING_FACE_HUB_TOKEN", None)
            values["HF_TOKEN"] = self.token
        return values


@dataclass(frozen=True)
class PublishRecord:
    """What is remembered of a publication: the repository, the page of that state, and when (ISO 8601, UTC)."""

    repo_id: str
    url: str
    when: str


@dataclass(frozen=True)
class PublishProgress:
    """How far it is. `message` is one sentence: the last line, or why it failed; `url` is the page it is on."""

    state: PublishStatus
    message: str
    lines: tuple[str, ...] = ()
    url: str = ""


class PublishProcess:
    """One publication under way. Thread-safe."""

    def __init__(self, request: PublishRequest, record_path: Path | None = None) -> None:
        """Begins at once. `note` is the file that remembers a publication that ended well."""
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
        """How far it is now."""
        with self._lock:
            lines = tuple(self._lines)
            last = lines[-1].removeprefix(_ERROR_PREFIX) if lines else "Checking what would be sent ..."
            return self._final_progress or PublishProgress("running", last, lines)

    def stop(self) -> None:
        """Ends it; what is on the Hub stays as it was, for all files become visible in one step at the very end."""
        with self._lock:
            if self._final_progress is not None:
                return
            self._stopped = True
        self._signal(signal.SIGTERM)
        self._reader.join(_TERMINATE_TIMEOUT_SECONDS)
        if self._reader.is_alive():
            self._signal(signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> PublishProgress:
        """How it ended, or how far it is after so many seconds."""
        self._reader.join(seconds)
        return self.progress()

    def _signal(self, number: signal.Signals) -> None:
        # Not reaped yet, or `poll` would tell: the id is still its own.
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
        found = next(
            (_PUBLISHED_URL.fullmatch(line) for line in reversed(lines) if _PUBLISHED_URL.fullmatch(line)), None
        )
        if status == 0 and found:
            self._write_record(found[1])
            return PublishProgress("done", f"Published as {self.request.repo_id}.", lines, found[1])
        if self._stopped:
            return PublishProgress("stopped", "Stopped before anything was published.", lines)
        said = next(
            (line.removeprefix(_ERROR_PREFIX) for line in reversed(lines) if line.startswith(_ERROR_PREFIX)), ""
        )
        reason = (
            said or f"Publishing '{self.request.repo_id}' broke off (exit status {status}): see the log, try again."
        )
        return PublishProgress("failed", reason, lines)

    def _write_record(self, url: str) -> None:
        if self._record_path is None or not self._record_path.parent.is_dir():
            return
        # What is on the Hub is there, remembered or not.
        with suppress(PromptOrTuneError):
            note = PublishRecord(self.request.repo_id, url, datetime.now(UTC).isoformat(timespec="seconds"))
            atomic_write(self._record_path, json.dumps(asdict(note)) + "\n")

    def _redact_token(self, line: str) -> str:
        token = self.request.token
        return line.replace(token, "[token]") if token else line


class PublishService:
    """The publications of one app, by job. One runs at a time, as each loads the base once more. Thread-safe."""

    def __init__(self, jobs_dir: Path) -> None:
        """`jobs` holds a folder for each job, where what was published is remembered."""
        self._jobs = jobs_dir
        self._lock = threading.Lock()
        self._processes: dict[str, PublishProcess] = {}

    def start(self, id: str, request: PublishRequest) -> PublishProcess:
        """Begins to publish the adapter of a job; PromptOrTuneError in one sentence where one is under way."""
        with self._lock:
            if any(each.progress().state == "running" for each in self._processes.values()):
                raise PromptOrTuneError("An adapter is being published already: wait until it has arrived, or stop it.")
            self._processes[id] = PublishProcess(request, self._jobs / id / "published.json")
            return self._processes[id]

    def get(self, id: str) -> PublishProcess | None:
        """The publication of that job since the app began, None where there is none."""
        with self._lock:
            return self._processes.get(id)

    def record(self, id: str) -> PublishRecord | None:
        """What is remembered of the last publication that ended well."""
        try:
            values = json.loads((self._jobs / id / "published.json").read_text(encoding="utf-8"))
            return PublishRecord(str(values["repo_id"]), str(values["url"]), str(values["when"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def full_repo_id(name: str, token: str | None) -> str:
    """`user/name` of a repository that may be named without its user; asks the Hub who the token belongs to.

    PromptOrTuneError in one sentence for a name that cannot be, and where there is no token or no answer.
    """
    wanted = name.strip()
    if "/" in wanted:
        check_repo_id(wanted)
        return wanted
    check_repo_id(f"you/{wanted}")
    key = find_token(wanted, token)
    return f"{token_owner(key, wanted)}/{wanted}"


def token_owner(token: str, what: str) -> str:
    """The name of the person whose token it is; TrainingError in one sentence where the Hub does not say."""
    from huggingface_hub import HfApi

    with hub_errors(what, "looking up the owner of", error=TrainingError):
        person: Mapping[str, object] = HfApi().whoami(token=token)
    return str(person.get("name", ""))
