"""A zip that means harm, of every kind: refused in one sentence, at the right check, with nothing left on disk."""

from __future__ import annotations

import json
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

import pytest

from adapters.archive import (
    STEP_CRC,
    STEP_FILE_TYPES,
    STEP_IS_ZIP,
    STEP_PATHS,
    STEP_REQUIRED_FILES,
    STEP_SIZES,
    pack,
    unpack,
)
from adapters.hub import STEP_CONSISTENT, STEP_NAME
from adapters.install import Step
from errors import AdapterError, DiskSpaceError, PromptOrTuneError
from tests.adapters.folders import CONFIG, MANIFEST
from tests.adapters.zipped import entry, files_of, make_zip, patched

WEIGHTS = "adapter_model.safetensors"


def refusal(path: Path, at: str, error: type[PromptOrTuneError] = AdapterError, **options: Any) -> str:
    """The sentence of the refusal, which comes at that check; the store is as it was."""
    root = path.parent / "store"
    root.mkdir(exist_ok=True)
    before = sorted(root.rglob("*"))
    steps: list[Step] = []
    with pytest.raises(error) as caught:
        unpack(path, root, steps.append, **options)
    assert sorted(root.rglob("*")) == before
    assert [step.ok for step in steps] == [True] * (len(steps) - 1) + [False]
    assert steps[-1].name == at
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt", "good/../../evil.txt", "/etc/evil.txt", "good/..", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt",
        "good/sub/../../../evil.txt",
    ],
)  # fmt: skip
def test_a_path_that_leads_out(good: Path, tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(name), b"owned")])
    assert "which would lie outside its folder" in refusal(path, STEP_PATHS)


@pytest.mark.parametrize("name", ["good/./README.md", "good//README.md", "good/a\nb", "good/\x1b[2J"])
def test_a_name_that_is_none(good: Path, tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(name), b"x")])
    assert "cannot be a file's name" in refusal(path, STEP_PATHS)


def test_a_name_with_a_zero_byte(good: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry("good/README.md?.bin"), b"x")])
    patched(path, b"README.md?.bin", b"README.md\0.bin")
    assert "cannot be a file's name" in refusal(path, STEP_PATHS)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(stat.S_IFLNK, "is a symbolic link"), (stat.S_IFIFO, "neither a file"), (stat.S_IFCHR, "neither")],
)
def test_a_link_or_a_device(good: Path, tmp_path: Path, kind: int, said: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry("good/README.md", kind | 0o777), b"/etc/passwd")])
    assert said in refusal(path, STEP_PATHS)


@pytest.mark.parametrize("name", [f"good/{WEIGHTS}", "good/ADAPTER_CONFIG.JSON"])
def test_a_file_that_stands_twice(good: Path, tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(name), b"another")])
    assert "twice" in refusal(path, STEP_PATHS)


def test_thousands_of_entries(good: Path, tmp_path: Path) -> None:
    many = [(entry(f"good/{n}"), b"") for n in range(2000)]
    assert "has 2003 entries, the limit is 1000" in refusal(
        make_zip(tmp_path / "my.zip", [*files_of(good), *many]), STEP_PATHS
    )


def test_a_list_of_contents_without_end(good: Path, tmp_path: Path) -> None:
    """A hundred thousand entries are not even listed: that alone would take a gigabyte for a few megabytes."""
    many = [(entry(f"good/{n}", method=zipfile.ZIP_STORED), b"") for n in range(20_000)]
    sentence = refusal(make_zip(tmp_path / "my.zip", [*files_of(good), *many]), STEP_IS_ZIP)
    assert "The list of contents of this archive has" in sentence


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.PT", "scheduler.pkl", "sub/model.ckpt"])
def test_a_pickle(good: Path, tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(f"good/{name}"), b"\x80\x04.")])
    assert f"holds 'good/{name}', a pickle, which can run code" in refusal(path, STEP_FILE_TYPES)


@pytest.mark.parametrize("name", ["inner.zip", "more.tar.gz", "sub/x.7z", "wheel.WHL"])
def test_an_archive_inside(good: Path, tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry(f"good/{name}"), b"PK")])
    assert "holds another archive" in refusal(path, STEP_FILE_TYPES)


def test_an_encrypted_one(good: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "my.zip", files_of(good))
    raw = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = raw.find(signature)
        while at >= 0:
            raw[at + place] |= 1
            at = raw.find(signature, at + 4)
    path.write_bytes(raw)
    assert "is encrypted" in refusal(path, STEP_FILE_TYPES)


def test_a_bomb_that_says_so(good: Path, tmp_path: Path) -> None:
    blown = [(info, b"\0" * (64 << 20) if info.filename.endswith(WEIGHTS) else raw) for info, raw in files_of(good)]
    path = make_zip(tmp_path / "my.zip", blown)
    assert path.stat().st_size < 100_000
    assert "as no real adapter does" in refusal(path, STEP_SIZES)
    assert "unpacks to 67.1 MB, the limit is 33.6 MB" in refusal(
        make_zip(tmp_path / "my.zip", [*files_of(good), (entry("good/README.md"), b" " * (64 << 20))]), STEP_SIZES
    )


def test_a_bomb_that_hides_its_size(good: Path, tmp_path: Path) -> None:
    """The list of contents says 200 bytes, the stream has 64 MiB: no more than 200 bytes of it are written."""
    blown = [(info, b"\0" * (64 << 20) if info.filename.endswith(WEIGHTS) else raw) for info, raw in files_of(good)]
    path = patched(make_zip(tmp_path / "my.zip", blown), struct.pack("<L", 64 << 20), struct.pack("<L", 200))
    assert "is damaged" in refusal(path, STEP_CRC)


