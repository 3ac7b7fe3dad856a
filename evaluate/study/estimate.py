"""What a run takes on given hardware, from the model's sizes alone: memory and hours, before a weight is loaded.

Memory of training follows train/estimate.py, which counts the tensors of a real step: bytes kept for a token and layer
were fitted to it (Llama of 7B, 13B and 34B, CodeGen, T5; batch 8, 123 tokens) and agree within 5 %; on a GPU, so
without the gaps and the libraries that a process on a CPU has. Memory of generation is weights, key/value cache and
logits; hours are bytes read, operations and a fixed cost a step, at the rates of the configuration. Both are for
planning: within a factor of two, not within a percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evaluate.study.architectures import Architecture
from evaluate.study.config import HardwareSpec

# As train/estimate.py: NF4 in blocks of 64 with an 8-bit scale each, and a 32-bit scale for 256 of these.
WEIGHT_BYTES: Mapping[str, float] = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "none": 2.0}
# Bytes that a LoRA step keeps for one token and layer: by the width, by the feed-forward's width, and by the squares
# of the attention (heads times tokens), which CodeGen's code keeps and fused kernels do not.
_ACTIVATION_BYTES: Mapping[str, tuple[float, float, float]] = {
    "llama": (34.4, 8, 0),
    "codegen": (51.2, 0, 5.6),
    "t5": (91, 0, 0),
}
# A decoder layer of T5 has a second attention.
_CROSS_ATTENTION_FACTOR = 1.6
# What other techniques keep of that: LoRA's own inputs fall away, the lowest layers need no gradient, ...
_ACTIVATION_FRACTION: Mapping[str, Mapping[str, float]] = {
    "llama": {"full": 1.38, "ia3": 0.91, "prompt-tuning": 0.67, "prefix-tuning": 0.58},
    "codegen": {"full": 1.38, "ia3": 1.3, "prompt-tuning": 1.03, "prefix-tuning": 0.87},
    "t5": {"full": 1.4, "ia3": 0.92, "prompt-tuning": 0.81, "prefix-tuning": 0.34},
}
# int8 layers keep their input as well: 4 times the width and twice the feed-forward's, a byte and a half each.
_INT8_ACTIVATION_BYTES = (4.0, 2.0)
_BYTES_PER_TRAIN_LOGIT = 12  # bytes of one logit and its gradient at the peak of a step
_BYTES_PER_LOGIT = 8  # bytes of one logit while decoding: in 16 bits, in 32, and its rank
TRAIN_BATCH_SIZE = 8
# Of the rate that long products reach, what short rows, the optimizer and Python leave; measured on two cores (CoNaLa,
# 135M: 115 of 200 GFLOP/s).
_TRAINING_EFFICIENCY = 0.55
EVALS_PER_RUN = 5  # an epoch
PRESET_EPOCHS = {"default": 2.0, "paper": 5.0}


@dataclass(frozen=True)
class DatasetLengths:
    """Tokens of a data set, with the embedded base's tokenizer, and the rows of its splits.

    `prompt` is a mean zero-shot prompt, `example` what one example adds, `answer` a mean reference, `longest` the
    longest row that is trained on (max_length 512 leaves longer ones out).
    """

    prompt: int
    example: int
    answer: int
    longest: int
    train: int
    validation: int
    test: int


DATASET_LENGTHS: Mapping[str, DatasetLengths] = {
    "conala": DatasetLengths(26, 43, 17, 123, 2135, 201, 543),
    "codealpacapy": DatasetLengths(26, 91, 60, 512, 2192, 314, 628),
    "mbpp": DatasetLengths(68, 130, 66, 480, 374, 90, 500),
    "starter": DatasetLengths(44, 85, 40, 190, 270, 51, 111),
    "apps": DatasetLengths(461, 700, 200, 512, 4500, 500, 750),
}


def weight_bytes(base: Architecture, quantization: str) -> int:
    """Bytes of the weights as they are served: linear layers quantized, the rest in 16 bits."""
    linear = base.num_linear_parameters()
    return round(linear * WEIGHT_BYTES[quantization] + (base.num_parameters() - linear) * 2)


def training_memory_bytes(
    base: Architecture, technique: str, quantization: str, data: str, checkpointing: bool = False
) -> int:
    """Peak GPU memory of training on a data set's longest rows, batch 8.

    With `checkpointing` each layer keeps its input alone, 2 bytes a number, and one layer at a time the rest.
    """
    tokens = DATASET_LENGTHS[data]
    learned = min(tokens.longest // 2, max(tokens.answer * 3, 1))
    read = tokens.longest - (learned if base.encoder_layers else 0)
    wide, forward, squared = _ACTIVATION_BYTES[base.family]
    token = wide * base.hidden + forward * base.intermediate + squared * base.heads * tokens.longest
    layers = base.encoder_layers * read + base.layers * (
        _CROSS_ATTENTION_FACTOR * learned if base.encoder_layers else read
    )
    kept = token * layers * _ACTIVATION_FRACTION[base.family].get(technique, 1.0)
    if quantization == "int8":
        kept += (_INT8_ACTIVATION_BYTES[0] * base.hidden + _INT8_ACTIVATION_BYTES[1] * base.intermediate) * layers
    if checkpointing:
        kept = kept / (base.layers + base.encoder_layers) + 2 * base.hidden * layers
    passing = TRAIN_BATCH_SIZE * (kept + learned * base.vocabulary * _BYTES_PER_TRAIN_LOGIT)
    if technique == "full":
        # Weights are kept in 32 bits, and so is every gradient once the activations are gone.
        return round(4 * base.num_parameters() + max(passing, 4 * base.num_parameters()))
    adapter = base.trainable_parameters(technique) * 2 * 2
    return round(weight_bytes(base, quantization) + adapter + passing)


def kv_cache_tokens(base: Architecture, batch: int, candidates: int, prompt: int, new_tokens: float) -> float:
    """Tokens in the cache of a batch: the candidates of a problem share its prompt on bases that allow it."""
    shared = 1 if base.family == "llama" else candidates
    return batch * (shared * prompt + candidates * new_tokens)


def generation_memory_bytes(
    base: Architecture, quantization: str, batch: int, candidates: int, prompt: int, new_tokens: int
) -> int:
    """GPU memory while a batch of problems with `candidates` rows each is decoded."""
    cache = kv_cache_tokens(base, batch, candidates, prompt, new_tokens) * base.kv_bytes_per_token()
    return round(weight_bytes(base, quantization) + cache + batch * candidates * base.vocabulary * _BYTES_PER_LOGIT)


def generation_seconds(
    base: Architecture,
    quantization: str,
    hardware: HardwareSpec,
    batch: int,
    candidates: int,
    prompt: int,
    new_tokens: int,
) -> float:
    """Seconds a problem: the prompts are read once, then `new` steps of batch times candidates rows."""
    operations, reading = hardware.teraflops * 1e12, hardware.gigabytes_per_second * 1e9
    rows = batch * candidates
    cache = kv_cache_tokens(base, batch, candidates, prompt, new_tokens / 2) * base.kv_bytes_per_token()
    step = hardware.step_milliseconds / 1e3 + (weight_bytes(base, quantization) + cache) / reading
    step += rows * 2 * base.num_parameters() / operations
    return (batch * prompt * 2 * base.num_parameters() / operations + new_tokens * step) / batch


def training_seconds(base: Architecture, technique: str, data: str, epochs: float, hardware: HardwareSpec) -> float:
    """Seconds of all steps and evaluations: 4 operations a parameter and token where the base is frozen, else 6."""
    tokens = DATASET_LENGTHS[data]
    row = tokens.prompt + tokens.answer
    learning = tokens.train * row * (6 if technique == "full" else 4)
    evaluating = tokens.validation * row * 2 * EVALS_PER_RUN
    rate = hardware.teraflops * 1e12 * _TRAINING_EFFICIENCY
    return epochs * (learning + evaluating) * base.num_parameters() / rate


def expected_decode_steps(data: str, max_new_tokens: int, tuned: bool) -> int:
    """Decoding steps: a base that was not tuned runs on to the limit, a tuned one ends near the reference's length."""
    return min(max_new_tokens, 2 * DATASET_LENGTHS[data].answer) if tuned else max_new_tokens


def expected_prompt_tokens(data: str, examples: int) -> int:
    """Tokens of a mean prompt with so many examples."""
    return DATASET_LENGTHS[data].prompt + examples * DATASET_LENGTHS[data].example


def num_test_problems(data: str, limit: int | None) -> int:
    """How many test problems that is."""
    return DATASET_LENGTHS[data].test if limit is None else min(limit, DATASET_LENGTHS[data].test)


def format_hours(seconds: float) -> str:
    """As a plan prints it."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
