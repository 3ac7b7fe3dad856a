"""Report of a research question: provenance, findings, the study's claims, tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from common.files import atomic_write
from common.format import csv_text
from evaluate.failures import engine_failures_note, require_scored
from evaluate.results import Run
from evaluate.study.config import StudyConfig
from evaluate.study.figures import build_figures
from evaluate.study.findings import Finding, check_claims, compute_findings
from evaluate.study.jobs import CollectedRuns, FinishedJob
from evaluate.study.tables import build_tables

QUESTION_TEXTS = {
    "rq1": "How well do models answer zero-shot and with random examples (ICL)?",
    "rq2": "How well do they answer after fine-tuning, and what does quantization cost?",
    "rq3": "How does LoRA compare with ICL and RAG, and with both together?",
    "rq4": "Does LoRA make more programs pass their tests?",
}
MIN_PROBLEMS = 30  # with fewer the coverage of a percentile bootstrap is below its nominal level
_METHOD_NOTE = (
    "Differences are paired over the same problems. One is called a difference where p is below 0.05 after Holm's "
    "correction over all pairs of this page. The best number of examples is chosen on the test problems, as the study "
    "does, which flatters ICL and RAG. The CSV of findings has every pair."
)
_FIGURE_CAPTIONS = {
    "figure1": "Figure 1: peak memory of training",
    "figure3": "Figure 3: EM over the number of random examples",
    "figure4": "Figure 4: CodeBLEU and EM of models tuned with LoRA",
    "figure5": "Figure 5: LoRA in 16, 8 and 4 bits",
    "figure6": "Figure 6: ICL and LoRA",
    "figure7": "Figure 7: RAG by the number of retrieved examples, LoRA and ICL",
    "rank-alpha": "LoRA's rank and alpha",
    "cost": "Exact match against time",
}


def write_report(config: StudyConfig, rq: str, collected: CollectedRuns, folder: Path, command: str) -> list[Path]:
    """Write rqN.md, CSV files of tables and findings, and PNG figures; return the paths, the page first.

    Raises PromptOrTuneError if a run of the finished jobs has answers without scores.
    """
    require_scored(_runs(collected))
    tables = build_tables(config, rq, collected)
    figures = build_figures(config, rq, collected)
    findings = compute_findings(config, rq, collected)
    files: dict[str, str | bytes] = {f"{table.name}.csv": table.to_csv() for table in tables}
    files[f"{rq}-findings.csv"] = _findings_csv(findings)
    files |= figures
    parts = [
        f"# {rq.upper()}: {QUESTION_TEXTS[rq]}",
        _provenance(config, collected),
        "## Findings",
        _bullets(_findings_text(findings)) or "Nothing can be compared yet.",
        _METHOD_NOTE,
    ]
    claims = check_claims(rq, collected, findings)
    if claims:
        parts += ["## What the study claims, and what is seen here", _bullets(claims)]
    parts += [table.to_markdown() for table in tables]
    parts += [f"## {_caption(name)}\n\n![{_caption(name)}]({name})" for name in figures]
    parts.append(f"Made by:\n\n```sh\n{command}\n```")
    page = folder / f"{rq}.md"
    atomic_write(page, "\n\n".join(parts) + "\n")
    for name, content in files.items():
        atomic_write(folder / name, content)
    return [page, *(folder / name for name in files)]


def _findings_text(findings: Sequence[Finding]) -> list[str]:
    """Return the significant differences, the others in the first metric, and the number of the remaining ones."""
    significant = [finding for finding in findings if finding.is_significant]
    others = [finding for finding in findings if not finding.is_significant]
    first = [finding for finding in others if finding.metric in ("em@1", "tests")]
    lines = [finding.describe() for finding in [*significant, *first]]
    problems = min((finding.n for finding in findings), default=MIN_PROBLEMS)
    if problems < MIN_PROBLEMS:
        lines.insert(
            0,
            f"With {problems} problems intervals are too narrow and hardly anything can be shown: "
            f"take {MIN_PROBLEMS} or more.",
        )
    if len(others) > len(first):
        lines.append(f"Nor is a difference shown in {len(others) - len(first)} more comparisons, in other metrics.")
    return lines


def _provenance(config: StudyConfig, collected: CollectedRuns) -> str:
    finished = list(collected.finished.values())
    settings = [item.run.settings for item in finished]
    bases = dict.fromkeys(f"{each['base_id']} at {each['base_revision']}, {each['device']}" for each in settings)
    data = dict.fromkeys(f"{each['data']} {each['split']}, n = {each['n']}, {each['data_digest']}" for each in settings)
    decodings = dict.fromkeys(_decoding_text(item) for item in finished)
    styles: dict[str, list[str]] = {}
    for item in finished:
        known = item.run.methods.get(item.job.method, {})
        styles.setdefault(f"{known.get('style', 'unknown')} {known.get('fingerprint', '')}".strip(), []).append(
            item.job.method
        )
    layers = dict.fromkeys(
        str(item.run.scored_with["tests"]["layer"]) for item in finished if "tests" in item.run.scored_with
    )
    versions = dict(finished[0].run.provenance.get("versions", {}))
    unfinished = [f"{job.method} ({done} of {n})" for job, (done, n) in collected.unfinished.items()]
    facts = [
        *(f"Base: {each}" for each in bases),
        *(f"Data: {each}" for each in data),
        *(f"Decoding: {each}" for each in decodings),
        f"Seed: {', '.join(dict.fromkeys(str(each['seed']) for each in settings))}; embeddings: {config.embedder}",
        *(f"Prompt style: {style}: {', '.join(dict.fromkeys(names))}" for style, names in styles.items()),
        *(f"Tests ran in the sandbox's layer {layer}" for layer in layers),
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
        *(note for run in _runs(collected) if (note := engine_failures_note(run))),
        *(
            [f"Not finished, left out: {', '.join(unfinished)}; the command below asks for the rest"]
            if unfinished
            else []
        ),
    ]
    return _bullets(facts)


def _runs(collected: CollectedRuns) -> list[Run]:
    """Return the runs of the finished jobs, each once."""
    return list({id(item.run): item.run for item in collected.finished.values()}.values())


def _decoding_text(job: FinishedJob) -> str:
    values = job.run.settings["decoding"]
    sampled = (
        f", temperature {values['temperature']:g}, top-p {values['top_p']:g}" if values["mode"] == "sample" else ""
    )
    return (
        f"{job.job.data.name}: {values['mode']}, {values['candidates']} candidates{sampled}, at most "
        f"{values['max_new_tokens']} new tokens; batch {job.run.settings['batch']}"
    )


def _findings_csv(findings: Sequence[Finding]) -> str:
    head = ["model", "data", "part", "a", "b", "metric", "points", "low", "high", "n", "test", "p", "p holm", "tests"]
    rows = []
    for each in findings:
        job, found = each.a.job, each.difference
        numbers = [f"{100 * value:.4f}" for value in (found.value, found.low, found.high)]
        ps = [f"{each.p:.6g}", f"{each.corrected_p:.6g}", str(each.num_tests)]
        names = [job.model.name, job.data.name, each.difficulty, job.title, each.b.job.title, each.metric]
        rows.append([*names, *numbers, str(each.n), each.test, *ps])
    return csv_text(head, rows)


def _caption(name: str) -> str:
    key = name.removesuffix(".png").partition("-")[2]
    return _FIGURE_CAPTIONS.get(key, key.replace("tests-", "Tests passed on "))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
