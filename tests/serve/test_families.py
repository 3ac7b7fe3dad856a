"""Today's families of bases: each answers in a batch as `generate` and PEFT do alone, or is refused in one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adapters.store import Store
from errors import BaseModelError, TrainingError
from evaluate.__main__ import main as evaluate_main
from models.loader import LoadedBase, linear_shapes, load_base
from models.source import BaseIdentity, Source, check_kind
from serve.backends.local import hf_runner
from serve.backends.local.backend import LocalBackend, check_base
from serve.engine.build import build_engine
from serve.options import ModelOptions
from serve.types import Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests import messages
from tests.serve.families import SERVED, make_config, make_family, make_vision_language
from tests.serve.tiny import make_adapter, make_base, tokenizer
from tests.train.runs import tiny_config
from train.preflight import run_preflight
from train.run import train
from train.techniques import TECHNIQUES, attention_target_modules

pytestmark = pytest.mark.slow

PLAIN = STYLES["plain"]
FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}
# Of different lengths, two of them equal; the longest is read in several chunks.
PROMPTS = ["sort a list", "x", "open the file `a.txt` and count its lines", "add a list!"]
TOKENS = 8
# Families whose adapters are also checked on an NF4 base, and those whose beams are compared: one of each kind.
QUANTIZED = ("gpt2", "gemma2", "qwen3_moe", "lfm2", "falcon_h1", "jamba", "qwen3_5_text")
BEAMS = ("gemma3_text", "gemma4_text", "lfm2", "falcon_h1", "qwen3_5_text", "mamba2")


@dataclass
class Family:
    """A tiny base of one family in this program, and the same base with PEFT, both with one LoRA adapter."""

    backend: LocalBackend
    peft: Any

    def generate(self, rows: list[Row], params: SamplingParams) -> list[RowOutput]:
        events = [event for event in self.backend.generate(rows, params, Event()) if isinstance(event, RowOutput)]
        return sorted(events, key=lambda event: event.index)


def _load(folder: Path, quantization: str = "none", training: bool = False) -> LoadedBase:
    return load_base(str(folder), quantization, "cpu", lambda _: None, training=training, dtype=torch.float32)


def _make(kind: str, root: Path, quantization: str = "none", technique: str = "lora", **changes: Any) -> Family:
    """Make a base, and an adapter with random weights on the layers that training chooses for it."""
    folder = make_family(kind, root / kind)
    loaded = _load(folder, quantization)
    check_base(loaded)
    backend = LocalBackend(loaded)
    train_config = tiny_config(root, technique=technique, quantization=quantization, **changes)
    config = TECHNIQUES[technique].make_peft_config(train_config, backend.base)
    assert config is not None
    if isinstance(config, LoraConfig):
        config.init_lora_weights = False
    model = _load(folder, quantization, training=True).model
    make_adapter(root / "store" / "adapter", backend.base, model, config, 1)
    backend.load_adapter(Store((root / "store",), fingerprints=FINGERPRINTS).open("adapter", backend.base))
    reference = _load(folder, quantization, training=True).model
    return Family(backend, PeftModel.from_pretrained(reference, root / "store" / "adapter").eval())


@pytest.fixture(autouse=True)
def _chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_runner, "PREFILL_CHUNK", 16)


def _alone(model: Any, prompt: str, **settings: Any) -> tuple[list[str], float]:
    """Return the texts that `generate` gives for a prompt alone, and the log-probability of the first."""
    ids = tokenizer()(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
        return_dict_in_generate=True, output_logits=True, **settings,
    )  # fmt: skip
    new = out.sequences[:, ids.shape[1] :]
    logprobs = torch.stack(out.logits)[:, 0].log_softmax(-1).gather(-1, new[0, : len(out.logits), None])
    texts = [str(tokenizer().decode(row, skip_special_tokens=True)).rstrip("\ufffd") for row in new]
    return texts, float(logprobs.sum())


def _check_answers(family: Family, tolerance: float) -> None:
    """Compare a batch with and without the adapter with `generate` for each prompt alone; `tolerance` is in nats."""
    rows = [Row(prompt, PLAIN, adapter) for prompt in PROMPTS for adapter in (None, "adapter")]
    outputs = family.generate(rows, SamplingParams(max_new_tokens=TOKENS))
    for row, output in zip(rows, outputs, strict=True):
        if row.adapter is None:
            with family.peft.disable_adapter():
                texts, logprob = _alone(family.peft, row.prompt)
        else:
            texts, logprob = _alone(family.peft, row.prompt)
        assert output.candidates[0].text == texts[0], row
        assert output.candidates[0].logprob == pytest.approx(logprob, abs=tolerance), row
    assert len({round(output.candidates[0].logprob, 3) for output in outputs}) == len(rows), "rows give equal results"


@pytest.fixture(scope="module", params=SERVED)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return _make(request.param, tmp_path_factory.mktemp(request.param))


def test_a_family_answers_in_a_batch_as_alone(family: Family) -> None:
    _check_answers(family, 5e-3)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_family_answers_in_a_batch_as_alone(kind: str, tmp_path: Path) -> None:
    _check_answers(_make(kind, tmp_path, "nf4", "qlora-4bit"), 0.1)  # its kernel rounds one row otherwise than several


@pytest.mark.parametrize("family", BEAMS, indirect=True)
def test_beams_of_a_family_match_generate(family: Family) -> None:
    outputs = family.generate([Row(prompt, PLAIN) for prompt in PROMPTS[:2]], SamplingParams("beam", TOKENS, 3))
    for prompt, output in zip(PROMPTS[:2], outputs, strict=True):
        with family.peft.disable_adapter():
            texts, _ = _alone(family.peft, prompt, num_beams=3, num_return_sequences=3)
        expected = list(dict.fromkeys(text.strip() for text in texts))
        assert [candidate.text.strip() for candidate in output.candidates] == expected


@pytest.mark.parametrize(
    ("kind", "technique"),
    [
        ("gpt2", "ia3"),
        ("qwen3_moe", "ia3"),
        ("lfm2", "ia3"),
        ("gemma4_text", "ia3"),
        ("gpt2", "prompt-tuning"),
        ("qwen3_moe", "prefix-tuning"),
    ],
)
def test_other_techniques_answer_in_a_batch_as_alone(kind: str, technique: str, tmp_path: Path) -> None:
    _check_answers(_make(kind, tmp_path, technique=technique), 5e-3)


def test_gpt2_with_dora_answers_in_a_batch_as_alone(tmp_path: Path) -> None:
    """Its layers store their weights as (inputs, outputs), which DoRA's norms must respect."""
    _check_answers(_make("gpt2", tmp_path, use_dora=True), 5e-3)


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("gpt2", "attn.c_proj c_attn"),
        ("qwen3_moe", "k_proj o_proj q_proj v_proj"),
        ("deepseek_v3", "kv_a_proj_with_mqa kv_b_proj o_proj q_a_proj q_b_proj"),
        ("lfm2", "conv.in_proj k_proj out_proj q_proj v_proj"),
        ("falcon_h1", "k_proj mamba.in_proj o_proj q_proj v_proj"),
        (
            "qwen3_5_text",
            "k_proj linear_attn.in_proj_qkv linear_attn.in_proj_z linear_attn.out_proj o_proj q_proj v_proj",
        ),
        ("mamba", "mixer.in_proj"),
    ],
)
def test_lora_targets_of_attention_and_state_layers(kind: str, targets: str) -> None:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(make_config(kind))
    base = BaseIdentity("x", "y", kind, "none", "cpu", 512, has_chat_template=False, shapes=linear_shapes(model))
    assert attention_target_modules(base) == targets.split()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bert", messages.READS_BOTH_DIRECTIONS),
        ("clip", messages.ANSWERS_NO_TEXT),
        ("whisper", messages.ANSWERS_NO_TEXT),
        ("qwen2_vl", messages.ANSWERS_NO_TEXT),
        ("rwkv", messages.TAKES_NO_CACHE),
        ("openai-gpt", messages.TAKES_NO_CACHE),
        ("deepseek_v32", messages.CACHE_NOT_JOINED),
        ("deepseek_v4", messages.CACHE_NOT_JOINED),
    ],
)
def test_a_configuration_of_another_kind_is_refused_in_one_sentence(kind: str, message: str) -> None:
    with pytest.raises(BaseModelError, match=message) as error:
        check_kind(Source(kind, "r", Path("nowhere")), make_config(kind))
    _check_sentence(kind, str(error.value))


