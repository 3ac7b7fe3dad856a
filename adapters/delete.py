"""Deletes an adapter: out of the user's own folder, never out of the library that comes with the program."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adapters import checks
from adapters.store import LIBRARY, Store
from errors import AdapterError, unknown_name_error


def user_adapter_folder(name: str, roots: Sequence[Path]) -> Path:
    """The folder that `delete` would take away; AdapterError where the adapter is the library's, or no adapter.

    It need not be sound: a broken adapter is what people want to be rid of.
    """
    checks.check_name(name)
    own = [root for root in roots if root.resolve() != LIBRARY.resolve()]
    # A later root hides an earlier one, as in the store.
    for root in reversed(own):
        if name in Store((root,)).names():
            return root / name
    everywhere = Store(roots)
    if name in everywhere.names():
        raise AdapterError(f"'{name}' comes with the program and is not deleted; leave it out where you name adapters.")
    models = everywhere.full_models()
    if name in models:
        raise AdapterError(f"'{name}' is a whole model, not an adapter: delete the folder {models[name]} yourself.")
    raise unknown_name_error("adapter", name, Store(own).names())


def delete_adapter(folder: Path) -> None:
    """Takes the folder away at once, as far as anybody else can see, and then frees its room."""
    try:
        if folder.is_symlink():
            folder.unlink()  # what it points at is not the store's
            return
        # Hidden, so that no store lists it should the second half fail.
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-deleted-", dir=folder.parent))
        folder.rename(aside / folder.name)
        shutil.rmtree(aside)
    except OSError as fault:
        raise AdapterError(
            f"{folder} cannot be deleted ({fault.strerror or fault}): check who may write to {folder.parent}."
        ) from fault
