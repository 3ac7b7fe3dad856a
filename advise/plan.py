"""Plan of an advice: what runs in which order, for how long, what is left out for time or memory, what n can show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any

from advise.answering import FIRST_SHARE, ICL_METHODS, MIN_ROWS_FOR_HALVING, RAG_METHODS
from advise.folder import Fold, Folds, PlannedStep
from common.format import format_bytes, format_duration
from errors import PromptOrTuneError
from evaluate.stats import power_text

CHECKPOINTING = {"gradient_checkpointing": True}

# Returns the peak of a training with a technique and further settings in bytes; None where there is no estimate.
EstimateFn = Callable[[str, Mapping[str, Any]], int | None]
LOAD_SECONDS = 8.0  # an engine, or a base for training
FAMILIES = 5
COMPARISONS = FAMILIES * (FAMILIES - 1) // 2
RETENTION_ROWS = 48
CURVE_SHARES = (0.25, 0.5)
MIN_TRAIN_SECONDS = 20.0
PLANNED_SHARE = 0.92  # of the budget: a plan that used all of it took 11 % longer
# A full training has three epochs, or as many as make so many steps: with 38 rows, three epochs are 15 steps, in which
# an adapter learns next to nothing, and the comparison would be unfair to it.
MIN_EPOCHS, MAX_EPOCHS, MIN_STEPS, BATCH_ROWS = 3, 12, 60, 8
# The most validation and test rows of a fold, and the share of a full training: the first ones that fit the budget.
LIMITS = (
    (48, 200, 1.0), (32, 120, 1.0), (24, 90, 1.0), (24, 90, 2 / 3), (16, 60, 2 / 3), (16, 60, 1 / 3), (8, 60, 1 / 6),
)  # fmt: skip
# The prompts of RAG with fewer examples begin like those with more, and take about so much of their time.
RAG_REPEAT = 0.4
# Two thirds of the epochs, two prompts of each row, one of them with 1.5 examples on average.
EXAMPLES_COST = 2.4
_SEARCH, _EXAMPLES, _TEST, _CURVE, _RETENTION, _FINAL = "search", "examples", "test", "curve", "retention", "final"
_TRAINED = frozenset({_EXAMPLES, _CURVE, _FINAL})  # their time is in proportion to that of a training
PROMPTS = "prompts"


@dataclass(frozen=True)
class MemoryLimit:
    """The most bytes that an advice may use, and where the limit comes from. None: it is not known."""

    bytes: int | None
    text: str

    def allows(self, size: int | None) -> bool:
        """Return whether so many bytes are within the limit; what is not known is."""
        return size is None or self.bytes is None or size <= self.bytes


def memory_limit(given_gb: float, free: int | None) -> MemoryLimit:
    """Return the limit: the given gigabytes (0 for none), but no more than is free."""
    given = round(given_gb * 1e9)
    if given and (free is None or given <= free):
        return MemoryLimit(given, f"the limit is {format_bytes(given)}")
    if free is None:
        return MemoryLimit(None, "the free memory is not known")
    return MemoryLimit(free, f"{format_bytes(free)} are free")


def fit_techniques(techniques: Sequence[str], estimate: EstimateFn, limit: MemoryLimit) -> dict[str, Any]:
    """Return `settings` (those that each technique within the limit needs beside its own) and a `text` about all.

    A technique that is too large gets gradient checkpointing, which takes time instead of memory, and is left out where
    that is not enough. Raises PromptOrTuneError if none is left.
    """
    settings: dict[str, dict[str, Any]] = {}
    parts, smallest = [], None
    for technique in techniques:
        for more in ({}, CHECKPOINTING):
            size = estimate(technique, more)
            label = technique + (" with gradient checkpointing" if more else "")
            if limit.allows(size):
                settings[technique] = dict(more)
                parts.append(f"{label} about {format_bytes(size)}" if size is not None else f"{label} an unknown size")
                break
            if size is not None and (smallest is None or size < smallest[0]):
                smallest = size, label
        else:
            parts.append(f"{technique} more, so it is left out")
    if not settings and smallest is not None:
        size, label = smallest
        raise PromptOrTuneError(
            f"No training fits into the memory: {limit.text}, and {label} takes about {format_bytes(size)}. Free or "
            "allow as much, or choose a smaller base."
        )
    return {"settings": settings, "text": f"Memory of a training: {', '.join(parts)}; {limit.text}."}


@dataclass(frozen=True)
class Costs:
    """Seconds an answer takes, by family, and seconds of training with the default settings on one fold.

    A training takes `epoch` for each epoch, and `validations` for all its validations.
    """

    zero_shot: float
    icl: float
    rag: float
    epoch: float
    validations: float = 0.0

    def training(self, epochs: int) -> float:
        """Return the seconds of a training."""
        return epochs * self.epoch + self.validations

    @property
    def adapter(self) -> float:
        """An adapter's answer has the prompt of zero-shot, and ends with its code."""
        return min(self.zero_shot, self.icl)


