"""AdviceFolder: the files of one advice on disk, written by its process and read by the page while it runs.

- plan.json: what will run and how long it takes; progress.json: the state of each step; curves.json: validation losses
- steps/<key>.json: the result of each finished step, so that an interrupted advice continues behind it
- rows/, adapters/, runs/: training files, trained adapters, and answers as run files of `python -m evaluate`
- result.json and report.html: the advice
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.files import atomic_write, make_private_dir

StepState = Literal["waiting", "running", "done", "left out"]
CurveState = Literal["running", "done", "stopped early"]
ADAPTER_STEP = "adapter"  # its result has the family, the name of the adapter or None, and its settings
_WRITE_INTERVAL_SECONDS = 0.5


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
