"""Every technique in a mixed batch compared with PEFT's PeftModel for each adapter alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from adapters.store import Store
from adapters.weights import WEIGHTS_NAME
from errors import AdapterError
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.backends.local.lora.adapter import prefix_tuning
from serve.types import Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests import messages
from tests.serve.tiny import make_adapter, make_base, tokenizer

pytestmark = pytest.mark.slow

PLAIN = STYLES["plain"]
PROMPTS = ["sort a list", "open the file `a.txt` and count its lines", "x"]
FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}
ATTENTION = {"llama": ["q_proj", "v_proj"], "qwen2": ["k_proj", "v_proj"], "codegen": ["qkv_proj"], "t5": ["q", "v"]}
# Modules whose inputs IA3 scales.
FORWARD = {"llama": "down_proj", "qwen2": "down_proj", "codegen": "fc_in", "t5": "wo"}
TOKENS = 12


def configs(kind: str) -> dict[str, PeftConfig]:
    """Return a PEFT config of every technique that this kind of base supports."""
    targets = [*ATTENTION[kind], FORWARD[kind]]
    outputs: dict[str, PeftConfig] = {
        "lora": LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False),
        "rslora": LoraConfig(
            r=4, lora_alpha=2, use_rslora=True, target_modules=ATTENTION[kind], init_lora_weights=False
        ),
        "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=targets, init_lora_weights=False),
        "ia3": IA3Config(target_modules=targets, feedforward_modules=[FORWARD[kind]]),
        "prompt": PromptTuningConfig(num_virtual_tokens=7),
    }
    if kind == "t5":
        outputs["prompt-1"] = PromptTuningConfig(num_virtual_tokens=3, num_transformer_submodules=1)
    outputs["prefix"] = PrefixTuningConfig(num_virtual_tokens=5)
    outputs["projected"] = PrefixTuningConfig(num_virtual_tokens=9, prefix_projection=True, encoder_hidden_size=16)
    return outputs


class Setup:
    """A tiny base with a loaded adapter of every technique, and PEFT's models of the same folders."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.root = kind, root
        make_base(kind, root / "base")
        self.backend = LocalBackend(load_base(str(root / "base"), "none", "cpu", lambda _: None, dtype=torch.float32))
        self.store = Store((root / "store",), fingerprints=FINGERPRINTS)
        self.names: list[str | None] = [None]
        for seed, (name, config) in enumerate(configs(kind).items()):
            make_adapter(root / "store" / name, self.backend.base, self.bare(), config, seed)
            self.backend.load_adapter(self.store.open(name, self.backend.base))
            self.names.append(name)

    def bare(self) -> Any:
        model_class = AutoModelForSeq2SeqLM if self.kind == "t5" else AutoModelForCausalLM
        return model_class.from_pretrained(self.root / "base", dtype=torch.float32).eval()

    def peft(self, name: str | None) -> Any:
        bare = self.bare()
        return bare if name is None else PeftModel.from_pretrained(bare, self.root / "store" / name).eval()

    def generate(self, rows: list[Row], decoding: SamplingParams) -> list[RowOutput]:
        events = [event for event in self.backend.generate(rows, decoding, Event()) if isinstance(event, RowOutput)]
        return sorted(events, key=lambda event: event.index)


@torch.no_grad()
def greedy(model: Any, prompt: str) -> tuple[list[int], float]:
    """Return greedy tokens and their log-probability from PEFT's `forward` over the full text, without a KV cache."""
    ids = tokenizer()(prompt, return_tensors="pt")["input_ids"]
    decoded = torch.zeros((1, 1), dtype=torch.long)
    tokens: list[int] = []
    total = 0.0
    while len(tokens) < TOKENS and 2 not in tokens:
        if model.config.is_encoder_decoder:
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": decoded}
        else:
            full_ids = torch.cat([ids, decoded[:, 1:]], dim=1)
            inputs = {"input_ids": full_ids, "attention_mask": torch.ones_like(full_ids)}
        logprobs = model(**inputs).logits[0, -1].log_softmax(-1)
        tokens.append(int(logprobs.argmax()))
        total += float(logprobs.max())
        decoded = torch.cat([decoded, torch.tensor([[tokens[-1]]])], dim=1)
    return tokens, total


