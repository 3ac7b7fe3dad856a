"""Bases from the Hub, with the real client against a local stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from errors import BaseModelError
from models.loader import load_base
from models.source import resolve
from tests.hub_standin import Hub, hub_standin
from tests.serve.tiny import make_base


def _silent(_: str) -> None:
    return


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        monkeypatch.setattr(constants, "ENDPOINT", standin.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", standin.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        standin.repositories["someone/tiny"] = make_base("llama", tmp_path / "tiny")
        yield standin


def test_a_base_is_downloaded_once_and_named_by_its_commit(hub: Hub) -> None:
    lines: list[str] = []
    loaded = load_base("someone/tiny", "none", "cpu", lines.append)
    assert loaded.identity.id == "someone/tiny"
    assert loaded.identity.revision == hub.commit("someone/tiny")
    assert any(line.startswith("Looking up someone/tiny") for line in lines)
    before = len([request for request in hub.requests if "safetensors" in request and request.startswith("GET")])
    assert before == 1
    again = resolve(f"someone/tiny@{hub.commit('someone/tiny')}", _silent)
    assert again.revision == loaded.identity.revision
    assert len([request for request in hub.requests if "safetensors" in request and request.startswith("GET")]) == 1


def test_a_cached_base_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve("someone/tiny", _silent)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve("someone/tiny", _silent) == first


def test_a_name_that_the_hub_does_not_know(hub: Hub) -> None:
    with pytest.raises(BaseModelError, match="There is no base 'someone/else' on the Hub"):
        resolve("someone/else", _silent)


def test_a_revision_that_the_hub_does_not_know(hub: Hub) -> None:
    with pytest.raises(BaseModelError, match="has no revision 'v9'"):
        resolve("someone/tiny@v9", _silent)


def test_a_gated_base_says_how_to_get_access(hub: Hub) -> None:
    hub.gated.add("someone/tiny")
    with pytest.raises(BaseModelError, match="is gated: accept its terms"):
        resolve("someone/tiny", _silent)


def test_pickled_weights_are_not_loaded(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    hub.repositories["someone/pickled"] = folder
    with pytest.raises(BaseModelError, match="no safetensors weights"):
        resolve("someone/pickled", _silent)
    assert not [request for request in hub.requests if request.endswith(".bin")]
