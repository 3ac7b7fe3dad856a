"""Actions on adapters: load, unload, delete and download one, and install one from a zip or the Hub.

The rights of the visitor are checked here, for events of the page and of programs alike. An installation yields its
progress check by check; a refusal names the check that failed and why.
"""

from __future__ import annotations

import logging
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from adapters import archive, install
from adapters.archive import pack
from adapters.install import Step, StepFn
from adapters.manifest import MAX_FOLDER_BYTES, Owner, check_name
from adapters.store import delete_adapter, user_adapter_folder
from common.hub import HubToken
from errors import BusyError, PromptOrTuneError
from tasks.methods import Method, NoExamples
from ui.access.policy import Visitor
from ui.access.quota import check_upload_size
from ui.adapters.catalog import AdapterCatalog
from ui.context import Context
from ui.html import render

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine


# Zips for download; older ones are deleted and made again when they are needed.
MAX_CACHED_ZIPS = 8
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. Nothing was added."
# CSS class and label of each state of a check.
_STATE_LABELS = {"passed": "passed", "failed": "refused", "running": "being checked", "pending": "not checked"}
_log = logging.getLogger(__name__)


class AdapterActions:
    """Loads, unloads, deletes and packs adapters. The handlers return a message for the visitor."""

    def __init__(self, context: Context, catalog: AdapterCatalog, zips: Path) -> None:
        """`zips` is a folder that Gradio serves files from."""
        self._context = context
        self._catalog = catalog
        self._zips = zips
        self.handlers: dict[str, Callable[[Visitor, str], str]] = {
            "load": self.load,
            "unload": self.unload,
            "delete": self.delete,
        }

    def check(self, visitor: Visitor, action: str, name: str) -> None:
        """Raise PromptOrTuneError if this visitor may not do `action` with the adapter."""
        check_name(name)
        self._context.visitors.policy.check(visitor, action, owner=self._catalog.owner(name))

    def load(self, visitor: Visitor, name: str) -> str:
        """Load the adapter into memory, so that its first request does not wait."""
        self.check(visitor, "load an adapter", name)
        self._require_engine().adapter_cache.acquire(name).release()
        return f"'{name}' is in memory."

    def unload(self, visitor: Visitor, name: str) -> str:
        """Free the adapter's memory, at once or when the answers that use it are done."""
        self.check(visitor, "unload an adapter", name)
        cache = self._require_engine().adapter_cache
        cache.unload(name)
        if any(adapter.name == name for adapter in cache.status().adapters):
            return f"'{name}' is in use: it is unloaded when these answers are done."
        return f"'{name}' is unloaded. The next request for it loads it again."

    def delete(self, visitor: Visitor, name: str) -> str:
        """Delete an adapter that was added here; answers that use it are completed."""
        self.check(visitor, "delete an adapter", name)
        folder = user_adapter_folder(name, self._catalog.store.roots)
        engine = self._catalog.engine
        if engine is not None:
            engine.adapter_cache.unload(name)
        delete_adapter(folder)
        if engine is not None:
            # A request may have loaded it between unload() and the deletion; from now on none can. An adapter that is
            # being loaded at this moment stays in memory until the cache evicts it.
            with suppress(BusyError):
                engine.adapter_cache.unload(name)
        return f"'{name}' is deleted."

    def require_usable(self, name: str) -> LLMEngine:
        """Return the engine. Raises PromptOrTuneError if the adapter cannot be used in Compare."""
        engine = self._require_engine()
        reason = engine.unsupported_reason(Method(name, NoExamples(), name))
        if reason is not None:
            raise PromptOrTuneError(reason)
        return engine

    def pack_zip(self, visitor: Visitor, name: str) -> Path:
        """Pack the adapter as a zip in a folder of its own; the last MAX_CACHED_ZIPS zips stay on disk."""
        folder = self._catalog.folder(name)
        if self._catalog.location(name) != "library":
            self.check(visitor, "download an adapter", name)
        self._zips.mkdir(parents=True, exist_ok=True)
        folders = [path for path in self._zips.iterdir() if path.is_dir()]
        for old in sorted(folders, key=lambda path: path.stat().st_mtime)[: -MAX_CACHED_ZIPS + 1]:
            shutil.rmtree(old, ignore_errors=True)
        return pack(folder, Path(tempfile.mkdtemp(prefix="zip-", dir=self._zips)) / f"{folder.name}.zip")

    def _require_engine(self) -> LLMEngine:
        engine = self._catalog.engine
        if engine is None:
            raise PromptOrTuneError("The model is not ready: wait until the top of the page names it, then try again.")
        return engine


