"""Adapter store: which adapter folders there are under the roots, and which of them can be applied to a base.

A store may hold thousands of adapters and is asked at every request, so two things are cached: the names in each root
(AdapterDirectory) and the results of the checks (CheckCache). Both notice changes through the times of folders and
files. Deletion is here as well; the library that comes with the program is never deleted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from adapters import peft_config, weights
from adapters.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    Manifest,
    check_base,
    check_files,
    check_name,
    check_prompt,
    read_config,
    read_manifest,
)
from adapters.peft_config import check_shapes
from adapters.weights import MIN_STAT_AGE_NS, WEIGHTS_NAME
from common.files import cache_dir
from common.format import quote_untrusted
from errors import AdapterError, PromptOrTuneError, unknown_name_error
from models.source import BaseIdentity

# A folder that stops being an adapter is dropped from the names within this time; opening it fails at once.
_RECHECK_SECONDS = 1.0


@dataclass(frozen=True)
class _DirectoryScan:
    """One scan of a root: its adapters, and the other folders, which may become adapters without changing the root."""

    stat_key: tuple[int, int, int]
    scanned_at: float
    adapters: tuple[str, ...]
    others: tuple[str, ...]


class AdapterDirectory:
    """Names of the adapters in one root. Thread-safe; an added or removed folder is seen at the next call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last_scan: _DirectoryScan | None = None

    def names(self) -> tuple[str, ...]:
        """Return the names of the folders that look like adapters, in no order; they are not checked here."""
        try:
            if not self.root.is_dir():
                return ()
            status = self.root.stat()
            key = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            scan = self._last_scan
            if scan is None or not self._is_current(scan, key):
                now, is_stable = time.monotonic(), time.time_ns() - status.st_ctime_ns > MIN_STAT_AGE_NS
                scan = _DirectoryScan(key, now, *self._scan())
                # A second change within one tick of the clock would leave the root's times as they are.
                self._last_scan = scan if is_stable else None
            return scan.adapters
        except OSError as error:
            raise AdapterError(f"The adapters in {self.root} cannot be read ({error.strerror or error}).") from error

    def _is_current(self, scan: _DirectoryScan, stat_key: tuple[int, int, int]) -> bool:
        fresh = scan.stat_key == stat_key and time.monotonic() - scan.scanned_at < _RECHECK_SECONDS
        return fresh and not any(has_file(f"{self.root}/{name}", CONFIG_NAME) for name in scan.others)

    def _scan(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        adapters, others = [], []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if has_file(entry.path, CONFIG_NAME):
                    adapters.append(entry.name)
                elif entry.is_symlink() or entry.is_dir():
                    others.append(entry.name)
        return tuple(adapters), tuple(others)


def looks_like_adapter(folder: Path) -> bool:
    """Whether the folder has an adapter's config; hidden folders are still being written and do not count."""
    return not folder.name.startswith(".") and has_file(str(folder), CONFIG_NAME)


def looks_like_model(folder: Path) -> bool:
    """Whether the folder has a whole model, as full fine-tuning and `merge` write it."""
    return (
        not folder.name.startswith(".")
        and has_file(str(folder), "config.json")
        and not has_file(str(folder), CONFIG_NAME)
    )


def has_file(folder: str, name: str) -> bool:
    """Whether there is such a file, or a link to one; False for a folder that cannot be read."""
    return os.path.isfile(f"{folder}/{name}")  # noqa: PTH113 - five times as fast as Path


# Size of the JSON files behind the cached results; the parsed values take several times as much memory.
_MAX_CACHE_BYTES = 32 << 20
_STAT_FILES = (CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME)
_CacheKey = tuple[str, str, bool]
StatKey = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _CheckResult:
    """The adapter, or the message of the error, for a folder with this stat key; `cost` in bytes."""

    stat_key: StatKey
    base: BaseIdentity | None
    has_digest: bool
    result: AdapterFolder | str
    cost: int


class CheckCache:
    """LRU cache of check results: the adapter, or why it was refused. Thread-safe, bounded in bytes.

    A result holds as long as the stat key of its folder does. The folder's times change when an entry is added, removed
    or renamed, those of the files that are read when they are written. Writes into any other file are not noticed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._results: OrderedDict[_CacheKey, _CheckResult] = OrderedDict()
        self._bytes = 0

    def get(
        self, folder: Path, name: str, stat: StatKey | None, base: BaseIdentity | None, *, need_digest: bool
    ) -> AdapterFolder | None:
        """Return the adapter as it was checked with this stat key and base, None without a cached result.

        Raises AdapterError where the result is a refusal. Without `need_digest` the adapter may lack its digests.
        """
        key = (str(folder), name, base is None)
        with self._lock:
            cached = self._results.get(key)
            if cached is None or cached.stat_key != stat or cached.base != base:
                return None
            if need_digest and not cached.has_digest:
                return None
            self._results.move_to_end(key)
        if isinstance(cached.result, str):
            raise AdapterError(cached.result)
        return cached.result

    def put(
        self,
        folder: Path,
        name: str,
        stat: StatKey,
        base: BaseIdentity | None,
        result: AdapterFolder | str,
        *,
        has_digest: bool,
    ) -> None:
        """Cache the result of a check, evicting the least recently used ones above the limit."""
        key = (str(folder), name, base is None)
        cost = 256 + sum(size for _, size, *_ in stat[1:-1])
        with self._lock:
            self._evict(key)
            self._results[key] = _CheckResult(stat, base, has_digest, result, cost)
            self._bytes += cost
            while self._bytes > _MAX_CACHE_BYTES:
                self._evict(next(iter(self._results)))

    def _evict(self, key: _CacheKey) -> None:
        cached = self._results.pop(key, None)
        if cached is not None:
            self._bytes -= cached.cost


def stat_key(folder: Path) -> StatKey | None:
    """Return a key that changes with the folder and the files that are read; None where nothing may be cached.

    A folder that changed less than MIN_STAT_AGE_NS ago may change again within one tick of the clock.
    """
    found = [_stat_tuple(str(folder)), *(_stat_tuple(f"{folder}/{name}") for name in _STAT_FILES)]
    is_stable = time.time_ns() - max(status[-1] for status in found) > MIN_STAT_AGE_NS
    return tuple(found) if is_stable else None


def is_permanent(error: BaseException | None) -> bool:
    """Whether a refusal may be cached: not one that a failed read caused, which may succeed next time."""
    while error is not None:
        if isinstance(error, OSError):
            return False
        error = error.__cause__
    return True


def _stat_tuple(path: str) -> tuple[int, ...]:
    try:
        found = os.lstat(path)
    except OSError:
        return (0, 0, 0, 0, 0, 0)
    return (found.st_mode, found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


LIBRARY = Path(__file__).parent / "library"
MAX_REGISTERED = 10_000


def user_root() -> Path:
    """Return the folder of the user's own adapters, `adapters` in the cache folder."""
    return cache_dir() / "adapters"


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that passed its checks: its folder, manifest, PEFT's config and the digest of its weights.

    `digest` is the short form; `sha256` is complete and identifies the bytes that were checked.
    """

    name: str
    path: Path
    manifest: Manifest
    config: Mapping[str, Any]
    digest: str
    sha256: str = ""

    @property
    def virtual_tokens(self) -> int:
        """Number of positions that it takes before the prompt; 0 for LoRA and IA3."""
        return int(self.config.get("num_virtual_tokens") or 0)


@dataclass(frozen=True)
class AdapterStatus:
    """Whether an adapter can be used on a base, and if not, why. The manifest is None where it cannot be read."""

    name: str
    usable: bool
    reason: str
    manifest: Manifest | None


class Store:
    """Adapter folders under one or more roots; a later root's adapter hides an earlier one of the same name.

    `fingerprints` maps the names of the prompt styles of this version to their fingerprints (tasks.prompt.STYLES, which
    this package does not import). Folders inside `allowed`, by default the roots, may be registered under another name.
    Results are cached until a folder changes, and changes are seen at the next call. Thread-safe.
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
        """Return the names of all folders that look like adapters and of those registered, sorted, without checks."""
        found = (tuple(self._registered), *(directory.names() for directory in self._directories))
        cached, names = self._names_cache
        if found != cached:
            names = sorted({name for group in found for name in group})
            self._names_cache = (found, names)
        return list(names)

    def open(self, name: str, base: BaseIdentity) -> AdapterFolder:
        """Return the adapter of that name after all checks against `base`.

        Raises AdapterError where a check fails, UnknownNameError, with the nearest name, for an unknown name.
        """
        return self._open(self._folder(name), name, base)

    def inspect(self, name: str) -> AdapterFolder:
        """Return the adapter as `open` does, without the checks against a base."""
        return self._open(self._folder(name), name, None)

    def status(self, base: BaseIdentity | None = None) -> list[AdapterStatus]:
        """Return every adapter with the reason why it cannot be used on `base` (or, without one, at all)."""
        return [self._status(name, base) for name in self.names()]

    def register(self, name: str, path: Path, base: BaseIdentity | None = None) -> AdapterFolder:
        """Register the folder at `path` under `name`, after the checks of `open`; a repeated call changes nothing.

        Raises AdapterError where it is outside the allowed folders, fails a check, or the name is taken.
        """
        check_name(name)
        folder = self._resolve_allowed(path)
        with self._register_lock:
            existing = self._in_roots(name) or self._registered.get(name)
            if existing is not None and existing.resolve() != folder:
                raise AdapterError(f"There is another adapter '{name}': choose another name, or unload that one first.")
            if len(self._registered) >= MAX_REGISTERED:
                raise AdapterError(f"{MAX_REGISTERED} adapters are registered, which is the limit: unload one first.")
            opened = self._open(folder, name, base)
            if existing is None:
                self._registered = {**self._registered, name: folder}
        return opened

    def unregister(self, name: str) -> None:
        """Remove a registered name; no file is deleted. Raises AdapterError for an adapter in a root."""
        check_name(name)
        with self._register_lock:
            if name in self._registered:
                self._registered = {other: path for other, path in self._registered.items() if other != name}
                return
        if self._in_roots(name) is not None:
            raise AdapterError(f"Adapter '{name}' is in the store itself: delete its folder to remove it.")
        raise unknown_name_error("registered adapter", name, self._registered)

    def full_models(self) -> dict[str, Path]:
        """Return the folders, by name, of whole models beside the adapters, which can be used as bases."""
        found: dict[str, Path] = {}
        for root in self.roots:
            if not root.is_dir():
                continue
            try:
                found.update({entry.name: entry for entry in root.iterdir() if looks_like_model(entry)})
            except OSError as error:
                raise AdapterError(f"The adapters in {root} cannot be read ({error.strerror or error}).") from error
        return dict(sorted(found.items()))

    def _folder(self, name: str) -> Path:
        check_name(name)
        folder = self._in_roots(name)
        if folder is not None:
            return folder
        registered = self._registered.get(name)
        if registered is None:
            for root in reversed(self.roots):
                refuse_full_model(root / name)
            raise unknown_name_error("adapter", name, self.names())
        if Path(os.path.realpath(registered)) != registered:
            raise AdapterError(f"Adapter '{name}' was registered as a folder and is a link now: load it again.")
        return registered

    def _in_roots(self, name: str) -> Path | None:
        return next((root / name for root in reversed(self.roots) if looks_like_adapter(root / name)), None)

    def _resolve_allowed(self, path: Path) -> Path:
        """Return the adapter folder at `path` with links resolved; raises AdapterError outside the allowed folders."""
        try:
            folder = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a zero byte, a cycle of links
            raise AdapterError(f"{quote_untrusted(str(path))} cannot be the path of an adapter's folder.") from error
        if not any(root.resolve() in folder.parents for root in self._allowed):
            raise AdapterError(
                f"{quote_untrusted(str(path))} is not inside a folder that adapters may be loaded from: copy it there."
            )
        refuse_full_model(folder)
        if not looks_like_adapter(folder):
            raise AdapterError(
                f"There is no adapter in {quote_untrusted(str(path))}: give the folder that train wrote."
            )
        return folder

    def _open(self, path: Path, name: str, base: BaseIdentity | None, *, need_digest: bool = True) -> AdapterFolder:
        """Return the adapter after its checks. Without `need_digest` only the header of its weights is read."""
        key = stat_key(path)
        found = self._check_cache.get(path, name, key, base, need_digest=need_digest)
        if found is not None:
            return found
        try:
            found = self._check(path, name, base, need_digest)
        except AdapterError as error:
            if key is not None and is_permanent(error):
                self._check_cache.put(path, name, key, base, str(error), has_digest=need_digest)
            raise
        if key is not None:
            self._check_cache.put(path, name, key, base, found, has_digest=need_digest)
        return found

    def _check(self, path: Path, name: str, base: BaseIdentity | None, need_digest: bool) -> AdapterFolder:
        check_files(path, name)
        config = read_config(path, name)
        peft_config.check_config(config, name)
        manifest = read_manifest(path, name)
        if base is not None:
            check_base(manifest, base, name)
            check_prompt(manifest, self.fingerprints, name)
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
            check_name(name)
            return AdapterStatus(name, True, "", self._open(path, name, base, need_digest=False).manifest)
        except PromptOrTuneError as error:
            reason = str(error)
        try:
            if path is not None:
                check_files(path, name)  # a manifest behind a link is not read
                return AdapterStatus(name, False, reason, read_manifest(path, name))
        except PromptOrTuneError:
            pass
        return AdapterStatus(name, False, reason, None)


def refuse_full_model(folder: Path | None) -> None:
    """Raise AdapterError where `folder` has a whole model, as full fine-tuning and `merge` write it."""
    if folder is not None and looks_like_model(folder):
        raise AdapterError(f"'{folder.name}' is a whole model, not an adapter: use it with --base {folder}.")


def user_adapter_folder(name: str, roots: Sequence[Path]) -> Path:
    """Return the folder of one of the user's own adapters, which need not be valid.

    Raises AdapterError for an adapter of the library or a whole model, UnknownNameError for an unknown name.
    """
    check_name(name)
    user_roots = [root for root in roots if root.resolve() != LIBRARY.resolve()]
    # A later root hides an earlier one, as in the store.
    for root in reversed(user_roots):
        if name in Store((root,)).names():
            return root / name
    store = Store(roots)
    if name in store.names():
        raise AdapterError(f"'{name}' comes with the program and is not deleted; leave it out where you list adapters.")
    models = store.full_models()
    if name in models:
        raise AdapterError(f"'{name}' is a whole model, not an adapter: delete the folder {models[name]} yourself.")
    raise unknown_name_error("adapter", name, Store(user_roots).names())


def delete_adapter(folder: Path) -> None:
    """Rename the folder to a hidden one, so that it disappears in one step, and delete that."""
    try:
        if folder.is_symlink():
            folder.unlink()  # the link only, its target is not in the store
            return
        # Hidden, so that no store lists it if the deletion fails half way.
        hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}-deleted-", dir=folder.parent))
        folder.rename(hidden / folder.name)
        shutil.rmtree(hidden)
    except OSError as error:
        raise AdapterError(
            f"{folder} cannot be deleted ({error.strerror or error}): check the permissions of {folder.parent}."
        ) from error
