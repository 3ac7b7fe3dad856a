"""Six columns of a comparison: one batch here, six calls of `generate` there, and the slowest column alone.

The peer is what the manuals show: the bare base with transformers for zero-shot, ICL and RAG, and one PeftModel on a
base of its own for each adapter. Both sides answer the same prompts with the same number of greedy tokens on the same
quantized weights.

`six_columns_ratio` is with a cold prefix cache: every prompt is read whole, as the peer reads it.
`six_columns_warm_ratio` is with what another intent's six columns left in the cache before: the examples of ICL.

The first token of an ICL-8 answer: with its examples read before, for another intent, and with an empty cache.

How near a step comes to what the memory of the device allows.

A step reads every weight once, the keys and values of its rows, and the adapters that the rows wear. So it takes at
least (weight bytes + key/value bytes + bytes of the distinct adapters) / bandwidth seconds, and `share_of_limit` is
that divided by what it took. The bandwidth is the one that a large copy reaches on this device, read and written.
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
    """`six_columns_ratio`, `six_columns_warm_ratio`, `slowest_column_ratio`, and what they are made of."""
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
    """The rows one after another, each with `generate` on the model that its adapter needs."""

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
            # IA3 of PEFT works on quantized layers under autocast alone; the others are quicker without it.
            self._needs_autocast.append(technique == "IA3" and bench.settings.quantization != "none")

    def generate_all(self) -> None:
        """All rows once; AssertionError unless each says the same number of tokens."""
        for index in range(len(self._models)):
            begin = time.perf_counter()
            output = self._generate(index)
            self._seconds[index].append(time.perf_counter() - begin)
            if output != self._new_tokens:
                raise AssertionError(f"unequal work: {output} tokens")

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
        """Median seconds of each row, without the first time, which warmed up."""
        return [round_significant(statistics.median(seconds[1:])) for seconds in self._seconds]


def load_plain_base(bench: Bench) -> Any:
    """The same weights once more for PEFT, which wraps modules and reads the state_dict, before they have run.

    Loaded as for training, so that reading it is no error; then the CPU's fast kernel is allowed again.
    """
    from bitsandbytes.functional import has_avx512bf16

    from models.loader import load_base

    model: Any = load_base(
        bench.settings.base, bench.settings.quantization, bench.settings.device, print_progress, training=True
    ).model
    for layer in model.modules():
        # The kernel asserts on other shapes: models/loader.py.
        if hasattr(layer, "support_avx512bf16_for_cpu") and not (layer.out_features % 32 or layer.in_features % 64):
            layer.support_avx512bf16_for_cpu = has_avx512bf16()
    return model


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


# Several times the largest cache: what is copied comes from memory.
COPY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
COPIES = 10


def bench_bandwidth_limit(bench: Bench) -> dict[str, Any]:
    """`share_of_limit` of a step with the six columns in flight, and what the limit is made of."""
    rows = bench.method_rows(METHODS)
    model, base = bench.backend._model, bench.engine.base
    applied = {row.adapter for row in rows if row.adapter is not None}
    tokens = [len(prompt) for prompt in bench.prompt_token_ids(rows)]
    ahead = sum(bench.engine.store.open(row.adapter, base).virtual_tokens for row in rows if row.adapter is not None)
    # Half of what is said stands in the cache on average.
    locations = sum(tokens) + ahead + len(rows) * bench.settings.new_tokens // 2
    read = {
        "weights": weight_bytes(model),
        "keys_values": locations
        * kv_bytes_per_token(base.num_layers, base.num_key_value_heads, base.head_dim, model.dtype),
        "adapters": sum(bench.backend.adapter_bytes(name) for name in applied),
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
