"""AdviceFolder: the options, rows and files of one advice, written by its process and read by the page while it runs.

Folds: the training, validation and test rows of an advice. Each test row is asked once, and no choice has seen it. A
data set with enough test rows has one fold, its own splits. A smaller one is divided into FOLDS parts, each of which is
the test side of one fold (cross-fitting): all choices are made anew in every fold, on its other rows.

- plan.json: what will run and how long it takes; progress.json: the state of each step; curves.json: validation losses
- steps/<key>.json: the result of each finished step, so that an interrupted advice continues behind it
- rows/, adapters/, runs/: training files, trained adapters, and answers as run files of `python -m evaluate`
- result.json and report.html: the advice
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.files import atomic_write, make_private_dir
from errors import DataError
from tasks.datasets.own import is_own_dataset, read_own_groups
from tasks.datasets.registry import DATASETS, load_problems, require_training
from tasks.datasets.split import EmbedFn, cross_fit_folds, train_validation_split
from tasks.problem import Example, Problem

DEFAULT_MINUTES = 15.0
MIN_MINUTES, MAX_MINUTES = 2.0, 24 * 60.0
FOLDS = 5
MIN_ROWS = 20
# With fewer test rows than this every row is held out once, unless that would be more rows than a budget allows.
MIN_TEST_ROWS, MAX_CROSS_FIT_ROWS = 60, 400
_VALIDATION_SHARE = 0.2
StepState = Literal["waiting", "running", "done", "left out"]
CurveState = Literal["running", "done", "stopped early"]
ADAPTER_STEP = "adapter"  # its result has the family, the name of the adapter or None, and its settings
_WRITE_INTERVAL_SECONDS = 0.5


@dataclass(frozen=True)
class AdviseOptions:
    """What an advice is about. `data` is the name of a data set (tasks.datasets.registry) with training rows.

    `minutes` is the budget for everything: choices on validation rows, training, and the answers to the test rows.
    `memory_gb` is the most memory of a training in gigabytes (10**9 bytes), 0 for all that is free. The adapter that is
    worth keeping gets the name `adapter`.
    """

    data: str
    adapter: str
    minutes: float = DEFAULT_MINUTES
    seed: int = 42
    memory_gb: float = 0.0

    def __post_init__(self) -> None:
        if not MIN_MINUTES <= self.minutes <= MAX_MINUTES:
            raise DataError(f"{self.minutes:g} minutes are no budget: give {MIN_MINUTES:g} to {MAX_MINUTES:g}.")
        if not 0 <= self.memory_gb < math.inf:
            raise DataError(f"{self.memory_gb:g} GB are no limit of memory: give more, or 0 for all that is free.")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AdviseOptions:
        """Return the options that `to_json` wrote; raises DataError for values that are none."""
        try:
            return cls(
                str(values["data"]),
                str(values["adapter"]),
                float(values["minutes"]),
                int(values["seed"]),
                float(values.get("memory_gb", 0.0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("The options of this advice cannot be read: begin a new one.") from error

    def to_json(self) -> dict[str, Any]:
        """Return the options as values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Fold:
    """One division of the rows. Training rows are learned from and are the examples of prompts."""

    number: int
    train: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]

    def write_rows(self, folder: Path, share: float = 1.0, seed: int = 0) -> tuple[Path, Path]:
        """Write the training rows, or a share of them, and the validation rows as JSONL; return both paths."""
        name = f"fold-{self.number}" + (f"-{share:g}" if share < 1 else "")
        paths = folder / f"{name}-train.jsonl", folder / f"{name}-validation.jsonl"
        for path, rows in zip(paths, (self.share_of_train(share, seed), self.validation), strict=True):
            lines = [json.dumps({"id": row.id, "intent": row.intent, "code": row.reference}) for row in rows]
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return paths

    def share_of_train(self, share: float, seed: int) -> Sequence[Problem]:
        """Return a random share of the training rows, in their order; a larger share contains a smaller one."""
        order = random.Random(seed).sample(range(len(self.train)), len(self.train))
        return [self.train[index] for index in sorted(order[: max(1, round(share * len(self.train)))])]


