"""What a person may do with an adapter that is there. The rights are asked for here, whoever sends the event."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.archive import pack
from adapters.delete import delete_adapter, user_adapter_folder
from errors import BusyError, PromptOrTuneError
from serve.method import Method, NoExamples
from ui.adapters.shelf import AdapterCatalog
from ui.context import Context
from ui.visitors import Visitor

if TYPE_CHECKING:
    from serve.engine import LLMEngine

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
