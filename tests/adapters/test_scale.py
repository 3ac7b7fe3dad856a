"""Caches of the store: unchanged folders are read once, every change is detected, and many adapters are fast."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import manifest, weights
from adapters import store as store_module
from adapters.store import AdapterFolder, Store
from errors import AdapterError, UnknownNameError
from tests import messages
from tests.adapters.folders import BASE, CONFIG, FINGERPRINTS, MANIFEST, store, write_adapter

MANY = 5000


@pytest.fixture
def stable_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock a minute ahead, so that files are old enough for their results to be cached."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60_000_000_000)


class ReadCounter:
    """Counts the folders that the store reads; a call returns the number since the last call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = manifest.read_config

        def read(folder: Path, name: str) -> dict[str, Any]:
            self.count += 1
            return real(folder, name)

        monkeypatch.setattr(store_module, "read_config", read)

    def __call__(self) -> int:
        count, self.count = self.count, 0
        return count


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, stable_files: None) -> ReadCounter:
    return ReadCounter(monkeypatch)


def test_folder_is_checked_once_for_each_base(good: Path, checked: ReadCounter) -> None:
    adapter_store = store(good.parent)
    first = adapter_store.open("good", BASE)
    assert adapter_store.open("good", BASE) is first
    assert checked() == 1
    assert adapter_store.inspect("good") is adapter_store.inspect("good")
    assert checked() == 1
    with pytest.raises(AdapterError, match=messages.BASE_IS_OTHER):
        adapter_store.open("good", replace(BASE, id="other"))
    assert adapter_store.open("good", BASE) == first


