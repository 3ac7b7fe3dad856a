"""Benchmarks of batches: six columns against `generate`, the prefix cache, and the memory bandwidth limit.

`bench_columns` compares six methods in one batch with six calls of `generate`, and with the slowest method alone. The
peer follows the libraries' manuals: transformers on the bare base for zero-shot, ICL and RAG, and one PeftModel on a
separate base for each adapter. Both sides answer the same prompts with the same number of greedy tokens on the same
quantized weights. For `six_columns_ratio` the prefix cache is empty, so that all prompt tokens are computed, as by the
peer. For `six_columns_warm_ratio` it contains the prompts of another intent, which share the examples of ICL.

`bench_prefix_cache` compares the time to the first token of an ICL-8 answer with a filled and an empty prefix cache.

`bench_bandwidth_limit` compares a step with the limit that the device's memory bandwidth sets. A step reads every
weight, the keys and values of its rows, and their adapters. So it takes at least (weight bytes + key/value bytes +
bytes of the distinct adapters) / bandwidth seconds; `share_of_limit` is this divided by the measured seconds. The
bandwidth is that of a large copy on the device, with the bytes read and written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from benchmarks.engine_harness import (
    ADAPTER_TYPES,
    PREVIOUS_INTENT,
    Bench,
    make_timed,
    medians,
    print_progress,
    round_significant,
    time_interleaved,
    time_ratios,
)
from serve.types import Row

METHODS = ("zero-shot", "icl-8", "rag-8", *ADAPTER_TYPES)


def bench_columns(bench: Bench) -> dict[str, Any]:
    """Measure `six_columns_ratio`, `six_columns_warm_ratio` and `slowest_column_ratio`, with their components."""
    rows, earlier = bench.method_rows(METHODS), bench.method_rows(METHODS, PREVIOUS_INTENT)
    peer = HFPeer(bench, rows)
    batch = partial(bench.time_batch, rows)
    sides = {
        "cold": make_timed(batch, setup=bench.clear_prefix_cache),
        "warm": make_timed(batch, setup=lambda: bench.warm_prefix_cache(earlier)),
        "peer": make_timed(peer.generate_all),
    }
    for method, row in zip(METHODS, rows, strict=True):
        sides[method] = make_timed(partial(bench.time_batch, [row]), setup=bench.clear_prefix_cache)
    times = time_interleaved("six columns", sides, bench.settings.runs)
    seconds = medians(times)
    slowest = max(METHODS, key=lambda method: seconds[method])
    cold, warm, alone = (time_ratios(times, *pair) for pair in (("cold", "peer"), ("warm", "peer"), ("cold", slowest)))
    return {
        "six_columns_ratio": cold["ratio"],
        "six_columns_warm_ratio": warm["ratio"],
        "slowest_column_ratio": alone["ratio"],
        "columns": {
            "methods": METHODS,
            "prompt_tokens": [len(tokens) for tokens in bench.prompt_token_ids(rows)],
            "seconds": {name: seconds[name] for name in ("cold", "warm", "peer")},
            "seconds_alone": {method: seconds[method] for method in METHODS},
            "peer_seconds_alone": dict(zip(METHODS, peer.medians(), strict=True)),
            "slowest": slowest,
            "pair_ratios": cold["pair_ratios"],
            "warm_pair_ratios": warm["pair_ratios"],
            "slowest_pair_ratios": alone["pair_ratios"],
        },
    }


class HFPeer:
    """Generates rows one after another with transformers' `generate`, on a PeftModel if the row has an adapter."""

    def __init__(self, bench: Bench, rows: Sequence[Row]) -> None:
        import torch
        from peft import PeftModel

        self._new_tokens = bench.settings.new_tokens
        self._dtype = bench.backend._model.dtype
        self._prompts = [torch.tensor([tokens]) for tokens in bench.prompt_token_ids(rows)]
        self._models: list[Any] = []
        self._needs_autocast: list[bool] = []
        self._seconds: list[list[float]] = [[] for _ in rows]
        bare = load_plain_base(bench)
        for row in rows:
            model, technique = bare, ""
            if row.adapter is not None:
                folder = bench.engine.store.open(row.adapter, bench.engine.base)
                model, technique = (
                    PeftModel.from_pretrained(load_plain_base(bench), folder.path).eval(),
                    folder.config["peft_type"],
                )
            self._models.append(model)
            # PEFT's IA3 needs autocast on quantized layers; the other techniques are faster without it.
            self._needs_autocast.append(technique == "IA3" and bench.settings.quantization != "none")

    def generate_all(self) -> None:
        """Generate all rows once; raise AssertionError if a row has another number of tokens."""
        for index in range(len(self._models)):
            begin = time.perf_counter()
            tokens = self._generate(index)
            self._seconds[index].append(time.perf_counter() - begin)
            if tokens != self._new_tokens:
                raise AssertionError(f"unequal work: {tokens} tokens")

    def _generate(self, index: int) -> int:
        import torch

        model = self._models[index]
        ids = self._prompts[index].to(model.device)
        with torch.inference_mode(), torch.autocast(ids.device.type, self._dtype, enabled=self._needs_autocast[index]):
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self._new_tokens,
                min_new_tokens=self._new_tokens,
            )
        return int(output.shape[1] - ids.shape[1])

    def medians(self) -> list[float]:
        """Return the median seconds of each row, without the first run, which is a warm-up."""
        return [round_significant(statistics.median(seconds[1:])) for seconds in self._seconds]


