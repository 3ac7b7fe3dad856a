"""Fused runner: rows of many adapters in one forward, which join at any time, match PEFT with each adapter alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from adapters.store import Store
from errors import PromptOrTuneError
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.backends.local.batch import PromptInput
from serve.backends.local.fused_runner import FusedModelRunner
from serve.backends.local.lora.adapter import AppliedAdapter
from serve.backends.local.lora.batch import BatchedAdapters
from serve.types import Row, RowOutput, SamplingParams
from tests import messages
from tests.serve.test_techniques import FINGERPRINTS, PLAIN, TOKENS, greedy, text
from tests.serve.tiny import make_adapter, make_base, make_lora, tokenizer

pytestmark = pytest.mark.slow

PROMPTS = ["sort a list", "x", "open the file `a.txt` and count all of its lines and words, then print them"]
# Different ranks and modules, so that buffers are enlarged and some adapters skip some projections.
LORAS: dict[str, tuple[int, list[str]]] = {
    "attention": (8, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "two": (2, ["q_proj", "v_proj"]),
    "wide": (20, ["k_proj"]),
    "mlp": (4, ["gate_proj", "up_proj", "down_proj"]),
    "all": (16, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "up": (3, ["up_proj", "o_proj"]),
}


class Setup:
    """A tiny base with many LoRA adapters and an IA3 adapter on one module of a fused projection."""

    def __init__(self, kind: str, root: Path) -> None:
        self.root = root
        make_base(kind, root / "base")
        self.backend = LocalBackend(load_base(str(root / "base"), "none", "cpu", lambda _: None, dtype=torch.float32))
        self.store = Store((root / "store",), fingerprints=FINGERPRINTS)
        for seed, (name, (rank, targets)) in enumerate(LORAS.items()):
            make_lora(root / "store" / name, self.backend.base, self.bare(), rank, targets, seed)
        ia3 = IA3Config(target_modules=["q_proj", "up_proj", "down_proj"], feedforward_modules=["up_proj", "down_proj"])
        make_adapter(root / "store" / "ia3", self.backend.base, self.bare(), ia3, 50)
        self.load(*LORAS, "ia3")

    def load(self, *names: str) -> None:
        for name in names:
            self.backend.load_adapter(self.store.open(name, self.backend.base))

    def bare(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.root / "base", dtype=torch.float32).eval()

    def peft(self, name: str | None, scale: float = 1.0) -> Any:
        bare = self.bare()
        if name is None:
            return bare
        model = PeftModel.from_pretrained(bare, self.root / "store" / name).eval()
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scale_layer(scale)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "ia3_l" in parameter_name:
                    parameter.copy_(1 + scale * (parameter - 1))
        return model

    def expected(self, row: Row) -> str:
        return text(greedy(self.peft(row.adapter, row.scale), row.prompt)[0])


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(request.param, tmp_path_factory.mktemp(request.param))


def _generate(local: Setup, arrivals: dict[int, list[Row]]) -> list[tuple[Row, str]]:
    """Return the texts of rows that join before the given steps."""
    batch = local.backend.open_batch("step")
    assert batch.supports_continuous_batching
    rows: list[Row] = []
    texts: dict[int, str] = {}
    step = 0
    while len(batch) or step <= max(arrivals):
        for row in arrivals.get(step, ()):
            batch.add(len(rows), row, SamplingParams(max_new_tokens=TOKENS))
            rows.append(row)
        for event in batch.step():
            if isinstance(event, RowOutput):
                texts[event.index] = event.candidates[0].text
        step += 1
    return [(row, texts[key]) for key, row in enumerate(rows)]


def test_rows_of_all_adapters_in_one_batch_match_peft(local: Setup) -> None:
    names = [None, *LORAS, "ia3"]
    rows = [Row(PROMPTS[index % 3], PLAIN, name) for index, name in enumerate([*names, *reversed(names)])]
    for row, generated_text in _generate(local, {0: rows}):
        assert generated_text == local.expected(row), row


def test_rows_that_join_later_match_peft_and_reuse_free_slots(local: Setup) -> None:
    names: Iterator[str | None] = iter([*LORAS, None, "ia3", *LORAS, *LORAS])
    arrivals = {
        step: [Row(PROMPTS[step % 3], PLAIN, name)] for step, name in zip(range(0, 200, 3), names, strict=False)
    }
    for row, generated_text in _generate(local, arrivals):
        assert generated_text == local.expected(row), row


def test_scale_multiplies_the_adapter(local: Setup) -> None:
    rows = [Row(PROMPTS[0], PLAIN, name, scale) for name in ("all", "attention", "ia3") for scale in (0.25, 1.0, 2.0)]
    texts = _generate(local, {0: rows})
    for row, generated_text in texts:
        assert generated_text == local.expected(row), row
    assert len({generated_text for _, generated_text in texts}) > 5, (
        "the scale changes nothing, so this test would prove little"
    )


def test_adapters_that_cannot_be_scaled_are_refused(local: Setup) -> None:
    dora = LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], init_lora_weights=False)
    for name, config in (("dora", dora), ("prompt", PromptTuningConfig(num_virtual_tokens=4))):
        make_adapter(local.root / "store" / name, local.backend.base, local.bare(), config, 60)
        local.load(name)
        batch = local.backend.open_batch("step")
        with pytest.raises(PromptOrTuneError, match=messages.ADAPTER_CANNOT_BE_SCALED.format(name=name)):
            batch.add(0, Row("x", PLAIN, name, 0.5), SamplingParams())
        assert len(batch) == 0
        folder = local.store.open(name, local.backend.base)
        assert f"'{name}' cannot be scaled" in (local.backend.unsupported_reason(folder, 0.5) or "")
        assert local.backend.unsupported_reason(folder) is None
    assert local.backend.unsupported_reason(local.store.open("two", local.backend.base), 0.5) is None


def test_running_row_uses_its_adapter_after_unload(local: Setup, tmp_path: Path) -> None:
    before = local.expected(Row(PROMPTS[0], PLAIN, "two"))
    batch = local.backend.open_batch("step")
    batch.add(0, Row(PROMPTS[0], PLAIN, "two"), SamplingParams(max_new_tokens=TOKENS))
    batch.step()
    old_folder = local.root / "store" / "two"
    old_folder.rename(tmp_path / "old")
    make_lora(old_folder, local.backend.base, local.bare(), 2, ["q_proj", "v_proj"], 77)
    local.load("two")
    batch.add(1, Row(PROMPTS[0], PLAIN, "two"), SamplingParams(max_new_tokens=TOKENS))
    texts: dict[int, str] = {}
    while len(batch):
        texts |= {event.index: event.candidates[0].text for event in batch.step() if isinstance(event, RowOutput)}
    assert texts[0] == before
    assert texts[1] == local.expected(Row(PROMPTS[0], PLAIN, "two")) != before


def test_error_in_the_forward_leaves_a_consistent_state(local: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(PROMPTS[0], PLAIN, name) for name in (None, "all", "ia3", "mlp")]
    for name in ("prefill", "step"):
        batch = local.backend.open_batch("step")
        for key, row in enumerate(rows):
            batch.add(key, row, SamplingParams(max_new_tokens=TOKENS))
        if name == "step":
            batch.step()
        calls = iter(range(1000))
        original = BatchedAdapters.change_outputs

        def failing(
            self: BatchedAdapters, *arguments: Any, original: Any = original, calls: Iterator[int] = calls
        ) -> None:
            original(self, *arguments)
            if next(calls) == 3:
                raise RuntimeError("in the middle")

        monkeypatch.setattr(BatchedAdapters, "change_outputs", failing)
        with pytest.raises(RuntimeError, match=messages.FAILURE_IN_FORWARD):
            batch.step()
        monkeypatch.undo()
        assert len(batch) == 0
        for row, generated_text in _generate(local, {0: rows}):
            assert generated_text == local.expected(row), f"after an error in a {name}: {row}"


def test_prompts_are_prefilled_in_chunks_between_steps(local: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.backends.local.prefill.PREFILL_CHUNK", 16)
    long = Row(PROMPTS[2], PLAIN, "all")
    texts = _generate(local, {0: [Row("x", PLAIN, "mlp")], 2: [long, Row(PROMPTS[0], PLAIN)]})
    for row, generated_text in texts:
        assert generated_text == local.expected(row), row
    assert len(tokenizer()(long.prompt)["input_ids"]) > 3 * 16, "a single chunk, so this test checks nothing"


def test_logits_are_close_to_those_of_one_forward(local: Setup) -> None:
    """Compare logits, not only tokens, of sequences in several groups and in another order."""
    runner = local.backend._make_runner()
    assert isinstance(runner, FusedModelRunner)
    prompts = [tokenizer()(prompt)["input_ids"] for prompt in PROMPTS]
    adapter_names = [None, "all", "up"]
    prompt_inputs = [
        PromptInput(tuple(prompt), None if name is None else AppliedAdapter(local.backend._registry[name]))
        for prompt, name in zip(prompts, adapter_names, strict=True)
    ]
    *_, logits = runner.prefill(prompt_inputs)
    assert logits is not None
    models = [local.peft(name) for name in adapter_names]
    for step in range(4):
        for index, model in enumerate(models):
            with torch.no_grad():
                original = model(torch.tensor([prompts[index]])).logits[0, -1]
            assert torch.allclose(logits[index], original, atol=2e-3, rtol=1e-3), (step, index)
        tokens = logits.argmax(-1)
        prompts = [[*prompt, int(token)] for prompt, token in zip(prompts, tokens, strict=True)]
        logits = runner.decode(tokens)
