"""AdapterCache: loads, eviction, leases, new versions, and a comparison with a model under random operations."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adapters.store import Store
from adapters.weights import WEIGHTS_NAME
from errors import AdapterError, BusyError, PromptOrTuneError, UnknownNameError
from serve.engine.adapter_cache import AdapterCache, Lease
from serve.types import Backend
from tests import messages
from tests.adapters.folders import tensors
from tests.serve.adapter_cache_backend import (
    MAX_BYTES,
    MAX_COUNT,
    SIZES,
    CacheModel,
    ModelEntry,
    RecordingBackend,
    VersionedBackend,
    VersionedStore,
    first_weight,
    make_cache,
    write,
)

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(sorted(SIZES))
SIZE = sum(tensor.nbytes for tensor in tensors().values())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        write(tmp_path, name, number)
    return tmp_path


def use(cache: AdapterCache, *names: str) -> None:
    for name in names:
        cache.acquire(name).release()


def await_event(event: threading.Event) -> None:
    assert event.wait(20)


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.005)
    return is_so()


def test_adapter_is_loaded_once(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)
    with cache.acquire("a") as lease:
        assert lease.folder.name == "a"
        (adapter,) = cache.status().adapters
        assert (adapter.name, adapter.leases, adapter.bytes, adapter.digest) == ("a", 1, SIZE, lease.folder.digest)
    use(cache, "a", "a")
    status = cache.status()
    assert (status.hits, status.loads, status.count, status.bytes, status.adapters[0].leases) == (2, 1, 1, SIZE, 0)
    assert backend.loads == ["a"]
    assert status.load_seconds > 0
    assert time.time() - status.adapters[0].last_used < 10


def test_least_recently_used_adapter_is_evicted(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend, max_count=3)
    use(cache, "a", "b", "c", "a", "d")
    assert backend.unloads == ["b"]
    assert [adapter.name for adapter in cache.status().adapters] == ["c", "a", "d"]
    assert set(backend.loaded) == {"a", "c", "d"}
    assert cache.status().evictions == 1


def test_limit_in_bytes_is_not_exceeded(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend, max_bytes=2 * SIZE + (root / "a" / WEIGHTS_NAME).stat().st_size - SIZE)
    for name in NAMES:
        use(cache, name)
        assert cache.status().bytes <= cache.status().max_bytes
    assert backend.max_loaded == 2


def test_memory_is_freed_for_an_adapter_larger_than_its_file(root: Path) -> None:
    backend = RecordingBackend(factor=3.0)
    cache = make_cache(root, backend, max_bytes=7 * SIZE)
    use(cache, "a", "b")
    assert cache.status().bytes == 6 * SIZE
    use(cache, "c")
    assert cache.status().bytes == 6 * SIZE
    assert set(backend.loaded) == {"b", "c"}


def test_adapter_larger_than_the_limit_is_refused(root: Path) -> None:
    backend = RecordingBackend(factor=100.0)
    cache = make_cache(root, backend, max_bytes=10 * SIZE)
    with pytest.raises(AdapterError, match=messages.ADAPTER_LARGER_THAN_LIMIT):
        cache.acquire("a")
    assert (cache.status().count, cache.status().bytes, backend.loaded) == (0, 0, {})


def test_pinned_adapter_stays_until_it_is_unpinned(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend, max_count=2)
    cache.pin("a")
    use(cache, "b", "c", "d")
    assert set(backend.loaded) == {"a", "d"}
    assert [adapter.name for adapter in cache.status().adapters if adapter.pinned] == ["a"]
    cache.unpin("a")
    use(cache, "b", "c")
    assert set(backend.loaded) == {"b", "c"}


def test_acquire_does_not_wait_if_all_adapters_are_pinned(root: Path) -> None:
    cache = make_cache(root, RecordingBackend(), max_count=2)
    cache.pin("a")
    cache.pin("b")
    begin = time.monotonic()
    with pytest.raises(AdapterError, match=messages.ALL_ADAPTERS_PINNED):
        cache.acquire("c")
    assert time.monotonic() - begin < 5
    with pytest.raises(UnknownNameError):
        cache.pin("e")
    assert [adapter.pinned for adapter in cache.status().adapters] == [True, True]


def test_acquire_raises_busy_after_the_timeout_if_all_adapters_are_leased(root: Path) -> None:
    cache = make_cache(root, RecordingBackend(), max_count=2, timeout=0.05)
    leases = [cache.acquire("a"), cache.acquire("b")]
    with pytest.raises(BusyError, match=messages.ADAPTERS_IN_USE) as caught:
        cache.acquire("c")
    assert caught.value.seconds >= 1
    with pytest.raises(BusyError):
        cache.acquire("c", timeout=0.0)
    leases[0].release()
    cache.acquire("c", timeout=0.0).release()
    leases[1].release()


def test_waiting_acquire_continues_when_a_lease_is_released(root: Path) -> None:
    cache = make_cache(root, RecordingBackend(), max_count=1, timeout=20)
    leases = cache.acquire("a")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(cache.acquire, "b")
        time.sleep(0.05)
        assert not waiting.done()
        leases.release()
        assert waiting.result(10).folder.name == "b"


def test_concurrent_acquires_load_an_adapter_once(root: Path) -> None:
    backend = RecordingBackend()
    backend.before = lambda _: time.sleep(0.1)
    cache = make_cache(root, backend)
    with ThreadPoolExecutor(8) as threads:
        leases = list(threads.map(cache.acquire, ["a"] * 8))
    assert backend.loads == ["a"]
    assert cache.status().adapters[0].leases == 8
    for lease in leases:
        lease.release()
    assert cache.status().adapters[0].leases == 0


def test_load_does_not_block_other_adapters(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)
    use(cache, "a")
    may_end = threading.Event()
    backend.before = lambda name: await_event(may_end) if name == "b" else None
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(cache.acquire, "b")
        assert within(10, lambda: "b" in backend.loads)
        use(cache, "a", "c")
        assert not loading.done()
        may_end.set()
        loading.result(10).release()
    assert set(backend.loaded) == {"a", "b", "c"}


def test_all_waiting_threads_get_the_error_of_a_failed_load(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)

    def fails(name: str) -> None:
        time.sleep(0.1)
        raise AdapterError(f"Adapter '{name}' has NaN or infinite values: train it again.")

    backend.before = fails
    with ThreadPoolExecutor(4) as threads:
        errors = [future.exception() for future in [threads.submit(cache.acquire, "a") for _ in range(4)]]
    assert {str(error) for error in errors} == {"Adapter 'a' has NaN or infinite values: train it again."}
    assert backend.loads == ["a"]
    assert (cache.status().count, cache.status().bytes, backend.loaded) == (0, 0, {})
    backend.before = lambda _: None
    use(cache, "a")
    assert cache.status().count == 1


def test_other_exceptions_of_a_load_are_raised_and_the_adapter_can_be_loaded_later(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)

    def fails(name: str) -> None:
        raise MemoryError(name)

    backend.before = fails
    with pytest.raises(MemoryError):
        cache.acquire("a")
    backend.before = lambda _: None
    use(cache, "a")
    assert cache.status().count == 1


def test_replaced_version_counts_towards_the_limit_while_it_is_leased(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)
    old = cache.acquire("a")
    write(root, "a", 41.0)
    new = cache.acquire("a")
    assert new.folder.digest != old.folder.digest
    assert first_weight(backend.loaded["a"]) == 41.0
    assert (cache.status().count, cache.status().bytes) == (1, 2 * SIZE)
    old.release()
    assert cache.status().bytes == SIZE
    assert backend.unloads == []
    new.release()
    use(cache, "a")
    assert backend.loads == ["a", "a"]


def test_new_version_replaces_the_old_one_in_a_cache_of_one(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend, max_count=1)
    use(cache, "a")
    write(root, "a", 41.0)
    use(cache, "a")
    assert first_weight(backend.loaded["a"]) == 41.0
    assert cache.status().bytes == SIZE


def test_invalid_new_version_is_refused_although_the_old_one_is_loaded(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)
    use(cache, "a")
    weights = root / "a" / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterError, match=messages.STREAM_CUT_SHORT):
        cache.acquire("a")
    assert cache.status().adapters[0].leases == 0


def test_deleted_folder_is_unknown_although_its_adapter_is_loaded(root: Path) -> None:
    cache = make_cache(root, RecordingBackend())
    use(cache, "a")
    (root / "a").rename(root / ".a")
    with pytest.raises(UnknownNameError):
        cache.acquire("a")


def test_file_that_changes_between_check_and_load_is_loaded_again(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)

    def changes(_: str) -> None:
        if len(backend.loads) == 1:
            write(root, "a", 7.0)

    backend.before = changes
    with cache.acquire("a") as lease:
        assert first_weight(backend.loaded["a"]) == 7.0
        assert lease.folder.digest == cache.status().adapters[0].digest
    assert backend.loads == ["a", "a"]


def test_file_that_changes_in_every_load_is_refused(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)

    def changes(_: str) -> None:
        write(root, "a", float(len(backend.loads)) + 10)

    backend.before = changes
    with pytest.raises(AdapterError, match=messages.ADAPTER_CHANGED_DURING_LOAD):
        cache.acquire("a")
    assert (cache.status().count, backend.loaded) == (0, {})


def test_unloading_waits_for_the_last_lease(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)
    leases = [cache.acquire("a"), cache.acquire("a")]
    cache.unload("a")
    leases[0].release()
    assert "a" in backend.loaded
    leases[1].release()
    assert backend.loaded == {}
    assert cache.status().count == 0
    cache.unload("a")
    assert backend.unloads == ["a"]


def test_pinned_adapter_can_be_unloaded_and_acquired_again(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)
    cache.pin("a")
    cache.unload("a")
    assert backend.loaded == {}
    cache.pin("b")
    with cache.acquire("b"):
        cache.unload("b")
        use(cache, "b")
    assert [(adapter.name, adapter.pinned) for adapter in cache.status().adapters] == [("b", False)]
    assert "b" in backend.loaded


def test_unloading_waits_for_a_load(root: Path) -> None:
    backend = RecordingBackend()
    cache = make_cache(root, backend)
    may_end = threading.Event()
    backend.before = lambda _: await_event(may_end)
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(cache.acquire, "a")
        assert within(10, lambda: bool(backend.loads))
        unloading = threads.submit(cache.unload, "a")
        time.sleep(0.05)
        assert not unloading.done()
        may_end.set()
        lease = loading.result(10)
        unloading.result(10)
    assert "a" in backend.loaded
    lease.release()
    assert backend.loaded == {}


def test_concurrent_threads_do_not_exceed_a_small_cache(root: Path) -> None:
    backend = RecordingBackend()
    backend.before = lambda _: time.sleep(0.001)
    cache = make_cache(root, backend, max_count=2)

    def work(number: int) -> None:
        for step in range(25):
            name = NAMES[(number * 7 + step * (number + 1)) % len(NAMES)]
            with cache.acquire(name) as lease:
                assert first_weight(backend.loaded[name]) == NAMES.index(name)
                assert lease.folder.name == name
            if step % 10 == number:
                cache.unload(name)

    with ThreadPoolExecutor(6) as threads:
        for future in [threads.submit(work, number) for number in range(6)]:
            future.result(60)
    assert backend.max_loaded <= 2
    status = cache.status()
    assert {adapter.name for adapter in status.adapters} == set(backend.loaded)
    assert status.hits + status.loads == 150
    assert not any(adapter.leases for adapter in status.adapters)


class CacheComparison(RuleBasedStateMachine):
    """Applies random operations to a cache and to the model, and compares them after each one."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="adapter-cache-"))
        self.versions, self.backend, self.model = VersionedStore(self.root), VersionedBackend(), CacheModel()
        self.cache = AdapterCache(
            cast("Backend", self.backend), cast("Store", self.versions), max_count=MAX_COUNT, max_bytes=MAX_BYTES
        )
        self.leases: list[tuple[Lease, ModelEntry]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(name=names)
    def acquire(self, name: str) -> None:
        self.leases += [pair for pair in [self.acquire_both(name)] if pair]

    def acquire_both(self, name: str) -> tuple[Lease, ModelEntry] | None:
        try:
            entry = self.model.acquire(name, self.versions.version[name], name in self.backend.broken)
        except BusyError:
            # The model does not distinguish the case that all adapters are pinned, which is an AdapterError.
            expected: tuple[type[PromptOrTuneError], ...] = (BusyError, AdapterError)
        except AdapterError:
            expected = (AdapterError,)
        else:
            lease = self.cache.acquire(name, timeout=0.0)
            assert lease.folder.digest == f"version {entry.version}"
            return lease, entry
        with pytest.raises(expected):
            self.cache.acquire(name, timeout=0.0)
        return None

    @rule(index=st.integers(0, 30))
    def release(self, index: int) -> None:
        if self.leases:
            lease, entry = self.leases.pop(index % len(self.leases))
            lease.release()
            lease.release()
            self.model.release(entry)

    @rule(name=names)
    def pin(self, name: str) -> None:
        pair = self.acquire_both(name)
        if pair is not None:
            pair[0].release()
            self.cache.pin(name)
            self.model.pinned.add(name)
            self.model.release(pair[1])

    @rule(name=names)
    def unpin(self, name: str) -> None:
        self.cache.unpin(name)
        self.model.pinned.discard(name)

    @rule(name=names)
    def unload(self, name: str) -> None:
        self.cache.unload(name)
        self.model.unload(name)

    @rule(name=names)
    def change(self, name: str) -> None:
        self.versions.version[name] += 1

    @rule(name=names)
    def toggle_broken(self, name: str) -> None:
        self.backend.broken ^= {name}

    @invariant()
    def both_have_the_same_adapters(self) -> None:
        status = self.cache.status()
        assert [(adapter.name, adapter.digest, adapter.leases) for adapter in status.adapters] == [
            (entry.name, f"version {entry.version}", entry.leases) for entry in self.model.loaded
        ]
        assert {adapter.name for adapter in status.adapters if adapter.pinned} == self.model.pinned & set(
            self.backend.loaded
        )
        assert status.bytes == self.model.bytes() <= MAX_BYTES
        assert self.backend.loaded == {adapter.name: adapter.digest for adapter in status.adapters}


CacheComparison.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestCacheComparison: Any = CacheComparison.TestCase
