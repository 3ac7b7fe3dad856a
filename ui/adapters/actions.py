"""Load, delete, add.

What a person may do with an adapter that is there. The rights are asked for here, whoever sends the event.

An adapter is added: its checks tick off one by one, and a refusal says which one failed and why.
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
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from adapters import archive, hub
from adapters.archive import pack
from adapters.checks import MAX_FOLDER_BYTES
from adapters.install import Step, StepFn
from adapters.store import delete_adapter, user_adapter_folder
from errors import BusyError, PromptOrTuneError
from tasks.methods import Method, NoExamples
from ui.adapters.catalog import AdapterCatalog
from ui.context import Context
from ui.visitors import Visitor, check_upload_size

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine


# Zips that were made to be downloaded; older ones are made again when somebody asks.
MAX_CACHED_ZIPS = 8


class AdapterActions:
    """Loads, unloads, deletes and packs adapters. Each method says in one sentence what it did."""

    def __init__(self, context: Context, catalog: AdapterCatalog, zips: Path) -> None:
        """`zips` is a folder that the pages serve files from."""
        self._context = context
        self._catalog = catalog
        self._zips = zips
        self.handlers: dict[str, Callable[[Visitor, str], str]] = {
            "load": self.load,
            "unload": self.unload,
            "delete": self.delete,
        }

    def require_permission(self, visitor: Visitor) -> None:
        """PromptOrTuneError in one sentence where this visitor may change nothing."""
        reason = self._context.visitors.training_denied_reason(visitor)
        if reason is not None:
            raise PromptOrTuneError(reason)

    def load(self, visitor: Visitor, name: str) -> str:
        """Brings the adapter into memory, so that the first to use it does not wait."""
        self.require_permission(visitor)
        self._require_engine().adapter_cache.acquire(name).release()
        return f"'{name}' is in memory."

    def unload(self, visitor: Visitor, name: str) -> str:
        """Frees the adapter's memory, at once or when the answers that use it are done."""
        self.require_permission(visitor)
        residents = self._require_engine().adapter_cache
        residents.unload(name)
        if any(each.name == name for each in residents.status().adapters):
            return f"'{name}' is in use: it leaves memory when these answers are done."
        return f"'{name}' is out of memory. Whoever uses it next loads it again."

    def delete(self, visitor: Visitor, name: str) -> str:
        """Deletes one of the adapters that were added here; answers that use it come to their end."""
        self.require_permission(visitor)
        folder = user_adapter_folder(name, self._catalog.store.roots)
        engine = self._catalog.engine
        if engine is not None:
            engine.adapter_cache.unload(name)
        delete_adapter(folder)
        if engine is not None:
            # Somebody may have loaded it between the two; now nobody can any more. One that is being loaded at this
            # moment stays: what nobody uses makes room by itself.
            with suppress(BusyError):
                engine.adapter_cache.unload(name)
        return f"'{name}' is deleted."

    def require_usable(self, name: str) -> LLMEngine:
        """The engine, where the adapter can be used in Compare; PromptOrTuneError where it cannot."""
        engine = self._require_engine()
        reason = engine.unsupported_reason(Method(name, NoExamples(), name))
        if reason is not None:
            raise PromptOrTuneError(reason)
        return engine

    def pack_zip(self, name: str) -> Path:
        """The adapter as a zip, in a folder of its own; of all that were made the last few stay."""
        folder = self._catalog.folder(name)
        self._zips.mkdir(parents=True, exist_ok=True)
        made = sorted((each for each in self._zips.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
        for old in made[: -MAX_CACHED_ZIPS + 1]:
            shutil.rmtree(old, ignore_errors=True)
        return pack(folder, Path(tempfile.mkdtemp(prefix="zip-", dir=self._zips)) / f"{folder.name}.zip")

    def _require_engine(self) -> LLMEngine:
        engine = self._catalog.engine
        if engine is None:
            raise PromptOrTuneError("The model is not ready: wait until the line at the top names it, then try again.")
        return engine


INTERNAL_ERROR = "Something went wrong on our side, and the log says what. Nothing was added."
_STATE_ICONS = {
    "passed": '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 8.5l3.2 3.2L13 4.8"/></svg>',
    "failed": '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4 4l8 8M12 4l-8 8"/></svg>',
    "running": '<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="5"/></svg>',
    "pending": '<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="1.5"/></svg>',
}
_STATE_LABELS = {"passed": "passed", "failed": "refused", "running": "being checked", "pending": "not checked"}
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
            state = "pending"
        else:
            state = "failed" if progress.error else "running"
        items.append(
            f'<li class="{state}">{_STATE_ICONS[state]}<span>{escape(name)}</span>'
            f'<span class="visually-hidden">: {_STATE_LABELS[state]}</span></li>'
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
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of any end
            self.events.put(error)


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
