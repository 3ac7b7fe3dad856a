"""What adapters cost: eight in one batch against the bare base, a cold load, and memory.

A thousand adapters in the store, 64 of them in memory, and requests of which 95 % find theirs there.

The same load, eight clients that each wait for an answer before they ask again, goes through the engine twice: once
for adapters drawn from the thousand, once for a single one. The draw: 95 % of the requests ask for one of `HOT`
adapters, few enough to stay in memory, and every other one for an adapter that was not asked for before. So each of
these loads one and pushes another out. The hit rate that is reported is what the engine counted.
"""

from __future__ import annotations

import ctypes
import gc
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from adapters.weights import WEIGHTS_NAME
from benchmarks.engine_harness import (
    LORA_ADAPTER,
    MAX_LOADED_ADAPTERS,
    Bench,
    make_timed,
    medians,
    print_progress,
    round_significant,
    time_interleaved,
    time_ratios,
    without_eos,
)
from common.format import format_bytes
from errors import PromptOrTuneError
from serve.types import Request, SamplingParams
from tasks.datasets.registry import load_problems
from tasks.methods import Method, NoExamples
from tasks.problem import Problem

ROWS = 8
COLD_LOADS = 24
ADAPTERS_IN_MEMORY = 200


def bench_eight_adapters(bench: Bench) -> dict[str, Any]:
    """`eight_adapters_ratio`: eight rows that wear eight LoRA adapters, divided by the same rows on the bare base."""
    bare = bench.problem_rows(ROWS)
    with bench.temporary_adapters(ROWS) as names, bench.preload_adapters(names):
        mixed = [replace(row, adapter=name) for row, name in zip(bare, names, strict=True)]
        one = [replace(row, adapter=LORA_ADAPTER) for row in bare]
        sides = {
            name: make_timed(partial(bench.time_batch, rows), setup=bench.clear_prefix_cache)
            for name, rows in (("bare", bare), ("mixed", mixed), ("one", one))
        }
        times = time_interleaved("eight adapters", sides, bench.settings.runs)
    found = time_ratios(times, "mixed", "bare")
    return {
        "eight_adapters_ratio": found["ratio"],
        "eight_adapters": {
            "rows": ROWS,
            "seconds": medians(times),
            "pair_ratios": found["pair_ratios"],
            "one_adapter_ratio": time_ratios(times, "one", "bare")["ratio"],
            "prompt_tokens": [len(tokens) for tokens in bench.prompt_token_ids(bare)],
        },
    }


def bench_cold_load(bench: Bench) -> dict[str, Any]:
    """`cold_load_ms`: an adapter that was never seen, from its name to rows that can wear it: checks, digest, tensors.

    The files were written a moment ago, so they are read from the system's memory, not from a disk.
    """
    adapter_cache, milliseconds = bench.engine.adapter_cache, []
    with bench.temporary_adapters(COLD_LOADS) as names:
        for name in names:
            begin = time.perf_counter()
            adapter_cache.acquire(name).release()
            milliseconds.append(1000 * (time.perf_counter() - begin))
            adapter_cache.unload(name)
        size = (bench.folder / names[0] / WEIGHTS_NAME).stat().st_size
    return {
        "cold_load_ms": round_significant(statistics.median(milliseconds), 3),
        "cold_load": {"loads": COLD_LOADS, "slowest_ms": round_significant(max(milliseconds), 3), "file_bytes": size},
    }


def bench_adapter_memory(bench: Bench) -> dict[str, Any]:
    """`adapter_memory_ratio`: bytes that the process, or the GPU, grows by for adapters in memory, by their files'."""
    device, backend = bench.engine.base.device, bench.backend
    with bench.temporary_adapters(ADAPTERS_IN_MEMORY) as names:
        files = sum((bench.folder / name / WEIGHTS_NAME).stat().st_size for name in names)
        before = used_bytes_after_trim(device)
        for name in names:  # past the engine, which holds fewer
            backend.load_adapter(bench.engine.store.open(name, bench.engine.base))
        loaded = used_bytes(device)
        counted = sum(backend.adapter_bytes(name) for name in names)
        for name in names:
            backend.unload_adapter(name)
        after, settled = used_bytes(device), used_bytes_after_trim(device)
    print_progress(
        f"memory: {ADAPTERS_IN_MEMORY} adapters, {format_bytes(loaded - before)} for {format_bytes(files)} of files"
    )
    return {
        "adapter_memory_ratio": round_significant((loaded - before) / files),
        "adapter_memory": {
            "adapters": ADAPTERS_IN_MEMORY,
            "file_bytes": files // ADAPTERS_IN_MEMORY,
            "grown_bytes": (loaded - before) // ADAPTERS_IN_MEMORY,
            "counted_bytes": counted // ADAPTERS_IN_MEMORY,
            "given_back": round_significant((loaded - after) / max(loaded - before, 1)),
            "given_back_settled": round_significant((loaded - settled) / max(loaded - before, 1)),
        },
    }


def used_bytes_after_trim(device: str) -> int:
    """`used_bytes` after the allocator gave back what it kept in reserve, which would hide what comes next."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc has it
        trim(0)
    return used_bytes(device)


def used_bytes(device: str) -> int:
    """Bytes in use now: what torch has given out on a GPU, what this process holds resident on a CPU."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


REGISTERED = 1000
HOT = 48
HIT_RATE = 0.95
CLIENTS = 8
REQUESTS = 80


def bench_thousand_adapters(bench: Bench) -> dict[str, Any]:
    """`thousand_adapters_ratio`: tokens a second over the thousand, divided by those of the one adapter."""
    adapter_cache = bench.engine.adapter_cache
    with bench.temporary_adapters(REGISTERED) as names:
        hot, cold = names[:HOT], iter(names[HOT:])
        room = MAX_LOADED_ADAPTERS - adapter_cache.status().count - HOT
        # The hot ones last: what was used longest ago goes first.
        for name in [*(next(cold) for _ in range(room)), *hot]:
            adapter_cache.acquire(name).release()
        rng = random.Random(42)
        before = adapter_cache.status()
        drawn = {"hits": 0, "loads": 0}

        def many() -> None:
            start = adapter_cache.status()
            _run_clients(bench, sample_requests(hot, cold, REQUESTS, rng))
            end = adapter_cache.status()
            drawn["hits"] += end.hits - start.hits
            drawn["loads"] += end.loads - start.loads

        sides = {
            "thousand": make_timed(many, setup=bench.clear_prefix_cache),
            "one": make_timed(lambda: _run_clients(bench, [LORA_ADAPTER] * REQUESTS), setup=bench.clear_prefix_cache),
        }
        times = time_interleaved("thousand adapters", sides, bench.settings.runs)
        evictions = adapter_cache.status().evictions - before.evictions
        for name in names:
            adapter_cache.unload(name)
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
    intents = [f"task {index}: {problems[index % len(problems)].intent}" for index in range(len(names))]
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