def test_a_file_shorter_than_it_says(good: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "my.zip", files_of(good))
    size = (good / WEIGHTS).stat().st_size
    patched(path, struct.pack("<L", size), struct.pack("<L", size + 7))
    assert "is damaged" in refusal(path, STEP_CRC)


def test_what_is_over_the_limit_here(good: Path, tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(40_000)
    path = make_zip(tmp_path / "my.zip", [*files_of(good), (entry("good/README.md"), noise)])
    assert "has 0.0 MB and 0.0 MB is the limit here" in refusal(path, STEP_IS_ZIP, max_bytes=1000)
    total = sum(file.stat().st_size for file in good.iterdir()) + len(noise)
    assert path.stat().st_size < total
    assert "is the limit here: train an adapter of a smaller rank" in refusal(path, STEP_SIZES, max_bytes=total - 1)
    assert unpack(path, tmp_path / "store", max_bytes=total).is_dir()


def test_a_way_of_packing_that_needs_memory(good: Path, tmp_path: Path) -> None:
    entries = [(info, raw) for info, raw in files_of(good) if not info.filename.endswith("manifest.json")]
    lzma = (entry("good/manifest.json", method=zipfile.ZIP_LZMA), (good / "manifest.json").read_bytes())
    assert "packed with method 14" in refusal(make_zip(tmp_path / "my.zip", [*entries, lzma]), STEP_SIZES)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS, "manifest.json"])
def test_what_an_adapter_needs(good: Path, tmp_path: Path, name: str) -> None:
    (good / name).unlink()
    assert f"has no {name}, so it is no adapter" in refusal(
        make_zip(tmp_path / "my.zip", files_of(good)), STEP_REQUIRED_FILES
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "smol.gguf"])
def test_a_whole_model(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "my.zip", [(entry(f"m/{name}"), b"{}")])
    assert "is a whole model, not an adapter" in refusal(path, STEP_REQUIRED_FILES)


def test_more_than_one_and_too_deep(good: Path, tmp_path: Path) -> None:
    two = [*files_of(good, "a/"), *files_of(good, "b/")]
    assert "holds 2 adapters" in refusal(make_zip(tmp_path / "my.zip", two), STEP_REQUIRED_FILES)
    assert "deep inside, in 'a/b'" in refusal(
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
def test_what_the_store_would_refuse(good: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    change(good)
    assert "Adapter 'good'" in refusal(make_zip(tmp_path / "my.zip", files_of(good)), STEP_CONSISTENT)


def test_a_name_that_is_taken_or_cannot_be_one(good: Path, tmp_path: Path) -> None:
    path = pack(good, tmp_path / "my.zip")
    folder = unpack(path, tmp_path / "store")
    note = (folder / ".origin.json").read_text()
    assert "There is an adapter 'good'" in refusal(path, STEP_NAME)
    assert (folder / ".origin.json").read_text() == note
    for name in ("../up", "rag-8", "Big", ""):
        at_top = make_zip(tmp_path / f"{name.strip('./') or ' '}.zip", files_of(good, ""))
        if name:
            assert "name" in refusal(at_top, STEP_NAME, name=name)
        else:
            assert "cannot name an adapter" in refusal(at_top, STEP_NAME)


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x1f\x8b\x08gzip", b"PK\x05\x06"])
def test_what_is_no_zip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "my.zip").write_bytes(content)
    assert "is no zip file, is cut short or is damaged" in refusal(tmp_path / "my.zip", STEP_IS_ZIP)
    assert "There is no file" in refusal(tmp_path / "none.zip", STEP_IS_ZIP)
    assert "There is no file" in refusal(tmp_path / "store", STEP_IS_ZIP), "a folder is none"


def test_a_zip_cut_short_anywhere(good: Path, tmp_path: Path) -> None:
    raw = pack(good, tmp_path / "my.zip").read_bytes()
    for length in range(0, len(raw), max(1, len(raw) // 40)):
        (tmp_path / "my.zip").write_bytes(raw[:length])
        assert "cut short" in refusal(tmp_path / "my.zip", STEP_IS_ZIP)


def test_any_damaged_zip_is_refused_or_the_adapter_it_was(good: Path, tmp_path: Path) -> None:
    """A byte changed anywhere, a thousand times over: a sentence, or exactly the adapter that was packed."""
    raw, chance = pack(good, tmp_path / "my.zip").read_bytes(), random.Random(7)
    expected = {path.name: path.read_bytes() for path in good.iterdir()}
    refused = 0
    for turn in range(1000):
        damaged = bytearray(raw)
        for _ in range(chance.choice((1, 1, 4, 40))):
            damaged[chance.randrange(len(raw))] = chance.randrange(256)
        (tmp_path / "my.zip").write_bytes(damaged)
        root = tmp_path / f"store{turn}"
        try:
            folder = unpack(tmp_path / "my.zip", root)
        except PromptOrTuneError:
            refused += 1
            assert not root.exists() or not list(root.iterdir())
        else:
            made = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
            assert made == expected
    assert refused > 500


def test_a_disk_without_room(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(good, tmp_path / "my.zip")
    with monkeypatch.context() as patch:
        patch.setattr("adapters.archive.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
        assert "are free on the disk: free some room" in refusal(path, STEP_CRC, DiskSpaceError)

    def full(source: Any, destination: Any, length: int = 0) -> None:
        destination.write(source.read(10))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("adapters.archive.shutil.copyfileobj", full)
        assert "the disk is full" in refusal(path, STEP_CRC, DiskSpaceError)
    assert unpack(path, tmp_path / "store").is_dir()


def test_a_store_that_cannot_be_written(good: Path, tmp_path: Path) -> None:
    path = pack(good, tmp_path / "my.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="Cannot write to"):
        unpack(path, tmp_path / "file" / "store")