@dataclass(frozen=True)
class Folds:
    """All folds, and a sentence on how the rows were divided."""

    data: str
    folds: Sequence[Fold]
    note: str

    def __iter__(self) -> Iterator[Fold]:
        return iter(self.folds)

    def __len__(self) -> int:
        return len(self.folds)

    def limited(self, validation: int, test: int, seed: int) -> Folds:
        """Return the folds with at most so many validation and test rows each, which are drawn."""
        folds = [
            replace(fold, validation=_sample(fold.validation, validation, seed), test=_sample(fold.test, test, seed))
            for fold in self.folds
        ]
        return replace(self, folds=folds)

    @property
    def test_rows(self) -> int:
        """The number of rows that are asked in the end, over all folds."""
        return sum(len(fold.test) for fold in self.folds)

    @property
    def has_tests(self) -> bool:
        """Whether every test row brings tests, so that Pass@1 can be measured."""
        return all(problem.tests for fold in self.folds for problem in fold.test)


def make_folds(data: str, data_dir: Path | None, seed: int, embed: Callable[[], EmbedFn]) -> Folds:
    """Read a data set and divide its rows. `embed` loads the embedding model, for near-twins of one's own rows.

    Raises DataError for a data set without training rows or with fewer than MIN_ROWS in all, and what reading it
    raises.
    """
    require_training(data)
    train, validation, test = (_rows(data, split, data_dir) for split in ("train", "validation", "test"))
    rows = [*train, *validation, *test]
    if len(rows) < MIN_ROWS:
        raise DataError(f"{data} has {len(rows)} rows with code: an advice needs {MIN_ROWS} or more.")
    if is_own_dataset(data) and len(test) < MIN_TEST_ROWS and len(rows) <= MAX_CROSS_FIT_ROWS:
        return _cross_fit(data, rows, seed, embed())
    if not validation:
        train, validation = _hold_out(train, seed)
    if not test:
        train, test = _hold_out(train, seed + 1)
    if not (train and validation and test):
        raise DataError(f"{data} leaves no row to learn from, to choose on or to test on: add rows that differ.")
    fold = Fold(0, train, validation, test)
    return Folds(
        data,
        [fold],
        f"{len(train)} rows to learn from and as examples, {len(validation)} to choose on, {len(test)} to test "
        f"on; no choice sees a test row.",
    )


def _rows(data: str, split: str, data_dir: Path | None) -> list[Problem]:
    try:
        problems = load_problems(data, split, data_dir)
    except DataError:
        if split == "train" or data not in DATASETS:
            raise
        return []  # a data set without validation rows, or without test rows
    return [problem for problem in problems if problem.reference and problem.reference.strip()]


def _cross_fit(data: str, rows: Sequence[Problem], seed: int, embed: EmbedFn) -> Folds:
    groups = read_own_groups(data)
    examples = [Example(row.id, row.intent, row.reference or "") for row in rows]
    parts = cross_fit_folds(examples, FOLDS, seed, [groups.get(row.id) for row in rows], embed)
    if len(parts) < 2:
        raise DataError(f"{data}: no row can be held out, as all of them belong together: add rows that differ.")
    folds = []
    for number, part in enumerate(parts):
        others = [rows[index] for other in parts if other is not part for index in other]
        train, validation = _hold_out(others, seed + number, _VALIDATION_SHARE)
        if not validation:
            raise DataError(f"{data}: no row can be held out for choices: add rows that differ.")
        folds.append(Fold(number, train, validation, [rows[index] for index in part]))
    return Folds(
        data,
        folds,
        f"{len(rows)} rows are few, so each is held out once: {len(folds)} times, choices and training are made anew "
        f"on about {len(folds[0].train)} rows, with about {len(folds[0].validation)} to choose on.",
    )


