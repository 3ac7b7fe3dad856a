"""Six columns of a comparison: one batch here, six calls of `generate` there, and the slowest column alone.

The peer is what the manuals show: the bare base with transformers for zero-shot, ICL and RAG, and one PeftModel on a
base of its own for each adapter. Both sides answer the same prompts with the same number of greedy tokens on the same
quantized weights.

`six_columns_ratio` is with a cold prefix cache: every prompt is read whole, as the peer reads it.
`six_columns_warm_ratio` is with what another intent's six columns left in the cache before: the examples of ICL.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.engine_bench import ADAPTER_TYPES, PREVIOUS_INTENT, Bench
from benchmarks.engine_timing import (
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
        for place in range(len(self._models)):
            begin = time.perf_counter()
            said = self._generate(place)
            self._seconds[place].append(time.perf_counter() - begin)
            if said != self._new_tokens:
                raise AssertionError(f"unequal work: {said} tokens")

    def _generate(self, index: int) -> int:
        import torch

        model = self._models[index]
        ids = self._prompts[index].to(model.device)
        with torch.inference_mode(), torch.autocast(ids.device.type, self._dtype, enabled=self._needs_autocast[index]):
            said = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self._new_tokens,
                min_new_tokens=self._new_tokens,
            )
        return int(said.shape[1] - ids.shape[1])

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
