"""Tests of train/model_card.py: metadata, text, and the code in the card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData

from adapters.manifest import Manifest
from tests.hub.client import TOKEN, use_hub
from tests.hub_standin import Hub, hub_standin
from tests.serve.tiny import make_base
from tests.train.hub_folders import identity_of, make_adapter
from train.model_card import downsample_evals, write_model_card

COMMIT = "0123456789" * 4
MANIFEST = Manifest(
    name="lora-mine",
    technique="lora",
    base_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
    base_revision=COMMIT,
    trained_quantization="none",
    prompt_style="plain",
    prompt_fingerprint="8295293f1faa5233",
    dataset="conala",
    dataset_digest="sha256:1",
    seed=42,
    licence="cc-by-sa-4.0",
    created="2026-11-22",
)
SHARED = {"optim": "adafactor", "learning_rate": 3e-4, "num_train_epochs": 2.0, "n_train": 2135, "n_validation": 201}


def _card(folder: Path, **changes: Any) -> tuple[ModelCardData, str]:
    """Write a card, and read its metadata and text with the Hub's library."""
    write_model_card(replace(MANIFEST, **changes), folder)
    card = ModelCard.load(folder / "README.md")
    assert isinstance(card.data, ModelCardData)
    return card.data, card.text


def test_card_has_metadata_for_the_hub(tmp_path: Path) -> None:
    data: dict[str, Any] = yaml.safe_load(_card(tmp_path)[0].to_yaml())
    assert data["base_model"] == "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "cc-by-sa-4.0"
    assert data["datasets"] == ["neulab/docprompting-conala"]
    assert data["language"] == "en"
    assert {"prompt-or-tune", "lora"} <= set(data["tags"])
    assert "model-index" not in data, "without scores there is no model-index"


def test_scores_are_in_the_model_index(tmp_path: Path) -> None:
    scores = (
        {
            "metric": "em@1",
            "value": 0.11666,
            "low": 0.0578,
            "high": 0.2221,
            "n": 543,
            "dataset": "conala",
            "split": "test",
            "quantization": "none",
            "decoding": "beam, 10 candidates",
        },
        {"metric": "codebleu", "value": 30.5, "n": 543, "dataset": "conala", "split": "test"},
        {"metric": "validation loss", "value": 1.22, "n": 201, "dataset": "conala"},
        {"metric": "broken"},
    )
    data, text = _card(tmp_path, scores=scores)
    assert data.model_name == "lora-mine"
    results = data.eval_results
    assert results is not None
    assert [(row.metric_type, row.metric_name, row.metric_value, row.dataset_split) for row in results] == [
        ("em_1", "em@1 (n = 543, base unquantized)", 0.11666, "test"),
        ("codebleu", "codebleu (n = 543)", 30.5, "test"),
        ("validation_loss", "validation loss (n = 201)", 1.22, "validation"),
    ]
    assert {(row.dataset_type, row.dataset_name) for row in results} == {("neulab/docprompting-conala", "conala")}
    assert "| em@1 | 0.1167 [0.0578, 0.2221] | 543 | conala test | unquantized, beam, 10 candidates |" in text
    assert "| codebleu | 30.5 | 543 | conala test |  |" in text


@pytest.mark.parametrize(
    ("base_id", "revision", "hub_id", "text_part"),
    [
        ("embedded/SmolLM2-135M-Instruct-Q4_1", "sha256:b179c9523d0e6a0f", "HuggingFaceTB/SmolLM2-135M-Instruct", ""),
        ("my-model", "sha256:0011223344556677", None, "which is not on the Hub"),
    ],
)
def test_card_names_a_base_that_is_not_from_the_hub(
    tmp_path: Path, base_id: str, revision: str, hub_id: str | None, text_part: str
) -> None:
    data, text = _card(tmp_path, base_id=base_id, base_revision=revision)
    assert data.base_model == hub_id
    assert f"`{base_id}`" in text
    assert f"(revision `{revision}`)" in text
    assert text_part in text


