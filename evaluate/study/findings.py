"""What the numbers say: pairs of methods on the same problems, corrected together, and one sentence for each pair.

No sentence is written by hand. A difference is called one where p is below 0.05 after Holm's correction over all pairs
of the question; everything else is "no difference shown".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from evaluate.measures import title
from evaluate.stats import Interval, holm
from evaluate.study.cells import Cell, Found
from evaluate.study.config import WEIGHTS, StudyConfig
from evaluate.table import compare

SIGNIFICANT = 0.05
LORA = ("lora", "qlora-8bit", "qlora-4bit")


@dataclass(frozen=True)
class Finding:
    """`a` minus `b` in one metric over n shared problems; `corrected` is Holm's p over all findings of a question.

    `roles` say what the two stand for ("lora", "icl" for the best number of examples, "zero-shot", ...), `part` names
    the difficulty where not all problems are compared.
    """

    a: Cell
    b: Cell
    roles: tuple[str, str]
    metric: str
    difference: Interval
    n: int
    test: str
    p: float
    part: str = ""
    corrected: float = 1.0
    tests: int = 1

    @property
    def is_shown(self) -> bool:
        """Whether there is a difference, either way."""
        return self.corrected < SIGNIFICANT

    @property
    def place(self) -> str:
        """Model, data set and difficulty."""
        job = self.a.job
        return ", ".join(part for part in (job.model.name, job.data.name, self.part) if part)

    def sentence(self) -> str:
        """The finding in words, the better method first where there is one."""
        one, other, found = named(self.a, self.b), named(self.b, self.a), self.difference
        if self.is_shown and found.value < 0:
            one, other, found = other, one, Interval(-found.value, -found.high, -found.low)
        numbers = f"{in_points(found, self.metric)}, {self.probability()}, n = {self.n}"
        if self.is_shown:
            return f"{one} over {other} ({self.place}): {numbers}."
        return f"No difference shown between {one} and {other} ({self.place}): {numbers}."

    def probability(self) -> str:
        """P after the correction, with the test and how many were corrected together."""
        p = f"p = {self.corrected:.3f}" if self.corrected >= 0.001 else "p < 0.001"
        return f"{p} ({self.test}, Holm over {self.tests})"


def in_points(found: Interval, metric: str) -> str:
    """A difference with its interval, which at no width would look like certainty."""
    if found.low == found.high == 0:
        return f"no problem differs in {title(metric)}"
    interval = f"95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return f"{100 * found.value:+.1f} points {title(metric)} ({interval})"


def findings(config: StudyConfig, rq: str, found: Found) -> list[Finding]:
    """All findings of a question, in the order of models and data sets, corrected together."""
    question = config.question(rq)
    every: list[Finding] = []
    for model in question.models:
        for data in question.data:
            cells = [
                cell for cell in found.cells.values() if (cell.job.model.name, cell.job.data.name) == (model, data)
            ]
            for a, b, roles in _PAIRS[rq](cells):
                every += _compared(a, b, roles, rq)
    corrected = holm([each.p for each in every])
    return [replace(each, corrected=p, tests=len(every)) for each, p in zip(every, corrected, strict=True)]


def top_metric(cell: Cell) -> str:
    """EM@k for the k that was asked for."""
    return f"em@{cell.job.data.candidates}"


def best(cells: Iterable[Cell]) -> Cell | None:
    """The cell with the highest EM@k, as the study chooses; the one with fewer examples wins a tie."""
    listed = list(cells)
    return max(listed, key=lambda cell: (cell.mean(top_metric(cell)) or 0.0, -cell.job.k), default=None)


def named(cell: Cell, other: Cell) -> str:
    """The method's title, with the weights that it answers on where those of the other are different."""
    same = cell.job.quantization == other.job.quantization
    return cell.job.title if same else f"{cell.job.title} on {WEIGHTS[cell.job.quantization]} weights"


_Pair = tuple[Cell, Cell, tuple[str, str]]


def _of(cells: Sequence[Cell], kind: str) -> list[Cell]:
    return [cell for cell in cells if cell.job.kind == kind and not cell.job.pair]


def _untuned(cells: Sequence[Cell], like: Cell) -> Cell | None:
    """Zero-shot with the same weights, else with those of the model's own setting."""
    plain = _of(cells, "zero-shot")
    same = [cell for cell in plain if cell.job.quantization == like.job.quantization]
    return next(iter([*same, *(cell for cell in plain if cell.job.quantization == cell.job.model.quantization)]), None)


def _techniques(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.job.technique and not cell.job.examples and not cell.job.pair]


def _pairs_rq1(cells: Sequence[Cell]) -> Iterator[_Pair]:
    shots = _of(cells, "icl")
    top, plain = best(shots), next(iter(_of(cells, "zero-shot")), None)
    if top and plain:
        yield top, plain, ("icl", "zero-shot")
    if top:
        most = max(shots, key=lambda cell: cell.job.k)
        if most is not top:
            yield most, top, ("icl-most", "icl")


def _pairs_rq2(cells: Sequence[Cell]) -> Iterator[_Pair]:
    tuned = _techniques(cells)
    for cell in tuned:
        plain = _untuned(cells, cell)
        if plain:
            yield cell, plain, (cell.job.technique, "zero-shot")
    reference = next((cell for name in LORA for cell in tuned if cell.job.technique == name), None)
    for cell in tuned if reference else ():
        if reference and cell is not reference:
            yield reference, cell, (reference.job.technique, cell.job.technique)
    for cell in cells:
        if cell.job.pair:
            usual = next((each for each in tuned if each.job.technique == cell.job.technique), None)
            if usual:
                yield cell, usual, ("variant", cell.job.technique)


def _pairs_rq3(cells: Sequence[Cell]) -> Iterator[_Pair]:
    shots, near = best(_of(cells, "icl")), best(_of(cells, "rag"))
    for cell in _techniques(cells):
        for other, role in ((shots, "icl"), (near, "rag")):
            if other:
                yield cell, other, (cell.job.technique, role)
        for kind in ("icl", "rag"):
            for both in _of(cells, f"{cell.job.technique}+{kind}"):
                yield both, cell, (both.job.kind, cell.job.technique)
    if shots and near:
        yield near, shots, ("rag", "icl")


def _pairs_rq4(cells: Sequence[Cell]) -> Iterator[_Pair]:
    for cell in _techniques(cells):
        plain = _untuned(cells, cell)
        if plain:
            yield cell, plain, (cell.job.technique, "zero-shot")


_PAIRS = {"rq1": _pairs_rq1, "rq2": _pairs_rq2, "rq3": _pairs_rq3, "rq4": _pairs_rq4}


def metrics_of(rq: str, cell: Cell) -> list[str]:
    """What a question compares: EM and CodeBLEU, or tests where programs must pass them."""
    if rq == "rq4":
        return ["tests", *(f"pass@{k}" for k in (1, cell.job.data.candidates))]
    return list(dict.fromkeys(["em@1", top_metric(cell), "codebleu"]))


def _compared(a: Cell, b: Cell, roles: tuple[str, str], rq: str) -> Iterator[Finding]:
    parts: dict[str, set[str] | None] = {"": None}
    if rq == "rq4" and len(a.difficulties()) > 1:
        parts |= a.difficulties()
    for part, problems in parts.items():
        left, right = a.among(problems), b.among(problems)
        for pair in compare(left, right, a.job.title, b.job.title, a.seed, metrics_of(rq, a)):
            yield Finding(a, b, roles, pair.metric, pair.difference, pair.n, pair.test, pair.p, part)
