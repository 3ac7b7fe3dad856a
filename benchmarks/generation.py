"""Benchmark of beam search: the engine's batch against transformers' `generate`, one problem at a time.

    python -m benchmarks.generation [--problems 16] [--runs 3] [--new-tokens 48]

Both sides decode the same ICL-8 prompts with 10 beams and exactly `--new-tokens` tokens on the same NF4 base; answers
never end early, for equal work. Runs of both sides alternate. Prints one JSON line; `generation_ratio` is the engine's
median problems per second divided by the peer's. `python -m benchmarks.scoring` includes this benchmark.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks.engine_harness import without_eos
from common.command import configure_environment
from errors import PromptOrTuneError
from serve.engine.build import build_engine
from serve.options import ModelOptions
from serve.types import Request, Row, RowOutput, SamplingParams
from tasks.datasets.registry import load_problems
from tasks.methods import parse_method

BEAMS = 10
METHOD = "icl-8"
# Problems that the peer answers per run; few are enough, as its time is proportional to their number.
PEER_PROBLEMS = 2


def main() -> int:
    """Run the benchmark and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--data", default="starter")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=48)
    options = parser.parse_args()
    try:
        print(json.dumps(generation_ratio(**vars(options))))
    except PromptOrTuneError as error:
        print(f"benchmarks.generation: {error}", file=sys.stderr)
        return 2
    return 0


def generation_ratio(
    base: str = "embedded",
    quantization: str = "nf4",
    data: str = "starter",
    data_dir: Path | None = None,
    problems: int = 16,
    runs: int = 3,
    new_tokens: int = 48,
) -> dict[str, Any]:
    """Time both sides alternately and return `generation_ratio` with the conditions of the measurement."""
    configure_environment()
    engine = build_engine(ModelOptions(base, quantization, data_dir=data_dir), _print_progress)
    backend: Any = engine._backend
    method = parse_method(METHOD, ())
    requests = [Request(problem, method, data) for problem in load_problems(data, "test", data_dir, problems)]
    answers = engine.answer(requests, SamplingParams(max_new_tokens=1))
    rows = [Row(answer.prompt, answer.style) for answer in answers if answer.style]
    if len(rows) != len(requests):
        raise PromptOrTuneError(next(answer.error for answer in answers if answer.error) or "A problem has no prompt.")
    ours, peer = [], []
    for run in range(runs + 1):
        first = run * PEER_PROBLEMS % len(rows)
        throughputs = (
            _engine_throughput(backend, rows, new_tokens),
            _generate_throughput(backend, rows[first : first + PEER_PROBLEMS], new_tokens),
        )
        if run:  # run 0 is a warm-up
            ours.append(throughputs[0])
            peer.append(throughputs[1])
        _print_progress(f"generation: run {run} of {runs} done")
    rates = [statistics.median(values) for values in (ours, peer)]
    return {
        "generation_ratio": round(rates[0] / rates[1], 2),
        "ours_problems_per_second": round(rates[0], 3),
        "generate_problems_per_second": round(rates[1], 3),
        "pair_ratios": [round(a / b, 2) for a, b in zip(ours, peer, strict=True)],
        "prompt_tokens": round(statistics.mean(answer.prompt_tokens for answer in answers)),
        "new_tokens": new_tokens,
        "beams": BEAMS,
        "batch": len(rows),
        "base": engine.base.id,
        "quantization": engine.base.quantization,
        "device": engine.base.device,
    }


def _engine_throughput(backend: Any, rows: list[Row], new_tokens: int) -> float:
    """Return the problems per second of one batch."""
    begin = time.perf_counter()
    with without_eos(backend):
        events = backend.generate(rows, SamplingParams("beam", new_tokens, BEAMS), Event())
        output = [event.candidates[0].tokens for event in events if isinstance(event, RowOutput)]
    seconds = time.perf_counter() - begin
    if output != [new_tokens] * len(rows):
        raise AssertionError(f"unequal work: {output}")
    return len(rows) / seconds


def _generate_throughput(backend: Any, rows: list[Row], new_tokens: int) -> float:
    """Return the problems per second of `generate`, one problem after another."""
    import torch

    model = backend._model
    eos_token_ids = sorted(backend._detokenizer.eos_token_ids)
    begin = time.perf_counter()
    for row in rows:
        ids = torch.tensor([backend._encode(row)], device=model.device)
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=BEAMS,
                num_return_sequences=BEAMS,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                eos_token_id=eos_token_ids,
                pad_token_id=eos_token_ids[0],
            )
        if tuple(output.shape) != (BEAMS, ids.shape[1] + new_tokens):
            raise AssertionError("unequal work")
    return len(rows) / (time.perf_counter() - begin)


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
