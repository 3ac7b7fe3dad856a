"""An adapter into a zip and out of one."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.__main__ import main
from adapters.archive import STEPS, pack, unpack
from adapters.install import Step
from adapters.manifest import Manifest, read_origin
from errors import AdapterError
from tests.adapters.folders import CONFIG, MANIFEST, Tensors, store, tensors, write_adapter
from tests.adapters.zipped import entry, files_of, make_zip

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


@given(
    rank=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
    card=st.text(st.characters(codec="utf-8"), max_size=200),
    dataset=st.text(st.characters(codec="utf-8"), max_size=20),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_packed_is_unpacked(
    tmp_path_factory: pytest.TempPathFactory, rank: int, seed: int, card: str, dataset: str
) -> None:
    place = tmp_path_factory.mktemp("round")
    random = np.random.default_rng(seed)
    weights: Tensors = {key: np.asarray(random.random(each.shape), np.float32) for key, each in tensors(rank).items()}
    manifest = replace(MANIFEST, dataset=dataset, seed=seed)
    folder = write_adapter(place / "good", {**CONFIG, "r": rank}, manifest, weights)
    (folder / "README.md").write_bytes(card.encode())
    made = unpack(pack(folder, place / "out.zip"), place / "store", name="other")
    assert made == place / "store" / "other"
    files = {path.name: path.read_bytes() for path in made.iterdir() if not path.name.startswith(".")}
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_check_is_told_and_the_origin_noted(good: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    folder = unpack(pack(good, tmp_path / "Out Of A Mail.zip"), tmp_path / "store", steps.append)
    assert steps == [Step(name, ok=True) for name in STEPS]
    assert folder == tmp_path / "store" / "good"
    origin = read_origin(folder)
    assert origin is not None
    assert (origin.kind, origin.what) == ("zip", "Out Of A Mail.zip")
    assert store(folder.parent).inspect("good").manifest == MANIFEST
    assert [path.name for path in folder.parent.iterdir()] == ["good"], "what was needed on the way is gone"


def test_zips_as_people_make_them(good: Path, tmp_path: Path) -> None:
    """Files at the top, folders as entries, macOS's additions, and files that belong to no adapter."""
    extra = [
        (entry("__MACOSX/._adapter_config.json"), b"junk"),
        (entry("good/.DS_Store"), b"junk"),
        (entry("good/tokenizer.json"), b"{}"),
        (entry("good/", 0o40755), b""),
    ]
    folder = unpack(make_zip(tmp_path / "in.zip", [*extra, *files_of(good)]), tmp_path / "store")
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == sorted(
        path.name for path in good.iterdir()
    )
    at_top = make_zip(tmp_path / "Plain.zip", files_of(good, ""))
    assert unpack(at_top, tmp_path / "store").name == "plain"


def test_one_that_is_replaced_stays_until_the_new_one_is_sound(good: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    unpack(pack(good, tmp_path / "out.zip"), root)
    replace(MANIFEST, seed=9).write(good)
    newer = pack(good, tmp_path / "newer.zip")
    assert Manifest.read(unpack(newer, root, overwrite=True)).seed == 9
    (good / WEIGHTS).write_bytes(b"broken")
    broken = make_zip(tmp_path / "broken.zip", files_of(good))
    with pytest.raises(AdapterError):
        unpack(broken, root, overwrite=True)
    assert Manifest.read(root / "good").seed == 9
    assert [path.name for path in root.iterdir()] == ["good"]


def test_the_commands(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = str(good.parent), str(tmp_path / "there")
    assert main(["--root", here, "pack", "good", str(tmp_path / "out.zip")]) == 0
    assert "is packed in" in capsys.readouterr().out
    assert main(["--root", there, "unpack", str(tmp_path / "out.zip"), "--name", "mine"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"passed  {name}" for name in STEPS]
    assert "mine" in said.out
    assert main(["--root", there, "unpack", str(tmp_path / "out.zip"), "--name", "mine"]) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "FAILED  The name is free",
        f"There is an adapter 'mine' in {there} already: choose another one with --name, or add --overwrite.",
    ]
    assert main(["--root", there, "unpack", str(tmp_path / "out.zip"), "--name", "mine", "--overwrite"]) == 0
    assert main(["--root", here, "pack", "none", str(tmp_path / "no.zip")]) == 2
    assert "Unknown adapter 'none'" in capsys.readouterr().err