@dataclass(frozen=True)
class Plan:
    """The steps with estimates. `search_seconds` is the time for the trainings of one fold.

    The limits are the most validation and test rows of a fold that are asked (Folds.limited); `epochs` is the length of
    the first trainings (advise.training.default_settings), at most `full_epochs`, and `train_seconds` the estimate of
    one. The first training of all, which took `first_seconds`, is repeated if `epochs` grew after it. `memory` is a
    sentence about the memory of trainings.
    """

    steps: Sequence[PlannedStep]
    search_seconds: float
    sentence: str
    power: str
    n: int
    folds: int
    validation_limit: int
    test_limit: int
    epochs: int
    train_seconds: float
    full_epochs: int = 0
    first_seconds: float = 0.0
    repeats_first: bool = False
    memory: str = ""

    @property
    def seconds(self) -> float:
        """The estimate of all included steps."""
        return sum(step.seconds for step in self.steps if step.included)

    @property
    def seconds_after_first_training(self) -> float:
        """The estimate of what follows the choice of prompts and the first training."""
        done = (PROMPTS, _SEARCH)
        later = sum(step.seconds for step in self.steps if step.included and step.id not in done)
        return later + self.estimate(_SEARCH) - self.first_seconds

    @property
    def first_fold_seconds(self) -> float:
        """The time for the trainings of the first fold, after the first one of all."""
        return self.search_seconds - (0.0 if self.repeats_first else self.first_seconds)

    def includes(self, id: str) -> bool:
        """Return whether the step is part of the plan."""
        return any(step.id == id and step.included for step in self.steps)

    def estimate(self, id: str) -> float:
        """Return the estimate of a step in seconds."""
        return next(step.seconds for step in self.steps if step.id == id)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as values for JSON."""
        return {**asdict(self), "seconds": self.seconds}

    def revised(self, train_seconds: float, left_seconds: float) -> Plan:
        """Return the plan after the first training, which took so long, for the seconds that are left.

        Estimates with trainings change in proportion. Steps that were left out are added where they fit now, and those
        that do not fit any more are left out. Trainings get more epochs, up to those of a full one, before a training
        with examples is added.
        """
        ratio = train_seconds / max(self.train_seconds, 1.0)
        estimates = {step.id: step.seconds * (ratio if step.id in _TRAINED else 1.0) for step in self.steps}
        choice = self.estimate(_SEARCH) - self.folds * (self.search_seconds + LOAD_SECONDS)
        left = left_seconds - estimates[_TEST] - choice - (self.folds - 1) * (train_seconds + LOAD_SECONDS)
        included = {PROMPTS, _SEARCH, _TEST}
        for id in (_FINAL, _RETENTION, _CURVE):
            if id in estimates and estimates[id] <= left:
                included.add(id)
                left -= estimates[id]
        epochs, extra = self._more_epochs(train_seconds, left, sum(estimates[id] for id in included & _TRAINED))
        left -= extra
        growth = epochs / self.epochs
        estimates |= {id: growth * estimates[id] for id in estimates if id in _TRAINED}
        if estimates[_EXAMPLES] <= left:
            included.add(_EXAMPLES)
            left -= estimates[_EXAMPLES]
        left = max(left, 0.0)
        longer, others = growth * train_seconds, self.folds if growth > 1 else self.folds - 1
        estimates[_SEARCH] = train_seconds + others * (longer + LOAD_SECONDS) + choice + left
        return replace(
            self,
            steps=_steps({step.id: step.title for step in self.steps}, estimates, included, left),
            search_seconds=longer + left / self.folds,
            epochs=epochs,
            train_seconds=longer,
            first_seconds=train_seconds,
            repeats_first=growth > 1,
        )

    def _more_epochs(self, train_seconds: float, left: float, trained: float) -> tuple[int, float]:
        """Return the most epochs that fit into the seconds left, and how many of these they take.

        `trained` are the seconds of the included steps that train. The first training is repeated with more epochs.
        """
        for epochs in range(self.full_epochs, self.epochs, -1):
            longer = epochs / self.epochs * train_seconds
            more = (self.folds - 1) * (longer - train_seconds) + (epochs / self.epochs - 1) * trained
            extra = longer + LOAD_SECONDS + more
            if extra <= left:
                return epochs, extra
        return self.epochs, 0.0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """Return the plan that `to_json` wrote."""
        fields = {name: value for name, value in values.items() if name not in ("seconds", "steps")}
        return cls([PlannedStep(**step) for step in values["steps"]], **fields)


def full_epochs(rows: int) -> int:
    """Return the epochs of a full training on so many rows."""
    steps = math.ceil(rows / BATCH_ROWS)
    return min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS / max(steps, 1))))


def make_plan(folds: Folds, costs: Costs, seconds: float, spent: float = 0.0, seed: int = 42) -> Plan:
    """Plan an advice for a budget of so many seconds, of which some are spent.

    A share of it stays free for what takes longer. First come the steps without which there is no answer; then what the
    rest of the budget allows, in this order: the final training after cross-fitting, what the adapter forgot, the
    learning curve, training with examples; and more trials of the search with what is left. Where all but the training
    with examples would not fit, fewer rows are asked and trainings have fewer epochs (LIMITS). Raises PromptOrTuneError
    where the budget is too small for an answer.
    """
    available = PLANNED_SHARE * seconds - spent
    full = full_epochs(len(folds.folds[0].train))
    choices = [
        _Choice(folds.limited(rows, test, seed), rows, test, max(1, round(share * full)), costs)
        for rows, test, share in LIMITS
    ]
    chosen = _largest_that_fits(choices, available)
    limited, needed, further = chosen.folds, chosen.needed, chosen.further
    train = costs.training(chosen.epochs)
    left = available - sum(needed.values())
    if left < 0:  # the training ends early
        cut = train + left / len(limited)
        if cut < MIN_TRAIN_SECONDS:
            least = spent + sum(needed.values()) + (MIN_TRAIN_SECONDS - train) * len(limited)
            raise PromptOrTuneError(
                f"{seconds / 60:.3g} minutes are too few for {folds.data} on this machine: give "
                f"{math.ceil(least / PLANNED_SHARE / 60)} or more, or fewer rows."
            )
        needed[_SEARCH] += left
        left = 0.0
    included = set(needed)
    for id, cost in further.items():
        if cost <= left:
            included.add(id)
            left -= cost
    estimates = needed | further
    estimates[_SEARCH] += left
    titles = {id: title for id, title in _TITLES.items() if id != _FINAL or len(folds) > 1}
    steps = _steps(titles, estimates, included, left)
    n = limited.test_rows
    fewer = ""
    if n < folds.test_rows:
        fewer = f" To fit the budget, {n} of {folds.test_rows} test rows are drawn; with more minutes more are asked."
    search_seconds = (estimates[_SEARCH] - _choice_seconds(limited, costs)) / len(folds) - LOAD_SECONDS
    return Plan(
        steps,
        search_seconds,
        folds.note + fewer,
        power_text(n, COMPARISONS),
        n,
        len(folds),
        chosen.validation,
        chosen.test,
        chosen.epochs,
        train,
        full,
        train,
    )


def _largest_that_fits(choices: Sequence[_Choice], available: float) -> _Choice:
    """Return the first choice whose steps fit: all but the training with examples; else all but the curve, too.

    The last choice has so few rows to choose on that it is taken only for what is needed.
    """
    for fits in (
        lambda choice: choice.seconds <= available,
        lambda choice: choice.seconds - choice.further[_CURVE] <= available,
        lambda choice: sum(choice.needed.values()) <= available,
    ):
        if found := next(filter(fits, choices[:-1]), None):
            return found
    return choices[-1]


def _steps(
    titles: Mapping[str, str], estimates: Mapping[str, float], included: Set[str], left: float
) -> list[PlannedStep]:
    """Return the steps in their order. One that is not included says how many seconds are lacking."""
    return [
        PlannedStep(
            id,
            title,
            round(estimates[id], 1),
            id in included,
            "" if id in included else f"takes about {format_duration(estimates[id] - left)} more than the budget has",
        )
        for id, title in titles.items()
    ]


class _Choice:
    """Folds with limits of rows and epochs: seconds of the steps that are needed, and of the further ones in order."""

    def __init__(self, folds: Folds, validation: int, test: int, epochs: int, costs: Costs) -> None:
        self.folds, self.validation, self.test, self.epochs = folds, validation, test, epochs
        train = costs.training(epochs)
        answers = folds.test_rows * (costs.zero_shot + costs.icl + 2 * costs.rag + costs.adapter)
        self.needed = {
            PROMPTS: sum(_prompt_seconds(fold, costs) for fold in folds) + LOAD_SECONDS,
            _SEARCH: len(folds) * (train + LOAD_SECONDS) + _choice_seconds(folds, costs),
            _TEST: answers + len(folds) * LOAD_SECONDS,
        }
        curve_rows = len(CURVE_SHARES) * folds.test_rows
        self.further = {
            _FINAL: train + LOAD_SECONDS if len(folds) > 1 else 0.0,
            _RETENTION: 2 * RETENTION_ROWS * costs.zero_shot + 2 * LOAD_SECONDS,
            _CURVE: len(folds) * (_curve_trainings(folds) * train + 2 * len(CURVE_SHARES) * LOAD_SECONDS)
            + curve_rows * costs.adapter,
            _EXAMPLES: len(folds) * (EXAMPLES_COST * train + LOAD_SECONDS) + _validation_rows(folds) * costs.rag,
        }

    @property
    def seconds(self) -> float:
        """Seconds of all steps but the training with examples."""
        return sum((self.needed | self.further).values()) - self.further[_EXAMPLES]


def _curve_trainings(folds: Folds) -> float:
    """Return how many trainings on all rows take as long as those of the learning curve."""
    rows = len(folds.folds[0].train)
    return sum(share * full_epochs(round(share * rows)) / full_epochs(rows) for share in CURVE_SHARES)


def _validation_rows(folds: Folds) -> int:
    return sum(len(fold.validation) for fold in folds)


def _choice_seconds(folds: Folds, costs: Costs) -> float:
    """Return the seconds of the answers of the two best trials to the validation rows."""
    return _validation_rows(folds) * (2 * costs.adapter + costs.rag)


def _prompt_seconds(fold: Fold, costs: Costs) -> float:
    rows = len(fold.validation)
    icl, rag = float(len(ICL_METHODS)), 1 + RAG_REPEAT * (len(RAG_METHODS) - 1)
    if rows >= MIN_ROWS_FOR_HALVING:
        icl, rag = icl * FIRST_SHARE + icl // 2, rag * FIRST_SHARE + rag // 2
    return rows * (icl * costs.icl + rag * costs.rag)


_TITLES = {
    PROMPTS: "Choose the examples for prompts, on validation rows",
    _SEARCH: "Train adapters and choose their settings, on validation rows",
    _EXAMPLES: "Train an adapter with examples in its prompts",
    _TEST: "Ask the best of each family the test rows",
    _CURVE: "Train with a quarter and a half of the rows: would more rows help?",
    _RETENTION: "Measure what the adapter forgot",
    _FINAL: "Train the adapter to keep on all rows",
}
