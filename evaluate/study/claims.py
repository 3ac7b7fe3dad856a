"""The study's claims that numbers here can check, and what they say: seen here too, the opposite, or not shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evaluate.measures import title
from evaluate.study import published
from evaluate.study.cells import Found
from evaluate.study.config import TITLES
from evaluate.study.findings import LORA, Finding, best, in_points, named, top_metric


@dataclass(frozen=True)
class Claim:
    """A claim about two roles of findings: that the first is better (or, for `keeps`, that it is not worse)."""

    words: str
    roles: tuple[tuple[str, ...], str]
    metrics: tuple[str, ...] = ("em@",)
    keeps: bool = False


_CLAIMS: dict[str, tuple[Claim, ...]] = {
    "rq1": (Claim("ICL beats zero-shot", (("icl",), "zero-shot")),),
    "rq2": (
        Claim("LoRA beats full fine-tuning of small models", (("lora",), "full")),
        Claim("LoRA is the best of the PEFT techniques", (LORA, "ia3")),
        Claim("LoRA is the best of the PEFT techniques", (LORA, "prompt-tuning")),
        Claim("LoRA is the best of the PEFT techniques", (LORA, "prefix-tuning")),
        Claim("Fewer bits (8) keep LoRA's score", (("lora",), "qlora-8bit"), keeps=True),
        Claim("Fewer bits (4) keep LoRA's score", (("lora",), "qlora-4bit"), keeps=True),
    ),
    "rq3": (
        Claim("LoRA beats ICL", (LORA, "icl")),
        Claim("LoRA beats RAG", (LORA, "rag")),
        Claim("RAG beats ICL on CoNaLa", (("rag",), "icl")),
    ),
    "rq4": (
        Claim("LoRA raises the average of tests passed", (LORA, "zero-shot"), ("tests",)),
        Claim("LoRA raises Pass@5", (LORA, "zero-shot"), ("pass@5",)),
    ),
}


def checked(rq: str, found: Found, findings: Sequence[Finding]) -> list[str]:
    """One line for each claim and pair of methods that is here; claims about what was not run are left out."""
    lines = []
    for claim in _CLAIMS[rq]:
        firsts, second = claim.roles
        lines += [
            _line(claim, each)
            for each in findings
            if each.roles[0] in firsts and each.roles[1] == second and _metric_fits(claim, each)
        ]
    if rq == "rq1":
        lines += _numbers_of_examples(found)
    if rq == "rq2":
        lines += _memory(found)
    return lines


def _metric_fits(claim: Claim, finding: Finding) -> bool:
    """The study argues with EM@10; of EM@k only the largest k counts here."""
    if claim.metrics == ("em@",):
        return finding.metric == top_metric(finding.a)
    return finding.metric in claim.metrics


def _line(claim: Claim, finding: Finding) -> str:
    verdict = "not shown here"
    if claim.keeps:
        lost = finding.is_shown and finding.difference.value > 0
        verdict = "a loss is seen here" if lost else "no loss is shown here"
    elif finding.is_shown:
        verdict = "seen here too" if finding.difference.value > 0 else "the opposite is seen here"
    pair = f"{named(finding.a, finding.b)} against {named(finding.b, finding.a)}"
    numbers = f"{in_points(finding.difference, finding.metric)}, {finding.probability()}, n = {finding.n}"
    return f"{claim.words}{_theirs(finding)}: **{verdict}**. {pair}, {finding.place}: {numbers}."


def _theirs(finding: Finding) -> str:
    """The study's own two values, where it states both for this model or the one that is set beside it."""
    job, beside = finding.a.job, finding.a.job.model.beside
    if finding.metric in ("tests", "pass@5"):
        rows = [published.apps("" if role == "zero-shot" else role, finding.part) for role in finding.roles]
        values = [row.get(finding.metric) for row in rows] if finding.a.is_the_studys_apps else [None]
        beside = "CodeLlama-7B-Instruct"
    else:
        values = [published.em10(beside, job.data.name, role) for role in finding.roles] if beside else [None]
    if any(value is None for value in values):
        return ""
    return f" (the study, {beside}: {values[0]:.2f} against {values[1]:.2f})"


def _numbers_of_examples(found: Found) -> Iterator[str]:
    """Whether more examples always help."""
    shots = found.matching(kind="icl")
    for key in dict.fromkeys((cell.job.model.name, cell.job.data.name) for cell in shots):
        cells = [cell for cell in shots if (cell.job.model.name, cell.job.data.name) == key]
        top = best(cells)
        most = max(cell.job.k for cell in cells)
        if top is None or len(cells) < 2:
            continue
        tried = ", ".join(str(cell.job.k) for cell in cells)
        verdict = "seen here too, though it may be chance" if top.job.k < most else "not seen here"
        yield (
            f"More examples are not always better: **{verdict}**. Of {tried} examples, {top.job.k} did best on "
            f"{', '.join(key)}, by {title(top_metric(top))}."
        )


def _memory(found: Found) -> Iterator[str]:
    """Whether four bits halve the memory of training."""
    for full in found.matching(kind="lora", pair=None):
        for small in found.matching(kind="qlora-4bit", pair=None, model=full.job.model, data=full.job.data):
            bytes_full, bytes_small = (cell.training.get("peak_memory_bytes") for cell in (full, small))
            if not bytes_full or not bytes_small:
                continue
            share = bytes_small / bytes_full
            verdict = "seen here too" if share <= 0.6 else "not seen here"
            yield (
                f"{TITLES['qlora-4bit']} trains in about half of LoRA's memory (the study, CodeLlama-7B: 9.16 GB "
                f"against 19.06): **{verdict}**. {full.job.model.name}, {full.job.data.name}: "
                f"{bytes_small / 1e9:.2f} GB against {bytes_full / 1e9:.2f}, {100 * share:.0f} %."
            )
