"""The study's claims that numbers here can check, and what they say: seen here too, the opposite, or not shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evaluate.measures import metric_title
from evaluate.study import published
from evaluate.study.cells import CollectedRuns
from evaluate.study.config import METHOD_TITLES
from evaluate.study.findings import LORA_TECHNIQUES, Finding, best_job, format_difference, headline_metric, method_label


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
