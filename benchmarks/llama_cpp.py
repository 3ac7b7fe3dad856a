"""Benchmark against llama.cpp: six prompts one after another, and one stream alone.

llama.cpp loads the same base as GGUF (Q4_1 for the embedded one; the engine's weights are NF4) in a separate process
with the same number of threads, flash attention, and its default batch of 512 tokens. It has no adapters here, so it
does less work: all six prompts go through its bare base. Every answer has `--new-tokens` greedy tokens. Neither side
ends an answer early or reuses a prompt of an earlier run. Runs of both sides alternate; the other side is idle.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.engine_batches import METHODS
from benchmarks.engine_harness import Bench, make_timed, print_progress, round_significant, time_interleaved
from errors import BaseModelError, PromptOrTuneError
from models.source import EMBEDDED, EMBEDDED_ID, embedded_file

_WORKER = Path(__file__).with_name("llama_cpp_worker.py")
LlamaAnswers = list[dict[str, Any]]
LlamaGenerateFn = Callable[[Sequence[Sequence[int]]], LlamaAnswers]


def bench_llama_cpp(bench: Bench, python: str, gguf: Path) -> dict[str, Any]:
    """Measure `llama_cpp_total_ratio` and `llama_cpp_single_ratio`: our tokens per second divided by llama.cpp's."""
    rows = bench.method_rows(METHODS)
    prompts, new_tokens = bench.prompt_token_ids(rows), bench.settings.new_tokens
    context = max(len(prompt) for prompt in prompts) + new_tokens
    with llama_worker(python, gguf, context, bench.settings.threads, new_tokens) as (generate, settings):
        sides = {
            "ours_total": make_timed(lambda: bench.time_batch(rows), setup=bench.clear_prefix_cache),
            "llama_total": lambda: sum(answer["seconds"] for answer in generate(prompts)),
            "ours_single": lambda: bench.time_batch(rows[:1]).step_seconds() * (new_tokens - 1),
            "llama_single": lambda: float(generate(prompts[:1])[0]["decode_seconds"]),
        }
        times = time_interleaved("llama.cpp", sides, bench.settings.runs)
    tokens = {"total": len(rows) * new_tokens, "single": new_tokens - 1}
    rates = {side: [tokens[side.partition("_")[2]] / seconds for seconds in values] for side, values in times.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "llama_cpp_total_ratio": round_significant(medians["ours_total"] / medians["llama_total"]),
        "llama_cpp_single_ratio": round_significant(medians["ours_single"] / medians["llama_single"]),
        "llama_cpp": {
            "tokens_per_second": {name: round_significant(rate) for name, rate in medians.items()},
            "total_pair_ratios": _rate_ratios(rates, "total"),
            "single_pair_ratios": _rate_ratios(rates, "single"),
            "prompt_tokens": [len(prompt) for prompt in prompts],
            "file": gguf.name,
            "flash_attention": True,
            **settings,
        },
    }


def _rate_ratios(rates: dict[str, list[float]], name: str) -> list[float]:
    return [round_significant(a / b) for a, b in zip(rates[f"ours_{name}"], rates[f"llama_{name}"], strict=True)]


def gguf_file(base: str, gguf: Path | None) -> Path:
    """Return the GGUF file of `base`; raise PromptOrTuneError if it is unknown or missing."""
    if gguf is not None:
        path = gguf
    elif base in (EMBEDDED, EMBEDDED_ID):
        path = embedded_file(print_progress)
    elif base.endswith(".gguf"):
        path = Path(base)
    else:
        raise PromptOrTuneError(f"llama.cpp needs '{base}' as a GGUF file: name it with --gguf, or leave out llama.")
    if not path.is_file():
        raise BaseModelError(f"There is no GGUF file {path}: check the path given to --gguf.")
    return path


def check_python(python: str) -> None:
    """Raise PromptOrTuneError unless llama-cpp-python is installed for that Python."""
    probe = [python, "-c", "import importlib.metadata as m; print(m.version('llama-cpp-python'))"]
    try:
        is_installed = subprocess.run(probe, capture_output=True, text=True, check=False).returncode == 0
    except OSError:
        is_installed = False
    if not is_installed:
        raise PromptOrTuneError(
            f"{python} has no llama-cpp-python: pip install --no-deps -r requirements-benchmarks.txt, name the Python "
            "that has it with --llama-python, or leave out llama with --only."
        )


@contextmanager
def llama_worker(
    python: str, gguf: Path, context: int, threads: int, new_tokens: int
) -> Iterator[tuple[LlamaGenerateFn, dict[str, Any]]]:
    """Run llama.cpp in a process for the duration of the block; yield a function that generates, and its settings."""
    # Leave out the engine's OpenMP settings: its passive waiting would slow llama.cpp at every barrier.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    load_request = {"model": str(gguf), "context": context, "threads": threads, "flash_attention": True}
    with subprocess.Popen(
        [python, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def exchange(request: dict[str, Any]) -> Any:
            if process.stdin is None or process.stdout is None:
                raise AssertionError("the worker has no pipes")
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                raise PromptOrTuneError("llama.cpp's process ended: see its output above.")
            return json.loads(line)

        def generate(prompts: Sequence[Sequence[int]]) -> LlamaAnswers:
            answers: LlamaAnswers = exchange({"prompts": prompts, "new_tokens": new_tokens})
            tokens = [len(answer["tokens"]) for answer in answers]
            if tokens != [new_tokens] * len(prompts):
                raise AssertionError(f"unequal work: {tokens}")
            return answers

        try:
            yield generate, exchange(load_request)
        finally:
            # Popen waits for the worker at the end of its block, and the worker may still be generating.
            process.terminate()
