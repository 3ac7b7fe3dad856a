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
def found(tmp_path: Path) -> Store:
    write_adapter(tmp_path / "root" / "good")
    write_adapter(tmp_path / "more" / "deep" / "other", manifest=replace(MANIFEST, seed=5))
    write_adapter(tmp_path / "outside" / "other")
    return Store((tmp_path / "root",), fingerprints=FINGERPRINTS, allowed=(tmp_path / "root", tmp_path / "more"))


def test_registered_folder_is_listed_and_opened_as_an_adapter(found: Store, tmp_path: Path) -> None:
    opened = found.register("mine", tmp_path / "more" / "deep" / "other")
    assert (opened.name, opened.manifest.seed) == ("mine", 5)
    assert found.names() == ["good", "mine"]
    assert found.open("mine", BASE).manifest.seed == 5
    assert [(status.name, status.usable) for status in found.status(BASE)] == [("good", True), ("mine", True)]
    found.register("mine", tmp_path / "more" / "deep" / "other")
    found.unregister("mine")
    assert found.names() == ["good"]
    with pytest.raises(UnknownNameError):
        found.open("mine", BASE)


def test_path_must_lie_inside_an_allowed_folder(found: Store, tmp_path: Path) -> None:
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
            found.register("mine", path)
    assert found.names() == ["good"]


def test_folders_inside_the_roots_are_allowed_by_default(tmp_path: Path) -> None:
    write_adapter(tmp_path / "root" / "good")
    write_adapter(tmp_path / "outside" / "other")
    plain = Store((tmp_path / "root",), fingerprints=FINGERPRINTS)
    assert plain.register("alias", tmp_path / "root" / "good").name == "alias"
    with pytest.raises(AdapterError, match=messages.PATH_NOT_INSIDE):
        plain.register("mine", tmp_path / "outside" / "other")
    with pytest.raises(AdapterError, match=messages.PATH_NOT_INSIDE):
        Store((tmp_path / "root",), allowed=()).register("mine", tmp_path / "root" / "good")


def test_link_to_another_folder_is_refused(found: Store, tmp_path: Path) -> None:
    (tmp_path / "more" / "link").symlink_to(tmp_path / "outside" / "other", target_is_directory=True)
    (tmp_path / "more" / "cycle").symlink_to(tmp_path / "more" / "cycle")
    for name in ("link", "cycle", "link/../other"):
        with pytest.raises(AdapterError):
            found.register("mine", tmp_path / "more" / name)
    found.register("mine", tmp_path / "more" / "deep" / "other")
    (tmp_path / "more" / "deep").rename(tmp_path / "more" / "was")
    (tmp_path / "more" / "deep").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(AdapterError, match=messages.REGISTERED_FOLDER_IS_LINK):
        found.open("mine", BASE)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a/" * 3000])
def test_invalid_path_is_refused(found: Store, tmp_path: Path, path: str) -> None:
    with pytest.raises(AdapterError) as caught:
        found.register("mine", tmp_path / "root" / path)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_registered_folder_is_checked(found: Store, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=messages.NO_ADAPTER_IN_FOLDER):
        found.register("mine", tmp_path / "more" / "deep")
    with pytest.raises(AdapterError, match=messages.NO_ADAPTER_IN_FOLDER):
        found.register("mine", tmp_path / "more" / "none")
    (tmp_path / "more" / "model").mkdir()
    (tmp_path / "more" / "model" / "config.json").touch()
    with pytest.raises(AdapterError, match=messages.IS_WHOLE_MODEL):
        found.register("mine", tmp_path / "more" / "model")
    write_adapter(tmp_path / "more" / "bare", manifest=None)
    with pytest.raises(AdapterError, match=messages.ADAPTER_WITHOUT_MANIFEST):
        found.register("mine", tmp_path / "more" / "bare")
    with pytest.raises(AdapterError, match=messages.BASE_IS_ANOTHER_BASE):
        found.register("mine", tmp_path / "more" / "deep" / "other", replace(BASE, id="another/base"))
    for name in ("../x", "", "Mine", "zero-shot"):
        with pytest.raises(AdapterError):
            found.register(name, tmp_path / "more" / "deep" / "other")
    assert found.names() == ["good"]


def test_taken_name_is_not_registered_for_another_folder(found: Store, tmp_path: Path) -> None:
    other = tmp_path / "more" / "deep" / "other"
    with pytest.raises(AdapterError, match=messages.OTHER_ADAPTER_NAMED_GOOD):
        found.register("good", other)
    assert found.register("good", tmp_path / "root" / "good").path == tmp_path / "root" / "good"
    found.register("mine", other)
    with pytest.raises(AdapterError, match=messages.OTHER_ADAPTER_NAMED_MINE):
        found.register("mine", tmp_path / "root" / "good")
    assert found.open("mine", BASE).path == other.resolve()
    write_adapter(tmp_path / "root" / "mine")
    assert found.open("mine", BASE).path == tmp_path / "root" / "mine"
    assert found.names() == ["good", "mine"]


def test_unregistering_an_unknown_name_is_an_error(found: Store) -> None:
    with pytest.raises(AdapterError, match=messages.ADAPTER_NOT_REGISTERED):
        found.unregister("good")
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_REGISTERED_ADAPTER):
        found.unregister("x")
    with pytest.raises(AdapterError, match=messages.ADAPTER_NAME_INVALID):
        found.unregister("../x")


def test_number_of_registered_adapters_is_limited(
    found: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.store.MAX_REGISTERED", 2)
    for name in ("one", "two"):
        found.register(name, tmp_path / "more" / "deep" / "other")
    with pytest.raises(AdapterError, match=messages.REGISTRATION_LIMIT):
        found.register("three", tmp_path / "more" / "deep" / "other")
