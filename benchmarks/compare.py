"""Benchmark of mixed batching: four methods in one batch against the same four one after another with PEFT.

    python -m benchmarks.compare [--adapter lora-conala] [--runs 5] [--new-tokens 64]

Both sides answer the same prompts (zero-shot, ICL-8, RAG-8, a LoRA adapter) with the same NF4 base and generate exactly
`--new-tokens` greedy tokens per row. The peer follows PEFT's manual: one PeftModel, one call of `generate` per method,
with the adapter disabled for the methods that use none. Runs of both sides alternate, so that a change in the machine's
speed affects both equally. Prints one JSON line; `ratio` is the engine's median seconds divided by the peer's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from threading import Event
from typing import Any

from benchmarks.engine_harness import without_eos
from common.command import configure_environment
from errors import PromptOrTuneError
from serve.engine.build import build_engine
from serve.options import ModelOptions
from serve.types import Request, RequestOutput, Row, RowOutput, SamplingParams
from tasks.methods import parse_method
from tasks.problem import Problem

INTENT = "`count_words(path)`: count how often each word occurs in a text file and return a dictionary"


def main() -> int:
    """Run the benchmark and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--adapter", default="lora-conala")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    configure_environment()
    try:
        print(json.dumps(measure(arguments)))
    except PromptOrTuneError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both sides alternately and return the contents of the JSON line."""
    engine = build_engine(ModelOptions(arguments.base, arguments.quantization), _print_progress)
    names = ["zero-shot", "icl-8", "rag-8", arguments.adapter]
    requests = [Request(Problem("bench", INTENT), parse_method(name, engine.adapters())) for name in names]
    answers = engine.answer(requests, SamplingParams(max_new_tokens=1))
    for answer in answers:
        if answer.error:
            raise PromptOrTuneError(answer.error)
    ours = _engine_run(engine, answers, arguments.new_tokens)
    peer = _peft_run(engine, arguments, answers)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for run in range(arguments.runs + 1):
        for side, call in (("ours", ours), ("peer", peer)):
            begin = time.perf_counter()
            call()
            if run:  # run 0 is a warm-up
                times[side].append(time.perf_counter() - begin)
        _print_progress(f"run {run} of {arguments.runs} done")
    medians = {side: statistics.median(values) for side, values in times.items()}
    return {
        "ratio": round(medians["ours"] / medians["peer"], 3),
        "ours_seconds": round(medians["ours"], 2),
        "peft_seconds": round(medians["peer"], 2),
        "pair_ratios": [round(a / b, 3) for a, b in zip(times["ours"], times["peer"], strict=True)],
        "methods": names,
        "prompt_tokens": [answer.prompt_tokens for answer in answers],
        "new_tokens": arguments.new_tokens,
        "runs": arguments.runs,
        "base": engine.base.id,
        "revision": engine.base.revision,
        "quantization": engine.base.quantization,
        "device": engine.base.device,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
    }


def _engine_run(engine: Any, answers: list[RequestOutput], new_tokens: int) -> Callable[[], None]:
    """Return a function that generates the rows of `answers` in one batch, without early ends, for equal work."""
    backend = engine._backend
    rows = [Row(answer.prompt, answer.style, answer.request.method.adapter) for answer in answers if answer.style]

    def call() -> None:
        with without_eos(backend):
            events = backend.generate(rows, SamplingParams(max_new_tokens=new_tokens), Event())
            output = [event.candidates[0].tokens for event in events if isinstance(event, RowOutput)]
        if output != [new_tokens] * len(rows):
            raise AssertionError(f"unequal work: {output}")

    return call


def _peft_run(engine: Any, arguments: argparse.Namespace, answers: list[RequestOutput]) -> Callable[[], None]:
    """Return a function that generates the same prompts with one call of `generate` each, on a separate PeftModel."""
    import torch
    from peft import PeftModel

    from models.loader import load_base

    # Load a second base: PEFT replaces its modules and must read its state_dict before the first forward pass.
    loaded = load_base(arguments.base, arguments.quantization, "auto", _print_progress, training=True)
    for module in loaded.model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    folder = engine.store.open(arguments.adapter, engine.base)
    model: Any = PeftModel.from_pretrained(loaded.model, folder.path).eval()
    tokenizer: Any = loaded.tokenizer

    def call() -> None:
        for answer in answers:
            plain = answer.style is not None and answer.style.format == "plain"
            encoded = tokenizer(answer.prompt, return_tensors="pt", add_special_tokens=plain)
            with torch.inference_mode(), nullcontext() if answer.request.method.adapter else model.disable_adapter():
                output = model.generate(
                    input_ids=encoded["input_ids"].to(model.device),
                    attention_mask=encoded["attention_mask"].to(model.device),
                    do_sample=False,
                    max_new_tokens=arguments.new_tokens,
                    min_new_tokens=arguments.new_tokens,
                )
            if output.shape[1] - encoded["input_ids"].shape[1] != arguments.new_tokens:
                raise AssertionError("unequal work")

    return call


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
