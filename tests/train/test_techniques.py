"""Tests of train/techniques.py: target modules against PEFT and Table 3; every technique trains and serves."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    CodeGenConfig,
    LlamaConfig,
    Qwen2Config,
    T5Config,
)

from adapters.store import Store
from errors import TrainingError
from models.loader import linear_shapes, load_base
from models.source import BaseIdentity
from serve.backends.local.backend import LocalBackend
from serve.types import Row, RowOutput, SamplingParams
from tasks.datasets.registry import load_problems
from tasks.problem import Example
from tasks.prompt import STYLES, render_prompt
from tests import messages
from tests.serve.tiny import make_base
from tests.train.runs import tiny_config
from train.estimate import estimate
from train.model import patch_loss
from train.run import train
from train.techniques import (
    TECHNIQUES,
    attention_target_modules,
    ia3_attention_target_modules,
    ia3_target_modules,
    paper_lora_target_modules,
)
from train.tokenize import IGNORE_INDEX, ExampleTokenizer, TokenizedExample

pytestmark = pytest.mark.slow

FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}
ARCHITECTURES = ("llama", "qwen2", "codegen", "t5")
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in TECHNIQUES},
    "rslora": {"technique": "lora", "use_rslora": True},
    "dora": {"technique": "lora", "use_dora": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("techniques")


# All techniques on one architecture, and on the others those whose code depends on it. The answers of every family with
# LoRA are compared with PEFT's in tests/serve/test_families.py.
TRAINED = [
    *(("llama", name) for name in OPTIONS),
    ("qwen2", "qlora-4bit"),
    ("codegen", "lora"),
    ("codegen", "ia3"),
    *(("t5", name) for name in ("full", "lora", "ia3", "prompt-tuning", "prefix-tuning")),
]


@pytest.mark.parametrize(("architecture", "name"), TRAINED)
def test_technique_trains_and_saves_the_best_checkpoint(folder: Path, architecture: str, name: str) -> None:
    """Answers of the base do not change, and the file has the estimated size."""
    run_folder = folder / architecture
    if not run_folder.exists():
        make_base(architecture, run_folder / "base")
    changes = {"technique": name, **OPTIONS[name]}
    config = tiny_config(run_folder, adapter_name=name, max_train_samples=16, eval_every=1, **changes)
    made = train(config, lambda _: None)
    manifest = json.loads((made / "manifest.json").read_text())
    best = manifest["scores"][0]["value"]
    assert best == min(entry["eval_loss"] for entry in manifest["log"])
    assert _validation_loss(run_folder, made, manifest) == pytest.approx(best, rel=0.02)
    if name != "full":
        _check_base_is_unchanged(run_folder, name, manifest["trained_quantization"])
    if name in ("lora", "qlora-4bit", "ia3", "prompt-tuning", "prefix-tuning"):
        weights = (made / "adapter_model.safetensors").read_bytes()
        header_size = int.from_bytes(weights[:8], "little") + 8
        rows = [TokenizedExample([5] * 4, [6] * 2)] * 8
        result = estimate(config, run_folder / "base", rows, rows, measure_speed=False, device="cpu")
        assert result.adapter_bytes == len(weights) - header_size


def _validation_loss(run_folder: Path, made: Path, manifest: dict[str, Any]) -> float:
    """Compute the loss of the folder loaded with PEFT (for full fine-tuning: transformers)."""
    full = manifest["technique"] == "full"
    loaded = load_base(
        str(made if full else run_folder / "base"),
        manifest["trained_quantization"],
        "cpu",
        lambda _: None,
        training=True,
    )
    model: Any = loaded.model
    if not full:
        from peft import PeftModel

        from train.model import cast_outputs

        model = PeftModel.from_pretrained(model, str(made))
        cast_outputs(model, loaded.model.dtype)
    patch_loss(model.eval())
    encoder = ExampleTokenizer(loaded.tokenizer, STYLES["plain"], loaded.identity.is_encoder_decoder)
    problems = load_problems("starter", "validation")[:6]
    rows = [encoder.to_features(encoder.tokenize(Example(p.id, p.intent, p.reference or ""))) for p in problems]
    rows = [row for row in rows if _length(row, loaded.identity.is_encoder_decoder) <= 480]
    batch = encoder.collate(rows)
    assert int((batch["labels"] != IGNORE_INDEX).sum()) > 0
    with torch.no_grad():
        return float(model(**batch)["loss"])


def _length(row: dict[str, list[int]], is_encoder_decoder: bool) -> int:
    return len(row["input_ids"]) + (len(row["labels"]) if is_encoder_decoder else 0)


def _check_base_is_unchanged(run_folder: Path, name: str, quantization: str) -> None:
    """Check that a loaded adapter changes only the answers of rows with it, and those of others not by a bit."""
    backend = LocalBackend(load_base(str(run_folder / "base"), quantization, "cpu", lambda _: None))
    prompt = render_prompt("sort a list", (), STYLES["plain"])
    base_row = Row(prompt, STYLES["plain"])
    before = _answers(backend, [base_row])[0]
    backend.load_adapter(Store((run_folder / "store",), fingerprints=FINGERPRINTS).open(name, backend.base))
    backend.prefix_cache.clear()  # a cached prefix changes the rounding
    after = _answers(backend, [base_row])[0]
    assert after == before
    assert _answers(backend, [Row(prompt, STYLES["plain"], name)])[0] != before


def _answers(backend: LocalBackend, rows: list[Row]) -> list[tuple[str, float]]:
    events = backend.generate(rows, SamplingParams(max_new_tokens=8), Event())
    done = {event.index: event.candidates[0] for event in events if isinstance(event, RowOutput)}
    return [(done[index].text, done[index].logprob) for index in range(len(rows))]


# Configurations as published on the Hub; the models are built without memory.
_CONFIGS: dict[str, Any] = {
    "CodeLlama-7B": LlamaConfig(vocab_size=32016, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32),
    "Qwen2.5-Coder-0.5B": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    ),
    "CodeGen-350M-mono": CodeGenConfig(vocab_size=51200, n_embd=1024, n_layer=20, n_head=16, rotary_dim=32),
    # CodeGen2's own class has the same module names; CodeGen's class with the same sizes has equal counts.
    "CodeGen2-1B": CodeGenConfig(vocab_size=51200, n_embd=2048, n_layer=16, n_head=16),
    "CodeGen2-3.7B": CodeGenConfig(vocab_size=51200, n_embd=4096, n_layer=16, n_head=16),
    "CodeGen2-7B": CodeGenConfig(vocab_size=51200, n_embd=4096, n_layer=32, n_head=16),
    "CodeT5+-220M": T5Config(vocab_size=32103, d_model=768, d_ff=3072, d_kv=64, num_layers=12, num_heads=12),
    "CodeT5+-770M": T5Config(vocab_size=32103, d_model=1024, d_ff=4096, d_kv=64, num_layers=24, num_heads=16),
}


def _model(name: str) -> Any:
    config = _CONFIGS[name]
    family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return family.from_config(config)


def _base(model: Any) -> BaseIdentity:
    return BaseIdentity(
        "x", "y", type(model).__name__, "none", "cpu", 512, has_chat_template=False, shapes=linear_shapes(model)
    )


def _trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("name", "attention", "inputs", "ia3", "feedforward"),
    [
        ("CodeLlama-7B", "k_proj o_proj q_proj v_proj", "k_proj q_proj v_proj", "down_proj k_proj v_proj", "down_proj"),
        (
            "Qwen2.5-Coder-0.5B",
            "k_proj o_proj q_proj v_proj",
            "k_proj q_proj v_proj",
            "down_proj k_proj v_proj",
            "down_proj",
        ),
        ("CodeGen-350M-mono", "out_proj qkv_proj", "qkv_proj", "fc_out qkv_proj", "fc_out"),
        ("CodeGen2-1B", "out_proj qkv_proj", "qkv_proj", "fc_out qkv_proj", "fc_out"),
        ("CodeT5+-220M", "k o q v", "k q v", "k v wo", "wo"),
    ],
)
def test_target_modules_exist_in_each_architecture(
    name: str, attention: str, inputs: str, ia3: str, feedforward: str
) -> None:
    base = _base(_model(name))
    assert attention_target_modules(base) == attention.split()
    assert ia3_attention_target_modules(base) == attention.split()
    assert paper_lora_target_modules(base) == inputs.split()
    assert ia3_target_modules(base) == (ia3.split(), [feedforward])


@pytest.mark.parametrize(
    ("name", "parameters", "printed", "unit"),
    [
        ("CodeLlama-7B", 12_582_912, 12.5, 0.1e6),
        ("CodeGen-350M-mono", 1_310_720, 1.3, 0.1e6),
        ("CodeGen2-1B", 2_097_152, 2, 1e6),
        ("CodeGen2-3.7B", 4_194_304, 4, 1e6),
        ("CodeGen2-7B", 8_388_608, 8.3, 0.1e6),
        ("CodeT5+-220M", 2_654_208, 2.7, 0.1e6),
        ("CodeT5+-770M", 7_077_888, 7, 1e6),
    ],
)
def test_lora_of_rank_16_has_the_parameters_of_table_3(name: str, parameters: int, printed: float, unit: float) -> None:
    model = _model(name)
    lora = LoraConfig(r=16, target_modules=paper_lora_target_modules(_base(model)))
    with torch.device("meta"):
        assert _trainable(get_peft_model(model, lora)) == parameters
    # The study rounds some numbers and truncates others.
    assert abs(parameters - printed * 1e6) < unit


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("CodeLlama-7B", 614_400), ("CodeGen-350M-mono", 143_360), ("CodeT5+-220M", 129_024), ("CodeT5+-770M", 344_064)],
)
def test_ia3_rescales_keys_values_and_the_feed_forward(name: str, parameters: int) -> None:
    model = _model(name)
    targets, feedforward = ia3_target_modules(_base(model))
    with torch.device("meta"):
        tuned = get_peft_model(model, IA3Config(target_modules=targets, feedforward_modules=feedforward))
    assert _trainable(tuned) == parameters
    layers = {name: layer for name, layer in tuned.named_modules() if hasattr(layer, "is_feedforward")}
    assert {name.rsplit(".", 1)[-1] for name, layer in layers.items() if layer.is_feedforward} == set(feedforward)
    assert {name.rsplit(".", 1)[-1] for name in layers} == set(targets)


def test_ia3_of_codegen_has_the_parameters_of_table_3_with_all_modules() -> None:
    """See the docstring of ia3_target_modules."""
    model = _model("CodeGen-350M-mono")
    base = _base(model)
    _, feedforward = ia3_target_modules(base)
    targets = [*attention_target_modules(base), *feedforward]
    with torch.device("meta"):
        tuned = get_peft_model(model, IA3Config(target_modules=targets, feedforward_modules=feedforward))
    assert _trainable(tuned) == 163_840


@pytest.mark.parametrize(("name", "kind"), [("CodeLlama-7B", "llama"), ("CodeT5+-220M", "t5")])
def test_ia3_agrees_with_pefts_own_mapping(name: str, kind: str) -> None:
    targets, feedforward = ia3_target_modules(_base(_model(name)))
    assert targets == sorted(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind])
    assert feedforward == TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]


@pytest.mark.parametrize(
    ("kind", "attention", "feedforward"),
    [
        ("gptj", "k_proj out_proj q_proj v_proj", "fc_out"),
        ("opt", "k_proj out_proj q_proj v_proj", "fc2"),
        ("phi", "dense k_proj q_proj v_proj", "fc2"),
        ("phi3", "o_proj qkv_proj", "down_proj"),
        ("gpt_bigcode", "attn.c_proj c_attn", "mlp.c_proj"),
        ("gpt_neox", "dense query_key_value", "dense_4h_to_h"),
        ("falcon", "dense query_key_value", "dense_4h_to_h"),
        ("starcoder2", "k_proj o_proj q_proj v_proj", "c_proj"),
        ("gpt2", "attn.c_proj c_attn", "mlp.c_proj"),
    ],
)
def test_target_modules_of_other_architectures_are_found(kind: str, attention: str, feedforward: str) -> None:
    with torch.device("meta"):
        base = _base(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind)))
    assert attention_target_modules(base) == attention.split()
    assert ia3_target_modules(base)[1] == [feedforward]


@pytest.mark.parametrize(
    "modules", [attention_target_modules, paper_lora_target_modules, ia3_target_modules, ia3_attention_target_modules]
)
def test_unknown_architecture_raises_a_training_error(modules: Any) -> None:
    with torch.device("meta"):
        base = _base(AutoModelForCausalLM.from_config(AutoConfig.for_model("mpt")))
    with pytest.raises(TrainingError, match=messages.TARGET_MODULES_UNKNOWN):
        modules(base)
