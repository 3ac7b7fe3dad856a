"""Significant differences, claims.

What the numbers say: pairs of methods on the same problems, corrected together, and one sentence for each pair.

No sentence is written by hand. A difference is called one where p is below 0.05 after Holm's correction over all pairs
of the question; everything else is "no difference shown".

The study's claims that numbers here can check, and what they say: seen here too, the opposite, or not shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from evaluate.aggregate import metric_title
from evaluate.stats import Interval, holm_correction
from evaluate.study import published
from evaluate.study.cells import CollectedRuns, FinishedJob
from evaluate.study.config import METHOD_TITLES, WEIGHT_BITS_LABELS, StudyConfig
from evaluate.table import compare_results

SIGNIFICANCE_LEVEL = 0.05
LORA_TECHNIQUES = ("lora", "qlora-8bit", "qlora-4bit")


@dataclass(frozen=True)
class Finding:
    """`a` minus `b` in one metric over n shared problems; `corrected` is Holm's p over all findings of a question.

    `roles` say what the two stand for ("lora", "icl" for the best number of examples, "zero-shot", ...), `part` names
    the difficulty where not all problems are compared.
    """

    a: FinishedJob
    b: FinishedJob
    roles: tuple[str, str]
    metric: str
    difference: Interval
    n: int
    test: str
    p: float
    difficulty: str = ""
    corrected_p: float = 1.0
    num_tests: int = 1

    @property
    def is_significant(self) -> bool:
        """Whether there is a difference, either way."""
        return self.corrected_p < SIGNIFICANCE_LEVEL

    @property
    def context(self) -> str:
        """Model, data set and difficulty."""
        job = self.a.job
        return ", ".join(part for part in (job.model.name, job.data.name, self.difficulty) if part)

    def describe(self) -> str:
        """The finding in words, the better method first where there is one."""
        one, other, found = method_label(self.a, self.b), method_label(self.b, self.a), self.difference
        if self.is_significant and found.value < 0:
            one, other, found = other, one, Interval(-found.value, -found.high, -found.low)
        numbers = f"{format_difference(found, self.metric)}, {self.format_p_value()}, n = {self.n}"
        if self.is_significant:
            return f"{one} over {other} ({self.context}): {numbers}."
        return f"No difference shown between {one} and {other} ({self.context}): {numbers}."

    def format_p_value(self) -> str:
        """P after the correction, with the test and how many were corrected together."""
        p = f"p = {self.corrected_p:.3f}" if self.corrected_p >= 0.001 else "p < 0.001"
        return f"{p} ({self.test}, Holm over {self.num_tests})"


def format_difference(difference: Interval, metric: str) -> str:
    """A difference with its interval, which at no width would look like certainty."""
    if difference.low == difference.high == 0:
        return f"no problem differs in {metric_title(metric)}"
    interval = f"95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    return f"{100 * difference.value:+.1f} points {metric_title(metric)} ({interval})"


def compute_findings(config: StudyConfig, rq: str, collected: CollectedRuns) -> list[Finding]:
    """All findings of a question, in the order of models and data sets, corrected together."""
    question = config.question(rq)
    every: list[Finding] = []
    for model in question.models:
        for data in question.data:
            cells = [
                cell
                for cell in collected.finished.values()
                if (cell.job.model.name, cell.job.data.name) == (model, data)
            ]
            for a, b, roles in _PAIRS[rq](cells):
                every += _compare_jobs(a, b, roles, rq)
    corrected = holm_correction([each.p for each in every])
    return [replace(each, corrected_p=p, num_tests=len(every)) for each, p in zip(every, corrected, strict=True)]


def headline_metric(job: FinishedJob) -> str:
    """EM@k for the k that was asked for."""
    return f"em@{job.job.data.candidates}"


def best_job(jobs: Iterable[FinishedJob]) -> FinishedJob | None:
    """The cell with the highest EM@k, as the study chooses; the one with fewer examples wins a tie."""
    listed = list(jobs)
    return max(listed, key=lambda cell: (cell.mean(headline_metric(cell)) or 0.0, -cell.job.k), default=None)


def method_label(job: FinishedJob, other: FinishedJob) -> str:
    """The method's title, with the weights that it answers on where those of the other are different."""
    same = job.job.quantization == other.job.quantization
    return job.job.title if same else f"{job.job.title} on {WEIGHT_BITS_LABELS[job.job.quantization]} weights"


_RolePair = tuple[FinishedJob, FinishedJob, tuple[str, str]]


def _of_kind(jobs: Sequence[FinishedJob], kind: str) -> list[FinishedJob]:
    return [cell for cell in jobs if cell.job.kind == kind and not cell.job.pair]


