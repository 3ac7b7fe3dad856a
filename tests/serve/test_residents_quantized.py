"""DoRA measures the layers that decode: neither its loads nor the decoding beside them may disturb the other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from adapters.store import Store
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.types import Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests.serve.tiny import make_adapter, make_base

PLAIN = STYLES["plain"]


def ratios(backend: LocalBackend) -> dict[str, torch.Tensor]:
    deltas: Any = backend._registry["dora"].layers
    return {name: delta.ratio for name, delta in deltas.items()}


# One base whose own forward decodes, under hooks, and one that is fused and whose layers have a bias.
@pytest.mark.parametrize(("kind", "quantization", "targets"), [
    ("codegen", "nf4", ["qkv_proj"]),
    ("qwen2", "int8", ["q_proj", "v_proj"]),
])  # fmt: skip
def test_dora_is_loaded_beside_decoding_and_neither_is_disturbed(
    tmp_path: Path, kind: str, quantization: str, targets: list[str]
) -> None:
    make_base(kind, tmp_path / "base")
    backend = LocalBackend(load_base(str(tmp_path / "base"), quantization, "cpu", lambda _: None))
    store = Store((tmp_path / "store",), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    for name in ("lora", "dora"):
        bare = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        config = LoraConfig(r=4, use_dora=name == "dora", target_modules=targets, init_lora_weights=False)
        make_adapter(tmp_path / "store" / name, backend.base, bare, config, seed=0)
        backend.load_adapter(store.open(name, backend.base))
    folder = store.open("dora", backend.base)

    def said() -> list[RowOutput]:
        rows = [Row("sort a list", PLAIN, name) for name in (None, "lora")]
        events = backend.generate(rows, SamplingParams(max_new_tokens=12), Event())
        found = [each for each in events if isinstance(each, RowOutput)]
        return sorted(found, key=lambda event: event.index)

    expected = [event.candidates for event in said()]
    backend.load_adapter(folder)
    norms = ratios(backend)
    stop = threading.Event()

    def churn() -> int:
        wrong = 0
        while not stop.is_set():
            backend.load_adapter(folder)
            wrong += any(not torch.equal(norms[name], ratio) for name, ratio in ratios(backend).items())
        return wrong

    with ThreadPoolExecutor(1) as threads:
        churning = threads.submit(churn)
        try:
            answers = [[event.candidates for event in said()] for _ in range(12)]
        finally:
            stop.set()
        assert churning.result(30) == 0
    assert all(answer == expected for answer in answers)
