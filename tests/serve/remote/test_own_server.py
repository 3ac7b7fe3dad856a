"""The project's own server in another process gives the same answers as the local engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config, LoraConfig, PromptTuningConfig

from adapters.store import Store
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.backends.remote.backend import OpenAIBackend
from serve.engine.llm_engine import LLMEngine
from serve.types import Request, RequestOutput, SamplingParams
from tasks.methods import ExamplePools, parse_method
from tasks.problem import Example, Problem
from tasks.prompt import STYLES
from tests.serve.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
ADAPTERS: dict[str, Any] = {
    "lora-tiny": LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "ia3-tiny": IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
    "prompt-tiny": PromptTuningConfig(num_virtual_tokens=5),
}
METHODS = ["zero-shot", "icl-2", "rag-2", *ADAPTERS, "lora-tiny*0.5", "ia3-tiny+rag-1"]
POOL = [Example(f"e{number}", f"add {number} to x", f"x + {number}") for number in range(6)]
PROBLEM = Problem("typed", "subtract two from x")


class First:
    """Example retriever that returns the first k examples."""

    def nearest(self, intent: str, k: int) -> list[Example]:
        return POOL[:k]


@contextmanager
def serving(base: Path, adapters: Path, home: Path) -> Iterator[str]:
    """Start `python -m serve` in its own process and yield its address once it answers."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serve", "--base", str(base), "--quantization", "none", "--device", "cpu"]
    command += ["--port", str(port), "--adapter-dir", str(adapters)]
    environment = os.environ | {"PROMPT_OR_TUNE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    log = (home / "log").open("wb")
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not _healthy(port):
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()
        log.close()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLMEngine, LLMEngine, OpenAIBackend]]:
    """Open two engines on the same base and adapters: a local one, and one on the project's server."""
    root = tmp_path_factory.mktemp("own")
    base, adapters, home = make_base("llama", root / "tiny-llama"), root / "adapters", root / "home"
    home.mkdir()
    local = LocalBackend(load_base(str(base), "none", "cpu", lambda _: None))
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        wrapped = load_base(str(base), "none", "cpu", lambda _: None, dtype="auto").model
        make_adapter(adapters / name, local.base, wrapped, config, seed)
    store = Store((adapters,), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    pools = ExamplePools(load=lambda _: POOL, index=lambda *_: First())
    with serving(base, adapters, home) as url:
        remote = OpenAIBackend(url)
        local_engine, remote_engine = LLMEngine(local, store, pools), LLMEngine(remote, store, pools)
        yield local_engine, remote_engine, remote
        local_engine.close()
        remote_engine.close()
        remote.close()


def ask(engine: LLMEngine, methods: list[str], decoding: SamplingParams) -> list[RequestOutput]:
    """Call each method separately, so that no batch depends on timing."""
    requests = [Request(PROBLEM, parse_method(name, engine.adapters())) for name in methods]
    return [engine.answer([request], decoding)[0] for request in requests]


def test_own_server_and_local_engine_give_equal_answers(engines: tuple[LLMEngine, LLMEngine, OpenAIBackend]) -> None:
    local_engine, remote_engine, _ = engines
    decoding = SamplingParams(max_new_tokens=12)
    ours, theirs = ask(local_engine, METHODS, decoding), ask(remote_engine, METHODS, decoding)
    for name, one, other in zip(METHODS, ours, theirs, strict=True):
        assert other.error is None, (name, other.error)
        assert (other.prompt, other.prompt_tokens) == (one.prompt, one.prompt_tokens), name
        assert (other.text, other.code) == (one.text, one.code), name
        assert other.candidates[0].finish == one.candidates[0].finish, name
        if other.candidates[0].finish == "length":  # the logprobs of a server exclude the end token
            assert other.candidates[0].logprob == pytest.approx(one.candidates[0].logprob, abs=0.05), name
    assert len({answer.text for answer in theirs}) >= 6, "the adapters have no effect"


def test_all_methods_are_answered_in_one_call(engines: tuple[LLMEngine, LLMEngine, OpenAIBackend]) -> None:
    _, remote_engine, _ = engines
    requests = [Request(PROBLEM, parse_method(name, remote_engine.adapters())) for name in METHODS]
    answers = remote_engine.answer(requests, SamplingParams("sample", max_new_tokens=6, candidates=2, seed=3))
    assert [answer.error for answer in answers] == [None] * len(METHODS)
    assert all(len(answer.samples) == 2 for answer in answers)


def test_identity_of_the_server_is_used(engines: tuple[LLMEngine, LLMEngine, OpenAIBackend]) -> None:
    local_engine, remote_engine, remote = engines
    assert (remote_engine.base.id, remote_engine.base.revision) == (local_engine.base.id, local_engine.base.revision)
    assert remote_engine.base.quantization == local_engine.base.quantization == "none"
    assert remote_engine.base.device.startswith("Prompt or Tune at 127.0.0.1:")
    assert remote_engine.base.context_length == local_engine.base.context_length
    assert all(
        remote_engine.unsupported_reason(parse_method(name, remote_engine.adapters())) is None for name in METHODS
    )
    folder = remote_engine.store.open("ia3-tiny", remote_engine.base)
    assert "does not list 'ia3-other'" in (remote.unsupported_reason(replace(folder, name="ia3-other")) or "")
