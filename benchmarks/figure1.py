"""Estimated peak GPU memory of the study's runs, compared with its Figure 1; needs no GPU.

    python -m benchmarks.figure1

The runs are those of Figure 1 (arXiv 2308.10462) with a Llama base. `compare` makes the estimate of train/estimate.py,
which traces a training step on tensors without memory, under these conditions:

- the base's published sizes, the study's LoRA (r 16 on q, k, v) and quantization, Adafactor;
- all rows as long as CoNaLa's longest (123 tokens, 48 of them labels);
- the study's batch of 8 on its GPU with 24 GB. A step that does not fit is computed in micro-batches of 4, 2 or 1 rows
  with gradient accumulation, which the study's published code has as an option; its paper does not name the values.

Memory is linear in the number of layers, so each base is traced with two and with four layers. CUDA's context and the
allocator's reserve are not included. Prints one JSON line; exits with 1 if a run is more than 15 % off.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from train.estimate import estimate
from train.settings import make_config
from train.tokenize import TokenizedExample

# Hidden size, intermediate size, layers, heads, key/value heads, vocabulary: the models' published config.json.
_MODEL_SIZES = {
    "CodeLlama-7B": (4096, 11008, 32, 32, 32, 32016),
    "CodeLlama-13B": (5120, 13824, 40, 40, 40, 32016),
    "CodeLlama-34B": (8192, 22016, 48, 64, 8, 32000),
}
# Model, technique, GB in the study.
PAPER_RUNS = (
    ("CodeLlama-7B", "lora", 19.06),
    ("CodeLlama-7B", "qlora-4bit", 9.16),
    ("CodeLlama-13B", "qlora-4bit", 15.01),
    ("CodeLlama-34B", "qlora-4bit", 23.59),
)
_PROMPT_TOKENS, _RESPONSE_TOKENS, _BATCH_SIZE = 75, 48, 8
_GPU_BYTES = 24e9
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


def main() -> int:
    """Print the comparisons; return 1 if one is off by more than the tolerance."""
    runs = [compare(*run) for run in PAPER_RUNS]
    settings = {"batch": _BATCH_SIZE, "tokens_a_row": _PROMPT_TOKENS + _RESPONSE_TOKENS, "tolerance": TOLERANCE}
    print(json.dumps(settings | {"runs": [asdict(run) for run in runs]}))
    return int(any(abs(run.ratio - 1) > TOLERANCE for run in runs))


def compare(model: str, technique: str, paper_gb: float) -> Comparison:
    """Estimate a run with the largest micro-batch that fits the study's GPU."""
    micro_batch = _BATCH_SIZE
    size = _estimated_memory(model, technique, micro_batch)
    while size > _GPU_BYTES and micro_batch > 1:
        micro_batch //= 2
        size = _estimated_memory(model, technique, micro_batch)
    return Comparison(model, technique, micro_batch, round(size / 1e9, 2), paper_gb, round(size / 1e9 / paper_gb, 2))


def _estimated_memory(model: str, technique: str, micro_batch: int) -> float:
    """Return the estimated bytes, extrapolated from shallow models to the model's number of layers."""
    few, more = _TRACED_LAYERS
    small, large = (_traced_memory(model, technique, micro_batch, layers) for layers in _TRACED_LAYERS)
    return small + (large - small) / (more - few) * (_MODEL_SIZES[model][2] - few)


def _traced_memory(model: str, technique: str, micro_batch: int, layers: int) -> int:
    from transformers import LlamaConfig

    hidden, intermediate, _, heads, kv_heads, vocabulary = _MODEL_SIZES[model]
    base = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    config = make_config(
        adapter_name="figure1", dataset_name="conala", technique=technique, preset="paper",
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=_BATCH_SIZE // micro_batch,
    )  # fmt: skip
    samples = [TokenizedExample([1] * _PROMPT_TOKENS, [1] * _RESPONSE_TOKENS)] * _BATCH_SIZE
    return estimate(config, base, samples, samples, measure_speed=False, device="cuda").memory_bytes


if __name__ == "__main__":
    sys.exit(main())
