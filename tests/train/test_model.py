"""Tests of train/model.py: virtual tokens initialized from a text have the effect of that text in the prompt."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from models.loader import LoadedBase, load_base
from tests.serve.families import make_family
from tests.serve.tiny import make_base
from tests.train.runs import tiny_config
from train.model import build_peft_model, sample_example_ids
from train.tokenize import IGNORE_INDEX, TokenizedExample

SAMPLES = [
    TokenizedExample([10, 11, 12, 13], [14, 2]),
    TokenizedExample([20, 21, 22], [23, 24, 2]),
    TokenizedExample([30, 31], [32, 2]),
]
PROMPT_IDS = torch.tensor([[40, 41, 42, 43, 44]])


def _loaded(kind: str, folder: Path) -> LoadedBase:
    make_base(kind, folder / "base")
    return load_base(str(folder / "base"), "none", "cpu", lambda _: None, training=True, dtype=torch.float32)


def _model(loaded: LoadedBase, folder: Path, technique: str, **changes: Any) -> Any:
    config = tiny_config(folder, technique=technique, quantization="none", num_virtual_tokens=9, **changes)
    model = build_peft_model(config, loaded, SAMPLES).eval()
    del model.forward  # the forward function that computes the training loss
    return model


def test_initial_text_consists_of_training_examples() -> None:
    ids = sample_example_ids(SAMPLES, 9, seed=42)
    whole = [sample.prompt_ids + sample.response_ids for sample in SAMPLES]
    orders = itertools.permutations(whole)
    assert any(list(itertools.chain(*order))[:9] == ids for order in orders)
    assert sample_example_ids(SAMPLES, 9, seed=42) == ids
    assert sample_example_ids(SAMPLES[:1], 14, seed=1) == (whole[0] * 3)[:14], "too short a text is repeated"


@pytest.mark.parametrize("technique", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "codegen"])
def test_initial_virtual_tokens_have_the_effect_of_their_text(tmp_path: Path, kind: str, technique: str) -> None:
    loaded = _loaded(kind, tmp_path)
    text = torch.tensor([sample_example_ids(SAMPLES, 9, seed=42)])
    with torch.no_grad():
        expected = loaded.model(torch.cat((text, PROMPT_IDS), dim=1)).logits[:, 9:]
        model = _model(loaded, tmp_path, technique)
        found = model(input_ids=PROMPT_IDS, attention_mask=torch.ones_like(PROMPT_IDS)).logits[
            :, -PROMPT_IDS.shape[1] :
        ]
    assert torch.allclose(found, expected, atol=1e-4)


def test_initial_virtual_tokens_of_an_encoder_have_the_effect_of_their_text(tmp_path: Path) -> None:
    loaded = _loaded("t5", tmp_path)
    text, labels = torch.tensor([sample_example_ids(SAMPLES, 9, seed=42)]), torch.tensor([[50, 51, 2]])
    with torch.no_grad():
        expected = loaded.model(torch.cat((text, PROMPT_IDS), dim=1), labels=labels).logits
        model = _model(loaded, tmp_path, "prompt-tuning")
        found = model(input_ids=PROMPT_IDS, attention_mask=torch.ones_like(PROMPT_IDS), labels=labels).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_vocabulary_and_random_initialization_depend_on_the_seed(tmp_path: Path) -> None:
    """`random` is PEFT's initialization, `vocabulary` uses rows of the embedding; both depend on the seed."""
    loaded = _loaded("llama", tmp_path)
    table = loaded.model.get_input_embeddings().weight.detach().clone()

    def initial_values(method: str) -> torch.Tensor:
        model = _model(loaded, tmp_path, "prompt-tuning", virtual_tokens_init=method)
        values = model.prompt_encoder["default"].embedding.weight.detach().clone()
        model.base_model = None
        return values

    vocabulary = initial_values("vocabulary")
    assert all(any(torch.equal(row, embedding) for embedding in table) for row in vocabulary)
    assert torch.equal(initial_values("vocabulary"), vocabulary)
    random = initial_values("random")
    assert not any(torch.equal(row, embedding) for row in random for embedding in table)
    assert torch.equal(initial_values("random"), random)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "granite", "cohere2", "falcon_h1", "mamba"])
def test_the_loss_is_that_of_the_base_itself(tmp_path: Path, kind: str) -> None:
    """Some bases scale or cap the logits after their output layer, or compute between layers in 32 bits."""
    folder = make_family(kind, tmp_path / "base")
    loaded = load_base(str(folder), "none", "cpu", lambda _: None, training=True, dtype=torch.float32)
    ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batch["labels"][:, :4] = IGNORE_INDEX
    with torch.no_grad():
        expected = float(loaded.model(**batch).loss)
        model = build_peft_model(tiny_config(tmp_path, technique="lora"), loaded, SAMPLES).eval()
        assert float(model(**batch)["loss"]) == pytest.approx(expected, rel=1e-4)