def _find_untuned(jobs: Sequence[FinishedJob], like: FinishedJob) -> FinishedJob | None:
    """Zero-shot with the same weights, else with those of the model's own setting."""
    plain = _of_kind(jobs, "zero-shot")
    same = [cell for cell in plain if cell.job.quantization == like.job.quantization]
    return next(iter([*same, *(cell for cell in plain if cell.job.quantization == cell.job.model.quantization)]), None)


def _technique_jobs(jobs: Sequence[FinishedJob]) -> list[FinishedJob]:
    return [cell for cell in jobs if cell.job.technique and not cell.job.examples and not cell.job.pair]


def _pairs_rq1(jobs: Sequence[FinishedJob]) -> Iterator[_RolePair]:
    shots = _of_kind(jobs, "icl")
    top, plain = best_job(shots), next(iter(_of_kind(jobs, "zero-shot")), None)
    if top and plain:
        yield top, plain, ("icl", "zero-shot")
    if top:
        most = max(shots, key=lambda cell: cell.job.k)
        if most is not top:
            yield most, top, ("icl-most", "icl")


def _pairs_rq2(jobs: Sequence[FinishedJob]) -> Iterator[_RolePair]:
    tuned = _technique_jobs(jobs)
    for cell in tuned:
        plain = _find_untuned(jobs, cell)
        if plain:
            yield cell, plain, (cell.job.technique, "zero-shot")
    reference = next((cell for name in LORA_TECHNIQUES for cell in tuned if cell.job.technique == name), None)
    for cell in tuned if reference else ():
        if reference and cell is not reference:
            yield reference, cell, (reference.job.technique, cell.job.technique)
    for cell in jobs:
        if cell.job.pair:
            usual = next((each for each in tuned if each.job.technique == cell.job.technique), None)
            if usual:
                yield cell, usual, ("variant", cell.job.technique)


def _pairs_rq3(jobs: Sequence[FinishedJob]) -> Iterator[_RolePair]:
    shots, near = best_job(_of_kind(jobs, "icl")), best_job(_of_kind(jobs, "rag"))
    for cell in _technique_jobs(jobs):
        for other, role in ((shots, "icl"), (near, "rag")):
            if other:
                yield cell, other, (cell.job.technique, role)
        for kind in ("icl", "rag"):
            for both in _of_kind(jobs, f"{cell.job.technique}+{kind}"):
                yield both, cell, (both.job.kind, cell.job.technique)
    if shots and near:
        yield near, shots, ("rag", "icl")


def _pairs_rq4(jobs: Sequence[FinishedJob]) -> Iterator[_RolePair]:
    for cell in _technique_jobs(jobs):
        plain = _find_untuned(jobs, cell)
        if plain:
            yield cell, plain, (cell.job.technique, "zero-shot")


_PAIRS = {"rq1": _pairs_rq1, "rq2": _pairs_rq2, "rq3": _pairs_rq3, "rq4": _pairs_rq4}


def question_metrics(rq: str, job: FinishedJob) -> list[str]:
    """What a question compares: EM and CodeBLEU, or tests where programs must pass them."""
    if rq == "rq4":
        return ["tests", *(f"pass@{k}" for k in (1, job.job.data.candidates))]
    return list(dict.fromkeys(["em@1", headline_metric(job), "codebleu"]))


def _compare_jobs(a: FinishedJob, b: FinishedJob, roles: tuple[str, str], rq: str) -> Iterator[Finding]:
    parts: dict[str, set[str] | None] = {"": None}
    if rq == "rq4" and len(a.problems_by_difficulty()) > 1:
        parts |= a.problems_by_difficulty()
    for part, problems in parts.items():
        left, right = a.results_for(problems), b.results_for(problems)
        for pair in compare_results(left, right, a.job.title, b.job.title, a.bootstrap_seed, question_metrics(rq, a)):
            yield Finding(a, b, roles, pair.metric, pair.difference, pair.n, pair.test, pair.p, part)


@dataclass(frozen=True)
class Claim:
    """A claim about two roles of findings: that the first is better (or, for `keeps`, that it is not worse)."""

    text: str
    roles: tuple[tuple[str, ...], str]
    metrics: tuple[str, ...] = ("em@",)
    not_worse: bool = False


_CLAIMS_BY_QUESTION: dict[str, tuple[Claim, ...]] = {
    "rq1": (Claim("ICL beats zero-shot", (("icl",), "zero-shot")),),
    "rq2": (
        Claim("LoRA beats full fine-tuning of small models", (("lora",), "full")),
        Claim("LoRA is the best of the PEFT techniques", (LORA_TECHNIQUES, "ia3")),
        Claim("LoRA is the best of the PEFT techniques", (LORA_TECHNIQUES, "prompt-tuning")),
        Claim("LoRA is the best of the PEFT techniques", (LORA_TECHNIQUES, "prefix-tuning")),
        Claim("Fewer bits (8) keep LoRA's score", (("lora",), "qlora-8bit"), not_worse=True),
        Claim("Fewer bits (4) keep LoRA's score", (("lora",), "qlora-4bit"), not_worse=True),
    ),
    "rq3": (
        Claim("LoRA beats ICL", (LORA_TECHNIQUES, "icl")),
        Claim("LoRA beats RAG", (LORA_TECHNIQUES, "rag")),
        Claim("RAG beats ICL on CoNaLa", (("rag",), "icl")),
    ),
    "rq4": (
        Claim("LoRA raises the average of tests passed", (LORA_TECHNIQUES, "zero-shot"), ("tests",)),
        Claim("LoRA raises Pass@5", (LORA_TECHNIQUES, "zero-shot"), ("pass@5",)),
    ),
}


