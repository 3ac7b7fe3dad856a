"""A thousand adapters in the store, 64 of them in memory, and requests of which 95 % find theirs there.

The same load, eight clients that each wait for an answer before they ask again, goes through the engine twice: once
for adapters drawn from the thousand, once for a single one. The draw: 95 % of the requests ask for one of `HOT`
adapters, few enough to stay in memory, and every other one for an adapter that was not asked for before. So each of
these loads one and pushes another out. The hit rate that is reported is what the engine counted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.engine_bench import LORA_ADAPTER, MAX_LOADED_ADAPTERS, Bench, without_eos
from benchmarks.engine_timing import make_timed, medians, round_significant, time_interleaved, time_ratios
from errors import PromptOrTuneError
from serve.types import Request, SamplingParams
from tasks.datasets.registry import load_problems
from tasks.methods import Method, NoExamples
from tasks.problem import Problem

REGISTERED = 1000
HOT = 48
HIT_RATE = 0.95
CLIENTS = 8
REQUESTS = 80


def bench_thousand_adapters(bench: Bench) -> dict[str, Any]:
    """`thousand_adapters_ratio`: tokens a second over the thousand, divided by those of the one adapter."""
    residents = bench.engine.adapter_cache
    with bench.temporary_adapters(REGISTERED) as names:
        hot, cold = names[:HOT], iter(names[HOT:])
        room = MAX_LOADED_ADAPTERS - residents.status().count - HOT
        # The hot ones last: what was used longest ago goes first.
        for name in [*(next(cold) for _ in range(room)), *hot]:
            residents.acquire(name).release()
        rng = random.Random(42)
        before = residents.status()
        drawn = {"hits": 0, "loads": 0}

        def many() -> None:
            start = residents.status()
            _run_clients(bench, sample_requests(hot, cold, REQUESTS, rng))
            end = residents.status()
            drawn["hits"] += end.hits - start.hits
            drawn["loads"] += end.loads - start.loads

        sides = {
            "thousand": make_timed(many, setup=bench.clear_prefix_cache),
            "one": make_timed(lambda: _run_clients(bench, [LORA_ADAPTER] * REQUESTS), setup=bench.clear_prefix_cache),
        }
        times = time_interleaved("thousand adapters", sides, bench.settings.runs)
        evictions = residents.status().evictions - before.evictions
        for name in names:
            residents.unload(name)
    found = time_ratios(times, "one", "thousand")  # The same tokens on both sides: seconds turned over.
    tokens = REQUESTS * bench.settings.new_tokens
    return {
        "thousand_adapters_ratio": found["ratio"],
        "thousand_adapters": {
            "registered": REGISTERED,
            "resident": MAX_LOADED_ADAPTERS,
            "hit_rate": round_significant(drawn["hits"] / sum(drawn.values())),
            "evictions": evictions,
            "clients": CLIENTS,
            "requests": REQUESTS,
            "tokens_per_second": {
                side: round_significant(tokens / seconds) for side, seconds in medians(times).items()
            },
            "pair_ratios": found["pair_ratios"],
        },
    }


def sample_requests(hot: Sequence[str], cold: Iterator[str], number: int, rng: random.Random) -> list[str]:
    """Names for that many requests: exactly `HIT_RATE` of them are hot ones, the others the next of `cold`."""
    missing = round(number * (1 - HIT_RATE))
    names = [*(next(cold) for _ in range(missing)), *(rng.choice(hot) for _ in range(number - missing))]
    rng.shuffle(names)
    return names


def _run_clients(bench: Bench, names: Sequence[str]) -> None:
    """One request for each adapter, from clients that wait for their answers; all say the same number of tokens."""
    problems = load_problems("starter", "test", None, None)
    # No prompt comes twice, else a single adapter would find all of it in the prefix cache.
    intents = [f"task {place}: {problems[place % len(problems)].intent}" for place in range(len(names))]
    requests = [
        Request(Problem("bench", intent), Method(name, NoExamples(), name))
        for intent, name in zip(intents, names, strict=True)
    ]
    decoding = SamplingParams(max_new_tokens=bench.settings.new_tokens)

    def client(number: int) -> None:
        for request in requests[number::CLIENTS]:
            (answer,) = bench.engine.answer([request], decoding, owner=f"client {number}")
            if answer.error:
                raise PromptOrTuneError(answer.error)
            if answer.tokens != decoding.max_new_tokens:
                raise AssertionError(f"unequal work: {answer.tokens} tokens")

    with without_eos(bench.backend), ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
