"""The store: which adapter folders there are, and which of them may be loaded onto a base."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import checks, configs, weights
from adapters.manifest import BaseIdentity, Manifest
from adapters.shapes import check_shapes
from errors import AdapterError, PeftArenaError, unknown

LIBRARY = Path(__file__).parent / "library"


def user_root() -> Path:
    """Where adapters that the user trained lie: `adapters` in PEFT_ARENA_HOME, or in ~/.cache/peft-arena."""
    home = os.environ.get("PEFT_ARENA_HOME") or "~/.cache/peft-arena"
    return Path(home).expanduser() / "adapters"


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that passed its checks: where it lies, its manifest, PEFT's config, and the weights' digest."""

    name: str
    path: Path
    manifest: Manifest
    config: Mapping[str, Any]
    digest: str

    @property
    def virtual_tokens(self) -> int:
        """How many places of the context it takes before the prompt; 0 for LoRA and IA3."""
        return int(self.config.get("num_virtual_tokens") or 0)


@dataclass(frozen=True)
class AdapterStatus:
    """Whether an adapter can be used on a base and why not. The manifest is None where it cannot be read."""

    name: str
    usable: bool
    reason: str
    manifest: Manifest | None


class Store:
    """Adapter folders under one or more roots; a later root's adapter hides an earlier one of the same name.

    `fingerprints` maps the names of the prompt styles that this version knows to their fingerprints
    (tasks.prompt.STYLES, which this room does not import).
    """

    def __init__(self, roots: Sequence[Path] = (LIBRARY,), *, fingerprints: Mapping[str, str] | None = None) -> None:
        self.roots = tuple(roots)
        self.fingerprints = dict(fingerprints or {})

    def names(self) -> list[str]:
        """Names of all folders that look like adapters, sorted; none of them is checked yet."""
        return sorted(self._folders(_looks_like_adapter))

    def open(self, name: str, base: BaseIdentity) -> AdapterFolder:
        """The folder of that name after every check against `base`; AdapterError in one sentence otherwise.

        UnknownNameError, with the nearest name, when there is no such adapter.
        """
        return self._open(self._folder(name), name, base)

    def inspect(self, name: str) -> AdapterFolder:
        """As `open`, without a base: what the folder says of itself is checked, not what it was trained for."""
        return self._open(self._folder(name), name, None)

    def status(self, base: BaseIdentity | None = None) -> list[AdapterStatus]:
        """Every adapter, with the reason why it cannot be used on `base` (or, without one, at all)."""
        return [self._status(name, folder, base) for name, folder in sorted(self._folders(_looks_like_adapter).items())]

    def full_models(self) -> dict[str, Path]:
        """Name -> folder of the whole models that full fine-tuning left beside the adapters: bases of their own."""
        return dict(sorted(self._folders(_looks_like_model).items()))

    def _folders(self, wanted: Callable[[Path], bool]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for root in self.roots:
            if not root.is_dir():
                continue
            try:
                inside = [entry for entry in root.iterdir() if wanted(entry)]
            except OSError as fault:
                raise AdapterError(f"The adapters in {root} cannot be read ({fault.strerror or fault}).") from fault
            found.update({entry.name: entry for entry in inside})
        return found

    def _folder(self, name: str) -> Path:
        checks.check_name(name)
        folders = self._folders(_looks_like_adapter)
        if name not in folders:
            refuse_full_model(self.full_models().get(name))
            raise unknown("adapter", name, folders)
        return folders[name]

    def _open(self, path: Path, name: str, base: BaseIdentity | None) -> AdapterFolder:
        checks.check_name(name)
        checks.check_files(path, name)
        config = checks.read_config(path, name)
        configs.check_config(config, name)
        manifest = checks.read_manifest(path, name)
        if base is not None:
            checks.check_base(manifest, base, name)
            checks.check_prompt(manifest, self.fingerprints, name)
        file = path / weights.WEIGHTS_NAME
        check_shapes(weights.read_shapes(file, name), config, base, name)
        return AdapterFolder(name, path, manifest, config, weights.digest(file, name))

    def _status(self, name: str, path: Path, base: BaseIdentity | None) -> AdapterStatus:
        try:
            return AdapterStatus(name, True, "", self._open(path, name, base).manifest)
        except PeftArenaError as fault:
            reason = str(fault)
        try:
            checks.check_files(path, name)  # no manifest is shown that lies behind a link
            return AdapterStatus(name, False, reason, checks.read_manifest(path, name))
        except PeftArenaError:
            return AdapterStatus(name, False, reason, None)


def refuse_full_model(folder: Path | None) -> None:
    """AdapterError where `folder` holds a whole model, as full fine-tuning and `merge` leave it."""
    if folder is not None and _looks_like_model(folder):
        raise AdapterError(f"'{folder.name}' is a whole model, not an adapter: use it with --base {folder}.")


def _looks_like_adapter(entry: Path) -> bool:
    """Hidden folders are left out: that is how a folder is named while it is being written."""
    return not entry.name.startswith(".") and _has(entry, checks.CONFIG_NAME)


def _looks_like_model(entry: Path) -> bool:
    return not entry.name.startswith(".") and _has(entry, "config.json") and not _has(entry, checks.CONFIG_NAME)


def _has(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except OSError:  # a folder that may not be entered
        return False
