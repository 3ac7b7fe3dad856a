"""Catalog of adapters, and actions on them: load, unload, delete, download, and install from a zip or the Hub.

Actions on adapters: load, unload, delete and download one, and install one from a zip or the Hub. The rights of the
visitor are checked here, for events of the page and of programs alike. An installation yields its progress check by
check; a refusal names the check that failed and why.
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
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup

from adapters import archive, install
from adapters.archive import pack
from adapters.install import Step, StepFn
from adapters.manifest import MAX_FOLDER_BYTES, Manifest, Origin, Owner, check_name, read_origin
from adapters.store import LIBRARY, AdapterStatus, Store, delete_adapter, looks_like_adapter, user_adapter_folder
from adapters.weights import WEIGHTS_NAME
from common.hub import HubToken
from errors import BusyError, PromptOrTuneError
from jobs.api import JobService
from tasks.methods import Method, NoExamples
from tasks.prompt import STYLES
from ui.access.policy import Visitor
from ui.access.quota import check_upload_size
from ui.components import render
from ui.context import Context

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

Location = Literal["library", "own", "registered"]
# Zips for download; older ones are deleted and made again when they are needed.
MAX_CACHED_ZIPS = 8
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. Nothing was added."
# CSS class and label of each state of a check.
_STATE_LABELS = {"passed": "passed", "failed": "refused", "running": "being checked", "pending": "not checked"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogEntry:
    """One adapter. `usable` is None until the model is ready; `reason` says why it is not usable."""

    name: str
    location: Location
    path: Path | None
    manifest: Manifest | None
    usable: bool | None
    reason: str = ""
    memory_bytes: int | None = None
    weight_bytes: int = 0
    origin: Origin | None = None


class AdapterCatalog:
    """Lists the engine's adapters, and while it is being loaded those that it will have."""

    def __init__(self, context: Context) -> None:
        self._context = context
        fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
        self._offline_store = Store((LIBRARY, self.install_dir), fingerprints=fingerprints)

    @property
    def install_dir(self) -> Path:
        """The folder in which adapters are installed."""
        return self._context.home / "adapters"

    @property
    def engine(self) -> LLMEngine | None:
        """The engine; None until it is ready."""
        return self._context.engine_loader.engine() if self._context.engine_loader.state().phase == "ready" else None

    @property
    def store(self) -> Store:
        """The engine's store, or one over the same folders until it is ready."""
        engine = self.engine
        return self._offline_store if engine is None else engine.store

    def states(self) -> list[AdapterStatus]:
        """Return all adapters: those that were added here, newest first, then the others by name."""
        engine = self.engine
        states = self.store.status(None if engine is None else engine.base)
        roots = self._locations()
        return sorted(states, key=lambda state: (*_sort_key(*_locate(state.name, roots)), state.name))

    def entries(self, states: Sequence[AdapterStatus]) -> list[CatalogEntry]:
        """Return the entries of some adapters; reads each from disk and its state from the engine."""
        engine = self.engine
        loaded = [] if engine is None else engine.adapter_cache.status().adapters
        loaded_bytes = {adapter.name: adapter.bytes for adapter in loaded}
        roots = self._locations()
        return [_make_entry(state, engine, loaded_bytes, *_locate(state.name, roots)) for state in states]

    def is_usable(self, state: AdapterStatus) -> bool:
        """Return whether the adapter can be used here; True until the model is ready."""
        return _usability(state, self.engine)[0] is not False

    def names_in(self, location: Location) -> set[str]:
        """Return the names of the adapters in a location."""
        roots = self._locations()
        return {name for name in self.store.names() if _locate(name, roots)[0] == location}

    def loaded_names(self) -> set[str]:
        """Return the names of the adapters in memory."""
        engine = self.engine
        return set() if engine is None else {adapter.name for adapter in engine.adapter_cache.status().adapters}

    def folder(self, name: str) -> Path:
        """Return the folder of an adapter, also of a broken one. Raises PromptOrTuneError for an unknown name."""
        check_name(name)
        path = _locate(name, self._locations())[1]
        return self.store.inspect(name).path if path is None else path

    def location(self, name: str) -> Location:
        """Return where the adapter is stored; 'registered' for an unknown name."""
        return _locate(name, self._locations())[0]

    def owner(self, name: str) -> str:
        """Return the id of the visitor who added or trained the adapter; '' where nobody is recorded."""
        path = _locate(name, self._locations())[1]
        origin = None if path is None else read_origin(path)
        return "" if origin is None else origin.owner

    def job_names(self) -> set[str]:
        """Return the names under which jobs that have not ended will write an adapter."""
        return {job.adapter for job in JobService(self._context.home).list_jobs() if not job.is_ended}

    def _locations(self) -> list[tuple[Location, Path]]:
        """Return the folders of adapters; a name in an earlier one hides the same name in a later one."""
        library = LIBRARY.resolve()
        return [("library" if root.resolve() == library else "own", root) for root in reversed(self.store.roots)]


def _locate(name: str, roots: Sequence[tuple[Location, Path]]) -> tuple[Location, Path | None]:
    return next(
        ((location, root / name) for location, root in roots if looks_like_adapter(root / name)), ("registered", None)
    )


def _sort_key(location: Location, path: Path | None) -> tuple[int, float]:
    if location != "own" or path is None:
        return 1, 0.0
    try:
        return 0, -path.stat().st_mtime
    except OSError:  # deleted since it was listed
        return 0, 0.0


def _make_entry(
    state: AdapterStatus, engine: LLMEngine | None, loaded_bytes: dict[str, int], location: Location, path: Path | None
) -> CatalogEntry:
    usable, reason = _usability(state, engine)
    return CatalogEntry(
        name=state.name,
        location=location,
        path=path,
        manifest=state.manifest,
        usable=usable,
        reason=reason,
        memory_bytes=loaded_bytes.get(state.name),
        weight_bytes=_weights_size(path),
        origin=None if path is None else read_origin(path),
    )


def _usability(state: AdapterStatus, engine: LLMEngine | None) -> tuple[bool | None, str]:
    if not state.usable:
        return False, state.reason
    if engine is None:
        return None, ""
    try:
        reason = engine.unsupported_reason(Method(state.name, NoExamples(), state.name))
    except PromptOrTuneError as error:
        reason = str(error)
    return reason is None, reason or ""


def _weights_size(path: Path | None) -> int:
    try:
        return 0 if path is None else (path / WEIGHTS_NAME).stat().st_size
    except OSError:
        return 0


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
