"""Waits until the Hub runs a Space, with the lines of its build as far as the Hub gives them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adapters.hub_errors import hub_errors
from adapters.weights import quote_untrusted
from errors import PromptOrTuneError
from serve.home import ProgressFn

if TYPE_CHECKING:
    from huggingface_hub import HfApi, SpaceRuntime

WAIT_MINUTES = 45.0
POLL_SECONDS = 5.0
# For so long after a commit the Hub may still show the former version as running, where it does not name the commit.
STALE_STATUS_SECONDS = 20.0
_MAX_LOG_WIDTH = 200
_FAILED_STAGES = {
    "BUILD_ERROR": "its build failed",
    "CONFIG_ERROR": "the Hub refuses its card",
    "RUNTIME_ERROR": "it ended with an error",
    "NO_APP_FILE": "the Hub finds no app.py in it",
}
_INACTIVE_STAGES = {
    "PAUSED": "is paused",
    "STOPPED": "is stopped",
    "SLEEPING": "is asleep",
    "DELETING": "is being deleted",
}


def wait_until_running(
    repo_id: str,
    commit: str,
    report: ProgressFn,
    *,
    timeout: float = 60 * WAIT_MINUTES,
    poll_seconds: float = POLL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    api: HfApi | None = None,
) -> str:
    """The hardware that runs `commit` of the Space; PromptOrTuneError in one sentence where it does not come to that.

    `patience` and `poll` are seconds.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    began, stage = clock(), ""
    log = _BuildLog(api, repo_id, report)
    while True:
        with hub_errors(repo_id, "waiting for", error=PromptOrTuneError):
            runtime = api.get_space_runtime(repo_id)
        if _enum_value(runtime.stage) != stage:
            stage = _enum_value(runtime.stage)
            report(f"{stage.replace('_', ' ').capitalize()} ...")
        log.report_new()
        settled = clock() - began >= STALE_STATUS_SECONDS
        if _is_final(runtime, stage, commit, settled):
            break
        if clock() - began > timeout:
            raise PromptOrTuneError(
                f"'{repo_id}' does not run after {timeout / 60:g} min (it says {stage}): look at its logs at "
                f"{api.endpoint}/spaces/{repo_id}, it goes on there by itself."
            )
        time.sleep(poll_seconds)
    if stage == "RUNNING":
        return _enum_value(runtime.hardware or runtime.requested_hardware or "unknown hardware")
    raise PromptOrTuneError(_failure_message(runtime, stage, repo_id, log.last_message, api.endpoint))


def _is_final(runtime: SpaceRuntime, stage: str, commit: str, is_current: bool) -> bool:
    """Whether this stage is the end, and that of this commit: the former version may run, or have failed, until now."""
    sha = runtime.raw.get("sha")
    if stage == "RUNNING" and sha:
        return bool(sha == commit)
    return stage in ("RUNNING", *_FAILED_STAGES, *_INACTIVE_STAGES) and (is_current or sha == commit)


def _failure_message(runtime: SpaceRuntime, stage: str, repo_id: str, last_log: str, endpoint: str) -> str:
    address = f"{endpoint}/spaces/{repo_id}"
    if stage in _INACTIVE_STAGES:
        return f"'{repo_id}' {_INACTIVE_STAGES[stage]}: start it again in its settings at {address}."
    said = str(runtime.raw.get("errorMessage") or last_log).strip().splitlines()
    reason = f": {quote_untrusted(said[-1].strip(), _MAX_LOG_WIDTH)}" if said else ""
    return f"'{repo_id}' does not run, {_FAILED_STAGES[stage]} ({stage}{reason}): read its logs at {address}."


class _BuildLog:
    """The build's lines, each told once. Not every Hub and token gives them; then there are none."""

    def __init__(self, api: HfApi, repo_id: str, report: ProgressFn) -> None:
        self._api = api
        self._repo_id = repo_id
        self._report = report
        self._num_reported = 0
        self.last_message = ""

    def report_new(self) -> None:
        """Reports the lines that are new since the last time."""
        lines = self._fetch()
        if len(lines) < self._num_reported:  # another build has begun
            self._num_reported = 0
        for line in lines[self._num_reported :]:
            self._report(f"  {quote_untrusted(line, _MAX_LOG_WIDTH)}")
            self.last_message = line
        self._num_reported = len(lines)

    def _fetch(self) -> list[str]:
        try:
            text = "".join(_ensure_newline(part) for part in self._api.fetch_space_logs(self._repo_id, build=True))
        except Exception:  # noqa: BLE001 - the log is a courtesy: whatever keeps it away must not end the waiting
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()]


def _ensure_newline(part: str) -> str:
    return part if part.endswith("\n") else f"{part}\n"


def _enum_value(each: Any) -> str:
    """The client has enumerations for what it knows and plain texts for what it does not."""
    return str(getattr(each, "value", each))