def _hold_out(
    rows: Sequence[Problem], seed: int, share: float = _VALIDATION_SHARE
) -> tuple[list[Problem], list[Problem]]:
    examples = [Example(row.id, row.intent, row.reference or "") for row in rows]
    rest, held_out = train_validation_split(examples, share, seed)
    by_id = {row.id: row for row in rows}
    return [by_id[example.id] for example in rest], [by_id[example.id] for example in held_out]


def _sample(rows: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    if len(rows) <= count:
        return list(rows)
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]


@dataclass(frozen=True)
class PlannedStep:
    """A step of the plan; `seconds` is the estimate. A step that is not `included` has the reason in `note`."""

    id: str
    title: str
    seconds: float
    included: bool = True
    note: str = ""


@dataclass(frozen=True)
class StepProgress:
    """The state of a step, and a line about it."""

    id: str
    title: str
    state: StepState = "waiting"
    detail: str = ""


@dataclass(frozen=True)
class Curve:
    """Validation losses of one training: points are (share of its steps in (0, 1], loss per token)."""

    name: str
    points: Sequence[tuple[float, float]] = ()
    state: CurveState = "running"


@dataclass(frozen=True)
class AdviceProgress:
    """The state of an advice. `seconds` is how long it has run, `total_seconds` the estimate (0 before the plan)."""

    steps: Sequence[StepProgress] = ()
    curves: Sequence[Curve] = ()
    message: str = ""
    seconds: float = 0.0
    total_seconds: float = 0.0
    budget_seconds: float = 0.0