@pytest.mark.parametrize(
    ("technique", "config", "present", "absent"),
    [
        (
            "qlora-4bit",
            {"lora_r": 16, "lora_alpha": 32, "target_modules": ["k_proj", "q_proj"], "num_virtual_tokens": 20},
            ["| rank r | 16 |", "| alpha | 32 |", "| modules | `k_proj`, `q_proj` |", "--max-lora-rank 16"],
            "virtual tokens",
        ),
        (
            "lora",
            {"lora_r": 8, "use_dora": True, "use_rslora": True},
            ["| DoRA | yes |", "| rsLoRA scaling | yes |", "refuses DoRA"],
            "--max-lora-rank",
        ),
        ("lora", {"lora_r": 12}, ["this one has 12"], "--max-lora-rank"),
        (
            "ia3",
            {"target_modules": ["k_proj"], "feedforward_modules": ["down_proj"], "lora_r": 16},
            ["| modules | `k_proj` |", "| of them scaled at their input | `down_proj` |", "no way to serve IA3"],
            "rank r",
        ),
        (
            "prompt-tuning",
            {"num_virtual_tokens": 20, "virtual_tokens_init": "examples", "lora_r": 16},
            ["| virtual tokens | 20 |", "| they started from | training examples as text |", "serve Prompt tuning"],
            "rank r",
        ),
        (
            "prefix-tuning",
            {"num_virtual_tokens": 10, "virtual_tokens_init": "random"},
            ["| virtual tokens | 10 |", "| they started from | random numbers |", "serve Prefix tuning"],
            "rank r",
        ),
        ("full", {"lora_r": 16, "num_virtual_tokens": 20}, ["A fully fine-tuned model", "vLLM"], "rank r"),
    ],
)
def test_card_shows_the_settings_of_the_technique(
    tmp_path: Path, technique: str, config: dict[str, Any], present: list[str], absent: str
) -> None:
    titles = {"ia3": "IA3", "prompt-tuning": "Prompt tuning", "prefix-tuning": "Prefix tuning"}
    config = {**SHARED, **config, "technique_title": titles.get(technique, technique)}
    data, text = _card(tmp_path, technique=technique, config=config)
    for part in [*present, "| optimizer | adafactor |", "| learning rate | 0.0003 |", "2135 training samples"]:
        assert part in text
    assert absent not in text
    assert data.library_name == ("transformers" if technique == "full" else "peft")


def test_loss_table_has_25_rows_including_the_best(tmp_path: Path) -> None:
    losses = [1.0 + abs(step - 137) / 100 for step in range(200)]
    log = tuple({"step": step, "epoch": step / 40, "eval_loss": loss} for step, loss in enumerate(losses))
    selected = downsample_evals(log)
    assert len(selected) == 25
    assert selected[0] == log[0]
    assert log[137] in selected
    assert selected[-1] == log[-1]
    assert downsample_evals(log[:25]) == list(log[:25])
    _, text = _card(tmp_path, log=(*log, {"step": 7, "epoch": 0.1, "loss": 3.0}))
    assert len(re.findall(r"^\| \d+ \| ", text, re.MULTILINE)) == 25
    assert "25 of 200 evaluations" in text
    assert "loss.png" not in text
    (tmp_path / "loss.png").write_bytes(b"")
    assert "![Training and validation loss](loss.png)" in _card(tmp_path, log=log)[1]


def test_cost_section_is_present_only_with_a_cost(tmp_path: Path) -> None:
    assert "## Cost" not in _card(tmp_path)[1]
    cost = {"trainable_parameters": 921600, "train_seconds": 1234.5, "peak_memory_bytes": 1.5e9, "train_tokens": 9000}
    section = "921,600 trained parameters; 20 min 34 s of training; 9,000 tokens read; 1.5 GB of memory at the peak."
    assert section in _card(tmp_path, config=cost)[1]


def test_card_of_own_data_has_an_unknown_licence(tmp_path: Path) -> None:
    data, text = _card(tmp_path, dataset="pairs: mine.jsonl", licence="other")
    assert data.datasets is None
    assert "`pairs: mine.jsonl`, a data set of the person who trained it" in text
    assert "licence is not known to the program" in text
    assert _card(tmp_path, dataset="someone/pairs")[0].datasets == ["someone/pairs"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path / "client")
        yield standin


def test_code_in_the_card_runs(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["someone/tiny"] = make_base("llama", tmp_path / "tiny")
    folder = make_adapter(tmp_path / "lora-tiny", tmp_path / "tiny", identity_of("someone/tiny"))
    card = ModelCard.load(folder / "README.md")
    HfApi()._validate_yaml(card.content, token=TOKEN)
    hub.add("someone/lora-tiny", folder)
    code = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(code) == 1
    names: dict[str, Any] = {}
    exec(code[0].replace("USER/NAME", "someone/lora-tiny"), names)
    assert names["model"].active_adapter == "default"
    assert names["model"].peft_config["default"].r == 8
    assert hub.commit("someone/tiny") in code[0], "the base is pinned"