def beams(model: Any, prompt: str, width: int) -> list[str]:
    ids = tokenizer()(prompt, return_tensors="pt")["input_ids"]
    sequences = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        num_beams=width,
        num_return_sequences=width,
    )
    begin = 0 if model.config.is_encoder_decoder else ids.shape[1]
    texts = [text(row[begin:].tolist()) for row in sequences]
    return list(dict.fromkeys(event.strip() for event in texts))


def text(tokens: list[int]) -> str:
    return str(tokenizer().decode(tokens, skip_special_tokens=True)).rstrip("\ufffd")


@pytest.fixture(scope="module", params=["llama", "qwen2", "codegen", "t5"])
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(request.param, tmp_path_factory.mktemp(request.param))


def test_mixed_batch_matches_peft_for_each_adapter(local: Setup) -> None:
    rows = [Row(prompt, PLAIN, name) for prompt in PROMPTS for name in local.names]
    outputs = local.generate(rows, SamplingParams(max_new_tokens=TOKENS))
    models = {name: local.peft(name) for name in local.names}
    for row, event in zip(rows, outputs, strict=True):
        tokens, logprob = greedy(models[row.adapter], row.prompt)
        assert event.candidates[0].text == text(tokens), f"adapter {row.adapter}, prompt {row.prompt}"
        # T5 does not scale its attention scores, so float32 rounding errors are larger.
        expected_logprob = pytest.approx(logprob, abs=2e-2 if local.kind == "t5" else 2e-3)
        assert event.candidates[0].logprob == expected_logprob, f"adapter {row.adapter}"
    different = {round(event.candidates[0].logprob, 3) for event in outputs[: len(local.names)]}
    assert len(different) == len(local.names), "two techniques give equal results, so this test checks little"


def test_each_adapter_alone_matches_the_mixed_batch(local: Setup) -> None:
    decoding = SamplingParams(mode="sample", candidates=2, temperature=1.5, max_new_tokens=TOKENS, seed=3)
    together = local.generate([Row(PROMPTS[1], PLAIN, name) for name in local.names], decoding)
    for name, event in zip(local.names, together, strict=True):
        (alone,) = local.generate([Row(PROMPTS[1], PLAIN, name)], decoding)
        assert [event.text for event in alone.candidates] == [event.text for event in event.candidates], (
            f"adapter {name}"
        )


def test_beams_of_a_mixed_batch_match_peft(local: Setup) -> None:
    outputs = local.generate(
        [Row(PROMPTS[0], PLAIN, name) for name in local.names], SamplingParams("beam", TOKENS, candidates=4)
    )
    for name, event in zip(local.names, outputs, strict=True):
        expected = beams(local.peft(name), PROMPTS[0], 4)
        assert [candidate.text.strip() for candidate in event.candidates] == expected, f"adapter {name}"


def test_base_rows_match_the_bare_base_bit_for_bit(local: Setup) -> None:
    fresh = LocalBackend(load_base(str(local.root / "base"), "none", "cpu", lambda _: None, dtype=torch.float32))
    rows = [Row(prompt, PLAIN) for prompt in PROMPTS]
    decoding = SamplingParams(max_new_tokens=TOKENS)
    bare = [event for event in fresh.generate(rows, decoding, Event()) if isinstance(event, RowOutput)]
    expected = {event.index: event.candidates for event in bare}
    local.backend.prefix_cache.clear()
    assert {event.index: event.candidates for event in local.generate(rows, decoding)} == expected
    local.generate([Row(PROMPTS[0], PLAIN, name) for name in local.names], decoding)
    for name in local.names[1:]:
        assert name is not None
        local.backend.load_adapter(local.store.open(name, local.backend.base))
    local.backend.prefix_cache.clear()  # a prompt that is prefilled in two pieces is rounded differently
    assert {event.index: event.candidates for event in local.generate(rows, decoding)} == expected


