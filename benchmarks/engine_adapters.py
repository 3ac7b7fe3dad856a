"""What adapters cost: eight in one batch against the bare base, a cold load, and memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

from adapters.weights import WEIGHTS_NAME
from benchmarks.engine_bench import LORA_ADAPTER, Bench
from benchmarks.engine_timing import (
    make_timed,
    medians,
    print_progress,
    round_significant,
    time_interleaved,
    time_ratios,
)

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
    residents, milliseconds = bench.engine.adapter_cache, []
    with bench.temporary_adapters(COLD_LOADS) as names:
        for name in names:
            begin = time.perf_counter()
            residents.acquire(name).release()
            milliseconds.append(1000 * (time.perf_counter() - begin))
            residents.unload(name)
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
        f"memory: {ADAPTERS_IN_MEMORY} adapters, {(loaded - before) / 1e6:.0f} MB for {files / 1e6:.0f} MB of files"
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
