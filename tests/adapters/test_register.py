"""Adapter folders registered under a name: allowed folders, checks, and names that are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapters.store import Store
from errors import AdapterError, UnknownNameError
from tests import messages
from tests.adapters.folders import BASE, FINGERPRINTS, MANIFEST, write_adapter


@pytest.fixture
def adapter_store(tmp_path: Path) -> Store:
    write_adapter(tmp_path / "root" / "good")
    write_adapter(tmp_path / "more" / "deep" / "other", manifest=replace(MANIFEST, seed=5))
    write_adapter(tmp_path / "outside" / "other")
    return Store((tmp_path / "root",), fingerprints=FINGERPRINTS, allowed=(tmp_path / "root", tmp_path / "more"))


def test_registered_folder_is_listed_and_opened_as_an_adapter(adapter_store: Store, tmp_path: Path) -> None:
    opened = adapter_store.register("mine", tmp_path / "more" / "deep" / "other")
    assert (opened.name, opened.manifest.seed) == ("mine", 5)
    assert adapter_store.names() == ["good", "mine"]
    assert adapter_store.open("mine", BASE).manifest.seed == 5
    assert [(status.name, status.usable) for status in adapter_store.status(BASE)] == [("good", True), ("mine", True)]
    adapter_store.register("mine", tmp_path / "more" / "deep" / "other")
    adapter_store.unregister("mine")
    assert adapter_store.names() == ["good"]
    with pytest.raises(UnknownNameError):
        adapter_store.open("mine", BASE)


def test_path_must_lie_inside_an_allowed_folder(adapter_store: Store, tmp_path: Path) -> None:
    for path in (
        tmp_path / "outside" / "other",
        tmp_path / "root" / ".." / "outside" / "other",
        tmp_path / "root",
        tmp_path,
        Path("/"),
        Path("/etc"),
        tmp_path / "rootless" / "other",
        tmp_path / "outside" / "none",
    ):
        with pytest.raises(AdapterError, match=messages.PATH_NOT_ALLOWED):
            adapter_store.register("mine", path)
    assert adapter_store.names() == ["good"]


def test_folders_inside_the_roots_are_allowed_by_default(tmp_path: Path) -> None:
    write_adapter(tmp_path / "root" / "good")
    write_adapter(tmp_path / "outside" / "other")
    plain = Store((tmp_path / "root",), fingerprints=FINGERPRINTS)
    assert plain.register("alias", tmp_path / "root" / "good").name == "alias"
    with pytest.raises(AdapterError, match=messages.PATH_NOT_INSIDE):
        plain.register("mine", tmp_path / "outside" / "other")
    with pytest.raises(AdapterError, match=messages.PATH_NOT_INSIDE):
        Store((tmp_path / "root",), allowed=()).register("mine", tmp_path / "root" / "good")


def test_link_to_another_folder_is_refused(adapter_store: Store, tmp_path: Path) -> None:
    (tmp_path / "more" / "link").symlink_to(tmp_path / "outside" / "other", target_is_directory=True)
    (tmp_path / "more" / "cycle").symlink_to(tmp_path / "more" / "cycle")
    for name in ("link", "cycle", "link/../other"):
        with pytest.raises(AdapterError):
            adapter_store.register("mine", tmp_path / "more" / name)
    adapter_store.register("mine", tmp_path / "more" / "deep" / "other")
    (tmp_path / "more" / "deep").rename(tmp_path / "more" / "was")
    (tmp_path / "more" / "deep").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(AdapterError, match=messages.REGISTERED_FOLDER_IS_LINK):
        adapter_store.open("mine", BASE)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a/" * 3000])
def test_invalid_path_is_refused(adapter_store: Store, tmp_path: Path, path: str) -> None:
    with pytest.raises(AdapterError) as caught:
        adapter_store.register("mine", tmp_path / "root" / path)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_registered_folder_is_checked(adapter_store: Store, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=messages.NO_ADAPTER_IN_FOLDER):
        adapter_store.register("mine", tmp_path / "more" / "deep")
    with pytest.raises(AdapterError, match=messages.NO_ADAPTER_IN_FOLDER):
        adapter_store.register("mine", tmp_path / "more" / "none")
    (tmp_path / "more" / "model").mkdir()
    (tmp_path / "more" / "model" / "config.json").touch()
    with pytest.raises(AdapterError, match=messages.IS_WHOLE_MODEL):
        adapter_store.register("mine", tmp_path / "more" / "model")
    write_adapter(tmp_path / "more" / "bare", manifest=None)
    with pytest.raises(AdapterError, match=messages.ADAPTER_WITHOUT_MANIFEST):
        adapter_store.register("mine", tmp_path / "more" / "bare")
    with pytest.raises(AdapterError, match=messages.BASE_IS_ANOTHER_BASE):
        adapter_store.register("mine", tmp_path / "more" / "deep" / "other", replace(BASE, id="another/base"))
    for name in ("../x", "", "Mine", "zero-shot"):
        with pytest.raises(AdapterError):
            adapter_store.register(name, tmp_path / "more" / "deep" / "other")
    assert adapter_store.names() == ["good"]


def test_taken_name_is_not_registered_for_another_folder(adapter_store: Store, tmp_path: Path) -> None:
    other = tmp_path / "more" / "deep" / "other"
    with pytest.raises(AdapterError, match=messages.OTHER_ADAPTER_NAMED_GOOD):
        adapter_store.register("good", other)
    assert adapter_store.register("good", tmp_path / "root" / "good").path == tmp_path / "root" / "good"
    adapter_store.register("mine", other)
    with pytest.raises(AdapterError, match=messages.OTHER_ADAPTER_NAMED_MINE):
        adapter_store.register("mine", tmp_path / "root" / "good")
    assert adapter_store.open("mine", BASE).path == other.resolve()
    write_adapter(tmp_path / "root" / "mine")
    assert adapter_store.open("mine", BASE).path == tmp_path / "root" / "mine"
    assert adapter_store.names() == ["good", "mine"]


def test_unregistering_an_unknown_name_is_an_error(adapter_store: Store) -> None:
    with pytest.raises(AdapterError, match=messages.ADAPTER_NOT_REGISTERED):
        adapter_store.unregister("good")
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_REGISTERED_ADAPTER):
        adapter_store.unregister("x")
    with pytest.raises(AdapterError, match=messages.ADAPTER_NAME_INVALID):
        adapter_store.unregister("../x")


def test_number_of_registered_adapters_is_limited(
    adapter_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.store.MAX_REGISTERED", 2)
    for name in ("one", "two"):
        adapter_store.register(name, tmp_path / "more" / "deep" / "other")
    with pytest.raises(AdapterError, match=messages.REGISTRATION_LIMIT):
        adapter_store.register("three", tmp_path / "more" / "deep" / "other")
