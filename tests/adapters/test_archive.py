"""Packing and unpacking of adapter zips, and refusal of hostile zips of every kind."""

from __future__ import annotations

import json
import os
import random
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.__main__ import main
from adapters.archive import (
    STEP_CRC,
    STEP_FILE_TYPES,
    STEP_IS_ZIP,
    STEP_PATHS,
    STEP_REQUIRED_FILES,
    STEP_SIZES,
    STEPS,
    pack,
    unpack,
)
from adapters.install import STEP_CONSISTENT, STEP_NAME, Step
from adapters.manifest import Manifest, read_origin
from errors import AdapterError, DiskSpaceError, PromptOrTuneError
from tests import messages
from tests.adapters.folders import CONFIG, MANIFEST, Tensors, store, tensors, write_adapter
from tests.adapters.zipped import entry, files_of, make_zip, patched


def test_packed_adapter_contains_only_its_own_files(good: Path, tmp_path: Path) -> None:
    (good / "README.md").write_text("# good\n")
    (good / "optimizer.npz").write_bytes(b"not part of an adapter")
    packed = pack(good, tmp_path / "out" / "good.zip")
    assert packed == tmp_path / "out" / "good.zip"
    with zipfile.ZipFile(packed) as archive:
        names = ["adapter_config.json", WEIGHTS, "manifest.json", "README.md"]
        assert archive.namelist() == [f"good/{name}" for name in names]
        assert archive.read(f"good/{WEIGHTS}") == (good / WEIGHTS).read_bytes()
    assert [path.name for path in packed.parent.iterdir()] == ["good.zip"]


def test_equal_adapters_are_packed_to_equal_bytes(good: Path, tmp_path: Path) -> None:
    first = pack(good, tmp_path / "first.zip").read_bytes()
    for path in good.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    assert pack(write_adapter(tmp_path / "elsewhere" / "good"), tmp_path / "second.zip").read_bytes() == first
    assert pack(good, tmp_path / "first.zip").read_bytes() == first, "an existing file is replaced"