def check_claims(rq: str, collected: CollectedRuns, findings: Sequence[Finding]) -> list[str]:
    """One line for each claim and pair of methods that is here; claims about what was not run are left out."""
    lines = []
    for claim in _CLAIMS_BY_QUESTION[rq]:
        firsts, second = claim.roles
        lines += [
            _claim_line(claim, each)
            for each in findings
            if each.roles[0] in firsts and each.roles[1] == second and _metric_matches(claim, each)
        ]
    if rq == "rq1":
        lines += _check_more_examples(collected)
    if rq == "rq2":
        lines += _check_memory(collected)
    return lines


def _metric_matches(claim: Claim, finding: Finding) -> bool:
    """The study argues with EM@10; of EM@k only the largest k counts here."""
    if claim.metrics == ("em@",):
        return finding.metric == headline_metric(finding.a)
    return finding.metric in claim.metrics


def _claim_line(claim: Claim, finding: Finding) -> str:
    verdict = "not shown here"
    if claim.not_worse:
        lost = finding.is_significant and finding.difference.value > 0
        verdict = "a loss is seen here" if lost else "no loss is shown here"
    elif finding.is_significant:
        verdict = "seen here too" if finding.difference.value > 0 else "the opposite is seen here"
    pair = f"{method_label(finding.a, finding.b)} against {method_label(finding.b, finding.a)}"
    numbers = f"{format_difference(finding.difference, finding.metric)}, {finding.format_p_value()}, n = {finding.n}"
    return f"{claim.text}{_published_values(finding)}: **{verdict}**. {pair}, {finding.context}: {numbers}."


def _published_values(finding: Finding) -> str:
    """The study's own two values, where it states both for this model or the one that is set beside it."""
    job, beside = finding.a.job, finding.a.job.model.beside
    if finding.metric in ("tests", "pass@5"):
        rows = [
            published.published_apps_scores("" if role == "zero-shot" else role, finding.difficulty)
            for role in finding.roles
        ]
        values = [row.get(finding.metric) for row in rows] if finding.a.is_apps_test_split else [None]
        beside = "CodeLlama-7B-Instruct"
    else:
        values = [published.published_em10(beside, job.data.name, role) for role in finding.roles] if beside else [None]
    if any(value is None for value in values):
        return ""
    return f" (the study, {beside}: {values[0]:.2f} against {values[1]:.2f})"


def _check_more_examples(collected: CollectedRuns) -> Iterator[str]:
    """Whether more examples always help."""
    shots = collected.find(kind="icl")
    for key in dict.fromkeys((cell.job.model.name, cell.job.data.name) for cell in shots):
        cells = [cell for cell in shots if (cell.job.model.name, cell.job.data.name) == key]
        top = best_job(cells)
        most = max(cell.job.k for cell in cells)
        if top is None or len(cells) < 2:
            continue
        tried = ", ".join(str(cell.job.k) for cell in cells)
        verdict = "seen here too, though it may be chance" if top.job.k < most else "not seen here"
        yield (
            f"More examples are not always better: **{verdict}**. Of {tried} examples, {top.job.k} did best on "
            f"{', '.join(key)}, by {metric_title(headline_metric(top))}."
        )


def _check_memory(collected: CollectedRuns) -> Iterator[str]:
    """Whether four bits halve the memory of training."""
    for full in collected.find(kind="lora", pair=None):
        for small in collected.find(kind="qlora-4bit", pair=None, model=full.job.model, data=full.job.data):
            bytes_full, bytes_small = (cell.training_facts.get("peak_memory_bytes") for cell in (full, small))
            if not bytes_full or not bytes_small:
                continue
            share = bytes_small / bytes_full
            verdict = "seen here too" if share <= 0.6 else "not seen here"
            yield (
                f"{METHOD_TITLES['qlora-4bit']} trains in about half of LoRA's memory (the study, CodeLlama-7B: 9.16 GB "
                f"against 19.06): **{verdict}**. {full.job.model.name}, {full.job.data.name}: "
                f"{bytes_small / 1e9:.2f} GB against {bytes_full / 1e9:.2f}, {100 * share:.0f} %."
            )
