"""Findings: significant differences between pairs of methods on the same problems, and checks of the study's claims.

All texts are computed. A difference is significant if p is below 0.05 after Holm's correction over all pairs of the
question; any other pair gives "No difference shown". A claim of the study is seen here too, the opposite is seen, or it
is not shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from evaluate.stats import SIGNIFICANCE_LEVEL, Interval, holm_correction, metric_title
from evaluate.study import schema
from evaluate.study.config import METHOD_TITLES, WEIGHT_BITS_LABELS, StudyConfig
from evaluate.study.jobs import CollectedRuns, FinishedJob
from evaluate.table import compare_results

LORA_TECHNIQUES = ("lora", "qlora-8bit", "qlora-4bit")


@dataclass(frozen=True)
class Finding:
    """The difference `a` minus `b` in one metric over n shared problems.

    `corrected_p` is Holm's p over the `num_tests` findings of a question. `roles` are the kinds of the two methods
    ("lora", "icl" for the best number of examples, "zero-shot", ...). `difficulty` is set when only its problems are
    compared.
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
        """Whether the difference, in either direction, is significant."""
        return self.corrected_p < SIGNIFICANCE_LEVEL

    @property
    def context(self) -> str:
        """Model, data set and difficulty as text."""
        job = self.a.job
        return ", ".join(part for part in (job.model.name, job.data.name, self.difficulty) if part)

    def describe(self) -> str:
        """Return the finding as text; if it is significant, the better method comes first."""
        one, other, found = job_label(self.a, self.b), job_label(self.b, self.a), self.difference
        if self.is_significant and found.value < 0:
            one, other, found = other, one, Interval(-found.value, -found.high, -found.low)
        numbers = f"{format_difference(found, self.metric)}, {self.format_p_value()}, n = {self.n}"
        if self.is_significant:
            return f"{one} over {other} ({self.context}): {numbers}."
        return f"No difference shown between {one} and {other} ({self.context}): {numbers}."

    def format_p_value(self) -> str:
        """Return the corrected p with the test and the number of tests as text."""
        p = f"p = {self.corrected_p:.3f}" if self.corrected_p >= 0.001 else "p < 0.001"
        return f"{p} ({self.test}, Holm over {self.num_tests})"


def format_difference(difference: Interval, metric: str) -> str:
    """Return a difference with its interval as text; an interval of width 0, which suggests certainty, is left out."""
    if difference.low == difference.high == 0:
        return f"no problem differs in {metric_title(metric)}"
    interval = f"95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    return f"{100 * difference.value:+.1f} points {metric_title(metric)} ({interval})"


def compute_findings(config: StudyConfig, rq: str, collected: CollectedRuns) -> list[Finding]:
    """Return all findings of a question, in the order of models and data sets, with p corrected over all of them."""
    question = config.question(rq)
    findings: list[Finding] = []
    for model in question.models:
        for data in question.data:
            finished = [
                item
                for item in collected.finished.values()
                if (item.job.model.name, item.job.data.name) == (model, data)
            ]
            for a, b, roles in _PAIRS[rq](finished):
                findings += _compare_jobs(a, b, roles, rq)
    corrected = holm_correction([finding.p for finding in findings])
    return [
        replace(finding, corrected_p=p, num_tests=len(findings)) for finding, p in zip(findings, corrected, strict=True)
    ]


def headline_metric(job: FinishedJob) -> str:
    """Return the metric EM@k with k candidates."""
    return f"em@{job.job.data.candidates}"


def best_job(jobs: Iterable[FinishedJob]) -> FinishedJob | None:
    """Return the job with the highest EM@k, as the study chooses; of equal ones that with fewer examples."""
    return max(jobs, key=lambda item: (item.mean(headline_metric(item)) or 0.0, -item.job.k), default=None)


