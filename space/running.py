"""Waits until the Hub runs a Space, with the lines of its build as far as the Hub gives them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adapters.hub_errors import client_errors
from adapters.weights import shown
from errors import PeftArenaError
from serve.home import Report

if TYPE_CHECKING:
    from huggingface_hub import HfApi, SpaceRuntime

PATIENCE_MINUTES = 45.0
POLL_SECONDS = 5.0
# For so long after a commit the Hub may still show the former version as running, where it does not name the commit.
SETTLING_SECONDS = 20.0
_WIDTH = 200
_FAILED = {
    "BUILD_ERROR": "its build failed",
    "CONFIG_ERROR": "the Hub refuses its card",
    "RUNTIME_ERROR": "it ended with an error",
    "NO_APP_FILE": "the Hub finds no app.py in it",
}
_ASLEEP = {
    "PAUSED": "is paused",
    "STOPPED": "is stopped",
    "SLEEPING": "is asleep",
    "DELETING": "is being deleted",
}


def wait_until_it_runs(
    repo_id: str,
    commit: str,
    report: Report,
    *,
    patience: float = 60 * PATIENCE_MINUTES,
    poll: float = POLL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    api: HfApi | None = None,
) -> str:
    """The hardware that runs `commit` of the Space; PeftArenaError in one sentence where it does not come to that.

    `patience` and `poll` are seconds.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    began, stage = clock(), ""
    log = _Log(api, repo_id, report)
    while True:
        with client_errors(repo_id, "waiting for", error=PeftArenaError):
            runtime = api.get_space_runtime(repo_id)
        if _value(runtime.stage) != stage:
            stage = _value(runtime.stage)
            report(f"{stage.replace('_', ' ').capitalize()} ...")
        log.tell()
        settled = clock() - began >= SETTLING_SECONDS
        if _is_over(runtime, stage, commit, settled):
            break
        if clock() - began > patience:
            raise PeftArenaError(
                f"'{repo_id}' does not run after {patience / 60:g} min (it says {stage}): look at its logs at "
                f"{api.endpoint}/spaces/{repo_id}, it goes on there by itself."
            )
        time.sleep(poll)
    if stage == "RUNNING":
        return _value(runtime.hardware or runtime.requested_hardware or "unknown hardware")
    raise PeftArenaError(_sentence(runtime, stage, repo_id, log.last, api.endpoint))


def _is_over(runtime: SpaceRuntime, stage: str, commit: str, settled: bool) -> bool:
    """Whether this stage is the end, and that of this commit: the former version may run, or have failed, until now."""
    sha = runtime.raw.get("sha")
    if stage == "RUNNING" and sha:
        return bool(sha == commit)
    return stage in ("RUNNING", *_FAILED, *_ASLEEP) and (settled or sha == commit)


def _sentence(runtime: SpaceRuntime, stage: str, repo_id: str, last: str, endpoint: str) -> str:
    address = f"{endpoint}/spaces/{repo_id}"
    if stage in _ASLEEP:
        return f"'{repo_id}' {_ASLEEP[stage]}: start it again in its settings at {address}."
    said = str(runtime.raw.get("errorMessage") or last).strip().splitlines()
    reason = f": {shown(said[-1].strip(), _WIDTH)}" if said else ""
    return f"'{repo_id}' does not run, {_FAILED[stage]} ({stage}{reason}): read its logs at {address}."


class _Log:
    """The build's lines, each told once. Not every Hub and token gives them; then there are none."""

    def __init__(self, api: HfApi, repo_id: str, report: Report) -> None:
        self._api = api
        self._repo_id = repo_id
        self._report = report
        self._told = 0
        self.last = ""

    def tell(self) -> None:
        """Reports the lines that are new since the last time."""
        lines = self._lines()
        if len(lines) < self._told:  # another build has begun
            self._told = 0
        for line in lines[self._told :]:
            self._report(f"  {shown(line, _WIDTH)}")
            self.last = line
        self._told = len(lines)

    def _lines(self) -> list[str]:
        try:
            text = "".join(_ended(part) for part in self._api.fetch_space_logs(self._repo_id, build=True))
        except Exception:  # noqa: BLE001 - the log is a courtesy: whatever keeps it away must not end the waiting
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()]


def _ended(part: str) -> str:
    return part if part.endswith("\n") else f"{part}\n"


def _value(each: Any) -> str:
    """The client has enumerations for what it knows and plain texts for what it does not."""
    return str(getattr(each, "value", each))
