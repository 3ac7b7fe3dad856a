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
from benchmarks.engine_bench import LORA, Bench
from benchmarks.engine_timing import compared, digits, interleaved, medians, report, timed

ROWS = 8
COLD_LOADS = 24
IN_MEMORY = 200


def eight(bench: Bench) -> dict[str, Any]:
    """`eight_adapters_ratio`: eight rows that wear eight LoRA adapters, divided by the same rows on the bare base."""
    bare = bench.problems(ROWS)
    with bench.adapters(ROWS) as names, bench.resident(names):
        mixed = [replace(row, adapter=name) for row, name in zip(bare, names, strict=True)]
        one = [replace(row, adapter=LORA) for row in bare]
        sides = {
            name: timed(partial(bench.watch, rows), before=bench.forget)
            for name, rows in (("bare", bare), ("mixed", mixed), ("one", one))
        }
        times = interleaved("eight adapters", sides, bench.settings.runs)
    found = compared(times, "mixed", "bare")
    return {
        "eight_adapters_ratio": found["ratio"],
        "eight_adapters": {
            "rows": ROWS,
            "seconds": medians(times),
            "pair_ratios": found["pair_ratios"],
            "one_adapter_ratio": compared(times, "one", "bare")["ratio"],
            "prompt_tokens": [len(tokens) for tokens in bench.tokens(bare)],
        },
    }


def cold(bench: Bench) -> dict[str, Any]:
    """`cold_load_ms`: an adapter that was never seen, from its name to rows that can wear it: checks, digest, tensors.

    The files were written a moment ago, so they are read from the system's memory, not from a disk.
    """
    residents, milliseconds = bench.engine.residents, []
    with bench.adapters(COLD_LOADS) as names:
        for name in names:
            begin = time.perf_counter()
            residents.acquire(name).release()
            milliseconds.append(1000 * (time.perf_counter() - begin))
            residents.unload(name)
        size = (bench.folder / names[0] / WEIGHTS_NAME).stat().st_size
    return {
        "cold_load_ms": digits(statistics.median(milliseconds), 3),
        "cold_load": {"loads": COLD_LOADS, "slowest_ms": digits(max(milliseconds), 3), "file_bytes": size},
    }


def memory(bench: Bench) -> dict[str, Any]:
    """`adapter_memory_ratio`: bytes that the process, or the GPU, grows by for adapters in memory, by their files'."""
    device, backend = bench.engine.base.device, bench.backend
    with bench.adapters(IN_MEMORY) as names:
        files = sum((bench.folder / name / WEIGHTS_NAME).stat().st_size for name in names)
        before = settled_bytes(device)
        for name in names:  # past the engine, which holds fewer
            backend.load_adapter(bench.engine.store.open(name, bench.engine.base))
        loaded = used_bytes(device)
        counted = sum(backend.adapter_bytes(name) for name in names)
        for name in names:
            backend.unload_adapter(name)
        after, settled = used_bytes(device), settled_bytes(device)
    report(f"memory: {IN_MEMORY} adapters, {(loaded - before) / 1e6:.0f} MB for {files / 1e6:.0f} MB of files")
    return {
        "adapter_memory_ratio": digits((loaded - before) / files),
        "adapter_memory": {
            "adapters": IN_MEMORY,
            "file_bytes": files // IN_MEMORY,
            "grown_bytes": (loaded - before) // IN_MEMORY,
            "counted_bytes": counted // IN_MEMORY,
            "given_back": digits((loaded - after) / max(loaded - before, 1)),
            "given_back_settled": digits((loaded - settled) / max(loaded - before, 1)),
        },
    }


def settled_bytes(device: str) -> int:
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