@pytest.mark.parametrize(
    ("kind", "quantization", "message"),
    [
        ("minimax", "none", messages.CACHE_OF_ITS_OWN),
        ("xlstm", "none", messages.STATES_OF_ITS_OWN),
        ("recurrent_gemma", "none", messages.STATES_OUTSIDE_CACHE),
        ("bart", "none", messages.OTHER_IN_BATCH),
        ("mamba", "nf4", messages.TRY_UNQUANTIZED),
    ],
)
def test_a_base_that_fails_the_trial_is_refused_in_one_sentence(
    kind: str, quantization: str, message: str, tmp_path: Path
) -> None:
    loaded = _load(make_family(kind, tmp_path / kind), quantization)
    with pytest.raises(BaseModelError, match=message) as error:
        check_base(loaded)
    _check_sentence(kind, str(error.value))


def _check_sentence(kind: str, sentence: str) -> None:
    assert sentence.startswith(f"The base '{kind}' ({kind}) ")
    assert sentence.endswith('choose a base of another kind (docs/serving.md, "Bases").')
    assert "\n" not in sentence


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5"])
def test_the_text_half_of_a_vision_language_model_is_served(kind: str, tmp_path: Path) -> None:
    model = make_vision_language(kind, tmp_path / kind)
    loaded = _load(tmp_path / kind)
    check_base(loaded)
    assert loaded.identity.context_length == 512
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours: Any = loaded.model
        assert torch.allclose(ours(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def test_a_base_without_an_output_layer_is_refused(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(make_config("llama"))
    model.save_pretrained(tmp_path / "classifier")
    tokenizer().save_pretrained(tmp_path / "classifier")
    with pytest.raises(BaseModelError, match=messages.LACKS_WEIGHTS):
        _load(tmp_path / "classifier")


def test_encoder_decoder_bases_pass_the_trial(tmp_path: Path) -> None:
    check_base(_load(make_base("t5", tmp_path / "t5")))


def test_the_engine_of_every_program_refuses_before_it_is_asked(tmp_path: Path) -> None:
    for kind, message in (("bert", messages.READS_BOTH_DIRECTIONS), ("minimax", messages.CACHE_OF_ITS_OWN)):
        folder = make_family(kind, tmp_path / kind)
        with pytest.raises(BaseModelError, match=message):
            build_engine(ModelOptions(base=str(folder), quantization="none", device="cpu"))


def test_training_refuses_an_adapter_that_could_not_be_served(tmp_path: Path) -> None:
    make_family("bert", tmp_path / "base")
    for run in (train, run_preflight):
        with pytest.raises(BaseModelError, match=messages.READS_BOTH_DIRECTIONS):
            run(tiny_config(tmp_path, technique="lora"), lambda _: None)


@pytest.mark.parametrize("kind", ["mistral", "lfm2"])
def test_training_refuses_virtual_tokens_that_would_not_be_seen(kind: str, tmp_path: Path) -> None:
    make_family(kind, tmp_path / "base")
    for technique in ("prompt-tuning", "prefix-tuning"):
        for run in (train, run_preflight):
            with pytest.raises(TrainingError, match=messages.SLIDING_WINDOW):
                run(tiny_config(tmp_path, technique=technique), lambda _: None)


def test_training_refuses_a_prefix_for_latent_attention(tmp_path: Path) -> None:
    make_family("deepseek_v3", tmp_path / "base")
    with pytest.raises(TrainingError, match=messages.LATENT_ATTENTION):
        run_preflight(tiny_config(tmp_path, technique="prefix-tuning"), lambda _: None)


def test_a_refused_base_ends_a_command_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_family("bert", tmp_path / "bert")
    arguments = ["--data", "starter", "--limit", "1", "--methods", "zero-shot", "--base", str(folder)]
    assert evaluate_main([*arguments, "--output", str(tmp_path / "run.jsonl")]) == 2
    assert re.search(messages.READS_BOTH_DIRECTIONS, capsys.readouterr().err)
