"""Perplexity of rows under a base, with and without an adapter: what a fine-tuned adapter forgot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.files import ProgressFn
from models.loader import load_base
from models.resources import release_thread_pool
from tasks.problem import Example
from train.config import TrainConfig
from train.model import cast_outputs, max_tokens_per_forward, patch_loss
from train.tokenize import ExampleTokenizer, TokenizerInfo, build_example_tokenizer


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per token of the code, over `rows` rows: of the base, and with the adapter."""

    rows: int
    tokens: int
    base: float
    adapter: float


def measure_perplexity(
    config: TrainConfig, adapter: Path, examples: Sequence[Example], report: ProgressFn
) -> Perplexity:
    """Compute the perplexity of the code of `examples`, each after its prompt, without examples in the prompt.

    `config` says how the adapter in the folder was trained; the base has its quantization. Raises BaseModelError.
    """
    from peft import PeftModel

    loaded = load_base(config.base, config.quantization, config.device, report, config.trust_remote_code, training=True)
    identity = loaded.identity
    info = TokenizerInfo(identity.id, loaded.tokenizer, identity.is_encoder_decoder, identity.context_length)
    tokenizer = build_example_tokenizer(config, info)
    samples = [tokenizer.to_features(tokenizer.tokenize(example)) for example in examples]
    samples = [sample for sample in samples if len(sample["input_ids"]) <= identity.context_length]
    model = PeftModel.from_pretrained(loaded.model, str(adapter)).eval()
    cast_outputs(model, loaded.model.dtype)
    patch_loss(model)
    limit = max_tokens_per_forward(config, identity.device)
    try:
        with_adapter, tokens = _mean_loss(model, tokenizer, samples, limit)
        with model.disable_adapter():
            base, _ = _mean_loss(model, tokenizer, samples, limit)
    finally:
        release_thread_pool()
    return Perplexity(len(samples), tokens, math.exp(base), math.exp(with_adapter))


def _mean_loss(
    model: Any, tokenizer: ExampleTokenizer, samples: Sequence[dict[str, list[int]]], limit: int
) -> tuple[float, int]:
    """Return the mean loss over all label tokens, and their number."""
    total, tokens = 0.0, 0
    ordered = sorted(samples, key=lambda sample: len(sample["input_ids"]))
    while ordered:
        longest = max(len(ordered[0]["input_ids"]), 1)
        count = max(1, limit // longest)
        while count > 1 and len(ordered[min(count, len(ordered)) - 1]["input_ids"]) * count > limit:
            count -= 1
        batch, ordered = ordered[:count], ordered[count:]
        rows = {name: tensor.to(model.device) for name, tensor in tokenizer.collate(batch).items()}
        with torch.no_grad():
            total += float(model(**rows, num_items_in_batch=1)["loss"])
        tokens += sum(label != -100 for row in batch for label in row["labels"])
    return total / max(tokens, 1), tokens
