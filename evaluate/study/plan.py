"""Plan of a research question: methods, problems, memory, time and missing adapters, before anything runs.

Estimates use the model's sizes and the hardware in the configuration; no weights are loaded. Where a run file has
results, its measured seconds scale the estimates for the rest of it. Memory of generation is weights, key/value cache
and logits; time is bytes read, operations and a fixed cost per step. Estimates of time are within a factor of two.

Memory of training is that of a GPU. Its bytes per token and layer were fitted to train/estimate.py, which traces the
tensors of a real step; a test keeps the two within 7 %. The plan does not trace: the study's own grid has some 60
different runs, each of which takes a quarter of a second to trace, after seconds to import torch and PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.format import format_duration, text_table
from evaluate.study.config import METHOD_TITLES, Architecture, HardwareSpec, StudyConfig
from evaluate.study.jobs import (
    TRAIN_BATCH_SIZE,
    CollectedRuns,
    RequiredAdapter,
    StudyJob,
    format_train_command,
    has_unfinished_run,
    required_adapters,
    run_path,
    train_command,
)

# Bytes that a LoRA step keeps for one token and layer: by the width, by the feed-forward's width, and by the squares
# of the attention (heads times tokens), which CodeGen's code keeps and fused kernels do not.
_ACTIVATION_BYTES: Mapping[str, tuple[float, float, float]] = {
    "llama": (25.7, 8, 0),
    "codegen": (49.0, 0, 6.1),
    "t5": (73.7, 0, 0),
}
# A decoder layer of T5 has a second attention.
_CROSS_ATTENTION_FACTOR = 1.6
# What other techniques keep of that: LoRA's own inputs fall away, the lowest layers need no gradient, ...
_ACTIVATION_FRACTION: Mapping[str, Mapping[str, float]] = {
    "llama": {"full": 1.63, "ia3": 1.08, "prompt-tuning": 0.79, "prefix-tuning": 0.69},
    "codegen": {"full": 1.4, "ia3": 1.33, "prompt-tuning": 1.09, "prefix-tuning": 0.93},
    "t5": {"full": 1.66, "ia3": 1.05, "prompt-tuning": 0.91, "prefix-tuning": 0.4},
}
# int8 layers keep their input as well: 4 times the width and twice the feed-forward's, a byte and a half each.
_INT8_ACTIVATION_BYTES = (4.0, 2.0)
_BYTES_PER_TRAIN_LOGIT = 12  # bytes of one logit and its gradient at the peak of a step
_BYTES_PER_LOGIT = 8  # bytes of one logit while decoding: in 16 bits, in 32, and its rank
MICRO_BATCHES = (8, 4, 2, 1)
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
    "house": DatasetLengths(33, 61, 24, 86, 585, 50, 126),
    "apps": DatasetLengths(461, 700, 200, 512, 4500, 500, 750),
    "leetcode": DatasetLengths(450, 690, 235, 512, 2541, 100, 228),  # tokens of the test rows
}


def training_memory_bytes(
    base: Architecture,
    technique: str,
    quantization: str,
    data: str,
    batch: int = TRAIN_BATCH_SIZE,
    checkpointing: bool = False,
) -> int:
    """Peak GPU memory of a forward and backward pass of the `batch` longest rows of a data set.

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
    saved = token * layers * _ACTIVATION_FRACTION[base.family].get(technique, 1.0)
    if quantization == "int8":
        saved += (_INT8_ACTIVATION_BYTES[0] * base.hidden + _INT8_ACTIVATION_BYTES[1] * base.intermediate) * layers
    if checkpointing:
        saved = saved / (base.layers + base.encoder_layers) + 2 * base.hidden * layers
    passing = batch * (saved + learned * base.vocabulary * _BYTES_PER_TRAIN_LOGIT)
    if technique == "full":
        # Weights are kept in 32 bits, and so is every gradient once the activations are gone.
        return round(4 * base.num_parameters() + max(passing, 4 * base.num_parameters()))
    adapter = base.trainable_parameters(technique) * 2 * 2
    return round(base.weight_bytes(quantization) + adapter + passing)