def test_folder_that_is_not_an_adapter_is_not_packed(good: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    (good / "README.md").symlink_to(secret)
    with pytest.raises(AdapterError, match=messages.README_IS_LINK):
        pack(good, tmp_path / "out.zip")
    (good / "README.md").unlink()
    (good / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=messages.WEIGHTS_FILE_MISSING):
        pack(good, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_target_that_cannot_be_written_is_reported(good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match=messages.PACKING_FAILED):
        pack(good, tmp_path / "file" / "good.zip")


@given(
    rank=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
    card=st.text(st.characters(codec="utf-8"), max_size=200),
    dataset=st.text(st.characters(codec="utf-8"), max_size=20),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_adapter_is_unpacked_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rank: int, seed: int, card: str, dataset: str
) -> None:
    folder = tmp_path_factory.mktemp("round")
    random = np.random.default_rng(seed)
    weights: Tensors = {
        key: np.asarray(random.random(tensor.shape), np.float32) for key, tensor in tensors(rank).items()
    }
    manifest = replace(MANIFEST, dataset=dataset, seed=seed)
    original = write_adapter(folder / "good", {**CONFIG, "r": rank}, manifest, weights)
    (original / "README.md").write_bytes(card.encode())
    unpacked = unpack(pack(original, folder / "out.zip"), folder / "store", name="other")
    assert unpacked == folder / "store" / "other"
    files = {path.name: path.read_bytes() for path in unpacked.iterdir() if not path.name.startswith(".")}
    assert files == {path.name: path.read_bytes() for path in original.iterdir()}


def test_unpacking_reports_every_step_and_writes_the_origin(good: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    folder = unpack(pack(good, tmp_path / "Out Of A Mail.zip"), tmp_path / "store", steps.append)
    assert steps == [Step(name, ok=True) for name in STEPS]
    assert folder == tmp_path / "store" / "good"
    origin = read_origin(folder)
    assert origin is not None
    assert (origin.kind, origin.what) == ("zip", "Out Of A Mail.zip")
    assert store(folder.parent).inspect("good").manifest == MANIFEST
    assert [path.name for path in folder.parent.iterdir()] == ["good"], "the staging folder is removed"


def test_zips_of_usual_tools_are_unpacked(good: Path, tmp_path: Path) -> None:
    """Files at the top level, entries of folders, files that macOS adds, and files that are not part of an adapter."""
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


def test_old_adapter_is_replaced_only_by_a_valid_one(good: Path, tmp_path: Path) -> None:
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


def test_pack_and_unpack_commands(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = str(good.parent), str(tmp_path / "there")
    assert main(["--root", here, "pack", "good", str(tmp_path / "out.zip")]) == 0
    assert "is packed in" in capsys.readouterr().out
    assert main(["--root", there, "unpack", str(tmp_path / "out.zip"), "--name", "mine"]) == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [f"passed  {name}" for name in STEPS]
    assert "mine" in output.out
    assert main(["--root", there, "unpack", str(tmp_path / "out.zip"), "--name", "mine"]) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "FAILED  The name is free",
        f"There is an adapter 'mine' in {there} already: choose another one with --name, or add --overwrite.",
    ]
    assert main(["--root", there, "unpack", str(tmp_path / "out.zip"), "--name", "mine", "--overwrite"]) == 0
    assert main(["--root", here, "pack", "none", str(tmp_path / "no.zip")]) == 2
    assert "Unknown adapter 'none'" in capsys.readouterr().err


WEIGHTS = "adapter_model.safetensors"


def refusal(path: Path, failed_step: str, error: type[PromptOrTuneError] = AdapterError, **options: Any) -> str:
    """Check that the error is raised at that step and that the store is unchanged; return its message."""
    root = path.parent / "store"
    root.mkdir(exist_ok=True)
    before = sorted(root.rglob("*"))
    steps: list[Step] = []
    with pytest.raises(error) as caught:
        unpack(path, root, steps.append, **options)
    assert sorted(root.rglob("*")) == before
    assert [step.ok for step in steps] == [True] * (len(steps) - 1) + [False]
    assert steps[-1].name == failed_step
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt", "good/../../evil.txt", "/etc/evil.txt", "good/..", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt",
        "good/sub/../../../evil.txt",
    ],
)  # fmt: skip
def test_path_outside_of_the_folder_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(name), b"owned")])
    assert "which would lie outside its folder" in refusal(path, STEP_PATHS)


@pytest.mark.parametrize("name", ["good/./README.md", "good//README.md", "good/a\nb", "good/\x1b[2J"])
def test_invalid_file_name_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(name), b"x")])
    assert "cannot be a file's name" in refusal(path, STEP_PATHS)


def test_file_name_with_a_zero_byte_is_refused(good: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry("good/README.md?.bin"), b"x")])
    patched(path, b"README.md?.bin", b"README.md\0.bin")
    assert "cannot be a file's name" in refusal(path, STEP_PATHS)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(stat.S_IFLNK, "is a symbolic link"), (stat.S_IFIFO, "neither a file"), (stat.S_IFCHR, "neither")],
)
def test_links_and_devices_are_refused(good: Path, tmp_path: Path, kind: int, expected: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry("good/README.md", kind | 0o777), b"/etc/passwd")])
    assert expected in refusal(path, STEP_PATHS)


@pytest.mark.parametrize("name", [f"good/{WEIGHTS}", "good/ADAPTER_CONFIG.JSON"])
def test_repeated_file_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(name), b"another")])
    assert "twice" in refusal(path, STEP_PATHS)


def test_too_many_entries_are_refused(good: Path, tmp_path: Path) -> None:
    many = [(entry(f"good/{n}"), b"") for n in range(2000)]
    assert "has 2003 entries, the limit is 1000" in refusal(
        make_zip(tmp_path / "my.zip", [*files_of(good), *many]), STEP_PATHS
    )


def test_too_long_central_directory_is_refused_unread(good: Path, tmp_path: Path) -> None:
    """The entries are not read: the list of a zip of a few megabytes can take a gigabyte of memory."""
    many = [(entry(f"good/{n}", method=zipfile.ZIP_STORED), b"") for n in range(20_000)]
    message = refusal(make_zip(tmp_path / "my.zip", [*files_of(good), *many]), STEP_IS_ZIP)
    assert "The directory of this archive has" in message


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.PT", "scheduler.pkl", "sub/model.ckpt"])
def test_pickle_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(f"good/{name}"), b"\x80\x04.")])
    assert f"holds 'good/{name}', a pickle, which can run code" in refusal(path, STEP_FILE_TYPES)


