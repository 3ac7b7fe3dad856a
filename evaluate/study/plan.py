"""What a question will run, before anything starts: methods, problems, memory, hours, and which adapters are missing.

Estimates stand on sizes and on the hardware that the configuration names (evaluate/study/estimate.py). Where a file has
results already, the seconds that were measured scale the estimates of what is left in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate.grid import text_table
from evaluate.study.adapters import (
    RequiredAdapter,
    format_train_command,
    has_unfinished_run,
    required_adapters,
    train_command,
)
from evaluate.study.cells import CollectedRuns
from evaluate.study.config import METHOD_TITLES, StudyConfig
from evaluate.study.estimate import (
    PRESET_EPOCHS,
    TRAIN_BATCH_SIZE,
    expected_decode_steps,
    expected_prompt_tokens,
    format_hours,
    generation_memory_bytes,
    generation_seconds,
    num_test_problems,
    training_memory_bytes,
    training_seconds,
)
from evaluate.study.jobs import StudyJob, run_path

UNKNOWN_ESTIMATE = "?"


@dataclass(frozen=True)
class PlannedJob:
    """One job with its estimate: bytes and seconds are None where the model's sizes are not known."""

    job: StudyJob
    problems: int
    done: int
    memory: int | None
    seconds: float | None

    @property
    def seconds_left(self) -> float | None:
        """Seconds for the problems that are not done."""
        if self.seconds is None:
            return None
        return self.seconds * (self.problems - self.done) / max(self.problems, 1)


@dataclass(frozen=True)
class AdapterToTrain:
    """One adapter that must be trained, its estimate, and the command. `checkpointing` makes it fit."""

    adapter: RequiredAdapter
    memory: int | None
    seconds: float | None
    checkpointing: bool
    command: Sequence[str]


@dataclass(frozen=True)
class StudyPlan:
    """A question's jobs and the adapters they need; `blocked` jobs wait for an adapter."""

    config: StudyConfig
    rq: str
    jobs: Sequence[PlannedJob]
    adapters: Sequence[RequiredAdapter]
    adapters_to_train: Sequence[AdapterToTrain]

    @property
    def blocked_jobs(self) -> list[PlannedJob]:
        """Lines whose adapter is not there."""
        absent = {each.name for each in self.adapters if not each.is_available}
        return [line for line in self.jobs if line.job.adapter in absent]

    def seconds_left(self) -> float | None:
        """Of generation, without blocked lines; None where one of them has no estimate."""
        return _sum_or_none(line.seconds_left for line in self.jobs if line not in self.blocked_jobs)


def build_plan(
    config: StudyConfig, rq: str, jobs: Sequence[StudyJob], collected: CollectedRuns, data_dir: Path | None
) -> StudyPlan:
    """The plan for these jobs, given what a folder holds already."""
    factors = _measured_speed_factors(config, collected)
    lines = [_plan_job(config, job, collected, factors) for job in jobs]
    adapters = required_adapters(jobs)
    lessons = [_plan_training(config, each, data_dir) for each in adapters if not each.is_available]
    return StudyPlan(config, rq, lines, adapters, lessons)


def render_plan(plan: StudyPlan, folder: Path) -> str:
    """The plan as a person reads it."""
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
    """By file: the seconds that its finished methods took, over those that were estimated."""
    took: dict[Path, list[float]] = {}
    for job, cell in collected.finished.items():
        base, data = job.model.architecture, job.data
        seconds = [result.seconds for result in cell.results if not result.error]
        if base is None or not seconds:
            continue
        steps = expected_decode_steps(data.name, data.max_new_tokens, bool(job.technique))
        tokens = expected_prompt_tokens(data.name, job.k)
        guess = generation_seconds(base, job.quantization, config.hardware, data.batch, data.candidates, tokens, steps)
        sums = took.setdefault(run_path(Path(), job), [0.0, 0.0])
        sums[0] += sum(seconds)
        sums[1] += guess * len(seconds)
    return {path: measured / guessed for path, (measured, guessed) in took.items() if measured > 0 and guessed > 0}


def _plan_training(config: StudyConfig, adapter: RequiredAdapter, data_dir: Path | None) -> AdapterToTrain:
    job = adapter.job
    base = job.model.architecture
    if base is None:
        return AdapterToTrain(adapter, None, None, False, train_command(config, job, data_dir, checkpointing=False))
    limit = config.hardware.memory_gb * 1e9
    memory = training_memory_bytes(base, job.technique, job.quantization, job.data.name)
    # Peft keeps the prefix in a key/value cache, which checkpointing drops (train/techniques.py).
    checkpointing = memory > limit and config.device != "cpu" and job.technique != "prefix-tuning"
    if checkpointing:
        memory = training_memory_bytes(base, job.technique, job.quantization, job.data.name, checkpointing=True)
    epochs = config.training.epochs or PRESET_EPOCHS[config.training.preset]
    seconds = training_seconds(base, job.technique, job.data.name, epochs, config.hardware)
    # The layers are computed a second time.
    seconds *= 1.5 if checkpointing else 1.0
    return AdapterToTrain(adapter, memory, seconds, checkpointing, train_command(config, job, data_dir, checkpointing))


