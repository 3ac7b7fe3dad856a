"""The first token of an ICL-8 answer: with its examples read before, for another intent, and with an empty cache."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from benchmarks.engine_bench import PREVIOUS_INTENT, Bench
from benchmarks.engine_timing import make_timed, medians, time_interleaved, time_ratios

METHOD = "icl-8"


def bench_prefix_cache(bench: Bench) -> dict[str, Any]:
    """`warm_prefix_ratio`: seconds to the first token, warm divided by cold."""
    rows, earlier = bench.method_rows([METHOD]), bench.method_rows([METHOD], PREVIOUS_INTENT)

    def first_token() -> None:
        bench.time_batch(rows, 1)

    sides = {
        "warm": make_timed(first_token, setup=lambda: bench.warm_prefix_cache(earlier)),
        "cold": make_timed(first_token, setup=bench.clear_prefix_cache),
    }
    times = time_interleaved("warm prefix", sides, bench.settings.runs)
    found = time_ratios(times, "warm", "cold")
    ours, before = bench.prompt_token_ids([*rows, *earlier])
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, before, strict=False)))
    return {
        "warm_prefix_ratio": found["ratio"],
        "prefix": {
            "method": METHOD,
            "seconds": medians(times),
            "pair_ratios": found["pair_ratios"],
            "prompt_tokens": len(ours),
            "shared_tokens": shared,
        },
    }
