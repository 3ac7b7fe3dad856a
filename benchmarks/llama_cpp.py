"""Against llama.cpp: the six prompts one after another, and one stream alone.

llama.cpp reads the same weights as GGUF (Q4_1 for the embedded base), in a process of its own, with as many threads,
flash attention, and its default batch of 512 tokens; ours are NF4. It has no adapters here and so does less: all six
prompts go through its bare base. Every answer has `--new-tokens` greedy tokens; neither side ends early, and neither
keeps a prompt from one turn to the next. Turns alternate, and the side that waits does nothing.
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
from models.gguf import embedded_file
from models.source import EMBEDDED, EMBEDDED_ID

_WORKER = Path(__file__).with_name("llama_cpp_worker.py")
LlamaAnswers = list[dict[str, Any]]
LlamaGenerateFn = Callable[[Sequence[Sequence[int]]], LlamaAnswers]


def bench_llama_cpp(bench: Bench, python: str, gguf: Path) -> dict[str, Any]:
    """`llama_cpp_total_ratio` and `llama_cpp_single_ratio`: our tokens a second divided by llama.cpp's."""
    rows = bench.method_rows(METHODS)
    prompts, new_tokens = bench.prompt_token_ids(rows), bench.settings.new_tokens
    context = max(len(prompt) for prompt in prompts) + new_tokens
    with llama_worker(python, gguf, context, bench.settings.threads, new_tokens) as (ask, settings):
        sides = {
            "ours_total": make_timed(lambda: bench.time_batch(rows), setup=bench.clear_prefix_cache),
            "llama_total": lambda: sum(answer["seconds"] for answer in ask(prompts)),
            "ours_single": lambda: bench.time_batch(rows[:1]).step_seconds() * (new_tokens - 1),
            "llama_single": lambda: float(ask(prompts[:1])[0]["decode_seconds"]),
        }
        times = time_interleaved("llama.cpp", sides, bench.settings.runs)
    tokens = {"total": len(rows) * new_tokens, "single": new_tokens - 1}
    rates = {side: [tokens[side.partition("_")[2]] / seconds for seconds in values] for side, values in times.items()}
    found = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "llama_cpp_total_ratio": round_significant(found["ours_total"] / found["llama_total"]),
        "llama_cpp_single_ratio": round_significant(found["ours_single"] / found["llama_single"]),
        "llama_cpp": {
            "tokens_per_second": {name: round_significant(rate) for name, rate in found.items()},
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
    """The file that llama.cpp reads for `base`; PromptOrTuneError where it is not known."""
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
    """PromptOrTuneError unless that Python has llama-cpp-python."""
    probe = [python, "-c", "import importlib.metadata as m; print(m.version('llama-cpp-python'))"]
    try:
        found = subprocess.run(probe, capture_output=True, text=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise PromptOrTuneError(
            f"{python} has no llama-cpp-python: pip install --no-deps -r requirements-benchmarks.txt, name the Python "
            "that has it with --llama-python, or leave out llama with --only."
        )


@contextmanager
def llama_worker(
    python: str, gguf: Path, context: int, threads: int, new_tokens: int
) -> Iterator[tuple[LlamaGenerateFn, dict[str, Any]]]:
    """llama.cpp in a process that lasts as long as the block: what asks it, and its settings."""
    # It gets the OpenMP that it was built for: ours waits asleep, which would cost it at every barrier.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    first = {"model": str(gguf), "context": context, "threads": threads, "flash_attention": True}
    with subprocess.Popen(
        [python, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def exchange(asked: dict[str, Any]) -> Any:
            if process.stdin is None or process.stdout is None:
                raise AssertionError("the worker has no pipes")
            try:
                process.stdin.write(json.dumps(asked) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                raise PromptOrTuneError("llama.cpp's process ended; what it printed above says why.")
            return json.loads(line)

        def ask(prompts: Sequence[Sequence[int]]) -> LlamaAnswers:
            answers: LlamaAnswers = exchange({"prompts": prompts, "new_tokens": new_tokens})
            output = [len(answer["tokens"]) for answer in answers]
            if output != [new_tokens] * len(prompts):
                raise AssertionError(f"unequal work: {output}")
            return answers

        try:
            yield ask, exchange(first)
        finally:
            # On leaving, Popen closes the pipes and waits; the worker may be in the middle of a prompt.
            process.terminate()