def job_label(job: FinishedJob, other: FinishedJob) -> str:
    """Return the method's title, with its quantization if that of the other method differs."""
    same = job.job.quantization == other.job.quantization
    return job.job.title if same else f"{job.job.title} on {WEIGHT_BITS_LABELS[job.job.quantization]} weights"


_RolePair = tuple[FinishedJob, FinishedJob, tuple[str, str]]


def _of_kind(jobs: Sequence[FinishedJob], kind: str) -> list[FinishedJob]:
    return [item for item in jobs if item.job.kind == kind and not item.job.pair]


def _find_untuned(jobs: Sequence[FinishedJob], like: FinishedJob) -> FinishedJob | None:
    """Return zero-shot with the same quantization, else with that of the model; None without either."""
    untuned = _of_kind(jobs, "zero-shot")
    same = [item for item in untuned if item.job.quantization == like.job.quantization]
    return next(
        iter([*same, *(item for item in untuned if item.job.quantization == item.job.model.quantization)]), None
    )


def _technique_jobs(jobs: Sequence[FinishedJob]) -> list[FinishedJob]:
    return [item for item in jobs if item.job.technique and not item.job.examples and not item.job.pair]


def _pairs_rq1(jobs: Sequence[FinishedJob]) -> Iterator[_RolePair]:
    icl_jobs = _of_kind(jobs, "icl")
    best, untuned = best_job(icl_jobs), next(iter(_of_kind(jobs, "zero-shot")), None)
    if best and untuned:
        yield best, untuned, ("icl", "zero-shot")
    if best:
        most = max(icl_jobs, key=lambda item: item.job.k)
        if most is not best:
            yield most, best, ("icl-most", "icl")


def _pairs_rq2(jobs: Sequence[FinishedJob]) -> Iterator[_RolePair]:
    tuned = _technique_jobs(jobs)
    for item in tuned:
        untuned = _find_untuned(jobs, item)
        if untuned:
            yield item, untuned, (item.job.technique, "zero-shot")
    reference = next((item for name in LORA_TECHNIQUES for item in tuned if item.job.technique == name), None)
    for item in tuned if reference else ():
        if reference and item is not reference:
            yield reference, item, (reference.job.technique, item.job.technique)
    for item in jobs:
        if item.job.pair:
            default_job = next((each for each in tuned if each.job.technique == item.job.technique), None)
            if default_job:
                yield item, default_job, ("variant", item.job.technique)


def _pairs_rq3(jobs: Sequence[FinishedJob]) -> Iterator[_RolePair]:
    best_icl, best_rag = best_job(_of_kind(jobs, "icl")), best_job(_of_kind(jobs, "rag"))
    for item in _technique_jobs(jobs):
        for other, role in ((best_icl, "icl"), (best_rag, "rag")):
            if other:
                yield item, other, (item.job.technique, role)
        for kind in ("icl", "rag"):
            for both in _of_kind(jobs, f"{item.job.technique}+{kind}"):
                yield both, item, (both.job.kind, item.job.technique)
    if best_icl and best_rag:
        yield best_rag, best_icl, ("rag", "icl")


def _pairs_rq4(jobs: Sequence[FinishedJob]) -> Iterator[_RolePair]:
    for item in _technique_jobs(jobs):
        untuned = _find_untuned(jobs, item)
        if untuned:
            yield item, untuned, (item.job.technique, "zero-shot")


_PAIRS = {"rq1": _pairs_rq1, "rq2": _pairs_rq2, "rq3": _pairs_rq3, "rq4": _pairs_rq4}


def question_metrics(rq: str, job: FinishedJob) -> list[str]:
    """Return the metrics that a question compares: EM and CodeBLEU, or test metrics for rq4."""
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
    """A claim that the first role is better than the second or, with `not_worse`, that the second is not worse."""

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
    """Return one line for each claim and pair of methods with findings; other claims are left out."""
    lines = []
    for claim in _CLAIMS_BY_QUESTION[rq]:
        firsts, second = claim.roles
        lines += [
            _claim_line(claim, finding)
            for finding in findings
            if finding.roles[0] in firsts and finding.roles[1] == second and _metric_matches(claim, finding)
        ]
    if rq == "rq1":
        lines += _check_more_examples(collected)
    if rq == "rq2":
        lines += _check_memory(collected)
    return lines