def changes(good: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    config = (good / "adapter_config.json").read_text()
    tensors = (good / "adapter_model.safetensors").read_bytes()
    yield (
        "config",
        lambda: (good / "adapter_config.json").write_text(config.replace('"lora_alpha": 8', '"lora_alpha": 9')),
    )
    yield "manifest", lambda: replace(MANIFEST, seed=7).write(good)
    yield "weights", lambda: (good / "adapter_model.safetensors").write_bytes(tensors[:-1] + b"\x01")
    yield "another folder", lambda: (good.rename(good.with_name(".old")), write_adapter(good))


def test_every_change_is_detected_by_the_next_call(good: Path, checked: ReadCounter) -> None:
    adapter_store = store(good.parent)
    for what, change in changes(good):
        adapter_store.open("good", BASE)
        checked()
        change()
        before = adapter_store.open("good", BASE)
        assert checked() == 1, what
        assert adapter_store.open("good", BASE) is before


def test_changed_file_of_the_same_size_and_time_is_detected(good: Path, checked: ReadCounter) -> None:
    adapter_store = store(good.parent)
    first = adapter_store.open("good", BASE)
    path = good / "adapter_model.safetensors"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert adapter_store.open("good", BASE).digest != first.digest


def test_folder_that_becomes_unsafe_is_refused_and_a_repaired_one_opens(good: Path, checked: ReadCounter) -> None:
    adapter_store = store(good.parent)
    adapter_store.open("good", BASE)
    (good / "x.bin").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(AdapterError, match=messages.IS_PICKLE):
            adapter_store.open("good", BASE)
    (good / "x.bin").unlink()
    adapter_store.open("good", BASE)
    (good / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(AdapterError, match=messages.README_IS_LINK):
        adapter_store.open("good", BASE)


def test_refusal_is_cached_unless_the_system_failed(
    good: Path, checked: ReadCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_store = store(good.parent)
    (good / "adapter_config.json").write_text("{")
    for _ in range(3):
        with pytest.raises(AdapterError, match=messages.ADAPTER_CONFIG_UNREADABLE):
            adapter_store.open("good", BASE)
    assert checked() == 1
    write_adapter(good.parent / "other")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        with pytest.raises(AdapterError, match=messages.TOO_MANY_OPEN_FILES):
            adapter_store.open("other", BASE)
    assert adapter_store.open("other", BASE).name == "other"


def test_list_of_all_adapters_reads_no_weights(
    good: Path, checked: ReadCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_store = store(good.parent)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "inspect", lambda *_: pytest.fail("the weights were read"))
        assert [status.usable for status in adapter_store.status(BASE) + adapter_store.status(BASE)] == [True, True]
    assert checked() == 1
    assert adapter_store.open("good", BASE).sha256
    assert adapter_store.status(BASE)[0].manifest is adapter_store.open("good", BASE).manifest
    assert checked() == 1


def test_folder_that_has_just_changed_is_read_again(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter_store, checked = store(good.parent), ReadCounter(monkeypatch)
    adapter_store.open("good", BASE)
    adapter_store.open("good", BASE)
    assert checked() == 2


def test_names_are_updated_when_folders_are_added_and_removed(tmp_path: Path, stable_files: None) -> None:
    adapter_store = Store((tmp_path / "one", tmp_path / "two"), fingerprints=FINGERPRINTS)
    assert adapter_store.names() == []
    write_adapter(tmp_path / "one" / "a")
    assert adapter_store.names() == ["a"]
    write_adapter(tmp_path / "two" / "b")
    assert adapter_store.names() == adapter_store.names() == ["a", "b"]
    (tmp_path / "two" / "c").mkdir()
    assert adapter_store.names() == ["a", "b"]
    write_adapter(tmp_path / "elsewhere")
    for file in (tmp_path / "elsewhere").iterdir():  # into an existing folder: the root's times do not change
        file.rename(tmp_path / "two" / "c" / file.name)
    assert adapter_store.names() == ["a", "b", "c"]
    (tmp_path / "two" / "b").rename(tmp_path / "two" / ".b")
    assert adapter_store.names() == ["a", "c"]
    with pytest.raises(UnknownNameError):
        adapter_store.open("b", BASE)


def test_folder_that_is_no_longer_an_adapter_is_removed_from_the_names(
    good: Path, stable_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_store = store(good.parent)
    assert adapter_store.names() == ["good"]
    (good / "adapter_config.json").unlink()
    with pytest.raises(UnknownNameError):
        adapter_store.open("good", BASE)
    now = time.monotonic() + 1
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert adapter_store.names() == []


def test_many_folders_are_scanned_once(tmp_path: Path, stable_files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(MANY):
        folder = tmp_path / f"lora-{number:04d}"
        folder.mkdir()
        (folder / "adapter_config.json").touch()
    write_adapter(tmp_path / "good")
    adapter_store = store(tmp_path)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert len(adapter_store.names()) == MANY + 1
    scans: list[str] = []
    real = os.scandir

    def scandir(path: str) -> Any:
        scans.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for _ in range(20):
        assert len(adapter_store.names()) == MANY + 1
        adapter_store.open("good", BASE)
    assert scans == [str(tmp_path / "good")]
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_ADAPTER_AMONG_MANY) as caught:
        adapter_store.open("lora-0007x", BASE)
    assert len(str(caught.value)) < 3000


def test_cache_is_bounded(good: Path, checked: ReadCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.store._MAX_CACHE_BYTES", 4000)
    for number in range(6):
        write_adapter(good.parent / f"other-{number}")
    adapter_store = store(good.parent)
    for name in (*adapter_store.names(), "other-5", "good"):
        adapter_store.open(name, BASE)
    assert checked() == 8  # the last one is cached, the first one was evicted


def test_concurrent_reads_while_folders_change_are_consistent(tmp_path: Path) -> None:
    adapter_store = store(tmp_path)
    write_adapter(tmp_path / "stays")
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            assert "stays" in adapter_store.names()
            assert adapter_store.open("stays", BASE).name == "stays"
            assert [status.name for status in adapter_store.status(BASE) if status.usable or status.name == "stays"][
                -1
            ] == "stays"

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(read) for _ in range(4)]
        for _ in range(15):
            write_adapter(tmp_path / "comes", CONFIG).rename(tmp_path / ".went")
            shutil.rmtree(tmp_path / ".went")
        done.set()
        for future in futures:
            future.result(20)
    assert adapter_store.names() == ["stays"]


def test_short_digest_is_derived_from_the_complete_one(good: Path) -> None:
    folder: AdapterFolder = store(good.parent).open("good", BASE)
    assert weights.short_digest(folder.sha256) == folder.digest
    assert len(folder.sha256) == 64