def load_plain_base(bench: Bench) -> Any:
    """Load the base again for PEFT, which replaces modules and must read the state_dict before the first forward pass.

    The base is loaded as for training, which allows reading the state_dict; then the CPU's fast kernel is enabled.
    """
    from bitsandbytes.functional import has_avx512bf16

    from models.loader import load_base

    model: Any = load_base(
        bench.settings.base, bench.settings.quantization, bench.settings.device, print_progress, training=True
    ).model
    for layer in model.modules():
        # The kernel fails with other shapes, see models/loader.py.
        if hasattr(layer, "support_avx512bf16_for_cpu") and not (layer.out_features % 32 or layer.in_features % 64):
            layer.support_avx512bf16_for_cpu = has_avx512bf16()
    return model


METHOD = "icl-8"


def bench_prefix_cache(bench: Bench) -> dict[str, Any]:
    """Measure `warm_prefix_ratio`: seconds to the first token with a filled prefix cache, divided by an empty one."""
    rows, earlier = bench.method_rows([METHOD]), bench.method_rows([METHOD], PREVIOUS_INTENT)

    def first_token() -> None:
        bench.time_batch(rows, 1)

    sides = {
        "warm": make_timed(first_token, setup=lambda: bench.warm_prefix_cache(earlier)),
        "cold": make_timed(first_token, setup=bench.clear_prefix_cache),
    }
    times = time_interleaved("warm prefix", sides, bench.settings.runs)
    ratios = time_ratios(times, "warm", "cold")
    prompt, cached = bench.prompt_token_ids([*rows, *earlier])
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, cached, strict=False)))
    return {
        "warm_prefix_ratio": ratios["ratio"],
        "prefix": {
            "method": METHOD,
            "seconds": medians(times),
            "pair_ratios": ratios["pair_ratios"],
            "prompt_tokens": len(prompt),
            "shared_tokens": shared,
        },
    }


# Several times the largest processor cache, so that the copy reads from memory.
COPY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
COPIES = 10


def bench_bandwidth_limit(bench: Bench) -> dict[str, Any]:
    """Measure `share_of_limit` of a step with six columns, with the components of the limit."""
    rows = bench.method_rows(METHODS)
    model, base = bench.backend._model, bench.engine.base
    applied = {row.adapter for row in rows if row.adapter is not None}
    tokens = [len(prompt) for prompt in bench.prompt_token_ids(rows)]
    virtual = sum(bench.engine.store.open(row.adapter, base).virtual_tokens for row in rows if row.adapter is not None)
    # On average over the steps, half of the new tokens are in the key/value cache.
    positions = sum(tokens) + virtual + len(rows) * bench.settings.new_tokens // 2
    read = {
        "weights": weight_bytes(model),
        "keys_values": positions
        * kv_bytes_per_token(base.num_layers, base.num_key_value_heads, base.head_dim, model.dtype),
        "adapters": sum(bench.backend.adapter_bytes(name) for name in applied),
    }
    bandwidth = measure_bandwidth(base.device)
    times = time_interleaved(
        "share of the limit", {"step": lambda: bench.time_batch(rows).step_seconds()}, bench.settings.runs
    )
    minimum, measured = sum(read.values()) / bandwidth, statistics.median(times["step"])
    return {
        "share_of_limit": round_significant(minimum / measured),
        "limit": {
            "bytes_per_step": read,
            "bandwidth_gb_per_second": round_significant(bandwidth / 1e9),
            "least_step_ms": round_significant(1000 * minimum),
            "step_ms": round_significant(1000 * measured),
            "tokens_per_second": round_significant(len(rows) / measured),
        },
    }


def weight_bytes(model: Any) -> int:
    """Return the bytes of all weights that a step reads, including the scales of quantized ones.

    A step reads only a few rows of the input embeddings, so they count only if they are also the output's weights.
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
    """Return the bytes of the keys and values of one position of one row."""
    return int(2 * layers * heads * head_dim * dtype.itemsize)


def measure_bandwidth(device: str) -> float:
    """Return the bytes per second that a large copy reads and writes, the highest of COPIES measurements."""
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
    """Wait for the GPU, which runs asynchronously."""
    if kind == "cuda":
        import torch

        torch.cuda.synchronize()
