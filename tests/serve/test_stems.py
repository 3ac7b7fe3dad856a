"""Lines that share a prompt's keys and values must say what lines with a copy of them say."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM, DynamicCache

from adapters.store import Store
from serve.backends.local.backend import LocalBackend
from serve.backends.local.beginnings import KEPT, LEAST, Beginnings
from serve.backends.local.loading import load_base
from serve.backends.local.prefix import Prefix
from serve.backends.local.stems import Stems
from serve.rows import Decoding, Finished, Row
from tasks.prompt import STYLES
from tests.serve.tiny import make_adapter, make_base, make_lora, tokenizer

PLAIN = STYLES["plain"]
EXAMPLES = "Here is how one adds two numbers: a + b. "
PROMPTS = [EXAMPLES + end for end in ("sort a list", "x", "open the file `a.txt` and count all of its lines and words")]
BEAMS = Decoding(mode="beam", candidates=4, max_new_tokens=16)


def _load(kind: str, folder: Path) -> tuple[LocalBackend, Any]:
    make_base(kind, folder)
    backend = LocalBackend(load_base(str(folder), "none", "cpu", lambda _: None, dtype=torch.float32))
    return backend, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _said(backend: LocalBackend, rows: list[Row], decoding: Decoding = BEAMS) -> list[list[str]]:
    events = [event for event in backend.generate(rows, decoding, Event()) if isinstance(event, Finished)]
    ordered = sorted(events, key=lambda event: event.index)
    return [[candidate.text.strip() for candidate in event.candidates] for event in ordered]


def _oracle(model: Any, prompt: str) -> list[str]:
    ids = tokenizer()(prompt, return_tensors="pt")["input_ids"]
    said = model.generate(
        input_ids=ids, max_new_tokens=16, do_sample=False, num_beams=4, num_return_sequences=4, pad_token_id=0
    )
    texts = [tokenizer().decode(row[ids.shape[1] :], skip_special_tokens=True) for row in said]
    return list(dict.fromkeys(text.rstrip("\ufffd").strip() for text in texts))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_beams_over_prompts_with_the_same_beginning_are_those_of_generate(kind: str, tmp_path: Path) -> None:
    backend, model = _load(kind, tmp_path)
    expected = [_oracle(model, prompt) for prompt in PROMPTS]
    assert _said(backend, [Row(prompt, PLAIN) for prompt in PROMPTS]) == expected
    (adapter, tokens), prefix = next(iter(backend._beginnings._known.items()))
    assert adapter is None
    assert len(tokens) == len(prefix) == len(tokenizer()(EXAMPLES)["input_ids"])
    assert _said(backend, [Row(prompt, PLAIN) for prompt in PROMPTS[1:]]) == expected[1:], "from what was kept"
    assert len(backend._beginnings._known) == 1


def test_the_attention_of_the_base_is_its_own_again_afterwards(tmp_path: Path) -> None:
    backend, _ = _load("llama", tmp_path)
    before = backend._model.config._attn_implementation
    events = backend.generate([Row(prompt, PLAIN) for prompt in PROMPTS], BEAMS, Event())
    for _ in range(8):
        next(iter(events))
    events.close()  # type: ignore[attr-defined]
    assert backend._model.config._attn_implementation == before


def test_a_beginning_is_read_anew_under_another_adapter_and_when_an_adapter_changes(tmp_path: Path) -> None:
    backend, model = _load("llama", tmp_path / "base")
    store = Store((tmp_path / "store",), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    make_lora(tmp_path / "store" / "one", backend.base, model, 8, ["q_proj", "v_proj"], 1)
    backend.load_adapter(store.open("one", backend.base))
    bare = _said(backend, [Row(prompt, PLAIN) for prompt in PROMPTS])
    rows = [Row(prompt, PLAIN, "one") for prompt in PROMPTS]
    worn = _said(backend, rows)
    assert worn != bare, "the adapter changes nothing, so this test would prove nothing"
    alone: Any = PeftModel.from_pretrained(_load("llama", tmp_path / "base")[1], tmp_path / "store" / "one").eval()
    assert worn == [_oracle(alone, prompt) for prompt in PROMPTS]
    make_lora(tmp_path / "store" / "two", backend.base, _load("llama", tmp_path / "base")[1], 8, ["q_proj"], 2)
    (tmp_path / "store" / "one").rename(tmp_path / "old")
    (tmp_path / "store" / "two").rename(tmp_path / "store" / "one")
    backend.load_adapter(store.open("one", backend.base))
    changed: Any = PeftModel.from_pretrained(_load("llama", tmp_path / "base")[1], tmp_path / "store" / "one").eval()
    assert _said(backend, rows) == [_oracle(changed, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("config", [PromptTuningConfig(num_virtual_tokens=7), PrefixTuningConfig(num_virtual_tokens=5)])
def test_virtual_tokens_stand_before_the_shared_beginning(config: Any, tmp_path: Path) -> None:
    backend, model = _load("llama", tmp_path / "base")
    make_adapter(tmp_path / "store" / "one", backend.base, model, config, 1)
    store = Store((tmp_path / "store",), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    backend.load_adapter(store.open("one", backend.base))
    rows = [Row(prompt, PLAIN, "one") for prompt in PROMPTS]
    alone = [_said(backend, [row])[0] for row in rows]
    assert not backend._beginnings._known, "one prompt shares nothing: these are what test_techniques.py holds to PEFT"
    assert _said(backend, rows) == alone
    assert len(backend._beginnings._known) == 1
    assert alone != _said(backend, [Row(prompt, PLAIN) for prompt in PROMPTS])


def test_beginnings_are_few_and_belong_to_their_adapter() -> None:
    beginnings, reads = Beginnings(), []

    def read(tokens: tuple[int, ...]) -> Prefix:
        reads.append(tokens)
        return Prefix((), ())

    def ask(first: int, adapter: str | None = None, *ends: int) -> tuple[int, Prefix] | None:
        return beginnings.shared([[first] * LEAST + [end] for end in (ends or (1, 2))], adapter, read)

    found = ask(5)
    assert found is not None
    assert found[0] == LEAST
    assert ask(5) == found
    assert len(reads) == 1
    ask(5, "one")
    assert len(reads) == 2, "what another adapter has read is of no use"
    beginnings.forget("one")
    ask(5, "one")
    assert len(reads) == 3
    for first in range(10, 10 + KEPT):
        ask(first)
    ask(5)
    assert len(reads) == 4 + KEPT, "the oldest was dropped"
    assert beginnings.shared([[7] * 100], None, read) is None, "one prompt shares nothing"
    assert beginnings.shared([[7] * (LEAST - 1) + [1, 1], [7] * (LEAST - 1) + [2, 2]], None, read) is None
    whole = beginnings.shared([[9] * LEAST + [1], [9] * (LEAST + 4)], None, read)
    assert whole is not None
    assert whole[0] == LEAST, "a prompt keeps a token of its own"


@pytest.mark.parametrize("shared", [0, 5])
def test_attention_over_stem_and_tail_is_attention_over_both(shared: int) -> None:
    """Stems of different lengths, lines unevenly spread over them, against softmax over the columns joined."""
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    prompts, groups, each, size, columns, tail = 3, 2, 2, 8, 7, 4
    keys, values = noise(prompts, groups, shared + columns, size), noise(prompts, groups, shared + columns, size)
    keys[:, :, :shared], values[:, :, :shared] = keys[:1, :, :shared], values[:1, :, :shared]
    mask = torch.ones(prompts, shared + columns, dtype=torch.long)
    mask[1, shared : shared + 3] = 0
    cache = DynamicCache()
    cache.update(keys, values, 0)
    beginning = Prefix((keys[0, :, :shared],), (values[0, :, :shared],)) if shared else None
    stems = Stems(cache, mask, beginning)
    owners = [0, 1, 2]
    for rows in ([0, 0, 1, 2, 2, 2], [0, 2, 3, 5], [1, 1, 3]):
        stems.select(torch.tensor(rows))
        owners = [owners[row] for row in rows]
    assert owners == [1, 1, 2], "the first stem is dropped, the others have lines in different number"
    query = noise(len(owners), groups * each, 1, size)
    own_keys, own_values = noise(len(owners), groups, tail, size), noise(len(owners), groups, tail, size)
    seen = stems.attend(0, query, own_keys, own_values, 0.3)
    for line, owner in enumerate(owners):
        whole_keys = torch.cat([keys[owner], own_keys[line]], 1).repeat_interleave(each, 0)
        whole_values = torch.cat([values[owner], own_values[line]], 1).repeat_interleave(each, 0)
        scores = 0.3 * query[line] @ whole_keys.transpose(-1, -2)
        hidden = torch.cat([mask[owner], torch.ones(tail, dtype=torch.long)]) == 0
        expected = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ whole_values
        assert torch.allclose(seen[line, 0], expected[:, 0], atol=1e-5)


def test_a_base_whose_attention_passes_the_stems_by_is_a_defect_and_not_a_wrong_answer() -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    stems = Stems(cache, torch.ones(1, 2, dtype=torch.long), None)
    model: Any = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    with pytest.raises(RuntimeError, match="0 of 1 layers"), stems.attended(model):
        pass
