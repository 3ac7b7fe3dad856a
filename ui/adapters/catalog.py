"""Catalog of the adapters known to the engine or on disk: where each is stored, and whether it can be used here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapters.manifest import Manifest, Origin, check_name, read_origin
from adapters.store import LIBRARY, AdapterStatus, Store, looks_like_adapter
from adapters.weights import WEIGHTS_NAME
from errors import PromptOrTuneError
from jobs.api import JobService
from tasks.methods import Method, NoExamples
from tasks.prompt import STYLES
from ui.context import Context

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

Location = Literal["library", "own", "registered"]


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
