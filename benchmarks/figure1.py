"""What would the study's runs have taken? Our estimate of peak GPU memory beside its Figure 1, without a GPU.

    python -m benchmarks.figure1

For each run of arXiv 2308.10462, Figure 1, that is a Llama: the base's published sizes, batch 8, the study's LoRA and
quantization, rows as long as CoNaLa's longest (123 tokens). One training step is followed on tensors without memory
(train/meta_trace.py). What a real run takes besides (CUDA's context, the allocator's reserve) is not in it. One JSON line.
"""

from __future__ import annotations

import json
import sys

from train.estimate import estimate
from train.settings import make_config
from train.tokenize import TokenizedExample

# Hidden size, intermediate size, layers, heads, key/value heads, vocabulary: the models' published config.json.
_MODEL_SIZES = {
    "CodeLlama-7B": (4096, 11008, 32, 32, 32, 32016),
    "CodeLlama-13B": (5120, 13824, 40, 40, 40, 32016),
    "CodeLlama-34B": (8192, 22016, 48, 64, 8, 32000),
}
# Run, technique, GB in the study.
_PAPER_RUNS = (
    ("CodeLlama-7B", "lora", 19.06),
    ("CodeLlama-7B", "qlora-4bit", 9.16),
    ("CodeLlama-13B", "qlora-4bit", 15.01),
    ("CodeLlama-34B", "qlora-4bit", 23.59),
)
_PROMPT_TOKENS, _RESPONSE_TOKENS, _BATCH_SIZE = 75, 48, 8


def main() -> int:
    """Prints the line; 0."""
    rows = []
    for model, technique, theirs in _PAPER_RUNS:
        guess = _estimated_memory(model, technique)
        rows.append(
            {"model": model, "technique": technique, "ours_gb": round(guess / 1e9, 2), "paper_gb": theirs,
             "ratio": round(guess / 1e9 / theirs, 2)}
        )  # fmt: skip
    print(json.dumps({"batch": _BATCH_SIZE, "tokens_a_row": _PROMPT_TOKENS + _RESPONSE_TOKENS, "runs": rows}))
    return 0


def _estimated_memory(model: str, technique: str) -> int:
    from transformers import LlamaConfig

    hidden, intermediate, layers, heads, shared, vocabulary = _MODEL_SIZES[model]
    base = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    config = make_config(
        adapter_name="figure1", dataset_name="conala", technique=technique, preset="paper",
        per_device_train_batch_size=_BATCH_SIZE,
    )  # fmt: skip
    samples = [TokenizedExample([1] * _PROMPT_TOKENS, [1] * _RESPONSE_TOKENS)] * _BATCH_SIZE
    return estimate(config, base, samples, samples, measure_speed=False, device="cuda").memory_bytes


if __name__ == "__main__":
    sys.exit(main())
