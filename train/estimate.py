"""Estimate of a run before its base is loaded: peak memory, training time, and the size of the adapter.

Compared with runs of LoRA, QLoRA-4bit, IA3, Prefix tuning and Prompt tuning (CoNaLa, 135M, a CPU with two shared
cores): memory 8 % too low to 7 % too high, after one constant was fitted to these runs; time 6 to 27 % too short; size
within 5 %. On a GPU nothing was measured yet; benchmarks/figure1.py compares the memory with the study's. Every run
prints its estimate beside its measurement.

The time comes from the speed of two Llama layers as wide as the base, with LoRA, measured in a few steps. A single
large matrix product would not be enough: on a CPU with fast 16-bit products most of a step goes into norms, dropout,
casts and small products.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.format import format_bytes, format_clock
from models.loader import import_bitsandbytes
from models.resources import WEIGHT_BYTES, weight_bytes
from models.source import Source
from train.config import TrainConfig
from train.model import count_steps, max_tokens_per_forward
from train.tokenize import TokenizedData, TokenizedExample

if TYPE_CHECKING:
    from train.meta_trace import BatchShape, StepCost

# Resident memory of Python, torch, transformers and peft on Linux without a base, with torch's threads and kernels
# after the first step; measured with the pinned versions.
_RUNTIME_BYTES = 615e6
# glibc keeps freed blocks that the next batch, of another length, does not fit into. In one or two epochs on CoNaLa,
# five techniques took 2.4 to 2.9 times the live memory; the first step takes 1.2 times.
_FRAGMENTATION_FACTOR = 2.6
# Bytes of one logit at an evaluation: itself in 16 bits, in 32, and its log-probability.
_EVAL_BYTES_PER_LOGIT = 10
# Slowdown of products with quantized weights on a CPU: measured were 300 tokens/s in 16 bits and 240 in NF4.
_DEQUANTIZATION_FACTOR = 1.25


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run. `parts` add up to `memory_bytes`; `seconds` of training exclude `eval_seconds`.

    Both are None if the speed was not measured. `tokens` is the number of tokens of all epochs, without padding.
    """

    memory_bytes: int
    seconds: float | None
    eval_seconds: float | None
    adapter_bytes: int
    steps: int
    tokens: int
    parts: Mapping[str, int]

    def to_dict(self) -> dict[str, str]:
        """Return the texts that the preflight prints, by name."""
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.parts.items())
        texts = {"memory": f"about {format_bytes(self.memory_bytes)} at the peak: {parts}"}
        if self.seconds is not None and self.eval_seconds is not None:
            texts["time"] = (
                f"about {format_clock(self.seconds)} of training and {format_clock(self.eval_seconds)} of "
                "validation, by the speed of two layers just now"
            )
        return {**texts, "size": f"{format_bytes(self.adapter_bytes)} on disk"}


@dataclass(frozen=True)
class Workload:
    """The sizes of a run's rows that determine memory and time. Tokens are those of one epoch."""

    largest_batch: BatchShape
    largest_eval_batch: int
    rows: int
    tokens: int
    padded_tokens: int
    label_tokens: int
    eval_tokens: int


def estimate_as_dict(config: TrainConfig, source: Source, prepared: TokenizedData) -> dict[str, str]:
    """Estimate the run on this machine, as texts for the preflight."""
    result = try_estimate(config, source.folder, prepared)
    return {"memory": result} if isinstance(result, str) else result.to_dict()


def try_estimate(
    config: TrainConfig, folder: Path, prepared: TokenizedData, measure_speed: bool = True
) -> Estimate | str:
    """Estimate the run on the base in `folder`, or return a message that says why there is no estimate.

    The base's own code, or an operation that needs values, may raise any exception. A run needs no estimate, so the
    exception becomes the message.
    """
    try:
        return estimate(config, folder, prepared.train.samples, prepared.validation.samples, measure_speed)
    except Exception as error:  # noqa: BLE001 - see above
        reason = str(error).strip().partition("\n")[0]
        return f"not known: this base cannot be traced without its weights ({type(error).__name__}: {reason})."