@dataclass(frozen=True)
class InstallProgress:
    """Progress of an installation: `steps` are all checks, of which the first `passed` passed.

    At its end either `error` or `installed`, the folder of the adapter, is set.
    """

    steps: tuple[str, ...]
    passed: int = 0
    message: str = ""
    error: str = ""
    installed: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether the installation has ended, with success or an error."""
        return bool(self.error) or self.installed is not None


InstallFn = Callable[[StepFn, Callable[[str], None]], Path]


def install_from_zip(
    catalog: AdapterCatalog, file: Path, name: str, max_bytes: int, visitor: Visitor
) -> Iterator[InstallProgress]:
    """Install the adapter in the zip `file`, which is deleted, under `name` ('': its own name); it is the visitor's.

    `max_bytes` limits the zip and the unpacked folder; 0 means the default limit of a folder.
    """

    def run(steps: StepFn, report: Callable[[str], None]) -> Path:
        try:
            check_upload_size(file.stat().st_size, max_bytes, f"'{file.name}'")
            report(f"Checking '{file.name}' ...")
            limit = max_bytes if max_bytes > 0 else MAX_FOLDER_BYTES
            return archive.unpack(
                file,
                catalog.install_dir,
                steps,
                name=name.strip() or None,
                max_bytes=limit,
                reserved=_reserved_names(catalog),
                owner=Owner(visitor.id, visitor.name),
            )
        finally:
            file.unlink(missing_ok=True)

    return _run_install(archive.STEPS, run)


def install_from_hub(
    catalog: AdapterCatalog, spec: str, name: str, token: HubToken, visitor: Visitor
) -> Iterator[InstallProgress]:
    """Install `user/name@revision` from the Hub under `name` ('': its own name); it is the visitor's."""

    def run(steps: StepFn, report: Callable[[str], None]) -> Path:
        return install.pull(
            spec.strip(),
            catalog.install_dir,
            report,
            name=name.strip() or None,
            token=token,
            steps=steps,
            reserved=_reserved_names(catalog),
            owner=Owner(visitor.id, visitor.name),
        )

    return _run_install(install.STEPS, run)


def checks_html(progress: InstallProgress) -> Markup:
    """Return the checks as a list with the state of each."""
    checks = []
    for index, name in enumerate(progress.steps):
        if index < progress.passed:
            state = "passed"
        elif index > progress.passed or progress.installed is not None:
            state = "pending"
        else:
            state = "failed" if progress.error else "running"
        checks.append({"name": name, "state": state, "label": _STATE_LABELS[state]})
    return render("adapters/checks.html.jinja", checks=checks)


def _reserved_names(catalog: AdapterCatalog) -> Sequence[str]:
    """Return all names in use: also of the library, which an added adapter must not hide, and of jobs under way."""
    return sorted({*catalog.store.names(), *catalog.job_names()})


@dataclass
class StepLog:
    """Queue of what an installation reports from its thread: steps, messages, and at the end a path or an error."""

    events: queue.SimpleQueue[Step | str | Path | Exception] = field(default_factory=queue.SimpleQueue)

    def run(self, install: InstallFn) -> None:
        """Run the installation and put its result into the queue."""
        try:
            self.events.put(install(self.events.put, self.events.put))
        except Exception as error:  # noqa: BLE001 - the consumer waits for an end of any kind
            self.events.put(error)


def _run_install(names: Sequence[str], install: InstallFn) -> Iterator[InstallProgress]:
    """Run the installation in a thread, which finishes also if the page is closed, and yield its progress."""
    step_log, progress = StepLog(), InstallProgress(tuple(names))
    threading.Thread(target=step_log.run, args=(install,), name="add-adapter", daemon=True).start()
    yield progress
    while not progress.finished:
        event = step_log.events.get()
        if isinstance(event, Step):
            progress = replace(progress, passed=progress.passed + event.ok)
        elif isinstance(event, str):
            progress = replace(progress, message=event)
        elif isinstance(event, Path):
            progress = replace(progress, installed=event)
        else:
            progress = replace(progress, error=_error_message(event))
        yield progress


def _error_message(error: Exception) -> str:
    if isinstance(error, PromptOrTuneError):
        return str(error)
    _log.error("An adapter could not be added.", exc_info=error)
    return INTERNAL_ERROR
