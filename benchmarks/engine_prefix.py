"""The first token of an ICL-8 answer: with its examples read before, for another intent, and with an empty cache."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from benchmarks.engine_bench import EARLIER, Bench
from benchmarks.engine_timing import compared, interleaved, medians, timed

METHOD = "icl-8"


def prefix(bench: Bench) -> dict[str, Any]:
    """`warm_prefix_ratio`: seconds to the first token, warm divided by cold."""
    rows, earlier = bench.rows([METHOD]), bench.rows([METHOD], EARLIER)

    def first_token() -> None:
        bench.watch(rows, 1)

    sides = {
        "warm": timed(first_token, before=lambda: bench.read_before(earlier)),
        "cold": timed(first_token, before=bench.forget),
    }
    times = interleaved("warm prefix", sides, bench.settings.runs)
    found = compared(times, "warm", "cold")
    ours, before = bench.tokens([*rows, *earlier])
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
