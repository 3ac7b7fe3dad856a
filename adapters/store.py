"""The store: which adapter folders there are, and which of them may be loaded onto a base."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from adapters import checks, configs, weights
from adapters.listing import AdapterDirectory, looks_like_adapter, looks_like_model
from adapters.manifest import BaseIdentity, Manifest
from adapters.remembered import CheckCache, is_permanent, stat_key
from adapters.shapes import check_shapes
from errors import AdapterError, PromptOrTuneError, unknown_name_error

LIBRARY = Path(__file__).parent / "library"
MAX_REGISTERED = 10_000


def user_root() -> Path:
    """Where adapters that the user trained lie: `adapters` in PEFT_ARENA_HOME, or in ~/.cache/peft-arena."""
    home = os.environ.get("PEFT_ARENA_HOME") or "~/.cache/peft-arena"
    return Path(home).expanduser() / "adapters"


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that passed its checks: where it lies, its manifest, PEFT's config, and the weights' digest.

    `sha256` is the digest in full: weights with any other are not those that were checked.
    """

    name: str
    path: Path
    manifest: Manifest
    config: Mapping[str, Any]
    digest: str
    sha256: str = ""

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
    (tasks.prompt.STYLES, which this room does not import). Folders inside `allowed`, by default the roots, may be
    registered under a name of their own. What was found out about a folder is kept until the folder changes, and what
    changes is seen at the next call: a store of thousands may be asked at every request, from any thread.
    """

    def __init__(
        self,
        roots: Sequence[Path] = (LIBRARY,),
        *,
        fingerprints: Mapping[str, str] | None = None,
        allowed: Sequence[Path] | None = None,
    ) -> None:
        self.roots = tuple(roots)
        self.fingerprints = dict(fingerprints or {})
        self._allowed = self.roots if allowed is None else tuple(allowed)
        self._directories = [AdapterDirectory(root) for root in self.roots]
        self._names_cache: tuple[Any, list[str]] = ((), [])
        self._check_cache = CheckCache()
        self._register_lock = Lock()
        self._registered: Mapping[str, Path] = {}

    def names(self) -> list[str]:
        """Names of all folders that look like adapters, and those registered, sorted; none of them is checked yet."""
        found = (tuple(self._registered), *(listing.names() for listing in self._directories))
        before, names = self._names_cache
        if found != before:
            names = sorted({name for each in found for name in each})
            self._names_cache = (found, names)
        return list(names)

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
        return [self._status(name, base) for name in self.names()]

    def register(self, name: str, path: Path, base: BaseIdentity | None = None) -> AdapterFolder:
        """Makes the folder at `path` known under `name`, after the checks of `open`; the same again changes nothing.

        AdapterError where it lies outside the allowed folders, is unsound, or the name is taken by another folder.
        """
        checks.check_name(name)
        folder = self._resolve_allowed(path)
        with self._register_lock:
            here = self._in_roots(name) or self._registered.get(name)
            if here is not None and here.resolve() != folder:
                raise AdapterError(f"There is another adapter '{name}': choose another name, or unload that one first.")
            if len(self._registered) >= MAX_REGISTERED:
                raise AdapterError(f"{MAX_REGISTERED} adapters are registered, which is the limit: unload one first.")
            opened = self._open(folder, name, base)
            if here is None:
                self._registered = {**self._registered, name: folder}
        return opened

    def unregister(self, name: str) -> None:
        """Forgets a registered name; nothing is deleted. AdapterError for an adapter that lies in a root."""
        checks.check_name(name)
        with self._register_lock:
            if name in self._registered:
                self._registered = {each: path for each, path in self._registered.items() if each != name}
                return
        if self._in_roots(name) is not None:
            raise AdapterError(f"Adapter '{name}' lies in the store itself: delete its folder to be rid of it.")
        raise unknown_name_error("registered adapter", name, self._registered)

    def full_models(self) -> dict[str, Path]:
        """Name -> folder of the whole models that full fine-tuning left beside the adapters: bases of their own."""
        found: dict[str, Path] = {}
        for root in self.roots:
            if not root.is_dir():
                continue
            try:
                found.update({entry.name: entry for entry in root.iterdir() if looks_like_model(entry)})
            except OSError as fault:
                raise AdapterError(f"The adapters in {root} cannot be read ({fault.strerror or fault}).") from fault
        return dict(sorted(found.items()))

    def _folder(self, name: str) -> Path:
        checks.check_name(name)
        folder = self._in_roots(name)
        if folder is not None:
            return folder
        registered = self._registered.get(name)
        if registered is None:
            for root in reversed(self.roots):
                refuse_full_model(root / name)
            raise unknown_name_error("adapter", name, self.names())
        if Path(os.path.realpath(registered)) != registered:
            raise AdapterError(f"Adapter '{name}' was registered as a folder and is behind a link now: load it again.")
        return registered

    def _in_roots(self, name: str) -> Path | None:
        return next((root / name for root in reversed(self.roots) if looks_like_adapter(root / name)), None)

    def _resolve_allowed(self, path: Path) -> Path:
        """The adapter folder at `path`, links followed, if it lies inside an allowed one."""
        try:
            folder = path.resolve()
        except (OSError, ValueError, RuntimeError) as fault:  # a name too long, a zero byte, a ring of links
            raise AdapterError(
                f"{weights.quote_untrusted(str(path))} cannot be the path of an adapter's folder."
            ) from fault
        if not any(root.resolve() in folder.parents for root in self._allowed):
            raise AdapterError(
                f"{weights.quote_untrusted(str(path))} is not inside a folder that adapters may be loaded from: copy it there."
            )
        refuse_full_model(folder)
        if not looks_like_adapter(folder):
            raise AdapterError(
                f"There is no adapter in {weights.quote_untrusted(str(path))}: give the folder that train wrote."
            )
        return folder

    def _open(self, path: Path, name: str, base: BaseIdentity | None, *, need_digest: bool = True) -> AdapterFolder:
        """The folder after its checks. Where not the `whole` is needed, its weights are not read and have no digest."""
        now = stat_key(path)
        found = self._check_cache.get(path, name, now, base, need_digest=need_digest)
        if found is not None:
            return found
        try:
            found = self._check(path, name, base, need_digest)
        except AdapterError as fault:
            if now is not None and is_permanent(fault):
                self._check_cache.put(path, name, now, base, str(fault), has_digest=need_digest)
            raise
        if now is not None:
            self._check_cache.put(path, name, now, base, found, has_digest=need_digest)
        return found

    def _check(self, path: Path, name: str, base: BaseIdentity | None, need_digest: bool) -> AdapterFolder:
        checks.check_files(path, name)
        config = checks.read_config(path, name)
        configs.check_config(config, name)
        manifest = checks.read_manifest(path, name)
        if base is not None:
            checks.check_base(manifest, base, name)
            checks.check_prompt(manifest, self.fingerprints, name)
        file = path / weights.WEIGHTS_NAME
        if not need_digest:
            check_shapes(weights.read_shapes(file, name), config, base, name)
            return AdapterFolder(name, path, manifest, config, "")
        found = weights.inspect(file, name)
        check_shapes(found.shapes, config, base, name)
        return AdapterFolder(name, path, manifest, config, weights.short_digest(found.sha256), found.sha256)

    def _status(self, name: str, base: BaseIdentity | None) -> AdapterStatus:
        path = None
        try:
            path = self._in_roots(name) or self._folder(name)
            checks.check_name(name)
            return AdapterStatus(name, True, "", self._open(path, name, base, need_digest=False).manifest)
        except PromptOrTuneError as fault:
            reason = str(fault)
        try:
            if path is not None:
                checks.check_files(path, name)  # no manifest is shown that lies behind a link
                return AdapterStatus(name, False, reason, checks.read_manifest(path, name))
        except PromptOrTuneError:
            pass
        return AdapterStatus(name, False, reason, None)


def refuse_full_model(folder: Path | None) -> None:
    """AdapterError where `folder` holds a whole model, as full fine-tuning and `merge` leave it."""
    if folder is not None and looks_like_model(folder):
        raise AdapterError(f"'{folder.name}' is a whole model, not an adapter: use it with --base {folder}.")
