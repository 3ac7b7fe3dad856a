"""Benchmarks of adapters: mixed batches, cold loads, memory per adapter, and throughput over a large store.

- `bench_eight_adapters`: a batch of 8 rows with 8 LoRA adapters against the same rows on the bare base.
- `bench_cold_load`: the time to load an adapter that has not been loaded before.
- `bench_adapter_memory`: the memory of an adapter against the size of its file.
- `bench_thousand_adapters`: the throughput over a store of 1,000 adapters, 64 of them in memory, against one adapter.

The load of the last one comes from 8 clients, each of which waits for an answer before its next request. 95 % of the
requests use one of `HOT` adapters, few enough to stay in memory; each of the others uses a new adapter, whose loading
evicts another. The reported hit rate is the engine's own count.
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
    """Measure `eight_adapters_ratio`: seconds of 8 rows with 8 LoRA adapters, divided by those on the bare base."""
    bare = bench.problem_rows(ROWS)
    with bench.temporary_adapters(ROWS) as names, bench.preload_adapters(names):
        mixed = [replace(row, adapter=name) for row, name in zip(bare, names, strict=True)]
        one = [replace(row, adapter=LORA_ADAPTER) for row in bare]
        sides = {
            name: make_timed(partial(bench.time_batch, rows), setup=bench.clear_prefix_cache)
            for name, rows in (("bare", bare), ("mixed", mixed), ("one", one))
        }
        times = time_interleaved("eight adapters", sides, bench.settings.runs)
    ratios = time_ratios(times, "mixed", "bare")
    return {
        "eight_adapters_ratio": ratios["ratio"],
        "eight_adapters": {
            "rows": ROWS,
            "seconds": medians(times),
            "pair_ratios": ratios["pair_ratios"],
            "one_adapter_ratio": time_ratios(times, "one", "bare")["ratio"],
            "prompt_tokens": [len(tokens) for tokens in bench.prompt_token_ids(bare)],
        },
    }


def bench_cold_load(bench: Bench) -> dict[str, Any]:
    """Measure `cold_load_ms`: milliseconds from an adapter's name to its use: checks, digest, tensors.

    The files were written just before, so they are read from the system's page cache, not from a disk.
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
    """Measure `adapter_memory_ratio`: bytes of process or GPU memory per loaded adapter, divided by its file's."""
    device, backend = bench.engine.base.device, bench.backend
    with bench.temporary_adapters(ADAPTERS_IN_MEMORY) as names:
        files = sum((bench.folder / name / WEIGHTS_NAME).stat().st_size for name in names)
        before = used_bytes_after_trim(device)
        for name in names:  # without the engine, which has a lower limit
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
    """Return `used_bytes` after the allocator returned its free memory, whose reuse would hide later allocations."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc only
        trim(0)
    return used_bytes(device)


def used_bytes(device: str) -> int:
    """Return the bytes in use: those allocated by torch on a GPU, this process's resident memory on a CPU."""
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
    """Measure `thousand_adapters_ratio`: tokens per second over REGISTERED adapters, divided by those with one."""
    adapter_cache = bench.engine.adapter_cache
    with bench.temporary_adapters(REGISTERED) as names:
        hot, cold = names[:HOT], iter(names[HOT:])
        free = MAX_LOADED_ADAPTERS - adapter_cache.status().count - HOT
        # Load the hot adapters last: the least recently used adapter is evicted first.
        for name in [*(next(cold) for _ in range(free)), *hot]:
            adapter_cache.acquire(name).release()
        rng = random.Random(42)
        before = adapter_cache.status()
        counts = {"hits": 0, "loads": 0}

        def many() -> None:
            start = adapter_cache.status()
            _run_clients(bench, sample_requests(hot, cold, REQUESTS, rng))
            end = adapter_cache.status()
            counts["hits"] += end.hits - start.hits
            counts["loads"] += end.loads - start.loads

        sides = {
            "thousand": make_timed(many, setup=bench.clear_prefix_cache),
            "one": make_timed(lambda: _run_clients(bench, [LORA_ADAPTER] * REQUESTS), setup=bench.clear_prefix_cache),
        }
        times = time_interleaved("thousand adapters", sides, bench.settings.runs)
        evictions = adapter_cache.status().evictions - before.evictions
        for name in names:
            adapter_cache.unload(name)
    ratios = time_ratios(times, "one", "thousand")  # inverse of the seconds: both sides generate the same tokens
    tokens = REQUESTS * bench.settings.new_tokens
    return {
        "thousand_adapters_ratio": ratios["ratio"],
        "thousand_adapters": {
            "registered": REGISTERED,
            "resident": MAX_LOADED_ADAPTERS,
            "hit_rate": round_significant(counts["hits"] / sum(counts.values())),
            "evictions": evictions,
            "clients": CLIENTS,
            "requests": REQUESTS,
            "tokens_per_second": {
                side: round_significant(tokens / seconds) for side, seconds in medians(times).items()
            },
            "pair_ratios": ratios["pair_ratios"],
        },
    }


def sample_requests(hot: Sequence[str], cold: Iterator[str], number: int, rng: random.Random) -> list[str]:
    """Return the adapter names of `number` requests: a share of `HIT_RATE` from `hot`, the others next from `cold`."""
    misses = round(number * (1 - HIT_RATE))
    names = [*(next(cold) for _ in range(misses)), *(rng.choice(hot) for _ in range(number - misses))]
    rng.shuffle(names)
    return names


def _run_clients(bench: Bench, names: Sequence[str]) -> None:
    """Send one request per adapter name from CLIENTS clients; all answers have the same number of tokens."""
    problems = load_problems("starter", "test", None, None)
    # Each prompt is different: a repeated one would be in the prefix cache of a single adapter.
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
