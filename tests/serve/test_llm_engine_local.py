"""LLMEngine with a tiny real base: outputs of fifty concurrent clients equal those of single requests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import LlamaForCausalLM

from adapters.store import Store
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.engine.llm_engine import EngineConfig, LLMEngine
from serve.types import Candidate, Request, RequestOutput, SamplingParams
from tasks.methods import ExamplePools, parse_method
from tasks.problem import Problem
from tasks.prompt import STYLES
from tests import messages
from tests.serve.counting_backend import POOL, FirstExamples
from tests.serve.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow

CLIENTS = 50
TURNS = 4
RANKS = {"lora-a": 2, "lora-b": 4, "lora-c": 8, "lora-d": 16}
METHODS = ["zero-shot", "icl-2", "rag-1", *RANKS, "lora-a*0.5", "ia3-a", "ia3-b", "prompt", "prefix", "lora-b+icl-1"]
INTENTS = ["sort a list", "open the file `a.txt` and count its lines"]
DECODINGS = [SamplingParams(max_new_tokens=14), SamplingParams("sample", max_new_tokens=10, candidates=2, seed=5)]
Case = tuple[str, str, SamplingParams]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny base with eight different adapters of four techniques."""
    root = tmp_path_factory.mktemp("many")
    make_base("llama", root / "base")
    base = load_base(str(root / "base"), "none", "cpu", lambda _: None, dtype=torch.float32).identity
    targets = ["q_proj", "v_proj", "down_proj"]
    configs: dict[str, Any] = {
        name: LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False)
        for name, rank in RANKS.items()
    }
    configs |= {
        name: IA3Config(target_modules=targets, feedforward_modules=["down_proj"]) for name in ("ia3-a", "ia3-b")
    }
    configs |= {"prompt": PromptTuningConfig(num_virtual_tokens=7), "prefix": PrefixTuningConfig(num_virtual_tokens=5)}
    for seed, (name, config) in enumerate(configs.items()):
        model = LlamaForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
        make_adapter(root / "store" / name, base, model, config, seed)
    return root


@pytest.fixture
def engine(folder: Path) -> Iterator[LLMEngine]:
    """Open an engine that can have five of the eight adapters in memory."""
    backend = LocalBackend(load_base(str(folder / "base"), "none", "cpu", lambda _: None, dtype=torch.float32))
    store = Store((folder / "store",), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    pools = ExamplePools(load=lambda _: POOL, index=lambda *_: FirstExamples())
    engine = LLMEngine(backend, store, pools, config=EngineConfig(max_loaded_adapters=5, max_queued=1000))
    yield engine
    engine.close()


def request(method: str, intent: str) -> Request:
    return Request(Problem("p", intent), parse_method(method, [*RANKS, "ia3-a", "ia3-b", "prompt", "prefix"]))


def texts_of(candidates: tuple[Candidate, ...]) -> list[tuple[str, int]]:
    return [(candidate.text, candidate.tokens) for candidate in candidates]


@pytest.fixture
def alone(engine: LLMEngine) -> dict[Case, RequestOutput]:
    """Return the output of each case without other rows in the batch."""
    return {
        case: engine.answer([request(case[0], case[1])], case[2])[0] for case in product(METHODS, INTENTS, DECODINGS)
    }


def test_fifty_clients_get_the_outputs_of_single_requests(engine: LLMEngine, alone: dict[Case, RequestOutput]) -> None:
    assert all(answer.error is None for answer in alone.values())
    texts = {answer.text for case, answer in alone.items() if case[1] == INTENTS[0] and case[2] == DECODINGS[0]}
    assert len(texts) == len(METHODS), "all methods have different answers, so that a mixed-up adapter would be noticed"

    def ask(client: int) -> tuple[int, int]:
        rng = random.Random(client)
        num_finished = num_cancelled = 0
        for _ in range(TURNS):
            decoding = rng.choice(DECODINGS)
            cases = [(rng.choice(METHODS), rng.choice(INTENTS), decoding) for _ in range(rng.randint(1, 4))]
            cancel = Event()
            cancel_after = rng.randint(1, 60)
            stream = engine.stream([request(*case[:2]) for case in cases], decoding, cancel, owner=f"{client % 9}")
            for number, event in enumerate(stream):
                if number == cancel_after:
                    cancel.set()
                expected = alone[cases[event.index]]
                if isinstance(event, RequestOutput):
                    assert event.error is None
                    assert event.prompt in ("", expected.prompt)
                    if event.cancelled:
                        num_cancelled += 1
                        assert decoding.mode == "sample" or expected.text.startswith(event.text)
                    else:
                        num_finished += 1
                        assert texts_of(event.candidates) == texts_of(expected.candidates), cases[event.index]
                elif decoding.mode == "greedy":
                    assert expected.text.startswith(event.text), cases[event.index]
        return num_finished, num_cancelled

    with ThreadPoolExecutor(CLIENTS) as clients:
        counts = list(clients.map(ask, range(CLIENTS)))
    assert sum(finished for finished, _ in counts) > 150
    assert sum(cancelled for _, cancelled in counts) > 10
    status = engine.adapter_cache.status()
    assert status.evictions > 0
    assert not any(adapter.leases for adapter in status.adapters)
    # The base is unchanged. A longer cached prefix of the prompt changes only the last bits.
    for case in (("zero-shot", INTENTS[0], DECODINGS[0]), ("lora-c", INTENTS[1], DECODINGS[0])):
        again = engine.answer([request(case[0], case[1])], case[2])[0]
        assert texts_of(again.candidates) == texts_of(alone[case].candidates)
        assert again.candidates[0].logprob == pytest.approx(alone[case].candidates[0].logprob, abs=1e-4)


def test_outputs_after_an_exception_in_a_step_are_those_of_a_new_engine(
    engine: LLMEngine, alone: dict[Case, RequestOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine._backend._model  # type: ignore[attr-defined]
    layer = model.model.layers[1].mlp.act_fn
    calls = 0
    original = type(layer).forward

    def fail(self: Any, value: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise RuntimeError("CUDA out of memory at 0x7f")
        return original(self, value)

    monkeypatch.setattr(type(layer), "forward", fail)
    names = ["zero-shot", "icl-2", "lora-c", "ia3-a", "prompt"]
    with pytest.raises(RuntimeError, match=messages.OUT_OF_MEMORY):
        engine.answer([request(name, INTENTS[0]) for name in names], replace(DECODINGS[0], max_new_tokens=20))
    again = engine.answer([request(name, INTENTS[0]) for name in names], DECODINGS[0])
    for name, answer in zip(names, again, strict=True):
        assert texts_of(answer.candidates) == texts_of(alone[name, INTENTS[0], DECODINGS[0]].candidates), name