@dataclass(frozen=True)
class TrainingFit:
    """A way to train within a GPU's memory: rows at once (the others are accumulated), checkpointing, peak bytes."""

    batch: int
    checkpointing: bool
    memory: int


def fit_training(base: Architecture, technique: str, quantization: str, data: str, limit_bytes: float) -> TrainingFit:
    """Choose the largest micro-batch of 8, 4, 2 or 1 rows that fits; if none does, the largest with checkpointing.

    If nothing fits, the returned one takes the least memory.
    """
    # PEFT holds the prefix in a key/value cache, which checkpointing drops (train/techniques.py).
    ways = (False,) if technique == "prefix-tuning" else (False, True)
    fits = [
        TrainingFit(
            batch, checkpointing, training_memory_bytes(base, technique, quantization, data, batch, checkpointing)
        )
        for checkpointing in ways
        for batch in MICRO_BATCHES
    ]
    return next((fit for fit in fits if fit.memory <= limit_bytes), min(fits, key=lambda fit: fit.memory))


def kv_cache_tokens(base: Architecture, batch: int, candidates: int, prompt: int, new_tokens: float) -> float:
    """Tokens in the cache of a batch: the candidates of a problem share its prompt on bases that allow it."""
    shared = 1 if base.family == "llama" else candidates
    return batch * (shared * prompt + candidates * new_tokens)


def generation_memory_bytes(
    base: Architecture, quantization: str, batch: int, candidates: int, prompt: int, new_tokens: int
) -> int:
    """GPU memory while a batch of problems with `candidates` rows each is decoded."""
    cache = kv_cache_tokens(base, batch, candidates, prompt, new_tokens) * base.kv_bytes_per_token()
    return round(base.weight_bytes(quantization) + cache + batch * candidates * base.vocabulary * _BYTES_PER_LOGIT)


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
    step = hardware.step_milliseconds / 1e3 + (base.weight_bytes(quantization) + cache) / reading
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


UNKNOWN_ESTIMATE = "?"


@dataclass(frozen=True)
class PlannedJob:
    """One job with its estimate: `memory` in bytes and `seconds` are None for a model of unknown size."""

    job: StudyJob
    problems: int
    done: int
    memory: int | None
    seconds: float | None

    @property
    def seconds_left(self) -> float | None:
        """Seconds for the problems that are not done; None without an estimate."""
        if self.seconds is None:
            return None
        return self.seconds * (self.problems - self.done) / max(self.problems, 1)


@dataclass(frozen=True)
class AdapterToTrain:
    """One adapter to train, its estimate and command. `fit` and `seconds` are None for a model of unknown size."""

    adapter: RequiredAdapter
    fit: TrainingFit | None
    seconds: float | None
    command: Sequence[str]


@dataclass(frozen=True)
class StudyPlan:
    """A question's jobs and the adapters that they need."""

    config: StudyConfig
    rq: str
    jobs: Sequence[PlannedJob]
    adapters: Sequence[RequiredAdapter]
    adapters_to_train: Sequence[AdapterToTrain]

    @property
    def blocked_jobs(self) -> list[PlannedJob]:
        """The jobs whose adapter is missing."""
        absent = {adapter.name for adapter in self.adapters if not adapter.is_available}
        return [planned for planned in self.jobs if planned.job.adapter in absent]

    def seconds_left(self) -> float | None:
        """Return the seconds of generation without the blocked jobs; None if one of them has no estimate."""
        return _sum_or_none(planned.seconds_left for planned in self.jobs if planned not in self.blocked_jobs)


def build_plan(
    config: StudyConfig, rq: str, jobs: Sequence[StudyJob], collected: CollectedRuns, data_dir: Path | None
) -> StudyPlan:
    """Return the plan for these jobs, given the results that exist already."""
    factors = _measured_speed_factors(config, collected)
    planned = [_plan_job(config, job, collected, factors) for job in jobs]
    adapters = required_adapters(jobs)
    to_train = [_plan_training(config, adapter, data_dir) for adapter in adapters if not adapter.is_available]
    return StudyPlan(config, rq, planned, adapters, to_train)


