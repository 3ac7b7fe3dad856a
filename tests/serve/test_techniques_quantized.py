"""Every technique on an NF4 and an int8 base: outputs close to PEFT's, and a base that is unchanged bit for bit.

The tiny base is in bfloat16 and the CPU kernel rounds NF4's block scales, so logits are close and not equal.
"""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight

from adapters.store import Store
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.backends.local.batch import PromptInput
from serve.backends.local.lora.adapter import AppliedAdapter, weight_norm
from serve.types import Candidate, Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests.serve.test_techniques import FINGERPRINTS, PROMPTS, configs
from tests.serve.tiny import make_adapter, make_base, tokenizer

PLAIN = STYLES["plain"]
ROWS = [Row(prompt, PLAIN) for prompt in PROMPTS]


class Quantized:
    def __init__(self, quantization: str, root: Path) -> None:
        self.quantization, self.root = quantization, root
        make_base("qwen2", root / "base")  # with biases
        self.backend = LocalBackend(self.load(training=False))
        self.first = self.generate(ROWS)
        store = Store((root / "store",), fingerprints=FINGERPRINTS)
        for seed, (name, config) in enumerate(configs("qwen2").items()):
            make_adapter(root / "store" / name, self.backend.base, self.load(training=True).model, config, seed)
        self.folders = {name: store.open(name, self.backend.base) for name in store.names()}

    def load(self, training: bool) -> Any:
        return load_base(str(self.root / "base"), self.quantization, "cpu", lambda _: None, training=training)

    def generate(self, rows: list[Row]) -> list[Candidate]:
        self.backend.prefix_cache.clear()  # a prompt that is prefilled in two pieces is rounded differently
        events = list(self.backend.generate(rows, SamplingParams(max_new_tokens=8), Event()))
        finished = sorted((event for event in events if isinstance(event, RowOutput)), key=lambda event: event.index)
        return [event.candidates[0] for event in finished]


@pytest.fixture(scope="module", params=["nf4", "int8"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return Quantized(request.param, tmp_path_factory.mktemp(request.param))


def test_base_is_unchanged_bit_for_bit_after_each_technique(quantized: Quantized) -> None:
    for name, folder in quantized.folders.items():
        quantized.backend.load_adapter(folder)
        assert quantized.generate(ROWS) == quantized.first, f"after loading {name}"
        mixed = quantized.generate([*ROWS, *(Row(row.prompt, PLAIN, name) for row in ROWS)])
        assert mixed[: len(ROWS)] != mixed[len(ROWS) :], f"{name} changes nothing, so this test would prove nothing"
        assert quantized.generate(ROWS) == quantized.first, f"after applying {name}"
        quantized.backend.unload_adapter(name)
        assert quantized.generate(ROWS) == quantized.first, f"after unloading {name}"


def test_dora_weight_norm_for_packed_and_unpacked_weights(quantized: Quantized) -> None:
    name = "model.layers.1.self_attn.k_proj"
    a, b = torch.randn(4, 64) / 10, torch.randn(32, 4) / 10
    weight = dequantize_module_weight(quantized.load(training=True).model.get_submodule(name)).float()
    expected = (weight + b @ a).norm(dim=1)
    fresh = LocalBackend(quantized.load(training=False))
    layer = fresh._model.get_submodule(name)
    before = weight_norm(layer, a, b)
    assert torch.allclose(before, expected, rtol=0.01)
    list(fresh.generate(ROWS, SamplingParams(max_new_tokens=1), Event()))
    assert torch.equal(weight_norm(layer, a, b), before)


@torch.no_grad()
def test_logprobs_match_peft_on_the_same_weights(quantized: Quantized) -> None:
    for folder in quantized.folders.values():
        quantized.backend.load_adapter(folder)
    prompt = tokenizer()(PROMPTS[1])["input_ids"]
    continued = tokenizer()("(x, y)")["input_ids"]
    served = _scores(quantized.backend, list(quantized.folders), prompt, continued)
    bare = _peft_scores(quantized.load(training=True).model, prompt, continued)
    for name, ours in zip(quantized.folders, served, strict=True):
        model = PeftModel.from_pretrained(quantized.load(training=True).model, quantized.root / "store" / name).eval()
        theirs = _peft_scores(model, prompt, continued)
        assert (ours - theirs).abs().mean() < 0.02, name
        assert (theirs - bare).abs().mean() > 0.1, f"{name} changes nothing, so this test would prove nothing"


def _scores(backend: LocalBackend, names: list[str], prompt: list[int], continued: list[int]) -> torch.Tensor:
    """Return log-probabilities, (rows, positions, vocabulary), of a batch with another adapter for every row."""
    runner = backend._make_runner()
    prompts = [PromptInput(tuple(prompt), AppliedAdapter(backend._registry[name])) for name in names]
    *_, first = runner.prefill(prompts)
    assert first is not None
    scores = [first, *(runner.decode(torch.tensor([token] * len(names))) for token in continued[:-1])]
    return torch.stack(scores, dim=1).log_softmax(-1)


def _peft_scores(model: Any, prompt: list[int], continued: list[int]) -> torch.Tensor:
    full_ids = torch.tensor([prompt + continued])
    with torch.autocast("cpu", torch.bfloat16):  # without it, IA3 of PEFT gives keys of another dtype than queries
        logits = model(input_ids=full_ids, attention_mask=torch.ones_like(full_ids)).logits[0]
    return logits[-len(continued) - 1 : -1].float().log_softmax(-1)