def _group_jobs(jobs: Sequence[PlannedJob]) -> list[list[PlannedJob]]:
    """Lines that differ only in how many examples they show."""
    groups: dict[tuple[object, ...], list[PlannedJob]] = {}
    for line in jobs:
        job = line.job
        key = (job.model, job.data, job.quantization, job.adapter, job.examples.partition("-")[0])
        groups.setdefault(key, []).append(line)
    return list(groups.values())


def _plan_row(group: Sequence[PlannedJob], limit_gb: float) -> list[str]:
    job = group[0].job
    numbers = ",".join(str(line.job.k) for line in group if line.job.k)
    examples = f"{job.examples.partition('-')[0]}-{numbers}" if numbers else ""
    method = "+".join(part for part in (job.adapter, examples) if part) or job.method
    known = [line.memory for line in group if line.memory is not None]
    left = _sum_or_none(line.seconds_left for line in group)
    return [
        job.model.name,
        job.quantization,
        job.data.name,
        method,
        str(group[0].problems),
        f"{sum(line.done for line in group)}/{sum(line.problems for line in group)}",
        _format_memory(max(known, default=None), limit_gb),
        UNKNOWN_ESTIMATE if left is None else format_hours(left) if left else "-",
    ]


def _adapters_text(plan: StudyPlan) -> list[str]:
    there = [each.name for each in plan.adapters if each.is_available]
    parts = [f"Adapters that are there: {', '.join(there)}."] if there else []
    if not plan.adapters_to_train:
        return parts
    limit = plan.config.hardware.memory_gb
    rows = [
        [
            lesson.adapter.name,
            METHOD_TITLES[lesson.adapter.job.technique],
            "no use"
            if lesson.adapter.problem
            else "unfinished"
            if has_unfinished_run(lesson.adapter.name)
            else "missing",
            _format_memory(lesson.memory, limit),
            UNKNOWN_ESTIMATE if lesson.seconds is None else format_hours(lesson.seconds),
        ]
        for lesson in plan.adapters_to_train
    ]
    header = ["adapter", "technique", "state", f"memory GB (batch {TRAIN_BATCH_SIZE})", "training"]
    parts.append(text_table(header, rows, markdown=False))
    faults = [lesson.adapter.problem for lesson in plan.adapters_to_train if lesson.adapter.problem]
    if faults:
        parts.append("\n".join(faults))
    commands = [format_train_command(lesson.command) for lesson in plan.adapters_to_train if not lesson.adapter.problem]
    if commands:
        parts.append("They are left out until they are trained, with --train or with\n\n" + "\n".join(commands))
    return parts


def _totals_text(plan: StudyPlan) -> str:
    limit = plan.config.hardware.memory_gb
    waiting = plan.blocked_jobs
    todo = [line for line in plan.jobs if line not in waiting and line.done < line.problems]
    finished = sum(line.done == line.problems for line in plan.jobs)
    left = plan.seconds_left()
    known = [line.memory for line in todo if line.memory is not None]
    sentence = f"{len(plan.jobs)} methods: {finished} done, {len(todo)} to run"
    sentence += f", {len(waiting)} waiting for an adapter" if waiting else ""
    sentence += f". Time to answer: {UNKNOWN_ESTIMATE if left is None else format_hours(left)}"
    if known:
        sentence += f", {_format_memory(max(known), limit)} GB at the most"
    learning = _sum_or_none(lesson.seconds for lesson in plan.adapters_to_train if not lesson.adapter.problem)
    if plan.adapters_to_train:
        sentence += f". To train: {UNKNOWN_ESTIMATE if learning is None else format_hours(learning)} more"
        after = _sum_or_none(line.seconds_left for line in waiting)
        sentence += (
            f", and to answer with what was trained: {UNKNOWN_ESTIMATE if after is None else format_hours(after)}"
        )
    too_much = [line for line in todo if line.memory is not None and line.memory > limit * 1e9]
    sentence += f". {len(too_much)} need more than {limit:g} GB (marked !): lower batch" if too_much else ""
    return sentence + "."


def _format_memory(size: int | None, limit_gb: float) -> str:
    if size is None:
        return UNKNOWN_ESTIMATE
    return f"{size / 1e9:.1f}" + (" !" if size > limit_gb * 1e9 else "")


def _sum_or_none(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    return None if any(value is None for value in listed) else sum(value for value in listed if value is not None)