def render_plan(plan: StudyPlan, folder: Path) -> str:
    """Return the plan as text."""
    hardware = plan.config.hardware
    parts = [
        f"{plan.rq.upper()} of {plan.config.name}, into {folder}; estimates for {hardware.name}.",
        text_table(
            ["model", "weights", "data", "method", "n", "done", "memory GB", "time left"],
            [_plan_row(group, hardware.memory_gb) for group in _group_jobs(plan.jobs)],
            markdown=False,
        ),
        *_adapters_text(plan),
        _totals_text(plan),
    ]
    return "\n\n".join(parts)


def _plan_job(
    config: StudyConfig, job: StudyJob, collected: CollectedRuns, factors: Mapping[Path, float]
) -> PlannedJob:
    done, count = collected.unfinished.get(job, (0, num_test_problems(job.data.name, job.data.problems)))
    if job in collected.finished:
        done = count = len(collected.finished[job].results)
    base, data = job.model.architecture, job.data
    if base is None:
        return PlannedJob(job, count, done, None, None)
    tokens = expected_prompt_tokens(data.name, job.k)
    memory = generation_memory_bytes(base, job.quantization, data.batch, data.candidates, tokens, data.max_new_tokens)
    steps = expected_decode_steps(data.name, data.max_new_tokens, bool(job.technique))
    seconds = generation_seconds(base, job.quantization, config.hardware, data.batch, data.candidates, tokens, steps)
    return PlannedJob(job, count, done, memory, count * seconds * factors.get(run_path(Path(), job), 1.0))


def _measured_speed_factors(config: StudyConfig, collected: CollectedRuns) -> dict[Path, float]:
    """Return, by run file, the measured over the estimated seconds of its finished methods."""
    totals: dict[Path, list[float]] = {}
    for job, finished in collected.finished.items():
        base, data = job.model.architecture, job.data
        seconds = [result.seconds for result in finished.results if not result.error]
        if base is None or not seconds:
            continue
        steps = expected_decode_steps(data.name, data.max_new_tokens, bool(job.technique))
        tokens = expected_prompt_tokens(data.name, job.k)
        estimate = generation_seconds(
            base, job.quantization, config.hardware, data.batch, data.candidates, tokens, steps
        )
        sums = totals.setdefault(run_path(Path(), job), [0.0, 0.0])
        sums[0] += sum(seconds)
        sums[1] += estimate * len(seconds)
    return {
        path: measured / estimated for path, (measured, estimated) in totals.items() if measured > 0 and estimated > 0
    }


def _plan_training(config: StudyConfig, adapter: RequiredAdapter, data_dir: Path | None) -> AdapterToTrain:
    job = adapter.job
    base = job.model.architecture
    if base is None:
        return AdapterToTrain(adapter, None, None, train_command(config, job, data_dir))
    # On a CPU the command itself limits the tokens of a forward pass.
    limit = math.inf if config.device == "cpu" else config.hardware.memory_gb * 1e9
    fit = fit_training(base, job.technique, job.quantization, job.data.name, limit)
    epochs = config.training.epochs or PRESET_EPOCHS[config.training.preset]
    seconds = training_seconds(base, job.technique, job.data.name, epochs, config.hardware)
    # Checkpointing computes the forward pass of each layer a second time.
    seconds *= 1.5 if fit.checkpointing else 1.0
    return AdapterToTrain(adapter, fit, seconds, train_command(config, job, data_dir, fit.batch, fit.checkpointing))


def _group_jobs(jobs: Sequence[PlannedJob]) -> list[list[PlannedJob]]:
    """Group the jobs that differ only in their number of examples."""
    groups: dict[tuple[object, ...], list[PlannedJob]] = {}
    for planned in jobs:
        job = planned.job
        key = (job.model, job.data, job.quantization, job.adapter, job.examples.partition("-")[0])
        groups.setdefault(key, []).append(planned)
    return list(groups.values())


