"""LocalBackend compared with references: transformers' `generate`, and PEFT's PeftModel for each adapter alone."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from adapters.store import Store
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.types import PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests import messages
from tests.serve.tiny import make_base, make_lora, tokenizer

pytestmark = pytest.mark.slow

PLAIN = STYLES["plain"]
PROMPTS = ["sort a list", "open the file `a.txt` and count its lines", "x"]
FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}


def _load(kind: str, folder: Path) -> tuple[LocalBackend, Any]:
    make_base(kind, folder)
    backend = LocalBackend(load_base(str(folder), "none", "cpu", lambda _: None, dtype=torch.float32))
    model_class = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return backend, model_class.from_pretrained(folder, dtype=torch.float32).eval()


def _finished(backend: LocalBackend, rows: list[Row], decoding: SamplingParams) -> list[RowOutput]:
    events = [event for event in backend.generate(rows, decoding, Event()) if isinstance(event, RowOutput)]
    return sorted(events, key=lambda event: event.index)


def _reference(model: Any, kind: str, prompt: str, **settings: Any) -> list[str]:
    encoded = tokenizer()(prompt, return_tensors="pt")
    encoded.pop("token_type_ids", None)
    texts = model.generate(**encoded, max_new_tokens=24, do_sample=False, **settings)
    begin = 0 if kind == "t5" else encoded["input_ids"].shape[1]
    return [tokenizer().decode(row[begin:], skip_special_tokens=True) for row in texts]


@pytest.fixture(params=["llama", "codegen", "t5"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_greedy_rows_match_generate(kind: str, tmp_path: Path) -> None:
    backend, model = _load(kind, tmp_path / kind)
    outputs = _finished(backend, [Row(prompt, PLAIN) for prompt in PROMPTS], SamplingParams(max_new_tokens=24))
    texts = [event.candidates[0].text for event in outputs]
    expected = [_reference(model, kind, prompt)[0] for prompt in PROMPTS]
    assert [text.rstrip("\ufffd") for text in expected] == texts
    assert len(set(texts)) == len(PROMPTS), "all references are equal, so this test checks nothing"


def test_beams_match_generate(kind: str, tmp_path: Path) -> None:
    backend, model = _load(kind, tmp_path / kind)
    decoding = SamplingParams(mode="beam", candidates=5, max_new_tokens=24)
    outputs = _finished(backend, [Row(prompt, PLAIN) for prompt in PROMPTS], decoding)
    for prompt, event in zip(PROMPTS, outputs, strict=True):
        expected = _reference(model, kind, prompt, num_beams=5, num_return_sequences=5)
        merged = list(dict.fromkeys(text.rstrip("\ufffd").strip() for text in expected))
        assert [candidate.text.strip() for candidate in event.candidates] == merged


def test_rows_with_adapters_match_peft(kind: str, tmp_path: Path) -> None:
    backend, model = _load(kind, tmp_path / kind)
    targets = {"llama": ["q_proj", "v_proj", "down_proj"], "codegen": ["qkv_proj", "fc_in"], "t5": ["q", "v", "wo"]}
    other_targets = {"llama": ["o_proj"], "codegen": ["out_proj"], "t5": ["k"]}
    store = Store((tmp_path / "store",), fingerprints=FINGERPRINTS)
    for name, rank, modules, seed in (("one", 8, targets[kind], 1), ("two", 4, other_targets[kind], 2)):
        _, fresh = _load(kind, tmp_path / kind)
        make_lora(tmp_path / "store" / name, backend.base, fresh, rank, modules, seed)
        backend.load_adapter(store.open(name, backend.base))
    adapter_names = [None, "one", "two", "one", None, "two"]
    rows = [Row(PROMPTS[index % 3], PLAIN, adapter) for index, adapter in enumerate(adapter_names)]
    outputs = _finished(backend, rows, SamplingParams(max_new_tokens=24))
    alone: dict[str | None, Any] = {None: model}
    for name in ("one", "two"):
        _, fresh = _load(kind, tmp_path / kind)
        alone[name] = PeftModel.from_pretrained(fresh, tmp_path / "store" / name).eval()
    for row, event in zip(rows, outputs, strict=True):
        expected = _reference(alone[row.adapter], kind, row.prompt)[0].rstrip("\ufffd")
        assert event.candidates[0].text == expected, f"adapter {row.adapter}"
    same_prompt = {
        event.candidates[0].text for row, event in zip(rows, outputs, strict=True) if row.prompt == PROMPTS[0]
    }
    assert len(same_prompt) == 2, "the adapter has no effect, so this test checks nothing"


def test_rows_that_join_running_rows_match_each_row_alone(kind: str, tmp_path: Path) -> None:
    backend, model = _load(kind, tmp_path / "base")
    targets = {"llama": ["q_proj", "down_proj"], "codegen": ["qkv_proj"], "t5": ["q", "wo"]}[kind]
    make_lora(tmp_path / "store" / "one", backend.base, model, 8, targets, 1)
    backend.load_adapter(Store((tmp_path / "store",), fingerprints=FINGERPRINTS).open("one", backend.base))
    rows = [Row(prompt, None, adapter) for adapter in (None, "one") for prompt in (*PROMPTS, "sort " * 30)]
    sampling_params = [
        SamplingParams(max_new_tokens=20) if index % 2 else SamplingParams("sample", 16, 2, 1.5, seed=index)
        for index in range(len(rows))
    ]
    batch = backend.open_batch("step")
    events: list[PartialOutput | RowOutput] = []
    for key, (row, decoding) in enumerate(zip(rows, sampling_params, strict=True)):
        batch.add(key, row, decoding)
        events += batch.step() + batch.step() + batch.step()
    batch.add(len(rows), rows[0], sampling_params[0])
    events += batch.step()
    assert batch.cancel(len(rows)).cancelled
    while len(batch):
        events += batch.step()
    outputs = {event.index: event.candidates for event in events if isinstance(event, RowOutput)}
    alone = [_finished(backend, [row], decoding)[0] for row, decoding in zip(rows, sampling_params, strict=True)]
    for key, expected in enumerate(alone):
        assert [candidate.text for candidate in outputs[key]] == [
            candidate.text for candidate in expected.candidates
        ], rows[key]
    assert batch.supports_continuous_batching == (kind == "llama")
    assert len({event.candidates[0].text for event in alone}) > 5


def test_sampling_depends_on_the_seed_only(tmp_path: Path) -> None:
    backend, _ = _load("llama", tmp_path)
    decoding = SamplingParams(mode="sample", candidates=3, temperature=2.0, max_new_tokens=12, seed=7)
    alone = _finished(backend, [Row(PROMPTS[0], PLAIN)], decoding)[0]
    in_batch = _finished(backend, [Row(prompt, PLAIN) for prompt in PROMPTS], decoding)[0]
    other = _finished(backend, [Row(PROMPTS[0], PLAIN)], SamplingParams("sample", 12, 3, 2.0, seed=8))[0]
    texts = [candidate.text for candidate in alone.candidates]
    assert texts == [candidate.text for candidate in in_batch.candidates]
    assert texts != [candidate.text for candidate in other.candidates]
    assert len(texts) == 3


def test_logprobs_match_the_model(tmp_path: Path) -> None:
    backend, model = _load("llama", tmp_path)
    event = _finished(backend, [Row(prompt, PLAIN) for prompt in PROMPTS], SamplingParams(max_new_tokens=8))[0]
    encoded = tokenizer()(PROMPTS[0], return_tensors="pt")["input_ids"]
    full_ids = model.generate(encoded, max_new_tokens=8, do_sample=False)
    with torch.no_grad():
        logprobs = model(full_ids).logits[:, :-1].log_softmax(-1)
    begin = encoded.shape[1] - 1
    expected = logprobs[0, begin:].gather(-1, full_ids[0, begin + 1 :, None]).sum().item()
    assert event.candidates[0].logprob == pytest.approx(expected, abs=1e-3)


def test_cancel_stops_within_a_step_and_returns_the_text(tmp_path: Path) -> None:
    backend, _ = _load("llama", tmp_path)
    for decoding in (SamplingParams(max_new_tokens=200), SamplingParams(mode="beam", candidates=4, max_new_tokens=200)):
        cancel, seen, after = Event(), 0, 0
        finished = []
        for event in backend.generate([Row(prompt, PLAIN) for prompt in PROMPTS], decoding, cancel):
            if isinstance(event, PartialOutput):
                after += cancel.is_set()
                seen += 1
                if seen == 9:
                    cancel.set()
            else:
                finished.append(event)
        assert after <= len(PROMPTS)
        assert [event.cancelled for event in finished] == [True] * 3
        assert all(event.candidates[0].tokens > 0 for event in finished)


def test_closed_generator_removes_its_hooks(tmp_path: Path) -> None:
    backend, model = _load("codegen", tmp_path / "base")
    make_lora(tmp_path / "store" / "one", backend.base, model, 8, ["qkv_proj"], 1)
    backend.load_adapter(Store((tmp_path / "store",), fingerprints=FINGERPRINTS).open("one", backend.base))
    hooked: list[int] = []
    backend._model.register_forward_pre_hook(lambda *_: hooked.append(_hooks(backend)))
    events = backend.generate([Row("x", PLAIN, "one")], SamplingParams(max_new_tokens=50), Event())
    next(iter(events))
    events.close()  # type: ignore[attr-defined]
    assert min(hooked) > 0, "the base never ran with a hook on it"
    assert _hooks(backend) == 0


def _hooks(backend: LocalBackend) -> int:
    return sum(len(module._forward_hooks) for module in backend._model.modules())


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from errors import AdapterError

    backend, model = _load("llama", tmp_path / "base")
    folder = make_lora(tmp_path / "store" / "one", backend.base, model, 8, ["q_proj"], 1)
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    store = Store((tmp_path / "store",), fingerprints=FINGERPRINTS)
    with pytest.raises(AdapterError, match=messages.HAS_NAN):
        backend.load_adapter(store.open("one", backend.base))


def test_prompts_of_different_lengths_are_grouped_and_match(tmp_path: Path) -> None:
    backend, model = _load("llama", tmp_path / "base")
    make_lora(tmp_path / "store" / "one", backend.base, model, 8, ["q_proj", "v_proj"], 1)
    backend.load_adapter(Store((tmp_path / "store",), fingerprints=FINGERPRINTS).open("one", backend.base))
    _, fresh = _load("llama", tmp_path / "base")
    wrapped = PeftModel.from_pretrained(fresh, tmp_path / "store" / "one").eval()
    long = "sort the list " * 20
    rows = [
        Row(long, PLAIN),
        Row("x", PLAIN, "one"),
        Row(long + "x", PLAIN, "one"),
        Row("sort", PLAIN),
        Row("y", PLAIN),
    ]
    outputs = _finished(backend, rows, SamplingParams(max_new_tokens=16))
    _, bare = _load("llama", tmp_path / "base")
    for row, event in zip(rows, outputs, strict=True):
        encoded = tokenizer()(row.prompt, return_tensors="pt")["input_ids"]
        texts = (wrapped if row.adapter else bare).generate(encoded, max_new_tokens=16, do_sample=False)
        text = tokenizer().decode(texts[0, encoded.shape[1] :], skip_special_tokens=True)
        assert event.candidates[0].text == text.rstrip("\ufffd")
