"""Jobs of the built-in studies, and their run files."""

from __future__ import annotations

from pathlib import Path

from evaluate.study.jobs import limit_problems, run_path, study_jobs
from evaluate.study.read_config import read_study_config, resolve_config_path

DEFAULT = read_study_config(resolve_config_path("default"))
PAPER = read_study_config(resolve_config_path("paper"))


def methods(rq: str) -> list[str]:
    return [job.method for job in study_jobs(DEFAULT, rq) if job.data.name == "conala"]


def test_rq1_has_zero_shot_and_icl() -> None:
    assert methods("rq1") == ["zero-shot", "icl-1", "icl-2", "icl-4", "icl-8"]


def test_rq2_has_untuned_base_in_each_quantization() -> None:
    found = study_jobs(DEFAULT, "rq2")
    untuned = {job.quantization for job in found if job.method == "zero-shot"}
    assert untuned == {job.quantization for job in found if job.technique}
    assert {job.pair for job in found if job.technique == "qlora-4bit"} == {None, (4, 8), (64, 128), (16, 16), (16, 64)}
    assert "qlora-4bit-conala-r4-a8" in methods("rq2")


def test_rq3_combines_adapters_with_examples() -> None:
    found = methods("rq3")
    assert {"icl-8", "rag-8", "lora-conala", "lora-conala+icl-8", "lora-conala+rag-8"} <= set(found)
    titles = {job.method: job.title for job in study_jobs(DEFAULT, "rq3")}
    assert titles["lora-conala+rag-8"] == "LoRA + RAG (8)"
    assert titles["icl-1"] == "ICL (1)"


def test_rq4_uses_known_adapter_names() -> None:
    found = {(job.data.name, job.method) for job in study_jobs(DEFAULT, "rq4")}
    assert found == {
        ("starter", "zero-shot"),
        ("starter", "lora-starter"),
        ("apps", "zero-shot"),
        ("apps", "qlora-4bit-mbpp"),
    }


def test_questions_share_run_files() -> None:
    folder = Path("out")
    first = {(run_path(folder, job), job.method) for job in study_jobs(DEFAULT, "rq1")}
    third = {(run_path(folder, job), job.method) for job in study_jobs(DEFAULT, "rq3")}
    assert first < third


def test_run_files_differ_by_settings() -> None:
    every = [job for rq in PAPER.questions for job in study_jobs(PAPER, rq)]
    keys: dict[Path, tuple[object, ...]] = {}
    for job in every:
        key = (job.base_id, job.quantization, job.data)
        assert keys.setdefault(run_path(Path("out"), job), key) == key
    assert len(keys) == len(set(keys.values()))


def test_fully_tuned_model_is_a_base() -> None:
    full = next(job for job in study_jobs(PAPER, "rq2") if job.technique == "full")
    assert full.method == "zero-shot"
    assert full.base_id == full.adapter == "full-conala-codet5-220m"
    assert Path(full.base).name == full.adapter


def test_limit_does_not_increase_the_number_of_problems() -> None:
    assert {job.data.problems for job in limit_problems(study_jobs(DEFAULT, "rq1"), 7)} == {7}
    assert {job.data.problems for job in limit_problems(study_jobs(DEFAULT, "rq1"), 700)} == {60}
    assert limit_problems(study_jobs(DEFAULT, "rq1"), None) == study_jobs(DEFAULT, "rq1")
