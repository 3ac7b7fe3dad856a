"""An adapter is added: its checks tick off one by one, and a refusal says which one failed and why."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from adapters import archive, hub
from adapters.checks import MAX_FOLDER_BYTES
from adapters.steps import Step, StepFn
from errors import PromptOrTuneError
from ui.adapters.shelf import AdapterCatalog
from ui.limits import check_upload_size

INTERNAL_ERROR = "Something went wrong on our side, and the log says what. Nothing was added."
_STATE_ICONS = {
    "passed": '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 8.5l3.2 3.2L13 4.8"/></svg>',
    "failed": '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4 4l8 8M12 4l-8 8"/></svg>',
    "going": '<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="5"/></svg>',
    "waits": '<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="1.5"/></svg>',
}
_STATE_LABELS = {"passed": "passed", "failed": "refused", "going": "being checked", "waits": "not checked"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstallProgress:
    """How far it is. `names` are all checks, `passed` the first so many of them; `made` is there at a good end."""

    steps: tuple[str, ...]
    passed: int = 0
    message: str = ""
    error: str = ""
    installed: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether it has come to its end, good or bad."""
        return bool(self.error) or self.installed is not None


InstallFn = Callable[[StepFn, Callable[[str], None]], Path]


def install_from_zip(catalog: AdapterCatalog, file: Path, name: str, max_bytes: int) -> Iterator[InstallProgress]:
    """Adds the adapter in the zip `file`, which is deleted; `name` '' for its own."""

    def work(steps: StepFn, line: Callable[[str], None]) -> Path:
        try:
            check_upload_size(file.stat().st_size, max_bytes, f"'{file.name}'")
            line(f"Checking '{file.name}' ...")
            most = max_bytes if max_bytes > 0 else MAX_FOLDER_BYTES
            return archive.unpack(
                file,
                catalog.install_dir,
                steps,
                name=name.strip() or None,
                max_bytes=most,
                reserved=_reserved_names(catalog),
            )
        finally:
            file.unlink(missing_ok=True)

    return _run_install(archive.STEPS, work)


def install_from_hub(catalog: AdapterCatalog, spec: str, name: str, token: str | None) -> Iterator[InstallProgress]:
    """Adds `user/name@revision`, under `name` or, where that is '', its own."""

    def work(steps: StepFn, line: Callable[[str], None]) -> Path:
        return hub.pull(
            spec.strip(),
            catalog.install_dir,
            line,
            name=name.strip() or None,
            token=token,
            steps=steps,
            reserved=_reserved_names(catalog),
        )

    return _run_install(hub.STEPS, work)


def checks_html(progress: InstallProgress) -> str:
    """The checks as a list; each says its state in words as well."""
    items = []
    for place, name in enumerate(progress.steps):
        if place < progress.passed:
            state = "passed"
        elif place > progress.passed or progress.installed is not None:
            state = "waits"
        else:
            state = "failed" if progress.error else "going"
        items.append(
            f'<li class="{state}">{_STATE_ICONS[state]}<span>{escape(name)}</span>'
            f'<span class="pa-sr">: {_STATE_LABELS[state]}</span></li>'
        )
    return f'<ol class="checks">{"".join(items)}</ol>'


def _reserved_names(catalog: AdapterCatalog) -> Sequence[str]:
    """The names that are taken: one of the library's must not be hidden by what a stranger adds."""
    return catalog.store.names()


@dataclass
class StepLog:
    """Takes what the work reports, from its thread."""

    events: queue.SimpleQueue[Step | str | Path | Exception] = field(default_factory=queue.SimpleQueue)

    def run(self, work: InstallFn) -> None:
        try:
            self.events.put(work(self.events.put, self.events.put))
        except Exception as fault:  # noqa: BLE001 - whoever waits must hear of any end
            self.events.put(fault)


def _run_install(names: Sequence[str], work: InstallFn) -> Iterator[InstallProgress]:
    """The work in a thread of its own: whoever closes the page does not leave half of it behind."""
    told, now = StepLog(), InstallProgress(tuple(names))
    threading.Thread(target=told.run, args=(work,), name="add-adapter", daemon=True).start()
    yield now
    while not now.finished:
        heard = told.events.get()
        if isinstance(heard, Step):
            now = replace(now, passed=now.passed + heard.ok)
        elif isinstance(heard, str):
            now = replace(now, message=heard)
        elif isinstance(heard, Path):
            now = replace(now, installed=heard)
        else:
            now = replace(now, error=_error_message(heard))
        yield now


def _error_message(error: Exception) -> str:
    if isinstance(error, PromptOrTuneError):
        return str(error)
    _log.error("An adapter could not be added.", exc_info=error)
    return INTERNAL_ERROR
