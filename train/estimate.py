"""What a run will take, said before its base is loaded: memory at the peak, time, and the size of the adapter.

Held against the runs of adapters/library's LoRA, QLoRA-4bit, IA3, Prefix and Prompt tuning (CoNaLa, 135M, a CPU of two
cores that other programs used as well): memory 8 % too low to 7 % too high, after one constant was fitted to these
runs; time 6 to 27 % too short; size within 5 %. On a GPU nothing was measured yet; benchmarks/figure1.py holds the
memory against the study's. Every run prints its estimate beside its measurement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.backends.local.source import Source
from train.config import TrainConfig
from train.encode import Encoded
from train.fit import steps, tokens_at_once
from train.prepare import Prepared

if TYPE_CHECKING:
    from train.trace import Batch, Traced

# Bytes a weight takes: NF4 in blocks of 64 with an 8-bit scale each, and a 32-bit scale for 256 of these scales
# (QLoRA, arXiv 2305.14314, section 3); int8 has one scale a row, which is next to nothing.
_WEIGHT_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "none": 2.0}
# What Python, torch, transformers and peft hold resident on Linux before a base is there, and torch's threads and
# kernels after the first step; measured with the pinned versions.
_PROGRAM_BYTES = 615e6
# glibc keeps freed blocks that the next batch, of another length, does not fit into. Over an epoch or two on CoNaLa
# five techniques came to 2.4 to 2.9 times what is alive; in the first step it is 1.2 times.
_FRAGMENTS = 2.6
# Bytes of one logit at an evaluation: itself in 16 bits, in 32, and its log-probability.
_EVALUATED_LOGIT = 10
# How much longer products with quantized weights take a CPU: 300 tokens/s in 16 bits and 240 in NF4 were measured.
_UNPACKING = 1.25


@dataclass(frozen=True)
class Estimate:
    """`parts` add up to `memory_bytes`. `seconds` are training alone, `evaluation_seconds` come on top.

    Both are None where nobody measured this machine's speed. `tokens` are read in the whole run, without padding.
    """

    memory_bytes: int
    seconds: float | None
    evaluation_seconds: float | None
    adapter_bytes: int
    steps: int
    tokens: int
    parts: Mapping[str, int]

    def values(self) -> dict[str, str]:
        """Name and words, as the preflight prints them."""
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in self.parts.items())
        words = {"memory": f"about {gigabytes(self.memory_bytes)} at the peak: {parts}"}
        if self.seconds is not None and self.evaluation_seconds is not None:
            words["time"] = (
                f"about {clock(self.seconds)} of training and {clock(self.evaluation_seconds)} of validation, by the "
                "speed of two layers just now"
            )
        return {**words, "size": f"{gigabytes(self.adapter_bytes)} on disk"}


@dataclass(frozen=True)
class Workload:
    """Sizes of all rows of a run, as far as memory and time depend on them. Tokens are for one epoch."""

    largest: Batch
    largest_evaluation: int
    rows: int
    tokens: int
    padded_tokens: int
    learned: int
    evaluated_tokens: int


def estimator(config: TrainConfig, source: Source, prepared: Prepared) -> dict[str, str]:
    """What the preflight asks: the estimate for these rows, on this machine, in words."""
    guess = foreseen(config, source.folder, prepared)
    return {"memory": guess} if isinstance(guess, str) else guess.values()


def foreseen(config: TrainConfig, folder: Path, prepared: Prepared) -> Estimate | str:
    """The estimate for these rows on the base in `folder`, or the sentence that says why there is none.

    Its own code, or an operation that cannot be followed without values, may raise anything; a run needs no estimate,
    but its absence is said, with what was raised.
    """
    try:
        return estimate(config, folder, prepared.train.encoded, prepared.validation.encoded)
    except Exception as fault:  # noqa: BLE001 - see above
        reason = str(fault).strip().partition("\n")[0]
        return f"not known, as this base cannot be followed without its weights ({type(fault).__name__}: {reason})."


def estimate(
    config: TrainConfig,
    base: Any,
    learned: Sequence[Encoded],
    held_out: Sequence[Encoded],
    timed: bool = True,
    device: str | None = None,
) -> Estimate:
    """The estimate for these rows on the base whose folder (or configuration object) is `base`; seconds if `timed`.

    `device` is "cpu" or "cuda", by default what the run would take. Raises what the base's own code raises.
    """
    import torch

    from train.trace import quantizable, skeleton, trace

    device = device or _device(config.device)
    full = config.technique == "full"
    model = skeleton(base, torch.float32 if full else torch.bfloat16, config.trust_remote_code)
    linear = sum(each.weight.numel() for each in quantizable(model))
    everything = sum(each.numel() for each in model.parameters())
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    load = workload(config, learned, held_out, model.config.is_encoder_decoder, tokens_at_once(config, device))
    traced = trace(config, model, load.largest)
    parts = _memory(config, traced, load, linear, everything - linear, vocabulary, device)
    per_epoch, _ = steps(config, len(learned))
    count = math.ceil(per_epoch * config.num_train_epochs)
    seconds, evaluation = None, None
    if timed:
        speed = _speed(config, model.config.get_text_config(), hidden, load, device)
        training, evaluating = _operations(config, traced, load, vocabulary * hidden)
        seconds, evaluation = training / speed, evaluating / speed
    return Estimate(
        memory_bytes=sum(parts.values()),
        seconds=seconds,
        evaluation_seconds=evaluation,
        adapter_bytes=traced.trained_parameters * (4 if config.technique == "ia3" else 2),
        steps=count,
        tokens=round(load.tokens * config.num_train_epochs),
        parts=parts,
    )


def workload(
    config: TrainConfig, learned: Sequence[Encoded], held_out: Sequence[Encoded], is_encoder_decoder: bool, at_once: int
) -> Workload:
    """The largest batch that can come, and what there is in all; batches are of like length, so padding is little."""
    from train.trace import Batch

    size = config.per_device_train_batch_size
    rows = sorted(learned, key=lambda sample: _length(sample, is_encoder_decoder), reverse=True)
    # The longest rows come together, and are computed in parts of so many tokens.
    longest = max(_length(rows[0], is_encoder_decoder), *(len(sample.response) for sample in rows))
    size = max(1, min(size, at_once // longest))
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    responses = max(len(sample.response) for sample in batches[0]) if is_encoder_decoder else 0
    largest = Batch(
        rows=len(batches[0]),
        longest=_length(rows[0], is_encoder_decoder),
        learned=sum(len(sample.response) for sample in batches[0]),
        longest_response=responses,
    )
    held = sorted((len(sample.response) for sample in held_out), reverse=True)
    return Workload(
        largest,
        largest_evaluation=sum(held[: 2 * size]),
        rows=len(rows),
        tokens=sum(_length(sample, is_encoder_decoder) for sample in rows),
        padded_tokens=sum(len(batch) * _length(batch[0], is_encoder_decoder) for batch in batches),
        learned=sum(len(sample.response) for sample in rows),
        evaluated_tokens=sum(_length(sample, is_encoder_decoder) for sample in held_out),
    )


def _length(sample: Encoded, is_encoder_decoder: bool) -> int:
    return len(sample.prompt) + (0 if is_encoder_decoder else len(sample.response))


def _memory(
    config: TrainConfig, traced: Traced, load: Workload, linear: int, other: int, vocabulary: int, device: str
) -> dict[str, int]:
    full = config.technique == "full"
    weights = linear * _WEIGHT_BYTES[config.quantization] + other * 2
    if full:
        weights = traced.trained_bytes
    elif device == "cpu" and config.quantization != "none":
        # What was not quantized is a view of the file, of which every page has been read and stays mapped.
        weights = linear * _WEIGHT_BYTES[config.quantization] + (linear + other) * 2
    evaluation = load.largest_evaluation * vocabulary * _EVALUATED_LOGIT
    passing = max(traced.peak_bytes - traced.state_bytes, evaluation)
    parts = {
        "base": weights,
        "adapter and optimizer": traced.state_bytes + (0 if full else traced.trained_bytes),
        "activations": traced.kept_bytes,
        "logits and gradients": passing - traced.kept_bytes,
    }
    if device == "cpu":
        parts |= {"gaps between blocks": passing * (_FRAGMENTS - 1), "program": _PROGRAM_BYTES}
    return {name: round(size) for name, size in parts.items()}


def _operations(config: TrainConfig, traced: Traced, load: Workload, head: int) -> tuple[float, float]:
    """Floating-point operations of all training steps, and of all evaluations."""
    full = config.technique == "full"
    # The head's product, its gradient by the hidden state and, where it learns, by its weight: 2 operations each.
    per_learned = head * (6 if full else 4)
    body = (traced.flops - per_learned * load.largest.learned) / (load.largest.rows * load.largest.longest)
    training = body * load.padded_tokens + per_learned * load.learned
    # A forward pass alone; recomputing the activations is one more of them.
    forward = body / ((3 if full else 2) + config.gradient_checkpointing)
    evaluations = config.num_train_epochs / config.eval_every
    return training * config.num_train_epochs, forward * load.evaluated_tokens * evaluations


def _speed(config: TrainConfig, base: Any, hidden: int, load: Workload, device: str) -> float:
    """Operations a second that a run will reach, by a stand-in that is timed now."""
    from train.speed import operations_per_second

    intermediate = getattr(base, "intermediate_size", None) or getattr(base, "d_ff", None) or 4 * hidden
    tokens = max(1, round(load.padded_tokens / load.rows))
    speed = operations_per_second(hidden, intermediate, load.largest.rows, tokens, device)
    return speed / (_UNPACKING if device == "cpu" and config.quantization != "none" else 1)


def comparison(estimate: Estimate, memory_bytes: int, seconds: float, adapter_bytes: int) -> str:
    """Three lines for the end of a run: what was estimated beside what was measured."""
    rows = [("memory", gigabytes(estimate.memory_bytes), gigabytes(memory_bytes), estimate.memory_bytes / memory_bytes)]
    if estimate.seconds is not None:
        rows.append(("time", clock(estimate.seconds), clock(seconds), estimate.seconds / seconds))
    rows.append(
        ("size", gigabytes(estimate.adapter_bytes), gigabytes(adapter_bytes), estimate.adapter_bytes / adapter_bytes)
    )
    return "\n".join(
        f"  {name:<8}estimated {guess:>9}, measured {found:>9} ({100 * (ratio - 1):+.0f} %)"
        for name, guess, found, ratio in rows
    )


def gigabytes(size: float) -> str:
    """In units of 1000, as the study gives them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _device(device: str) -> str:
    import torch

    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
