"""Findings and claims from generated runs, compared with values computed from their definitions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import binomtest

from evaluate.stats import Interval, holm_correction, metric_values
from evaluate.study.config import StudyConfig
from evaluate.study.findings import Finding, best_job, check_claims, compute_findings
from evaluate.study.jobs import CollectedRuns, StudyJob, collect_jobs, read_runs, study_jobs
from tests.evaluate.study.runs import made_problems, write_runs

pytestmark = pytest.mark.slow


def make_runs(
    config: StudyConfig, rq: str, folder: Path, count: int = 40, chances: dict[str, float] | None = None
) -> CollectedRuns:
    jobs = [replace(job, data=replace(job.data, problems=count)) for job in study_jobs(config, rq)]
    known = {"zero-shot": 0.0, "icl": 0.2, "rag": 0.3, "lora": 0.9, "qlora-4bit": 0.85, **(chances or {})}

    def right(job: StudyJob) -> float:
        return known.get(job.kind, 0.5)

    write_runs(config, jobs, folder, made_problems(count, tests=rq == "rq4"), right=right)
    return collect_jobs(jobs, read_runs(folder), folder)


def pick(findings: list[Finding], roles: tuple[str, str], metric: str = "em@1", part: str = "") -> Finding:
    (found,) = [each for each in findings if (each.roles, each.metric, each.difficulty) == (roles, metric, part)]
    return found


def test_significant_finding_has_numbers(config: StudyConfig, tmp_path: Path) -> None:
    findings = compute_findings(config, "rq3", make_runs(config, "rq3", tmp_path, 100))
    found = pick(findings, ("lora", "icl"))
    left, right = (metric_values(item.results, "em@1") for item in (found.a, found.b))
    mean = sum(left[name] - right[name] for name in left) / 100
    only = [sum(one[name] > other[name] for name in left) for one, other in ((left, right), (right, left))]
    assert found.difference.value == pytest.approx(mean)
    assert found.p == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert found.is_significant
    pattern = (
        rf"LoRA on 16-bit weights over ICL \(\d\) on 4-bit weights \(tiny, conala\): \+{100 * mean:.1f} points EM@1 "
        rf"\(95 % interval \+[\d.]+ to \+[\d.]+\), p < 0\.001 \(McNemar, Holm over {len(findings)}\), n = 100\."
    )
    assert re.fullmatch(pattern, found.describe())


def test_p_values_of_all_findings_are_corrected_together(config: StudyConfig, tmp_path: Path) -> None:
    findings = compute_findings(config, "rq2", make_runs(config, "rq2", tmp_path))
    assert len(findings) > 10
    assert [each.corrected_p for each in findings] == holm_correction([each.p for each in findings])
    assert {each.num_tests for each in findings} == {len(findings)}


def test_finding_without_a_significant_difference_states_it(config: StudyConfig, tmp_path: Path) -> None:
    chances = dict.fromkeys(["zero-shot", "icl", "rag", "lora", "qlora-4bit", "lora+rag", "qlora-4bit+rag"], 0.3)
    findings = compute_findings(config, "rq3", make_runs(config, "rq3", tmp_path, 30, chances))
    assert not any(each.is_significant for each in findings)
    assert all(each.describe().startswith("No difference shown between ") for each in findings)


def test_better_method_comes_first(config: StudyConfig, tmp_path: Path) -> None:
    found = pick(compute_findings(config, "rq3", make_runs(config, "rq3", tmp_path, 100)), ("lora", "icl"))
    reversed_ = replace(
        found,
        a=found.b,
        b=found.a,
        difference=Interval(*(-each for each in (found.difference.value, found.difference.high, found.difference.low))),
    )
    assert reversed_.describe() == found.describe()


def test_tests_are_compared_by_difficulty(config: StudyConfig, tmp_path: Path) -> None:
    findings = compute_findings(config, "rq4", make_runs(config, "rq4", tmp_path, 42))
    parts = {each.difficulty: each.n for each in findings if each.metric == "tests"}
    assert parts == {"": 42, "introductory": 14, "interview": 14, "competition": 14}
    assert {each.metric for each in findings} == {"tests", "pass@1", "pass@5"}
    assert pick(findings, ("qlora-4bit", "zero-shot"), "tests").difference.value == pytest.approx(
        pick(findings, ("qlora-4bit", "zero-shot"), "pass@1").difference.value / 2
    )


def test_best_job_has_highest_em_and_fewest_examples(config: StudyConfig, tmp_path: Path) -> None:
    found = make_runs(config, "rq1", tmp_path, 30, {"icl": 1.0})
    icl_jobs = found.find(kind="icl")
    assert [item.job.k for item in icl_jobs] == [1, 4]
    assert best_job(icl_jobs) is icl_jobs[0]
    assert best_job([]) is None


def test_claim_that_holds_is_reported_as_seen(config: StudyConfig, tmp_path: Path) -> None:
    found = make_runs(config, "rq3", tmp_path)
    lines = check_claims("rq3", found, compute_findings(config, "rq3", found))
    assert any(
        line.startswith("LoRA beats ICL (the study, CodeLlama-7B: 39.31 against 29.83): **seen here too**")
        for line in lines
    )
    assert any(
        line.startswith("RAG beats ICL on CoNaLa (the study, CodeLlama-7B: 35.17 against 29.83): ") for line in lines
    )


def test_claim_whose_opposite_holds_is_reported(config: StudyConfig, tmp_path: Path) -> None:
    found = make_runs(config, "rq3", tmp_path, 40, {"icl": 1.0, "rag": 0.0, "lora": 0.1})
    lines = check_claims("rq3", found, compute_findings(config, "rq3", found))
    assert any(line.startswith("LoRA beats ICL") and "**the opposite is seen here**" in line for line in lines)


def test_claim_of_no_loss_is_checked(config: StudyConfig, tmp_path: Path) -> None:
    equal = make_runs(config, "rq2", tmp_path / "equal")
    assert any(
        "Fewer bits (4)" in line and "**no loss is shown here**" in line
        for line in check_claims("rq2", equal, compute_findings(config, "rq2", equal))
    )
    lost = make_runs(config, "rq2", tmp_path / "lost", 40, {"qlora-4bit": 0.0})
    assert any(
        "Fewer bits (4)" in line and "**a loss is seen here**" in line
        for line in check_claims("rq2", lost, compute_findings(config, "rq2", lost))
    )


def test_claim_about_more_examples_is_checked(config: StudyConfig, tmp_path: Path) -> None:
    jobs = study_jobs(config, "rq1")
    write_runs(config, jobs, tmp_path, made_problems(40), right=lambda job: {1: 0.9, 4: 0.2}.get(job.k, 0.0))
    found = collect_jobs(jobs, read_runs(tmp_path), tmp_path)
    lines = check_claims("rq1", found, compute_findings(config, "rq1", found))
    assert any(
        "More examples are not always better: **seen here too" in line and "Of 1, 4 examples, 1 did best" in line
        for line in lines
    )


def test_equal_scores_have_no_interval(config: StudyConfig, tmp_path: Path) -> None:
    chances = dict.fromkeys(["zero-shot", "icl"], 0.0)
    findings = compute_findings(config, "rq1", make_runs(config, "rq1", tmp_path, 30, chances))
    assert "no problem differs in EM@1, p = 1.000" in pick(findings, ("icl", "zero-shot")).describe()
