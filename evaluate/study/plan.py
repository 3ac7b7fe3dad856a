"""What a question will run, before anything starts: methods, problems, memory, hours, and which adapters are missing.

Estimates stand on sizes and on the hardware that the configuration names (evaluate/study/estimate.py). Where a file has
results already, the seconds that were measured scale the estimates of what is left in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate.grid import grid
from evaluate.study.adapters import Needed, needed, shown, train_command, unfinished
from evaluate.study.cells import Found
from evaluate.study.config import TITLES, StudyConfig
from evaluate.study.estimate import (
    EPOCHS,
    TRAINING_BATCH,
    generation_bytes,
    generation_seconds,
    hours,
    problems_of,
    prompt_tokens,
    steps_expected,
    training_bytes,
    training_seconds,
)
from evaluate.study.jobs import Job, run_path

NOT_ESTIMATED = "?"


@dataclass(frozen=True)
class Line:
    """One job with its estimate: bytes and seconds are None where the model's sizes are not known."""

    job: Job
    problems: int
    done: int
    memory: int | None
    seconds: float | None

    @property
    def left(self) -> float | None:
        """Seconds for the problems that are not done."""
        if self.seconds is None:
            return None
        return self.seconds * (self.problems - self.done) / max(self.problems, 1)


@dataclass(frozen=True)
class Lesson:
    """One adapter that must be trained, its estimate, and the command. `checkpointing` makes it fit."""

    adapter: Needed
    memory: int | None
    seconds: float | None
    checkpointing: bool
    command: Sequence[str]


@dataclass(frozen=True)
class StudyPlan:
    """A question's jobs and the adapters they need; `blocked` jobs wait for an adapter."""

    config: StudyConfig
    rq: str
    lines: Sequence[Line]
    adapters: Sequence[Needed]
    lessons: Sequence[Lesson]

    @property
    def blocked(self) -> list[Line]:
        """Lines whose adapter is not there."""
        absent = {each.name for each in self.adapters if not each.is_there}
        return [line for line in self.lines if line.job.adapter in absent]

    def seconds_left(self) -> float | None:
        """Of generation, without blocked lines; None where one of them has no estimate."""
        return _total(line.left for line in self.lines if line not in self.blocked)


def make_plan(config: StudyConfig, rq: str, jobs: Sequence[Job], found: Found, data_dir: Path | None) -> StudyPlan:
    """The plan for these jobs, given what a folder holds already."""
    factors = _measured(config, found)
    lines = [_line(config, job, found, factors) for job in jobs]
    adapters = needed(jobs)
    lessons = [_lesson(config, each, data_dir) for each in adapters if not each.is_there]
    return StudyPlan(config, rq, lines, adapters, lessons)


def plan_text(plan: StudyPlan, folder: Path) -> str:
    """The plan as a person reads it."""
    hardware = plan.config.hardware
    parts = [
        f"{plan.rq.upper()} of {plan.config.name}, into {folder}; estimates for {hardware.name}.",
        grid(
            ["model", "weights", "data", "method", "n", "done", "memory GB", "time left"],
            [_row(group, hardware.memory_gb) for group in _groups(plan.lines)],
            markdown=False,
        ),
        *_adapters_text(plan),
        _totals(plan),
    ]
    return "\n\n".join(parts)


def _line(config: StudyConfig, job: Job, found: Found, factors: Mapping[Path, float]) -> Line:
    done, count = found.unfinished.get(job, (0, problems_of(job.data.name, job.data.problems)))
    if job in found.cells:
        done = count = len(found.cells[job].results)
    base, data = job.model.architecture, job.data
    if base is None:
        return Line(job, count, done, None, None)
    tokens = prompt_tokens(data.name, job.k)
    memory = generation_bytes(base, job.quantization, data.batch, data.candidates, tokens, data.max_new_tokens)
    steps = steps_expected(data.name, data.max_new_tokens, bool(job.technique))
    seconds = generation_seconds(base, job.quantization, config.hardware, data.batch, data.candidates, tokens, steps)
    return Line(job, count, done, memory, count * seconds * factors.get(run_path(Path(), job), 1.0))


def _measured(config: StudyConfig, found: Found) -> dict[Path, float]:
    """By file: the seconds that its finished methods took, over those that were estimated."""
    took: dict[Path, list[float]] = {}
    for job, cell in found.cells.items():
        base, data = job.model.architecture, job.data
        seconds = [result.seconds for result in cell.results if not result.error]
        if base is None or not seconds:
            continue
        steps = steps_expected(data.name, data.max_new_tokens, bool(job.technique))
        tokens = prompt_tokens(data.name, job.k)
        guess = generation_seconds(base, job.quantization, config.hardware, data.batch, data.candidates, tokens, steps)
        sums = took.setdefault(run_path(Path(), job), [0.0, 0.0])
        sums[0] += sum(seconds)
        sums[1] += guess * len(seconds)
    return {path: measured / guessed for path, (measured, guessed) in took.items() if measured > 0 and guessed > 0}


