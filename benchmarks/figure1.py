"""Estimated peak GPU memory of the study's runs, compared with its Figure 1; needs no GPU.

    python -m benchmarks.figure1

`compare` makes the estimate of train/estimate.py, which traces a training step on tensors without memory, for each of
the ten runs of Figure 1 (arXiv 2308.10462), under these conditions:

- the base's published sizes, the study's LoRA (r 16 on queries, keys and values) and quantization, Adafactor;
- all rows as long as CoNaLa's longest (123 tokens, 48 of them labels);
- the study's batch of 8 on its GPU with 24 GB. A step that does not fit is computed in micro-batches of 4, 2 or 1 rows
  with gradient accumulation, which the study's published code has as an option; its paper does not name the values.

Memory is linear in the number of layers, so each base is traced with two and with four layers. CUDA's context and the
allocator's reserve are not included. Prints one JSON line; exits with 1 if a run of a Llama base is more than 15 % off.
The other bases' runs are printed only: their published memory is 1.2 to 2.5 times the estimate (CodeGen2-7B's equals
it), and the study does not state which floats, optimizer or lengths it used for them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from evaluate.study import schema
from evaluate.study.config import KNOWN_ARCHITECTURES, Architecture
from evaluate.study.plan import MICRO_BATCHES
from train.estimate import estimate
from train.settings import make_config
from train.tokenize import TokenizedExample

_PROMPT_TOKENS, _RESPONSE_TOKENS, _BATCH_SIZE = 75, 48, 8
_TRACED_LAYERS = (2, 4)
TOLERANCE = 0.15


@dataclass(frozen=True)
class Comparison:
    """The estimate of a run beside the study's measurement, in GB of 10^9 bytes."""

    model: str
    technique: str
    micro_batch: int
    ours_gb: float
    paper_gb: float
    ratio: float

    @property
    def is_llama(self) -> bool:
        """Whether the base is one of those that the tolerance applies to."""
        return KNOWN_ARCHITECTURES[self.model].family == "llama"


def main() -> int:
    """Print the comparisons; return 1 if one of a Llama base is off by more than the tolerance."""
    runs = [compare(model, technique) for model, technique in schema.published_peak_memory()]
    settings = {"batch": _BATCH_SIZE, "tokens_a_row": _PROMPT_TOKENS + _RESPONSE_TOKENS, "tolerance": TOLERANCE}
    print(json.dumps(settings | {"runs": [asdict(run) for run in runs]}))
    return int(any(run.is_llama and abs(run.ratio - 1) > TOLERANCE for run in runs))


def compare(model: str, technique: str) -> Comparison:
    """Estimate a run with the largest micro-batch that fits the study's GPU."""
    paper_gb = schema.published_peak_memory()[model, technique]
    sizes = {batch: _estimated_memory(KNOWN_ARCHITECTURES[model], technique, batch) for batch in MICRO_BATCHES}
    micro_batch = next((batch for batch, size in sizes.items() if size <= schema.GPU_BYTES), MICRO_BATCHES[-1])
    size = sizes[micro_batch]
    return Comparison(model, technique, micro_batch, round(size / 1e9, 2), paper_gb, round(size / 1e9 / paper_gb, 2))


def _estimated_memory(base: Architecture, technique: str, micro_batch: int) -> float:
    """Return the estimated bytes, extrapolated from shallow models to the base's number of layers."""
    few, more = _TRACED_LAYERS
    small, large = (_traced_memory(base, technique, micro_batch, layers) for layers in _TRACED_LAYERS)
    return small + (large - small) / (more - few) * (base.layers - few)


def _traced_memory(base: Architecture, technique: str, micro_batch: int, layers: int) -> int:
    config = make_config(
        adapter_name="figure1", dataset_name="conala", technique=technique, preset="paper",
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=_BATCH_SIZE // micro_batch,
    )  # fmt: skip
    samples = [TokenizedExample([1] * _PROMPT_TOKENS, [1] * _RESPONSE_TOKENS)] * _BATCH_SIZE
    model_config = _model_config(base, layers)
    return estimate(config, model_config, samples, samples, measure_speed=False, device="cuda").memory_bytes


def _model_config(base: Architecture, layers: int) -> Any:
    """Return transformers' configuration of a base with so many layers."""
    from transformers import CodeGenConfig, LlamaConfig, T5Config

    if base.family == "codegen":
        return CodeGenConfig(
            n_embd=base.hidden, n_layer=layers, n_head=base.heads, vocab_size=base.vocabulary, rotary_dim=64
        )
    if base.family == "t5":
        return T5Config(
            d_model=base.hidden, d_kv=base.head_size, d_ff=base.intermediate, num_layers=layers,
            num_decoder_layers=layers, num_heads=base.heads, vocab_size=base.vocabulary,
            decoder_start_token_id=0, pad_token_id=0,
        )  # fmt: skip
    return LlamaConfig(
        hidden_size=base.hidden, intermediate_size=base.intermediate, num_hidden_layers=layers,
        num_attention_heads=base.heads, num_key_value_heads=base.key_value_heads, vocab_size=base.vocabulary,
        tie_word_embeddings=base.tied,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
