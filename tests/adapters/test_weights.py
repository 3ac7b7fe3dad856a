"""Safetensors headers: parsed as by the library, and refused if they are invalid."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from adapters import weights
from errors import AdapterError
from tests.adapters.folders import (
    BASE,
    IN,
    LAYERS,
    MANIFEST,
    OUT,
    RANK,
    Tensors,
    key,
    refused,
    store,
    tensors,
    write_adapter,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shapes_are_those_that_safetensors_reads(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors(dtype=dtype), path, metadata={"format": "pt"})
    shapes = weights.read_shapes(path, "x")
    with safe_open(path, framework="numpy") as oracle:
        for name in oracle.keys():  # noqa: SIM118
            assert list(shapes[name]) == oracle.get_slice(name).get_shape()
    assert set(shapes) == {key(layer, side) for layer in LAYERS for side in "AB"}


def test_digest_changes_with_the_bytes(good: Path) -> None:
    opened = store(good.parent)
    first = opened.open("good", BASE).digest
    assert opened.open("good", BASE).digest == first
    changed = tensors()
    changed[key(LAYERS[0], "A")][0, 0] = 7
    save_file(changed, good / "adapter_model.safetensors")  # same name, same size
    assert opened.open("good", BASE).digest != first


def test_unchanged_file_is_hashed_once(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = good / "adapter_model.safetensors"
    later = path.stat().st_ctime_ns + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    first = weights.inspect(path, "good")
    assert weights.short_digest(first.sha256) == weights.digest(path, "good")
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert weights.inspect(path, "good") == first


def without(name: str) -> Callable[[Tensors], None]:
    def remove(found: Tensors) -> None:
        del found[name]

    return remove


def with_tensor(name: str, value: np.ndarray[Any, Any]) -> Callable[[Tensors], None]:
    return lambda found: found.update({name: value})


A0, B0 = key(LAYERS[0], "A"), key(LAYERS[0], "B")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without(A0), "lacks lora_A of module model.layers.0.self_attn.q_proj"),
        (without(B0), "lacks lora_B of module model.layers.0.self_attn.q_proj"),
        (lambda found: found.clear(), "has no tensors"),
        (with_tensor("lm_head.weight", np.ones((2, 2), np.float32)), "has the tensor lm_head.weight, which is not"),
        (
            with_tensor("base_model.model.lm_head.lora_embedding_A", np.ones((2, 2), np.float32)),
            "which is not part of a LoRA",
        ),
        (with_tensor(A0 + "\x1b", np.ones((2, 2), np.float32)), "which is not part of a LoRA"),
        (with_tensor(A0, np.ones((RANK, IN), np.float64)), "has dtype F64: save it as F32, F16 or BF16"),
        (with_tensor(A0, np.ones((RANK, IN), np.int8)), "has dtype I8"),
        (with_tensor(A0, np.ones((RANK, IN, 1), np.float32)), "has shape [4, 16, 1]"),
        (with_tensor(A0, np.ones((0, IN), np.float32)), "has shape [0, 16]"),
        (with_tensor(A0, np.ones((RANK + 1, IN), np.float32)), "A (5, 16) and B (12, 4), which do not fit the rank"),
        (
            with_tensor(A0, np.ones((RANK, IN + 1), np.float32)),
            "q_proj has A (4, 17) and B (12, 4), the base needs A (4, 16) and B (12, 4)",
        ),
        (with_tensor(B0, np.ones((OUT + 1, RANK), np.float32)), "the base needs A (4, 16) and B (12, 4)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: Callable[[Tensors], None], expected: str) -> None:
    found = tensors()
    change(found)
    message = refused(write_adapter(tmp_path / "bad", weights=found))
    assert expected in message
    assert message.isprintable()


def test_module_that_the_base_does_not_have_is_refused(good: Path) -> None:
    base = replace(BASE, shapes={LAYERS[0]: (OUT, IN)})
    assert f"weights for module {LAYERS[1]}, which the base does not have" in refused(good, base)


def test_bfloat16_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    good = write_adapter(tmp_path / "good")
    save(
        {name: torch.ones(*value.shape, dtype=torch.bfloat16) for name, value in tensors().items()},
        good / "adapter_model.safetensors",
    )
    assert store(tmp_path).open("good", BASE).name == "good"


def test_file_cut_at_any_length_is_refused(good: Path) -> None:
    path = good / "adapter_model.safetensors"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(AdapterError):
            store(good.parent).open("good", BASE)
    path.write_bytes(content + b"\0")
    assert "copy it again" in refused(good)
    path.write_bytes(content)
    assert store(good.parent).open("good", BASE).manifest == MANIFEST


def test_file_with_any_byte_of_its_header_changed_opens_or_is_refused(good: Path) -> None:
    path = good / "adapter_model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    random = np.random.default_rng(0)
    for position in [*range(8), *random.integers(8, header, 400)]:
        for value in random.integers(0, 256, 2):
            path.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            try:
                store(good.parent).open("good", BASE)
            except AdapterError:
                continue
            with safe_open(path, framework="numpy") as file:  # safetensors must accept what is accepted here
                assert len(list(file.keys())) == 4


def header_file(path: Path, header: str | bytes, body: int = 0, length: int | None = None) -> None:
    raw = header.encode() if isinstance(header, str) else header
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(body))


def entry(begin: Any, end: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def headers() -> Iterator[tuple[str, int]]:
    """Yield invalid headers, each with the length of the body after it."""
    yield "{}", 0
    yield "[]", 0
    yield "[" * 200_000, 0
    yield '{"a": ' + "9" * 5000 + "}", 0
    yield f'{{"{A0}": 1, "{A0}": 1}}', 0
    yield json.dumps({A0: 3}), 0
    yield json.dumps({A0: entry(0, 8, [2, 2])}), 8
    yield json.dumps({A0: entry(0, 16, [2, 2]), B0: entry(8, 24, [2, 2])}), 24
    yield json.dumps({A0: entry(0, 16, [2, 2]), B0: entry(20, 36, [2, 2])}), 36
    yield json.dumps({A0: entry(-16, 0, [2, 2])}), 0
    yield json.dumps({A0: entry(0, 16, [-2, -2])}), 16
    yield json.dumps({A0: entry(0, 16, ["2", 2])}), 16
    yield json.dumps({A0: entry(0, 16, [2.0, 2])}), 16
    yield json.dumps({A0: entry(0, 16, [True, 4])}), 16
    yield json.dumps({A0: entry("0", None, [2, 2])}), 16
    yield json.dumps({A0: entry(0, 4 * 10**30, [10**15, 10**15])}), 0
    yield json.dumps({A0: entry(0, 16, [2, 2], ["F32"])}), 16
    yield json.dumps({A0: {"dtype": "F32", "shape": None, "data_offsets": [0, 16]}}), 16
    yield json.dumps({A0: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0]}}), 16
    yield json.dumps({A0: {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}), 4


@pytest.mark.parametrize(("header", "body"), headers())
def test_invalid_header_is_refused(good: Path, header: str, body: int) -> None:
    header_file(good / "adapter_model.safetensors", header, body)
    assert refused(good).isprintable()


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 9 << 20])
def test_too_long_header_is_refused(good: Path, length: int) -> None:
    header_file(good / "adapter_model.safetensors", "{}", length=length)
    assert "is cut short or not safetensors" in refused(good)
    with (good / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(10 << 20)
    if length == 9 << 20:
        assert f"has a header of {length} bytes, more than" in refused(good)