def test_error_during_a_forward_leaves_the_base_unchanged(local: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, decoding = [Row(prompt, PLAIN) for prompt in PROMPTS], SamplingParams(max_new_tokens=TOKENS)
    first = [event.candidates for event in local.generate(rows, decoding)]
    calls: list[int] = []

    def breaks(inputs: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 60:
            raise RuntimeError("out of memory")
        return linear(inputs, *arguments, **options)

    linear: Any = torch.nn.functional.linear
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", breaks)
        with pytest.raises(RuntimeError, match=messages.OUT_OF_MEMORY):
            local.generate([Row(PROMPTS[0], PLAIN, name) for name in local.names], decoding)
    model = local.backend._model
    assert not [event for event in model.modules() if event._forward_hooks or event._forward_pre_hooks]
    assert [event.candidates for event in local.generate(rows, decoding)] == first


def test_nan_values_are_refused_and_nothing_is_loaded(local: Setup, tmp_path: Path) -> None:
    for name in local.names[1:]:
        assert name is not None
        folder = shutil.copytree(local.root / "store" / name, tmp_path / f"nan-{name}")
        tensors = load_file(folder / WEIGHTS_NAME)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        save_file(tensors, folder / WEIGHTS_NAME)
        opened = Store((tmp_path,), fingerprints=FINGERPRINTS).open(folder.name, local.backend.base)
        with pytest.raises(AdapterError, match=messages.ADAPTER_NOT_FINITE.format(name=f"nan-{name}")):
            local.backend.load_adapter(opened)
        assert folder.name not in local.backend._registry


def test_adapter_of_another_size_is_refused_before_loading(local: Setup) -> None:
    base = local.backend.base
    shapes = {name: (rows + 8, columns + 8) for name, (rows, columns) in base.shapes.items()}
    other = replace(base, shapes=shapes, hidden_size=72, num_layers=4)
    for name in local.names[1:]:
        assert name is not None
        with pytest.raises(AdapterError, match=messages.TRAIN_AGAIN_ON_BASE):
            local.store.open(name, other)


def test_sliding_window_base_refuses_virtual_tokens(tmp_path: Path) -> None:
    local = Setup("llama", tmp_path)
    folders = [local.store.open(name, local.backend.base) for name in ("prompt", "prefix")]
    local.backend._model.config.sliding_window = 16
    local.backend._model.config.layer_types = ["sliding_attention", "full_attention"]
    for folder in folders:
        with pytest.raises(AdapterError, match=messages.SLIDING_WINDOW):
            local.backend.load_adapter(folder)


def test_prefix_on_absolute_decoder_positions_is_refused() -> None:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
    bart = BartForConditionalGeneration(BartConfig(vocab_size=20, d_model=16, decoder_ffn_dim=16, **sizes))
    config = {"num_layers": 2, "num_attention_heads": 2, "num_virtual_tokens": 3}
    with pytest.raises(AdapterError, match=messages.ENCODER_DECODER_UNSUPPORTED):
        prefix_tuning(bart, config, torch.zeros(3, 64), "mine")


def test_prompts_of_very_different_length_keep_their_prefixes(tmp_path: Path) -> None:
    local = Setup("llama", tmp_path)
    prompts = ["sort the list " * 20, "x", "sort the list " * 19]
    rows = [Row(prompt, PLAIN, name) for prompt in prompts for name in (None, "prompt", "prefix", "lora")]
    outputs = local.generate(rows, SamplingParams(max_new_tokens=TOKENS))
    models = {name: local.peft(name) for name in (None, "prompt", "prefix", "lora")}
    for row, event in zip(rows, outputs, strict=True):
        tokens, logprob = greedy(models[row.adapter], row.prompt)
        assert event.candidates[0].text == text(tokens), f"adapter {row.adapter}"
        assert event.candidates[0].logprob == pytest.approx(logprob, abs=2e-3)