@pytest.mark.parametrize("name", ["inner.zip", "more.tar.gz", "sub/x.7z", "wheel.WHL"])
def test_nested_archive_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(f"good/{name}"), b"PK")])
    assert "holds another archive" in refusal(path, STEP_FILE_TYPES)


def test_encrypted_zip_is_refused(good: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "my.zip", files_of(good))
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = raw.find(signature)
        while at >= 0:
            raw[at + offset] |= 1
            at = raw.find(signature, at + 4)
    path.write_bytes(raw)
    assert "is encrypted" in refusal(path, STEP_FILE_TYPES)


def test_zip_bomb_with_its_true_size_is_refused(good: Path, tmp_path: Path) -> None:
    blown = [(info, b"\0" * (64 << 20) if info.filename.endswith(WEIGHTS) else raw) for info, raw in files_of(good)]
    path = make_zip(tmp_path / "my.zip", blown)
    assert path.stat().st_size < 100_000
    assert "as no real adapter does" in refusal(path, STEP_SIZES)
    assert "unpacks to 67.1 MB, the limit is 33.6 MB" in refusal(
        make_zip(tmp_path / "my.zip", [*files_of(good), (entry("good/README.md"), b" " * (64 << 20))]), STEP_SIZES
    )


def test_zip_bomb_with_a_false_size_is_refused(good: Path, tmp_path: Path) -> None:
    """The directory states 200 bytes and the stream has 64 MiB: at most 200 bytes are written."""
    blown = [(info, b"\0" * (64 << 20) if info.filename.endswith(WEIGHTS) else raw) for info, raw in files_of(good)]
    path = patched(make_zip(tmp_path / "my.zip", blown), struct.pack("<L", 64 << 20), struct.pack("<L", 200))
    assert "is damaged" in refusal(path, STEP_CRC)


def test_file_shorter_than_stated_is_refused(good: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "my.zip", files_of(good))
    size = (good / WEIGHTS).stat().st_size
    patched(path, struct.pack("<L", size), struct.pack("<L", size + 7))
    assert "is damaged" in refusal(path, STEP_CRC)


def test_zip_above_the_limit_of_the_caller_is_refused(good: Path, tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(40_000)
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry("good/README.md"), noise)])
    assert "and 1 kB is the limit here" in refusal(path, STEP_IS_ZIP, max_bytes=1000)
    total = sum(file.stat().st_size for file in good.iterdir()) + len(noise)
    assert path.stat().st_size < total
    assert "is the limit here: train an adapter of a smaller rank" in refusal(path, STEP_SIZES, max_bytes=total - 1)
    assert unpack(path, tmp_path / "store", max_bytes=total).is_dir()


def test_unsupported_compression_method_is_refused(good: Path, tmp_path: Path) -> None:
    entries = [(info, raw) for info, raw in files_of(good) if not info.filename.endswith("manifest.json")]
    lzma = (entry("good/manifest.json", method=zipfile.ZIP_LZMA), (good / "manifest.json").read_bytes())
    assert "compressed with method 14" in refusal(make_zip(tmp_path / "my.zip", [*entries, lzma]), STEP_SIZES)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS, "manifest.json"])
def test_missing_required_file_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    (good / name).unlink()
    assert f"has no {name}, so it is no adapter" in refusal(
        make_zip(tmp_path / "my.zip", files_of(good)), STEP_REQUIRED_FILES
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "smol.gguf"])
def test_whole_model_is_refused(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [(entry(f"m/{name}"), b"{}")])
    assert "is a whole model, not an adapter" in refusal(path, STEP_REQUIRED_FILES)