def _plan_row(group: Sequence[PlannedJob], limit_gb: float) -> list[str]:
    job = group[0].job
    numbers = ",".join(str(planned.job.k) for planned in group if planned.job.k)
    examples = f"{job.examples.partition('-')[0]}-{numbers}" if numbers else ""
    method = "+".join(part for part in (job.adapter, examples) if part) or job.method
    memory = [planned.memory for planned in group if planned.memory is not None]
    left = _sum_or_none(planned.seconds_left for planned in group)
    return [
        job.model.name,
        job.quantization,
        job.data.name,
        method,
        str(group[0].problems),
        f"{sum(planned.done for planned in group)}/{sum(planned.problems for planned in group)}",
        _format_memory(max(memory, default=None), limit_gb),
        UNKNOWN_ESTIMATE if left is None else format_duration(left) if left else "-",
    ]


def _adapters_text(plan: StudyPlan) -> list[str]:
    available = [adapter.name for adapter in plan.adapters if adapter.is_available]
    parts = [f"Available adapters: {', '.join(available)}."] if available else []
    if not plan.adapters_to_train:
        return parts
    limit = plan.config.hardware.memory_gb
    rows = [
        [
            planned.adapter.name,
            METHOD_TITLES[planned.adapter.job.technique],
            "unusable"
            if planned.adapter.problem
            else "unfinished"
            if has_unfinished_run(planned.adapter.name)
            else "missing",
            _format_memory(None if planned.fit is None else planned.fit.memory, limit),
            UNKNOWN_ESTIMATE if planned.fit is None else str(planned.fit.batch),
            UNKNOWN_ESTIMATE if planned.seconds is None else format_duration(planned.seconds),
        ]
        for planned in plan.adapters_to_train
    ]
    header = ["adapter", "technique", "state", "memory GB", f"rows at once, of {TRAIN_BATCH_SIZE}", "training"]
    parts.append(text_table(header, rows, markdown=False))
    errors = [planned.adapter.problem for planned in plan.adapters_to_train if planned.adapter.problem]
    if errors:
        parts.append("\n".join(errors))
    commands = [
        format_train_command(planned.command) for planned in plan.adapters_to_train if not planned.adapter.problem
    ]
    if commands:
        parts.append("Their jobs are left out until they are trained, with --train or with\n\n" + "\n".join(commands))
    return parts


def _totals_text(plan: StudyPlan) -> str:
    limit = plan.config.hardware.memory_gb
    blocked = plan.blocked_jobs
    todo = [planned for planned in plan.jobs if planned not in blocked and planned.done < planned.problems]
    finished = sum(planned.done == planned.problems for planned in plan.jobs)
    left = plan.seconds_left()
    memory = [planned.memory for planned in todo if planned.memory is not None]
    text = f"{len(plan.jobs)} methods: {finished} done, {len(todo)} to run"
    text += f", {len(blocked)} waiting for an adapter" if blocked else ""
    text += f". Time to answer: {UNKNOWN_ESTIMATE if left is None else format_duration(left)}"
    if memory:
        text += f", {_format_memory(max(memory), limit)} GB at most"
    training = _sum_or_none(planned.seconds for planned in plan.adapters_to_train if not planned.adapter.problem)
    if plan.adapters_to_train:
        text += f". To train: {UNKNOWN_ESTIMATE if training is None else format_duration(training)} more"
        after = _sum_or_none(planned.seconds_left for planned in blocked)
        text += ", and to answer with the trained adapters: "
        text += UNKNOWN_ESTIMATE if after is None else format_duration(after)
    too_large = [planned for planned in todo if planned.memory is not None and planned.memory > limit * 1e9]
    text += f". {len(too_large)} need more than {limit:g} GB (marked !): lower batch" if too_large else ""
    return text + "."


def _format_memory(size: int | None, limit_gb: float) -> str:
    if size is None:
        return UNKNOWN_ESTIMATE
    return f"{size / 1e9:.1f}" + (" !" if size > limit_gb * 1e9 else "")


def _sum_or_none(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    return None if any(value is None for value in listed) else sum(value for value in listed if value is not None)
