"""Tests of benchmarks/engine.py: all parts end to end on tiny bases, and the synthetic adapters and bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.store import Store
from benchmarks import engine, engine_adapters
from benchmarks.engine_harness import copy_adapters, make_adapter
from models.loader import load_base
from tasks.prompt import STYLES
from tests.serve.tiny import make_base

pytestmark = pytest.mark.slow

PARTS = "columns,eight,thousand,cold,memory,prefix,limit"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tiny base; set a temporary home and smaller numbers of adapters."""
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(engine_adapters, "COLD_LOADS", 3)
    monkeypatch.setattr(engine_adapters, "ADAPTERS_IN_MEMORY", 6)
    monkeypatch.setattr(engine_adapters, "REGISTERED", 80)
    monkeypatch.setattr(engine_adapters, "REQUESTS", 20)
    return make_base("llama", tmp_path / "base")


def test_engine_benchmark_prints_all_metrics_in_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--base", str(base), "--quantization", "none", "--device", "cpu", "--threads", "1", "--runs", "1"]
    command += ["--new-tokens", "4", "--only", PARTS, "--output", str(tmp_path / "speed")]
    assert engine.main(command) == 0
    page = (tmp_path / "speed.md").read_text(encoding="utf-8")
    line = json.loads(capsys.readouterr().out)
    assert line == json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    ratios = ("six_columns_ratio", "six_columns_warm_ratio", "slowest_column_ratio", "eight_adapters_ratio")
    for metric in (*ratios, "thousand_adapters_ratio", "warm_prefix_ratio", "share_of_limit"):
        assert 0 < line[metric] < 100, metric
        assert f" {line[metric]:g} |" in page
    assert 0 < line["cold_load_ms"] < 10_000
    assert line["thousand_adapters"]["hit_rate"] == 0.95
    assert line["adapter_memory"]["counted_bytes"] <= 1.2 * line["adapter_memory"]["file_bytes"]
    assert line["columns"]["prompt_tokens"][1] > line["columns"]["prompt_tokens"][0]
    assert line["columns"]["seconds_alone"].keys() == line["columns"]["peer_seconds_alone"].keys()
    assert not list((tmp_path / "home").glob("benchmark-*"))


def test_synthetic_adapters_pass_the_checks_of_the_store_and_of_peft(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    def load() -> Any:
        return load_base(str(base), "none", "cpu", lambda _: None, training=True)

    loaded, root = load(), tmp_path / "made"
    root.mkdir()
    store = Store((root,), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    for technique in ("lora", "ia3", "prompt-tuning"):
        make_adapter(root / technique, technique, loaded.identity)
        folder = store.open(technique, loaded.identity)
        model = PeftModel.from_pretrained(load().model, folder.path)
        changed = [
            name for name, _ in model.named_parameters() if "lora_" in name or "ia3_" in name or "prompt_" in name
        ]
        assert len(changed) == {"lora": 2 * 4 * 2, "ia3": 2 * 3, "prompt-tuning": 1}[technique]
    names = copy_adapters(store.open("lora", loaded.identity), root, 5)
    opened = [store.open(name, loaded.identity) for name in names]
    assert len({folder.digest for folder in opened}) == 5
    assert all(folder.manifest.weights_digest == folder.digest for folder in opened)


def test_random_llama_is_created_once_and_loads_like_any_base(
    base: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer is the tiny base's instead of the embedded base's."""
    from benchmarks import engine_harness
    from models.source import Source

    monkeypatch.setattr(engine_harness, "resolve", lambda *_: Source("tiny", "sha256:0", base))
    folder = engine_harness.make_random_llama("tiny", "cpu", lambda _: None)
    assert folder == tmp_path / "home" / "bases" / "random-llama-tiny"
    modified = (folder / "model.safetensors").stat().st_mtime_ns
    assert engine_harness.make_random_llama("tiny", "cpu", lambda _: None) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == modified
    identity = load_base(str(folder), "nf4", "cpu", lambda _: None).identity
    assert (identity.num_layers, identity.hidden_size, identity.context_length) == (
        2,
        128,
        engine_harness.CONTEXT_LENGTH,
    )
