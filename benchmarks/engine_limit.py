"""How near a step comes to what the memory of the device allows.

A step reads every weight once, the keys and values of its rows, and the adapters that the rows wear. So it takes at
least (weight bytes + key/value bytes + bytes of the distinct adapters) / bandwidth seconds, and `share_of_limit` is
that divided by what it took. The bandwidth is the one that a large copy reaches on this device, read and written.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.engine_bench import Bench
from benchmarks.engine_columns import METHODS
from benchmarks.engine_timing import round_significant, time_interleaved

# Several times the largest cache: what is copied comes from memory.
COPY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
COPIES = 10


def bench_bandwidth_limit(bench: Bench) -> dict[str, Any]:
    """`share_of_limit` of a step with the six columns in flight, and what the limit is made of."""
    rows = bench.method_rows(METHODS)
    model, base = bench.backend._model, bench.engine.base
    worn = {row.adapter for row in rows if row.adapter is not None}
    tokens = [len(prompt) for prompt in bench.prompt_token_ids(rows)]
    ahead = sum(bench.engine.store.open(row.adapter, base).virtual_tokens for row in rows if row.adapter is not None)
    # Half of what is said stands in the cache on average.
    places = sum(tokens) + ahead + len(rows) * bench.settings.new_tokens // 2
    read = {
        "weights": weight_bytes(model),
        "keys_values": places
        * kv_bytes_per_token(base.num_layers, base.num_key_value_heads, base.head_dim, model.dtype),
        "adapters": sum(bench.backend.adapter_bytes(name) for name in worn),
    }
    speed = measure_bandwidth(base.device)
    times = time_interleaved(
        "share of the limit", {"step": lambda: bench.time_batch(rows).step_seconds()}, bench.settings.runs
    )
    least, taken = sum(read.values()) / speed, statistics.median(times["step"])
    return {
        "share_of_limit": round_significant(least / taken),
        "limit": {
            "bytes_per_step": read,
            "bandwidth_gb_per_second": round_significant(speed / 1e9),
            "least_step_ms": round_significant(1000 * least),
            "step_ms": round_significant(1000 * taken),
            "tokens_per_second": round_significant(len(rows) / taken),
        },
    }


def weight_bytes(model: Any) -> int:
    """Bytes of all weights that a step reads, the scales of quantized ones included.

    Of the input embeddings it reads a few rows: they count only where they are the output's weights too.
    """
    tensors: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            tensors[parameter.data_ptr()] = parameter
            state = getattr(parameter, "quant_state", None)
            for part in (state, getattr(state, "state2", None)):
                for name in ("absmax", "code"):
                    if (scales := getattr(part, name, None)) is not None:
                        tensors[scales.data_ptr()] = scales
            if (scales := getattr(parameter, "SCB", None)) is not None:
                tensors[scales.data_ptr()] = scales
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if inputs.data_ptr() != outputs.data_ptr():
        tensors.pop(inputs.data_ptr(), None)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def kv_bytes_per_token(layers: int, heads: int, head_dim: int, dtype: Any) -> int:
    """Bytes of the keys and values of one place of one row."""
    return int(2 * layers * heads * head_dim * dtype.itemsize)


def measure_bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes; the best of a few."""
    import torch

    kind = device.partition(":")[0]
    source = torch.ones(COPY_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(COPIES):
        _synchronize(kind)
        begin = time.perf_counter()
        target.copy_(source)
        _synchronize(kind)
        best = min(best, time.perf_counter() - begin)
    return 2 * source.numel() / best


def _synchronize(kind: str) -> None:
    """A GPU works on after a call has returned."""
    if kind == "cuda":
        import torch

        torch.cuda.synchronize()
