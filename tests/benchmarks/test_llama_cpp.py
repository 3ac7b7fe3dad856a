"""Tests of benchmarks/llama_cpp.py: the worker process, its requests and answers, and errors for missing parts.

A fake module replaces llama_cpp, which takes minutes to build; one test uses the real one if it is installed.
"""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks import engine, llama_cpp
from errors import BaseModelError, PromptOrTuneError
from tests import messages

FAKE_LLAMA_CPP = '''
    """Generates the number of tokens that it has read; checks the chunks and the environment variables."""
    import os

    __version__ = "0"

    class Llama:
        def __init__(self, model, **settings):
            if model.endswith("broken.gguf"):
                raise ValueError("broken")
            settings.pop("verbose")
            self.settings = settings
            self.read = 0
            self._ctx = self
            self.ctx = self

    def llama_sampler_init_greedy(): return None
    def llama_print_system_info(): return b"SPINS = %d" % ("OMP_WAIT_POLICY" not in os.environ)
    def llama_n_threads(context): return context.settings["n_threads"]
    def llama_n_threads_batch(context): return context.settings["n_threads_batch"]
    def llama_n_ctx(context): return context.settings["n_ctx"]
    def llama_n_batch(context): return 4
    def llama_get_memory(context): return context
    def llama_memory_clear(memory, data): memory.read = 0
    def llama_batch_get_one(tokens, number):
        assert number <= 4
        return number
    def llama_decode(context, number):
        context.read += number
        return 0
    def llama_sampler_sample(sampler, context, position): return context.read
'''


@pytest.fixture
def fake_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text(textwrap.dedent(FAKE_LLAMA_CPP), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.mark.usefixtures("fake_llama_cpp")
def test_prompts_are_prefilled_in_chunks_and_answers_have_the_requested_length() -> None:
    with llama_cpp.llama_worker(sys.executable, Path("model.gguf"), context=64, threads=2, new_tokens=3) as (
        generate,
        settings,
    ):
        assert settings == {
            "llama_cpp_python": "0",
            "system": "SPINS = 1",
            "threads": 2,
            "threads_batch": 2,
            "n_batch": 4,
            "context": 64,
        }
        first, second = generate([[7] * 10, [7]])
        repeated = generate([[7] * 10])[0]
    # The cache is cleared before each prompt.
    assert first["tokens"] == repeated["tokens"] == [10, 11, 12]
    assert second["tokens"] == [1, 2, 3]
    assert first["seconds"] >= first["decode_seconds"] >= 0


@pytest.mark.usefixtures("fake_llama_cpp")
def test_failed_worker_raises_an_error() -> None:
    with (
        pytest.raises(PromptOrTuneError, match=messages.WORKER_ENDED),
        llama_cpp.llama_worker(sys.executable, Path("broken.gguf"), context=64, threads=2, new_tokens=3),
    ):
        pytest.fail("the worker started")


def test_missing_requirements_are_errors_before_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine.main(["--only", "llama", "--llama-python", str(tmp_path / "python")]) == 2
    assert "pip install --no-deps -r requirements-benchmarks.txt" in capsys.readouterr().err
    with pytest.raises(PromptOrTuneError, match=messages.GGUF_FLAG):
        llama_cpp.gguf_file("Qwen/Qwen2.5-Coder-0.5B-Instruct", None)
    with pytest.raises(BaseModelError, match=messages.NO_GGUF_FILE):
        llama_cpp.gguf_file("embedded", tmp_path / "none.gguf")


@pytest.mark.model
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed here")
def test_real_llama_cpp_generates_with_the_embedded_base() -> None:
    file = llama_cpp.gguf_file("embedded", None)
    with llama_cpp.llama_worker(sys.executable, file, context=64, threads=1, new_tokens=4) as (generate, settings):
        answers = generate([[1, 2, 3], [1, 2, 3]])
    assert settings["threads"] == 1
    assert answers[0]["tokens"] == answers[1]["tokens"]