def test_several_adapters_and_nested_ones_are_refused(good: Path, tmp_path: Path) -> None:
    two = [*files_of(good, "a/"), *files_of(good, "b/")]
    assert "holds 2 adapters" in refusal(make_zip(tmp_path / "my.zip", two), STEP_REQUIRED_FILES)
    assert "in the nested folder 'a/b'" in refusal(
        make_zip(tmp_path / "my.zip", files_of(good, "a/b/")), STEP_REQUIRED_FILES
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda good: (good / WEIGHTS).write_bytes(b"not safetensors"),
        lambda good: (good / "adapter_config.json").write_text(json.dumps({**CONFIG, "r": 8})),
        lambda good: (good / "adapter_config.json").write_text("[" * 100_000),
        lambda good: (good / "manifest.json").write_text("{}"),
        lambda good: replace(MANIFEST, weights_digest="sha256:0123456789abcdef").write(good),
    ],
    ids=["weights", "rank", "nested", "manifest", "digest"],
)
def test_adapter_that_the_store_refuses_is_not_unpacked(
    good: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    change(good)
    assert "Adapter 'good'" in refusal(make_zip(tmp_path / "my.zip", files_of(good)), STEP_CONSISTENT)


def test_name_that_is_taken_or_invalid_is_refused(good: Path, tmp_path: Path) -> None:
    path = pack(good, tmp_path / "my.zip")
    folder = unpack(path, tmp_path / "store")
    origin = (folder / ".origin.json").read_text()
    assert "There is an adapter 'good'" in refusal(path, STEP_NAME)
    assert (folder / ".origin.json").read_text() == origin
    for name in ("../up", "rag-8", "Big", ""):
        at_top = make_zip(tmp_path / f"{name.strip('./') or ' '}.zip", files_of(good, ""))
        if name:
            assert "name" in refusal(at_top, STEP_NAME, name=name)
        else:
            assert "cannot name an adapter" in refusal(at_top, STEP_NAME)


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x1f\x8b\x08gzip", b"PK\x05\x06"])
def test_file_that_is_not_a_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "my.zip").write_bytes(content)
    assert "is no zip file, is cut short or is damaged" in refusal(tmp_path / "my.zip", STEP_IS_ZIP)
    assert "There is no file" in refusal(tmp_path / "none.zip", STEP_IS_ZIP)
    assert "There is no file" in refusal(tmp_path / "store", STEP_IS_ZIP), "a folder is not a zip"


def test_truncated_zip_is_refused(good: Path, tmp_path: Path) -> None:
    raw = pack(good, tmp_path / "my.zip").read_bytes()
    for length in range(0, len(raw), max(1, len(raw) // 40)):
        (tmp_path / "my.zip").write_bytes(raw[:length])
        assert "cut short" in refusal(tmp_path / "my.zip", STEP_IS_ZIP)


def test_damaged_zip_is_refused_or_gives_the_same_adapter(good: Path, tmp_path: Path) -> None:
    """A thousand zips with changed bytes: each gives an error, or exactly the adapter that was packed."""
    raw, rng = pack(good, tmp_path / "my.zip").read_bytes(), random.Random(7)
    expected = {path.name: path.read_bytes() for path in good.iterdir()}
    refused = 0
    for number in range(1000):
        damaged = bytearray(raw)
        for _ in range(rng.choice((1, 1, 4, 40))):
            damaged[rng.randrange(len(raw))] = rng.randrange(256)
        (tmp_path / "my.zip").write_bytes(damaged)
        root = tmp_path / f"store{number}"
        try:
            folder = unpack(tmp_path / "my.zip", root)
        except PromptOrTuneError:
            refused += 1
            assert not root.exists() or not list(root.iterdir())
        else:
            unpacked = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
            assert unpacked == expected
    assert refused > 500


def test_full_disk_is_reported(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(good, tmp_path / "my.zip")
    with monkeypatch.context() as patch:
        patch.setattr("adapters.archive.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
        assert "free: free some space" in refusal(path, STEP_CRC, DiskSpaceError)

    def full(source: Any, destination: Any, length: int = 0) -> None:
        destination.write(source.read(10))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("adapters.archive.shutil.copyfileobj", full)
        assert "the disk is full" in refusal(path, STEP_CRC, DiskSpaceError)
    assert unpack(path, tmp_path / "store").is_dir()


def test_store_that_cannot_be_written_is_reported(good: Path, tmp_path: Path) -> None:
    path = pack(good, tmp_path / "my.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match=messages.CANNOT_WRITE_TO):
        unpack(path, tmp_path / "file" / "store")
