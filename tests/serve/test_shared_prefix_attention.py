"""Shared-prefix attention: beams that share their prompt's KV cache match transformers' `generate` and PEFT."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM

from adapters.store import Store
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.backends.local.shared_prefix_attention import SharedPrefixCache
from serve.types import Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests.serve.tiny import make_adapter, make_base, make_lora, tokenizer

PLAIN = STYLES["plain"]
EXAMPLES = "Here is how one adds two numbers: a + b. "
PROMPTS = [EXAMPLES + end for end in ("sort a list", "x", "open the file `a.txt` and count all of its lines and words")]
BEAMS = SamplingParams(mode="beam", candidates=4, max_new_tokens=16)


def _load(kind: str, folder: Path) -> tuple[LocalBackend, Any]:
    make_base(kind, folder)
    backend = LocalBackend(load_base(str(folder), "none", "cpu", lambda _: None, dtype=torch.float32))
    return backend, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _generate(backend: LocalBackend, rows: list[Row], decoding: SamplingParams = BEAMS) -> list[list[str]]:
    events = [event for event in backend.generate(rows, decoding, Event()) if isinstance(event, RowOutput)]
    ordered = sorted(events, key=lambda event: event.index)
    return [[candidate.text.strip() for candidate in event.candidates] for event in ordered]


def _reference(model: Any, prompt: str) -> list[str]:
    ids = tokenizer()(prompt, return_tensors="pt")["input_ids"]
    sequences = model.generate(
        input_ids=ids, max_new_tokens=16, do_sample=False, num_beams=4, num_return_sequences=4, pad_token_id=0
    )
    texts = [tokenizer().decode(row[ids.shape[1] :], skip_special_tokens=True) for row in sequences]
    return list(dict.fromkeys(text.rstrip("\ufffd").strip() for text in texts))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_beams_over_a_common_prefix_match_generate(kind: str, tmp_path: Path) -> None:
    backend, model = _load(kind, tmp_path)
    expected = [_reference(model, prompt) for prompt in PROMPTS]
    assert _generate(backend, [Row(prompt, PLAIN) for prompt in PROMPTS]) == expected
    before = backend.prefix_cache.hits
    assert before == len(PROMPTS) - 1, "the common prefix was computed once"
    assert _generate(backend, [Row(prompt, PLAIN) for prompt in PROMPTS[1:]]) == expected[1:], "from the prefix cache"
    assert backend.prefix_cache.hits == before + 2


def test_common_prefix_is_computed_again_for_another_adapter(tmp_path: Path) -> None:
    backend, model = _load("llama", tmp_path / "base")
    store = Store((tmp_path / "store",), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    make_lora(tmp_path / "store" / "one", backend.base, model, 8, ["q_proj", "v_proj"], 1)
    backend.load_adapter(store.open("one", backend.base))
    bare = _generate(backend, [Row(prompt, PLAIN) for prompt in PROMPTS])
    rows = [Row(prompt, PLAIN, "one") for prompt in PROMPTS]
    applied = _generate(backend, rows)
    assert applied != bare, "the adapter has no effect, so this test checks nothing"
    alone: Any = PeftModel.from_pretrained(_load("llama", tmp_path / "base")[1], tmp_path / "store" / "one").eval()
    assert applied == [_reference(alone, prompt) for prompt in PROMPTS]
    make_lora(tmp_path / "store" / "two", backend.base, _load("llama", tmp_path / "base")[1], 8, ["q_proj"], 2)
    (tmp_path / "store" / "one").rename(tmp_path / "old")
    (tmp_path / "store" / "two").rename(tmp_path / "store" / "one")
    backend.load_adapter(store.open("one", backend.base))
    changed: Any = PeftModel.from_pretrained(_load("llama", tmp_path / "base")[1], tmp_path / "store" / "one").eval()
    assert _generate(backend, rows) == [_reference(changed, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("config", [PromptTuningConfig(num_virtual_tokens=7), PrefixTuningConfig(num_virtual_tokens=5)])
def test_virtual_tokens_precede_the_common_prefix(config: Any, tmp_path: Path) -> None:
    backend, model = _load("llama", tmp_path / "base")
    make_adapter(tmp_path / "store" / "one", backend.base, model, config, 1)
    store = Store((tmp_path / "store",), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    backend.load_adapter(store.open("one", backend.base))
    rows = [Row(prompt, PLAIN, "one") for prompt in PROMPTS]
    alone = []
    for row in rows:
        backend.prefix_cache.clear()  # so that nothing is shared, as in test_techniques.py
        alone.append(_generate(backend, [row])[0])
    backend.prefix_cache.clear()
    before = backend.prefix_cache.hits
    assert _generate(backend, rows) == alone
    assert backend.prefix_cache.hits == before + len(rows) - 1
    assert alone != _generate(backend, [Row(prompt, PLAIN) for prompt in PROMPTS])


@pytest.mark.parametrize("shared", [0, 5])
def test_merged_attention_equals_attention_over_all_keys(shared: int) -> None:
    """Prompts of different lengths with different numbers of sequences, compared with softmax over all columns."""
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    prompts, groups, each, size, columns, tail = 3, 2, 2, 8, 7, 4
    keys, values = noise(prompts, groups, shared + columns, size), noise(prompts, groups, shared + columns, size)
    keys[:, :, :shared], values[:, :, :shared] = keys[:1, :, :shared], values[:1, :, :shared]
    mask = torch.ones(prompts, shared + columns, dtype=torch.long)
    mask[1, shared : shared + 3] = 0
    own = torch.stack([keys[:, :, shared:], values[:, :, shared:]])[None]
    beginning = torch.stack([keys[0, :, :shared], values[0, :, :shared]])[None] if shared else None
    prefixes = SharedPrefixCache(own, mask[:, shared:], beginning, 0.3)
    owners = [0, 1, 2]
    for rows in ([0, 0, 1, 2, 2, 2], [0, 2, 3, 5], [1, 1, 3]):
        prefixes.reorder(torch.tensor(rows))
        owners = [owners[row] for row in rows]
    assert owners == [1, 1, 2], "the first prefix is dropped, and the others have different numbers of sequences"
    query = noise(len(owners), groups * each, size)
    own_keys, own_values = noise(len(owners), groups, tail, size), noise(len(owners), groups, tail, size)
    seen = torch.empty(0)
    for column in range(tail):
        seen = prefixes.attend(0, query, own_keys[:, :, column], own_values[:, :, column])
    for line, owner in enumerate(owners):
        whole_keys = torch.cat([keys[owner], own_keys[line]], 1).repeat_interleave(each, 0)
        whole_values = torch.cat([values[owner], own_values[line]], 1).repeat_interleave(each, 0)
        scores = 0.3 * query[line][:, None] @ whole_keys.transpose(-1, -2)
        hidden = torch.cat([mask[owner], torch.ones(tail, dtype=torch.long)]) == 0
        expected = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ whole_values
        assert torch.allclose(seen[line], expected[:, 0], atol=1e-5)
