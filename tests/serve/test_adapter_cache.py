"""The adapters in memory: loaded once, evicted in order, replaced when their folder changes, never half there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.weights import WEIGHTS_NAME
from errors import AdapterError, BusyError, UnknownNameError
from serve.engine.adapter_cache import AdapterCache
from tests.adapters.folders import tensors
from tests.serve.adapter_cache_backend import Keeper, first_number, residents, write

NAMES = ("a", "b", "c", "d")
SIZE = sum(each.nbytes for each in tensors().values())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        write(tmp_path, name, number)
    return tmp_path


def use(found: AdapterCache, *names: str) -> None:
    for name in names:
        found.acquire(name).release()


def await_event(event: threading.Event) -> None:
    assert event.wait(20)


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.005)
    return is_so()


def test_an_adapter_is_loaded_once_and_hit_after_that(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)
    with found.acquire("a") as lease:
        assert lease.folder.name == "a"
        (one,) = found.status().adapters
        assert (one.name, one.leases, one.bytes, one.digest) == ("a", 1, SIZE, lease.folder.digest)
    use(found, "a", "a")
    status = found.status()
    assert (status.hits, status.loads, status.count, status.bytes, status.adapters[0].leases) == (2, 1, 1, SIZE, 0)
    assert keeper.loads == ["a"]
    assert status.load_seconds > 0
    assert time.time() - status.adapters[0].last_used < 10


def test_what_was_used_longest_ago_goes_first(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper, max_count=3)
    use(found, "a", "b", "c", "a", "d")
    assert keeper.unloads == ["b"]
    assert [each.name for each in found.status().adapters] == ["c", "a", "d"]
    assert set(keeper.kept) == {"a", "c", "d"}
    assert found.status().evictions == 1


def test_a_lease_given_back_counts_as_use(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper, max_count=2)
    with found.acquire("a"):
        use(found, "b")
    use(found, "c")
    assert keeper.unloads == ["b"]


def test_a_leased_adapter_stays_and_releasing_twice_is_once(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper, max_count=2)
    first, second = found.acquire("a"), found.acquire("a")
    first.release()
    first.release()
    use(found, "b", "c")
    assert keeper.unloads == ["b"]
    second.release()
    use(found, "d", "b")
    assert "a" not in keeper.kept


def test_the_bound_in_bytes_holds(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper, max_bytes=2 * SIZE + (root / "a" / WEIGHTS_NAME).stat().st_size - SIZE)
    for name in NAMES:
        use(found, name)
        assert found.status().bytes <= found.status().max_bytes
    assert keeper.most == 2


def test_an_adapter_larger_in_memory_than_on_disk_gets_its_room(root: Path) -> None:
    keeper = Keeper(factor=3.0)
    found = residents(root, keeper, max_bytes=7 * SIZE)
    use(found, "a", "b")
    assert found.status().bytes == 6 * SIZE
    use(found, "c")
    assert found.status().bytes == 6 * SIZE
    assert set(keeper.kept) == {"b", "c"}


def test_an_adapter_larger_than_all_room_is_refused_and_nothing_stays(root: Path) -> None:
    keeper = Keeper(factor=100.0)
    found = residents(root, keeper, max_bytes=10 * SIZE)
    with pytest.raises(AdapterError, match=r"Adapter 'a' takes .* MB and all adapters together may take"):
        found.acquire("a")
    assert (found.status().count, found.status().bytes, keeper.kept) == (0, 0, {})


def test_a_pinned_adapter_stays_until_it_is_unpinned(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper, max_count=2)
    found.pin("a")
    use(found, "b", "c", "d")
    assert set(keeper.kept) == {"a", "d"}
    assert [each.name for each in found.status().adapters if each.pinned] == ["a"]
    found.unpin("a")
    use(found, "b", "c")
    assert set(keeper.kept) == {"b", "c"}


def test_where_all_are_pinned_the_sentence_says_so_at_once(root: Path) -> None:
    found = residents(root, Keeper(), max_count=2)
    found.pin("a")
    found.pin("b")
    begun = time.monotonic()
    with pytest.raises(AdapterError, match="no room for adapter 'c': those in memory are pinned"):
        found.acquire("c")
    assert time.monotonic() - begun < 5
    with pytest.raises(UnknownNameError):
        found.pin("e")
    assert [each.pinned for each in found.status().adapters] == [True, True]


def test_where_all_are_leased_it_waits_and_then_says_busy(root: Path) -> None:
    found = residents(root, Keeper(), max_count=2, timeout=0.05)
    held = [found.acquire("a"), found.acquire("b")]
    with pytest.raises(BusyError, match="in use: try again in about 1 s") as caught:
        found.acquire("c")
    assert caught.value.seconds >= 1
    with pytest.raises(BusyError):
        found.acquire("c", timeout=0.0)
    held[0].release()
    found.acquire("c", timeout=0.0).release()
    held[1].release()


def test_one_that_waits_goes_on_when_a_lease_is_given_back(root: Path) -> None:
    found = residents(root, Keeper(), max_count=1, timeout=20)
    held = found.acquire("a")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(found.acquire, "b")
        time.sleep(0.05)
        assert not waiting.done()
        held.release()
        assert waiting.result(10).folder.name == "b"


def test_many_that_ask_for_one_name_load_it_once(root: Path) -> None:
    keeper = Keeper()
    keeper.before = lambda _: time.sleep(0.1)
    found = residents(root, keeper)
    with ThreadPoolExecutor(8) as threads:
        leases = list(threads.map(found.acquire, ["a"] * 8))
    assert keeper.loads == ["a"]
    assert found.status().adapters[0].leases == 8
    for lease in leases:
        lease.release()
    assert found.status().adapters[0].leases == 0


def test_one_load_does_not_hold_up_the_others(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)
    use(found, "a")
    go = threading.Event()
    keeper.before = lambda name: await_event(go) if name == "b" else None
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(found.acquire, "b")
        assert within(10, lambda: "b" in keeper.loads)
        use(found, "a", "c")
        assert not slow.done()
        go.set()
        slow.result(10).release()
    assert set(keeper.kept) == {"a", "b", "c"}


def test_a_failing_load_leaves_nothing_behind_and_says_so_to_all_who_wait(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)

    def fails(name: str) -> None:
        time.sleep(0.1)
        raise AdapterError(f"Adapter '{name}' has NaN or infinite values: train it again.")

    keeper.before = fails
    with ThreadPoolExecutor(4) as threads:
        errors = [each.exception() for each in [threads.submit(found.acquire, "a") for _ in range(4)]]
    assert {str(error) for error in errors} == {"Adapter 'a' has NaN or infinite values: train it again."}
    assert keeper.loads == ["a"]
    assert (found.status().count, found.status().bytes, keeper.kept) == (0, 0, {})
    keeper.before = lambda _: None
    use(found, "a")
    assert found.status().count == 1


def test_an_error_that_is_no_adapters_fault_goes_through_and_leaves_the_name_free(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)

    def fails(name: str) -> None:
        raise MemoryError(name)

    keeper.before = fails
    with pytest.raises(MemoryError):
        found.acquire("a")
    keeper.before = lambda _: None
    use(found, "a")
    assert found.status().count == 1


def test_a_new_version_is_loaded_and_the_old_one_counts_while_it_is_leased(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)
    old = found.acquire("a")
    write(root, "a", 41.0)
    new = found.acquire("a")
    assert new.folder.digest != old.folder.digest
    assert first_number(keeper.kept["a"]) == 41.0
    assert (found.status().count, found.status().bytes) == (1, 2 * SIZE)
    old.release()
    assert found.status().bytes == SIZE
    assert keeper.unloads == []
    new.release()
    use(found, "a")
    assert keeper.loads == ["a", "a"]


def test_a_new_version_takes_the_place_of_the_old_one_where_there_is_one_place(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper, max_count=1)
    use(found, "a")
    write(root, "a", 41.0)
    use(found, "a")
    assert first_number(keeper.kept["a"]) == 41.0
    assert found.status().bytes == SIZE


def test_a_version_that_may_not_be_loaded_is_refused_though_the_old_one_is_there(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)
    use(found, "a")
    weights = root / "a" / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="cut short"):
        found.acquire("a")
    assert found.status().adapters[0].leases == 0


def test_a_folder_that_is_gone_is_unknown_though_its_adapter_is_in_memory(root: Path) -> None:
    found = residents(root, Keeper())
    use(found, "a")
    (root / "a").rename(root / ".a")
    with pytest.raises(UnknownNameError):
        found.acquire("a")


def test_a_file_that_changes_between_its_check_and_its_load_is_checked_and_loaded_anew(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)

    def changes(_: str) -> None:
        if len(keeper.loads) == 1:
            write(root, "a", 7.0)

    keeper.before = changes
    with found.acquire("a") as lease:
        assert first_number(keeper.kept["a"]) == 7.0
        assert lease.folder.digest == found.status().adapters[0].digest
    assert keeper.loads == ["a", "a"]


def test_a_file_that_changes_all_the_time_is_refused(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)

    def changes(_: str) -> None:
        write(root, "a", float(len(keeper.loads)) + 10)

    keeper.before = changes
    with pytest.raises(AdapterError, match="Adapter 'a' was changed while it was being loaded: ask for it again"):
        found.acquire("a")
    assert (found.status().count, keeper.kept) == (0, {})


def test_unloading_waits_for_the_last_lease(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)
    leases = [found.acquire("a"), found.acquire("a")]
    found.unload("a")
    leases[0].release()
    assert "a" in keeper.kept
    leases[1].release()
    assert keeper.kept == {}
    assert found.status().count == 0
    found.unload("a")
    assert keeper.unloads == ["a"]


def test_unloading_takes_a_pinned_one_too_and_whoever_asks_again_keeps_it(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)
    found.pin("a")
    found.unload("a")
    assert keeper.kept == {}
    found.pin("b")
    with found.acquire("b"):
        found.unload("b")
        use(found, "b")
    assert [(each.name, each.pinned) for each in found.status().adapters] == [("b", False)]
    assert "b" in keeper.kept


def test_unloading_waits_for_a_load(root: Path) -> None:
    keeper = Keeper()
    found = residents(root, keeper)
    go = threading.Event()
    keeper.before = lambda _: await_event(go)
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(found.acquire, "a")
        assert within(10, lambda: bool(keeper.loads))
        unloading = threads.submit(found.unload, "a")
        time.sleep(0.05)
        assert not unloading.done()
        go.set()
        lease = loading.result(10)
        unloading.result(10)
    assert "a" in keeper.kept
    lease.release()
    assert keeper.kept == {}


def test_many_threads_and_few_places(root: Path) -> None:
    keeper = Keeper()
    keeper.before = lambda _: time.sleep(0.001)
    found = residents(root, keeper, max_count=2)

    def work(number: int) -> None:
        for step in range(25):
            name = NAMES[(number * 7 + step * (number + 1)) % len(NAMES)]
            with found.acquire(name) as lease:
                assert first_number(keeper.kept[name]) == NAMES.index(name)
                assert lease.folder.name == name
            if step % 10 == number:
                found.unload(name)

    with ThreadPoolExecutor(6) as threads:
        for each in [threads.submit(work, number) for number in range(6)]:
            each.result(60)
    assert keeper.most <= 2
    status = found.status()
    assert {each.name for each in status.adapters} == set(keeper.kept)
    assert status.hits + status.loads == 150
    assert not any(each.leases for each in status.adapters)
