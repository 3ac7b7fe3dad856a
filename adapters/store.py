"""List/open adapter folders, cached checks, delete.

The store: which adapter folders there are, and which of them may be loaded onto a base.

Folders that were checked before, for as long as nothing about them has changed.

Which folders of a root are adapters, asked often: thousands of them must not be looked into each time.

Deletes an adapter: out of the user's own folder, never out of the library that comes with the program.
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

from adapters import checks, peft_config, weights
from adapters.checks import CONFIG_NAME
from adapters.manifest import MANIFEST_NAME, Manifest
from adapters.peft_config import check_shapes
from adapters.weights import MIN_STAT_AGE_NS, WEIGHTS_NAME
from common.format import quote_untrusted
from common.paths import cache_dir
from errors import AdapterError, PromptOrTuneError, unknown_name_error
from models.identity import BaseIdentity

# A folder that stays, but is no adapter any more, is noticed within this time; whoever opens it sees it at once.
_RECHECK_SECONDS = 1.0


@dataclass(frozen=True)
class _DirectoryScan:
    """What a root held: its adapters, and the folders that may become some without the root showing it."""

    stat_key: tuple[int, int, int]
    scanned_at: float
    adapters: tuple[str, ...]
    others: tuple[str, ...]


class AdapterDirectory:
    """The names of one root's adapters. Of any thread; a folder that is added or removed is seen at the next call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last_scan: _DirectoryScan | None = None

    def names(self) -> tuple[str, ...]:
        """Names of the folders that look like adapters, in no order; none of them is checked yet."""
        try:
            if not self.root.is_dir():
                return ()
            status = self.root.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            known = self._last_scan
            if known is None or not self._is_current(known, stamp):
                now, settled = time.monotonic(), time.time_ns() - status.st_ctime_ns > MIN_STAT_AGE_NS
                known = _DirectoryScan(stamp, now, *self._scan())
                # A second change within one tick of the clock would not show in the root's times.
                self._last_scan = known if settled else None
            return known.adapters
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
    """Hidden folders are left out: that is how a folder is named while it is being written."""
    return not folder.name.startswith(".") and has_file(str(folder), CONFIG_NAME)


def looks_like_model(folder: Path) -> bool:
    """Whether a whole model lies there, as full fine-tuning and `merge` leave it."""
    return (
        not folder.name.startswith(".")
        and has_file(str(folder), "config.json")
        and not has_file(str(folder), CONFIG_NAME)
    )


def has_file(folder: str, name: str) -> bool:
    """Whether there is such a file, or a link to one; False for a folder that may not be entered."""
    return os.path.isfile(f"{folder}/{name}")  # noqa: PTH113 - five times as fast, and asked thousands of times


# Of JSON in the files; what is made of it takes several times as much memory.
_MAX_CACHE_BYTES = 32 << 20
_STAT_FILES = (CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME)
_CacheKey = tuple[str, str, bool, bool]
StatKey = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _CheckResult:
    stat_key: StatKey
    base: BaseIdentity | None
    result: AdapterFolder | str
    cost: int


class CheckCache:
    """What checking a folder came to: the adapter, or why it was refused. Of any thread; bounded in bytes.

    The times of a folder show what was added to it, removed or renamed, those of the files that are read show what
    was written into them. Neither shows how large a file has become that nobody reads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._results: OrderedDict[_CacheKey, _CheckResult] = OrderedDict()
        self._bytes = 0

    def get(
        self, folder: Path, name: str, stat: StatKey | None, base: BaseIdentity | None, *, need_digest: bool
    ) -> AdapterFolder | None:
        """What was found when the folder had this stamp, None where that is not known; AdapterError as it was.

        Where the `whole` is not needed, its digests may be missing.
        """
        with self._lock:
            for key in [_cache_key(folder, name, base, each) for each in ((True,) if need_digest else (True, False))]:
                checked = self._results.get(key)
                if checked is not None and checked.stat_key == stat and checked.base == base:
                    self._results.move_to_end(key)
                    break
            else:
                return None
        if isinstance(checked.result, str):
            raise AdapterError(checked.result)
        return checked.result

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
        """Keeps what was found; what was asked for longest ago goes."""
        cost = 256 + sum(size for _, size, *_ in stat[1:-1])
        with self._lock:
            for each in (True, False):
                self._evict(_cache_key(folder, name, base, each))
            self._results[_cache_key(folder, name, base, has_digest)] = _CheckResult(stat, base, result, cost)
            self._bytes += cost
            while self._bytes > _MAX_CACHE_BYTES:
                self._evict(next(iter(self._results)))

    def _evict(self, key: _CacheKey) -> None:
        checked = self._results.pop(key, None)
        if checked is not None:
            self._bytes -= checked.cost


def _cache_key(folder: Path, name: str, base: BaseIdentity | None, has_digest: bool) -> _CacheKey:
    return (str(folder), name, base is None, has_digest)


def stat_key(folder: Path) -> StatKey | None:
    """Changes whenever the folder or one of the files that are read does; None where nothing may be remembered.

    A folder that changed a moment ago may change again within one tick of the clock.
    """
    found = [_stat_tuple(str(folder)), *(_stat_tuple(f"{folder}/{name}") for name in _STAT_FILES)]
    settled = time.time_ns() - max(status[-1] for status in found) > MIN_STAT_AGE_NS
    return tuple(found) if settled else None


def is_permanent(error: BaseException | None) -> bool:
    """Whether a refusal will be the same next time: not where the system could not read, as it may by then."""
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
            except OSError as error:
                raise AdapterError(f"The adapters in {root} cannot be read ({error.strerror or error}).") from error
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
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a zero byte, a ring of links
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
        """The folder after its checks. Where not the `whole` is needed, its weights are not read and have no digest."""
        now = stat_key(path)
        found = self._check_cache.get(path, name, now, base, need_digest=need_digest)
        if found is not None:
            return found
        try:
            found = self._check(path, name, base, need_digest)
        except AdapterError as error:
            if now is not None and is_permanent(error):
                self._check_cache.put(path, name, now, base, str(error), has_digest=need_digest)
            raise
        if now is not None:
            self._check_cache.put(path, name, now, base, found, has_digest=need_digest)
        return found

    def _check(self, path: Path, name: str, base: BaseIdentity | None, need_digest: bool) -> AdapterFolder:
        checks.check_files(path, name)
        config = checks.read_config(path, name)
        peft_config.check_config(config, name)
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
        except PromptOrTuneError as error:
            reason = str(error)
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
    except OSError as error:
        raise AdapterError(
            f"{folder} cannot be deleted ({error.strerror or error}): check who may write to {folder.parent}."
        ) from error