class AdviceFolder:
    """Paths and files of one advice. A file that is missing or broken reads as not written yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def report_path(self) -> Path:
        """The report as one HTML page."""
        return self.path / "report.html"

    @property
    def result_path(self) -> Path:
        """The advice as JSON (advise.result.build_result has its fields)."""
        return self.path / "result.json"

    def subfolder(self, name: str) -> Path:
        """Return a folder in it, which is created where it is missing."""
        return make_private_dir(self.path / name)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the stored result of the step `key`, or compute and store it. A result is a value for JSON."""
        path = self.subfolder("steps") / f"{key}.json"
        stored = _read_json(path)
        if stored is not None:
            return stored["value"]
        value = compute()
        atomic_write(path, json.dumps({"value": value}) + "\n")
        return json.loads(json.dumps(value))

    def is_done(self, key: str) -> bool:
        """Return whether `once` has the result of the step."""
        return _read_json(self.path / "steps" / f"{key}.json") is not None

    def adapter(self) -> str | None:
        """Return the name of the adapter that was added to the user's, recommended or not; None before that."""
        step = self.once(ADAPTER_STEP, dict) if self.is_done(ADAPTER_STEP) else None
        return step.get("adapter") if isinstance(step, dict) else None

    def write_plan(self, values: Mapping[str, Any]) -> None:
        """Write plan.json."""
        atomic_write(self.path / "plan.json", json.dumps(values, indent=1) + "\n")

    def read_plan(self) -> dict[str, Any] | None:
        """Return `sentence`, `power`, `steps` (fields of PlannedStep), `seconds`, `n` and `folds`; None before it."""
        return _read_json(self.path / "plan.json")

    def write_result(self, result: Mapping[str, Any], page: str) -> None:
        """Write result.json and report.html."""
        atomic_write(self.report_path, page)
        atomic_write(self.result_path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """Return the advice, which is complete where `finished` is true; None before the first result."""
        return _read_json(self.result_path)

    def read_progress(self) -> AdviceProgress:
        """Return the progress as it was written last."""
        values = _read_json(self.path / "progress.json")
        try:
            steps = [StepProgress(**step) for step in values.pop("steps")] if values else []
            curves = [
                Curve(each["name"], tuple((x, y) for x, y in each["points"]), each["state"])
                for each in (values.pop("curves") if values else [])
            ]
            return AdviceProgress(steps=steps, curves=curves, **(values or {}))
        except (KeyError, TypeError, ValueError):
            return AdviceProgress()


@dataclass
class ProgressWriter:
    """Writes progress.json while an advice runs, at most twice a second. `report` gets a line for the log."""

    folder: AdviceFolder
    report: Callable[[str], None]
    budget_seconds: float
    _progress: AdviceProgress = field(default_factory=AdviceProgress)
    _earlier_seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _written: float = 0.0

    def __post_init__(self) -> None:
        earlier = self.folder.read_progress()
        self._earlier_seconds = earlier.seconds
        self._progress = replace(earlier, budget_seconds=self.budget_seconds)

    @property
    def seconds(self) -> float:
        """Seconds for which the advice has run, in all its attempts."""
        return self._earlier_seconds + time.monotonic() - self._started

    @property
    def left_seconds(self) -> float:
        """Seconds of the budget that are left; below 0 where it is spent."""
        return self.budget_seconds - self.seconds

    def plan(self, steps: Sequence[PlannedStep], total_seconds: float) -> None:
        """Set the steps, where an earlier attempt has not set them."""
        if not self._progress.steps:
            planned = [
                StepProgress(step.id, step.title, "waiting" if step.included else "left out", step.note)
                for step in steps
            ]
            self._progress = replace(self._progress, steps=planned)
        self._progress = replace(self._progress, total_seconds=total_seconds)
        self._write(force=True)

    def revise(self, steps: Sequence[PlannedStep], total_seconds: float) -> None:
        """Add or leave out steps that have not begun, as a revised plan has them."""
        revised = {step.id: step for step in steps}
        self._progress = replace(
            self._progress,
            steps=[
                replace(
                    step, state="waiting" if revised[step.id].included else "left out", detail=revised[step.id].note
                )
                if step.state in ("waiting", "left out") and step.id in revised
                else step
                for step in self._progress.steps
            ],
            total_seconds=total_seconds,
        )
        self._write(force=True)

    def step(self, id: str, state: StepState, detail: str = "") -> None:
        """Set the state of a step, and report it."""
        steps = [replace(step, state=state, detail=detail) if step.id == id else step for step in self._progress.steps]
        title = next((step.title for step in steps if step.id == id), id)
        self._progress = replace(self._progress, steps=steps)
        self.report(f"{title}: {detail or state}")
        self._write(force=True)

    def message(self, text: str) -> None:
        """Set the line about what runs now, and report it."""
        self._progress = replace(self._progress, message=text)
        self.report(text)
        self._write()

    def point(self, name: str, share: float, loss: float) -> None:
        """Add a validation loss to the curve of this name; one after the same share of steps replaces it."""
        found = next((curve for curve in self._progress.curves if curve.name == name), Curve(name))
        points = [point for point in found.points if point[0] < share]
        self._set_curve(replace(found, points=(*points, (share, loss)), state="running"))

    def end_curve(self, name: str, state: CurveState) -> None:
        """Set how the training of this name ended."""
        found = next((curve for curve in self._progress.curves if curve.name == name), Curve(name))
        self._set_curve(replace(found, state=state))

    def flush(self) -> None:
        """Write what was not written yet."""
        self._write(force=True)

    def _set_curve(self, curve: Curve) -> None:
        others = list(self._progress.curves)
        at = next((index for index, other in enumerate(others) if other.name == curve.name), len(others))
        self._progress = replace(self._progress, curves=[*others[:at], curve, *others[at + 1 :]])
        self._write()

    def _write(self, *, force: bool = False) -> None:
        if force or time.monotonic() - self._written >= _WRITE_INTERVAL_SECONDS:
            self._written = time.monotonic()
            values = asdict(replace(self._progress, seconds=round(self.seconds, 1)))
            atomic_write(self.folder.path / "progress.json", json.dumps(values) + "\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
