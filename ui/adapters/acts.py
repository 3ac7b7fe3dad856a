"""What a person may do with an adapter that is there. The rights are asked for here, whoever sends the event."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.archive import pack
from adapters.delete import delete, own_folder
from errors import BusyError, PeftArenaError
from serve.method import Method, Nothing
from ui.adapters.shelf import Shelf
from ui.context import Context
from ui.visitors import Visitor

if TYPE_CHECKING:
    from serve.engine import Engine

# Zips that were made to be downloaded; older ones are made again when somebody asks.
MOST_ZIPS = 8


class Desk:
    """Loads, unloads, deletes and packs adapters. Each method says in one sentence what it did."""

    def __init__(self, context: Context, shelf: Shelf, zips: Path) -> None:
        """`zips` is a folder that the pages serve files from."""
        self._context = context
        self._shelf = shelf
        self._zips = zips
        self.acts: dict[str, Callable[[Visitor, str], str]] = {
            "load": self.load,
            "unload": self.unload,
            "delete": self.delete,
        }

    def require_rights(self, visitor: Visitor) -> None:
        """PeftArenaError in one sentence where this visitor may change nothing."""
        reason = self._context.visitors.may_train(visitor)
        if reason is not None:
            raise PeftArenaError(reason)

    def load(self, visitor: Visitor, name: str) -> str:
        """Brings the adapter into memory, so that the first to use it does not wait."""
        self.require_rights(visitor)
        self._engine().residents.acquire(name).release()
        return f"'{name}' is in memory."

    def unload(self, visitor: Visitor, name: str) -> str:
        """Frees the adapter's memory, at once or when the answers that use it are done."""
        self.require_rights(visitor)
        residents = self._engine().residents
        residents.unload(name)
        if any(each.name == name for each in residents.status().adapters):
            return f"'{name}' is in use: it leaves memory when these answers are done."
        return f"'{name}' is out of memory. Whoever uses it next loads it again."

    def delete(self, visitor: Visitor, name: str) -> str:
        """Deletes one of the adapters that were added here; answers that use it come to their end."""
        self.require_rights(visitor)
        folder = own_folder(name, self._shelf.store.roots)
        engine = self._shelf.engine
        if engine is not None:
            engine.residents.unload(name)
        delete(folder)
        if engine is not None:
            # Somebody may have loaded it between the two; now nobody can any more. One that is being loaded at this
            # moment stays: what nobody uses makes room by itself.
            with suppress(BusyError):
                engine.residents.unload(name)
        return f"'{name}' is deleted."

    def opening(self, name: str) -> Engine:
        """The engine, where the adapter can be used in Compare; PeftArenaError where it cannot."""
        engine = self._engine()
        reason = engine.unavailable(Method(name, Nothing(), name))
        if reason is not None:
            raise PeftArenaError(reason)
        return engine

    def packed(self, name: str) -> Path:
        """The adapter as a zip, in a folder of its own; of all that were made the last few stay."""
        folder = self._shelf.folder(name)
        self._zips.mkdir(parents=True, exist_ok=True)
        made = sorted((each for each in self._zips.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
        for old in made[: -MOST_ZIPS + 1]:
            shutil.rmtree(old, ignore_errors=True)
        return pack(folder, Path(tempfile.mkdtemp(prefix="zip-", dir=self._zips)) / f"{folder.name}.zip")

    def _engine(self) -> Engine:
        engine = self._shelf.engine
        if engine is None:
            raise PeftArenaError("The model is not ready: wait until the line at the top names it, then try again.")
        return engine
