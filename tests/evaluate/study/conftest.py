"""Fixtures: a small study of a tiny model, and an empty home folder for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.manifest import Manifest
from evaluate.study.config import StudyConfig
from evaluate.study.read_config import read_study_config

STUDY = """
models:
  tiny: {base: tiny, quantization: nf4, beside: CodeLlama-7B, architecture: ARCHITECTURE}
data:
  conala: {problems: 40, max_new_tokens: 64, candidates: 3, batch: 4, icl: [1, 4], rag: [2]}
  apps: {problems: 40, mode: sample, candidates: 5, max_new_tokens: 64}
techniques: {lora: none, qlora-4bit: nf4}
rq1: {data: [conala]}
rq2: {data: [conala]}
rq3: {data: [conala], together: [rag-2]}
rq4: {data: [apps], techniques: [qlora-4bit]}
sensitivity: {model: tiny, data: conala, technique: qlora-4bit, pairs: [[4, 8], [16, 32]]}
hardware: {name: a machine, memory_gb: 8, gigabytes_per_second: 10, teraflops: 0.2, step_milliseconds: 12}
""".replace(
    "ARCHITECTURE",
    "{family: llama, hidden: 64, intermediate: 128, layers: 2, heads: 4, key_value_heads: 4, vocabulary: 512}",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty home folder, so that the user's adapters have no effect."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(folder))
    return folder


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY, encoding="utf-8")
    return read_study_config(path)


def add_adapter(
    home: Path, name: str, technique: str, quantization: str, data: str = "conala", base: str = "tiny"
) -> None:
    """Write a manifest as `python -m train` does."""
    folder = home / "adapters" / name
    folder.mkdir(parents=True)
    facts = {"trainable_parameters": 1234, "train_seconds": 60.5, "peak_memory_bytes": 2_000_000_000}
    Manifest(
        name, technique, base, "r1", quantization, "plain", "f", data, "d", 42, "mit", facts, weights_digest="sha256:w"
    ).write(folder)
