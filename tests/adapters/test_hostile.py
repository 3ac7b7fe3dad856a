"""Folders made to harm: nothing is waited for, followed, believed or run, and the refusal is one short sentence."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from adapters import checks
from adapters.weights import WEIGHTS_NAME, read_raw_tensors
from errors import AdapterError
from tests.adapters.folders import BASE, CONFIG, MANIFEST, refused, store, write_adapter

CONFIG_NAME, MANIFEST_NAME = "adapter_config.json", "manifest.json"
DEPTHS = [5, 30, 40, 300, 900, 1500, 5000, 60_000]


def nest(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_json_nested_to_any_depth_is_refused_wherever_it_stands(good: Path, depth: int, kind: str) -> None:
    """Deep nesting breaks not only parsers but whoever prints, copies or compares what they give."""
    nested = nest(depth, kind)
    for key in ("r", "lora_alpha", "peft_type", "target_modules", "init_lora_weights", "layer_replication"):
        (good / CONFIG_NAME).write_text(json.dumps({**CONFIG, key: "HERE"}).replace('"HERE"', nested))
        assert refused(good).isprintable()
    (good / CONFIG_NAME).write_text(json.dumps(CONFIG))
    for key in ("version", "seed", "base_id", "log", "strange"):
        (good / MANIFEST_NAME).write_text(json.dumps({**asdict(MANIFEST), key: "HERE"}).replace('"HERE"', nested))
        assert refused(good).isprintable()
    MANIFEST.write(good)
    for header in ('{"a": HERE}', '{"a": {"dtype": HERE, "shape": [1], "data_offsets": [0, 4]}}', "HERE"):
        raw = header.replace("HERE", nested).encode()
        (good / WEIGHTS_NAME).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
        assert refused(good).isprintable()


@pytest.mark.parametrize("file", [CONFIG_NAME, MANIFEST_NAME])
def test_a_name_that_stands_twice_is_refused(good: Path, file: str) -> None:
    """One reader takes the first value and the next one the last."""
    text = (good / file).read_text()
    first = next(iter(json.loads(text)))
    (good / file).write_text(text.replace("{", f'{{"{first}": "LORA", ', 1))
    assert "a name stands twice" in refused(good)


def test_a_config_of_ten_thousand_settings(good: Path) -> None:
    (good / CONFIG_NAME).write_text(json.dumps({**CONFIG, **dict.fromkeys(map(str, range(10_000)))}))
    assert "at most 200 settings" in refused(good)


def test_a_folder_of_many_files(good: Path) -> None:
    for number in range(checks.MAX_FILES):
        (good / f"x{number}").touch()
    assert refused(good) == f"Adapter 'good' has more than {checks.MAX_FILES} files: leave only its own there."


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket may have 107 bytes
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no right to make devices here")


KINDS = [pipe, link_to_a_device, folder, listener, device]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("file", [MANIFEST_NAME, WEIGHTS_NAME])
def test_what_is_no_file_is_not_read(good: Path, file: str, make: Callable[[Path], None]) -> None:
    (good / file).unlink()
    make(good / file)
    assert file in refused(good)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("file", [CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME])
def test_nor_is_it_where_it_takes_the_files_place_after_the_folder_was_looked_at(
    good: Path, monkeypatch: pytest.MonkeyPatch, file: str, make: Callable[[Path], None]
) -> None:
    real = checks.check_files

    def look(path: Path, name: str) -> None:
        real(path, name)
        (path / file).unlink()
        make(path / file)

    monkeypatch.setattr(checks, "check_files", look)
    assert file in refused(good)


def test_a_file_that_grows_while_it_is_read_is_read_to_its_limit(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def before_it_grew(descriptor: int) -> os.stat_result:
        status = list(real(descriptor))
        status[stat.ST_SIZE] = 10
        return os.stat_result(status)

    (good / CONFIG_NAME).write_text(json.dumps({**CONFIG, "note": "x" * checks.MAX_CONFIG_BYTES}))
    monkeypatch.setattr(os, "fstat", before_it_grew)
    assert f"adapter_config.json has {checks.MAX_CONFIG_BYTES + 1} bytes, the limit is" in refused(good)


def shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4))


def other_values(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def other_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"F32", b"BF1"))


def link_to_the_same(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def gone(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "swap", [shorter, longer, other_values, other_header, link_to_the_same, gone, empty, another_pipe]
)
def test_a_file_that_is_swapped_between_its_check_and_its_load_is_not_loaded(
    good: Path, swap: Callable[[Path], None]
) -> None:
    opened = store(good.parent).open("good", BASE)
    path = good / WEIGHTS_NAME
    assert len(read_raw_tensors(path, opened.sha256, "good").tensors) == 4
    swap(path)
    with pytest.raises(AdapterError, match=r"^Adapter 'good'[^\n]{20,200}\.$"):
        read_raw_tensors(path, opened.sha256, "good")


def test_a_copy_elsewhere_is_what_was_checked_too(good: Path) -> None:
    """What counts is the bytes: the same file under another inode is the file that was checked."""
    opened = store(good.parent).open("good", BASE)
    path = good / WEIGHTS_NAME
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw)
    body = read_raw_tensors(path, opened.sha256, "good")
    assert bytes(body.data) == raw[8 + int.from_bytes(raw[:8], "little") :]


@pytest.mark.parametrize("name", [".", "..", "a/../good", "/", "good/", "good\0", "con\u2024", "%2e%2e", "~", "*"])
def test_no_name_leads_out_of_the_store(good: Path, name: str) -> None:
    (good.parent / "outer").mkdir()
    with pytest.raises(AdapterError, match="cannot name an adapter"):
        store(good.parent).inspect(name)


def test_a_gigantic_rank_and_a_header_that_claims_its_tensors(tmp_path: Path) -> None:
    for rank in (257, 2**31, 10**300):
        assert "1 to 256 is served" in refused(write_adapter(tmp_path / f"r{len(str(rank))}", {**CONFIG, "r": rank}))
    folder = write_adapter(tmp_path / "claims", {**CONFIG, "r": 256})
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    claim = {name: {"dtype": "F32", "shape": [256, 2**36], "data_offsets": [0, 2**46]}}
    raw = json.dumps(claim).encode()
    (folder / WEIGHTS_NAME).write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert "bytes of tensors where its header names" in refused(folder)