def estimate(
    config: TrainConfig,
    base: Any,
    train_samples: Sequence[TokenizedExample],
    eval_samples: Sequence[TokenizedExample],
    measure_speed: bool = True,
    device: str | None = None,
) -> Estimate:
    """Estimate the run with these rows; `base` is its folder or configuration object.

    Without `measure_speed` there are no seconds. `device` is "cpu" or "cuda", by default that of the run. Raises what
    the base's own code raises.
    """
    from train.meta_trace import meta_model, quantizable_layers, trace_step

    device = device or _resolve_device(config.device)
    full = config.technique == "full"
    model = meta_model(base, torch.float32 if full else torch.bfloat16, config.trust_remote_code)
    linear = sum(layer.weight.numel() for layer in quantizable_layers(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    workload = compute_workload(
        config, train_samples, eval_samples, model.config.is_encoder_decoder, max_tokens_per_forward(config, device)
    )
    traced = trace_step(config, model, workload.largest_batch, device)
    parts = _memory_parts(config, traced, workload, linear, total - linear, vocabulary, device)
    per_epoch, _ = count_steps(config, len(train_samples))
    count = math.ceil(per_epoch * config.num_train_epochs)
    seconds, eval_seconds = None, None
    if measure_speed:
        speed = _flops_per_second(config, model.config.get_text_config(), hidden, workload, device)
        train_flops, eval_flops = _total_flops(config, traced, workload, vocabulary * hidden)
        seconds, eval_seconds = train_flops / speed, eval_flops / speed
    return Estimate(
        memory_bytes=sum(parts.values()),
        seconds=seconds,
        eval_seconds=eval_seconds,
        adapter_bytes=traced.trainable_parameters * (4 if config.technique == "ia3" else 2),
        steps=count,
        tokens=round(workload.tokens * config.num_train_epochs),
        parts=parts,
    )


def compute_workload(
    config: TrainConfig,
    train_samples: Sequence[TokenizedExample],
    eval_samples: Sequence[TokenizedExample],
    is_encoder_decoder: bool,
    max_tokens: int,
) -> Workload:
    """Compute the largest possible batch and the totals; the sampler groups rows by length, so padding is little."""
    from train.meta_trace import BatchShape

    size = config.per_device_train_batch_size
    rows = sorted(train_samples, key=lambda sample: _num_tokens(sample, is_encoder_decoder), reverse=True)
    # The longest rows are in one batch, which is computed in parts of at most max_tokens.
    longest = max(_num_tokens(rows[0], is_encoder_decoder), *(len(sample.response_ids) for sample in rows))
    size = max(1, min(size, max_tokens // longest))
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    responses = max(len(sample.response_ids) for sample in batches[0]) if is_encoder_decoder else 0
    largest = BatchShape(
        rows=len(batches[0]),
        max_length=_num_tokens(rows[0], is_encoder_decoder),
        label_tokens=sum(len(sample.response_ids) for sample in batches[0]),
        max_response_length=responses,
    )
    eval_lengths = sorted((len(sample.response_ids) for sample in eval_samples), reverse=True)
    return Workload(
        largest,
        largest_eval_batch=sum(eval_lengths[: 2 * size]),
        rows=len(rows),
        tokens=sum(_num_tokens(sample, is_encoder_decoder) for sample in rows),
        padded_tokens=sum(len(batch) * _num_tokens(batch[0], is_encoder_decoder) for batch in batches),
        label_tokens=sum(len(sample.response_ids) for sample in rows),
        eval_tokens=sum(_num_tokens(sample, is_encoder_decoder) for sample in eval_samples),
    )


def _num_tokens(sample: TokenizedExample, is_encoder_decoder: bool) -> int:
    return len(sample.prompt_ids) + (0 if is_encoder_decoder else len(sample.response_ids))


def _memory_parts(
    config: TrainConfig, traced: StepCost, workload: Workload, linear: int, other: int, vocabulary: int, device: str
) -> dict[str, int]:
    full = config.technique == "full"
    weights: float = weight_bytes(linear, other, config.quantization)
    if full:
        weights = traced.trainable_bytes
    elif device == "cpu" and config.quantization != "none":
        # Unquantized weights are views of the file, all of whose pages have been read and stay mapped.
        weights += linear * WEIGHT_BYTES["none"]
    evaluation = workload.largest_eval_batch * vocabulary * _EVAL_BYTES_PER_LOGIT
    temporary = max(traced.peak_bytes - traced.optimizer_state_bytes, evaluation)
    parts: dict[str, float] = {
        "base": weights,
        "adapter and optimizer": traced.optimizer_state_bytes + (0 if full else traced.trainable_bytes),
        "activations": traced.activation_bytes,
        "logits and gradients": temporary - traced.activation_bytes,
    }
    if device == "cpu":
        parts |= {"gaps between blocks": temporary * (_FRAGMENTATION_FACTOR - 1), "program": _RUNTIME_BYTES}
    return {name: round(size) for name, size in parts.items()}


def _total_flops(config: TrainConfig, traced: StepCost, workload: Workload, head: int) -> tuple[float, float]:
    """Return the floating-point operations of all training steps, and of all evaluations."""
    full = config.technique == "full"
    # The output layer's product, its gradient by the hidden state and, if trained, by its weight: 2 operations each.
    per_label = head * (6 if full else 4)
    body = (traced.flops - per_label * workload.largest_batch.label_tokens) / (
        workload.largest_batch.rows * workload.largest_batch.max_length
    )
    training = body * workload.padded_tokens + per_label * workload.label_tokens
    # One forward pass; gradient checkpointing adds another one to a step.
    forward = body / ((3 if full else 2) + config.gradient_checkpointing)
    evaluations = config.num_train_epochs / config.eval_every
    return training * config.num_train_epochs, forward * workload.eval_tokens * evaluations


def _flops_per_second(config: TrainConfig, base: Any, hidden: int, workload: Workload, device: str) -> float:
    """Measure the operations per second that a run will reach."""
    intermediate = getattr(base, "intermediate_size", None) or getattr(base, "d_ff", None) or 4 * hidden
    tokens = max(1, round(workload.padded_tokens / workload.rows))
    speed = measure_flops_per_second(hidden, intermediate, workload.largest_batch.rows, tokens, device)
    return speed / (_DEQUANTIZATION_FACTOR if device == "cpu" and config.quantization != "none" else 1)


def compare_with_actual(estimate: Estimate, memory_bytes: int, seconds: float, adapter_bytes: int) -> str:
    """Format the estimate beside the measurement, in three lines for the end of a run."""
    rows = [
        (
            "memory",
            format_bytes(estimate.memory_bytes),
            format_bytes(memory_bytes),
            estimate.memory_bytes / memory_bytes,
        )
    ]
    if estimate.seconds is not None:
        rows.append(("time", format_clock(estimate.seconds), format_clock(seconds), estimate.seconds / seconds))
    rows.append(
        (
            "size",
            format_bytes(estimate.adapter_bytes),
            format_bytes(adapter_bytes),
            estimate.adapter_bytes / adapter_bytes,
        )
    )
    return "\n".join(
        f"  {name:<8}estimated {estimated:>9}, measured {measured:>9} ({100 * (ratio - 1):+.0f} %)"
        for name, estimated, measured, ratio in rows
    )


def _resolve_device(device: str) -> str:
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


_MAX_ROUNDS, _MAX_SECONDS = 9, 1.0
# Wider layers reach the same speed, and take more memory.
_MAX_HIDDEN_SIZE = 2048


def measure_flops_per_second(hidden: int, intermediate: int, rows: int, tokens: int, device: str) -> float:
    """Measure the floating-point operations per second, forward and backward, of (rows, tokens) inputs.

    Returns the median of up to nine steps within a second; the state of random generators is unchanged.
    """
    with torch.random.fork_rng():
        model = _build_proxy_layer(hidden, intermediate, device)
        hidden_states = torch.randn(rows, tokens, model.config.hidden_size, dtype=torch.bfloat16, device=device)
        with FlopCounterMode(display=False) as flops:  # also loads the kernels
            _training_step(model, hidden_states, device)
        times: list[float] = []
        while len(times) < _MAX_ROUNDS and sum(times) < _MAX_SECONDS:
            start = time.perf_counter()
            _training_step(model, hidden_states, device)
            times.append(time.perf_counter() - start)
    return flops.get_total_flops() / statistics.median(times)


def _training_step(model: Any, hidden_states: torch.Tensor, device: str) -> None:
    model(inputs_embeds=hidden_states, use_cache=False).last_hidden_state.sum().backward()
    model.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()


def _build_proxy_layer(hidden: int, intermediate: int, device: str) -> Any:
    import_bitsandbytes()
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaModel

    width = min(hidden, _MAX_HIDDEN_SIZE)
    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=round(intermediate * width / hidden),
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
    )
    with torch.device(device):
        model = LlamaModel(config).to(torch.bfloat16)
    lora = LoraConfig(r=16, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    return get_peft_model(model, lora).train()