def _lesson(config: StudyConfig, adapter: Needed, data_dir: Path | None) -> Lesson:
    job = adapter.job
    base = job.model.architecture
    if base is None:
        return Lesson(adapter, None, None, False, train_command(config, job, data_dir, checkpointing=False))
    limit = config.hardware.memory_gb * 1e9
    memory = training_bytes(base, job.technique, job.quantization, job.data.name)
    # Peft keeps the prefix in a key/value cache, which checkpointing drops (train/techniques.py).
    checkpointing = memory > limit and config.device != "cpu" and job.technique != "prefix-tuning"
    if checkpointing:
        memory = training_bytes(base, job.technique, job.quantization, job.data.name, checkpointing=True)
    epochs = config.training.epochs or EPOCHS[config.training.preset]
    seconds = training_seconds(base, job.technique, job.data.name, epochs, config.hardware)
    # The layers are computed a second time.
    seconds *= 1.5 if checkpointing else 1.0
    return Lesson(adapter, memory, seconds, checkpointing, train_command(config, job, data_dir, checkpointing))


def _groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that differ only in how many examples they show."""
    groups: dict[tuple[object, ...], list[Line]] = {}
    for line in lines:
        job = line.job
        key = (job.model, job.data, job.quantization, job.adapter, job.examples.partition("-")[0])
        groups.setdefault(key, []).append(line)
    return list(groups.values())


def _row(group: Sequence[Line], limit_gb: float) -> list[str]:
    job = group[0].job
    numbers = ",".join(str(line.job.k) for line in group if line.job.k)
    examples = f"{job.examples.partition('-')[0]}-{numbers}" if numbers else ""
    method = "+".join(part for part in (job.adapter, examples) if part) or job.method
    known = [line.memory for line in group if line.memory is not None]
    left = _total(line.left for line in group)
    return [
        job.model.name,
        job.quantization,
        job.data.name,
        method,
        str(group[0].problems),
        f"{sum(line.done for line in group)}/{sum(line.problems for line in group)}",
        _gigabytes(max(known, default=None), limit_gb),
        NOT_ESTIMATED if left is None else hours(left) if left else "-",
    ]


def _adapters_text(plan: StudyPlan) -> list[str]:
    there = [each.name for each in plan.adapters if each.is_there]
    parts = [f"Adapters that are there: {', '.join(there)}."] if there else []
    if not plan.lessons:
        return parts
    limit = plan.config.hardware.memory_gb
    rows = [
        [
            lesson.adapter.name,
            TITLES[lesson.adapter.job.technique],
            "no use" if lesson.adapter.problem else "unfinished" if unfinished(lesson.adapter.name) else "missing",
            _gigabytes(lesson.memory, limit),
            NOT_ESTIMATED if lesson.seconds is None else hours(lesson.seconds),
        ]
        for lesson in plan.lessons
    ]
    header = ["adapter", "technique", "state", f"memory GB (batch {TRAINING_BATCH})", "training"]
    parts.append(grid(header, rows, markdown=False))
    faults = [lesson.adapter.problem for lesson in plan.lessons if lesson.adapter.problem]
    if faults:
        parts.append("\n".join(faults))
    commands = [shown(lesson.command) for lesson in plan.lessons if not lesson.adapter.problem]
    if commands:
        parts.append("They are left out until they are trained, with --train or with\n\n" + "\n".join(commands))
    return parts


def _totals(plan: StudyPlan) -> str:
    limit = plan.config.hardware.memory_gb
    waiting = plan.blocked
    todo = [line for line in plan.lines if line not in waiting and line.done < line.problems]
    finished = sum(line.done == line.problems for line in plan.lines)
    left = plan.seconds_left()
    known = [line.memory for line in todo if line.memory is not None]
    sentence = f"{len(plan.lines)} methods: {finished} done, {len(todo)} to run"
    sentence += f", {len(waiting)} waiting for an adapter" if waiting else ""
    sentence += f". Time to answer: {NOT_ESTIMATED if left is None else hours(left)}"
    if known:
        sentence += f", {_gigabytes(max(known), limit)} GB at the most"
    learning = _total(lesson.seconds for lesson in plan.lessons if not lesson.adapter.problem)
    if plan.lessons:
        sentence += f". To train: {NOT_ESTIMATED if learning is None else hours(learning)} more"
        after = _total(line.left for line in waiting)
        sentence += f", and to answer with what was trained: {NOT_ESTIMATED if after is None else hours(after)}"
    too_much = [line for line in todo if line.memory is not None and line.memory > limit * 1e9]
    sentence += f". {len(too_much)} need more than {limit:g} GB (marked !): lower batch" if too_much else ""
    return sentence + "."


def _gigabytes(size: int | None, limit_gb: float) -> str:
    if size is None:
        return NOT_ESTIMATED
    return f"{size / 1e9:.1f}" + (" !" if size > limit_gb * 1e9 else "")


def _total(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    return None if any(value is None for value in listed) else sum(value for value in listed if value is not None)
