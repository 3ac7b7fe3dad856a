"""An adapter into a zip and out of one."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from adapters.archive import pack
from errors import AdapterError
from tests.adapters.folders import write_adapter

WEIGHTS = "adapter_model.safetensors"


def test_a_packed_adapter_holds_its_own_files_alone(good: Path, tmp_path: Path) -> None:
    (good / "README.md").write_text("# good\n")
    (good / "optimizer.npz").write_bytes(b"not part of an adapter")
    packed = pack(good, tmp_path / "out" / "good.zip")
    assert packed == tmp_path / "out" / "good.zip"
    with zipfile.ZipFile(packed) as archive:
        names = ["adapter_config.json", WEIGHTS, "manifest.json", "README.md"]
        assert archive.namelist() == [f"good/{name}" for name in names]
        assert archive.read(f"good/{WEIGHTS}") == (good / WEIGHTS).read_bytes()
    assert [path.name for path in packed.parent.iterdir()] == ["good.zip"]


def test_equal_adapters_give_equal_bytes(good: Path, tmp_path: Path) -> None:
    first = pack(good, tmp_path / "first.zip").read_bytes()
    for path in good.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    assert pack(write_adapter(tmp_path / "elsewhere" / "good"), tmp_path / "second.zip").read_bytes() == first
    assert pack(good, tmp_path / "first.zip").read_bytes() == first, "the one that stood there is replaced"


def test_what_is_no_adapter_is_not_packed(good: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    (good / "README.md").symlink_to(secret)
    with pytest.raises(AdapterError, match=r"README\.md is a symbolic link"):
        pack(good, tmp_path / "out.zip")
    (good / "README.md").unlink()
    (good / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match="has no file adapter_model"):
        pack(good, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_a_place_that_cannot_be_written_is_said(good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="'good' could not be packed into"):
        pack(good, tmp_path / "file" / "good.zip")