def _metric_matches(claim: Claim, finding: Finding) -> bool:
    """Return whether the claim is about the finding's metric; of EM@k only the largest k counts, as in the study."""
    if claim.metrics == ("em@",):
        return finding.metric == headline_metric(finding.a)
    return finding.metric in claim.metrics


def _claim_line(claim: Claim, finding: Finding) -> str:
    verdict = "not shown here"
    if claim.not_worse:
        is_loss = finding.is_significant and finding.difference.value > 0
        verdict = "a loss is seen here" if is_loss else "no loss is shown here"
    elif finding.is_significant:
        verdict = "seen here too" if finding.difference.value > 0 else "the opposite is seen here"
    pair = f"{job_label(finding.a, finding.b)} against {job_label(finding.b, finding.a)}"
    numbers = f"{format_difference(finding.difference, finding.metric)}, {finding.format_p_value()}, n = {finding.n}"
    return f"{claim.text}{_published_values(finding)}: **{verdict}**. {pair}, {finding.context}: {numbers}."


def _published_values(finding: Finding) -> str:
    """Return the two published values as text, if the study states both for this model or the one beside it."""
    job, beside = finding.a.job, finding.a.job.model.beside
    if finding.metric in ("tests", "pass@5"):
        rows = [
            schema.published_apps_scores("" if role == "zero-shot" else role, finding.difficulty)
            for role in finding.roles
        ]
        values = [row.get(finding.metric) for row in rows] if finding.a.is_apps_test_split else [None]
        beside = "CodeLlama-7B-Instruct"
    else:
        values = [schema.published_em10(beside, job.data.name, role) for role in finding.roles] if beside else [None]
    if any(value is None for value in values):
        return ""
    return f" (the study, {beside}: {values[0]:.2f} against {values[1]:.2f})"


def _check_more_examples(collected: CollectedRuns) -> Iterator[str]:
    """Check the claim that more examples are not always better."""
    icl_jobs = collected.find(kind="icl")
    for key in dict.fromkeys((item.job.model.name, item.job.data.name) for item in icl_jobs):
        finished = [item for item in icl_jobs if (item.job.model.name, item.job.data.name) == key]
        best = best_job(finished)
        most = max(item.job.k for item in finished)
        if best is None or len(finished) < 2:
            continue
        tried = ", ".join(str(item.job.k) for item in finished)
        verdict = "seen here too, though it may be chance" if best.job.k < most else "not seen here"
        yield (
            f"More examples are not always better: **{verdict}**. Of {tried} examples, {best.job.k} did best on "
            f"{', '.join(key)}, by {metric_title(headline_metric(best))}."
        )


def _check_memory(collected: CollectedRuns) -> Iterator[str]:
    """Check the claim that four bits halve the memory of training."""
    for full in collected.find(kind="lora", pair=None):
        for small in collected.find(kind="qlora-4bit", pair=None, model=full.job.model, data=full.job.data):
            bytes_full, bytes_small = (item.training_facts.get("peak_memory_bytes") for item in (full, small))
            if not bytes_full or not bytes_small:
                continue
            share = bytes_small / bytes_full
            verdict = "seen here too" if share <= 0.6 else "not seen here"
            yield (
                f"{METHOD_TITLES['qlora-4bit']} trains in about half of LoRA's memory (the study, CodeLlama-7B: "
                f"9.16 GB against 19.06): **{verdict}**. {full.job.model.name}, {full.job.data.name}: "
                f"{bytes_small / 1e9:.2f} GB against {bytes_full / 1e9:.2f}, {100 * share:.0f} %."
            )
