"""The plan of a question: estimates, finished results, missing adapters and their commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.study.config import StudyConfig
from evaluate.study.jobs import CollectedRuns, StudyJob, collect_jobs, read_runs, required_adapters, study_jobs
from evaluate.study.plan import StudyPlan, build_plan, expected_prompt_tokens, generation_seconds, render_plan
from evaluate.study.read_config import read_study_config, resolve_config_path
from tests.evaluate.study.conftest import add_adapter
from tests.evaluate.study.runs import made_problems, write_runs
from train.settings import parse_args


def test_total_is_the_sum_of_the_seconds_of_the_jobs(config: StudyConfig, tmp_path: Path) -> None:
    jobs = study_jobs(config, "rq1")
    plan = build_plan(config, "rq1", jobs, CollectedRuns(), None)
    base = config.models[0].architecture
    assert base is not None
    expected = sum(
        40 * generation_seconds(base, "nf4", config.hardware, 4, 3, expected_prompt_tokens("conala", job.k), 64)
        for job in jobs
    )
    assert plan.seconds_left() == pytest.approx(expected)
    assert [planned.problems for planned in plan.jobs] == [40, 40, 40]
    text = render_plan(plan, tmp_path)
    assert "icl-1,4" in text
    assert "0/80" in text
    assert "3 methods: 0 done, 3 to run." in text


def test_finished_jobs_take_no_time(config: StudyConfig, tmp_path: Path) -> None:
    jobs = study_jobs(config, "rq1")
    write_runs(config, jobs[:1], tmp_path, made_problems(40))
    found = collect_jobs(jobs, read_runs(tmp_path), tmp_path)
    plan = build_plan(config, "rq1", jobs, found, None)
    assert [planned.done for planned in plan.jobs] == [40, 0, 0]
    assert plan.jobs[0].seconds_left == 0
    assert "1 done, 2 to run" in render_plan(plan, tmp_path)


def test_measured_seconds_scale_estimates(config: StudyConfig, tmp_path: Path) -> None:
    jobs = study_jobs(config, "rq1")
    before = build_plan(config, "rq1", jobs, CollectedRuns(), None)
    write_runs(config, jobs[:1], tmp_path, made_problems(40))
    found = collect_jobs(jobs, read_runs(tmp_path), tmp_path)
    after = build_plan(config, "rq1", jobs, found, None)
    # The first method took 0.4 s a problem.
    factor = 40 * 0.4 / (before.jobs[0].seconds or 0)
    assert after.jobs[1].seconds == pytest.approx(factor * (before.jobs[1].seconds or 0))


def test_missing_adapter_has_train_command(config: StudyConfig, home: Path, tmp_path: Path) -> None:
    add_adapter(home, "lora-conala", "lora", "none")
    jobs = study_jobs(config, "rq2")
    plan = build_plan(config, "rq2", jobs, CollectedRuns(), tmp_path)
    text = render_plan(plan, tmp_path)
    assert "Available adapters: lora-conala." in text
    assert [adapter.adapter.name for adapter in plan.adapters_to_train] == [
        "qlora-4bit-conala",
        "qlora-4bit-conala-r4-a8",
    ]
    assert "python -m train --preset default --technique qlora-4bit" in text
    assert {planned.job.technique for planned in plan.blocked_jobs} == {"qlora-4bit"}
    assert all(adapter.seconds and adapter.fit for adapter in plan.adapters_to_train)
    trained, _ = parse_args(plan.adapters_to_train[1].command, "")
    assert (trained.lora_r, trained.lora_alpha, trained.quantization) == (4, 8, "nf4")
    assert (trained.base, trained.dataset_name, trained.data_dir) == ("tiny", "conala", tmp_path)


def test_train_accepts_all_commands_of_the_paper_study() -> None:
    config = read_study_config(resolve_config_path("paper"))
    plans = [build_plan(config, rq, study_jobs(config, rq), CollectedRuns(), None) for rq in config.questions]
    adapters = [adapter for plan in plans for adapter in plan.adapters_to_train]
    assert adapters
    for adapter in adapters:
        job = adapter.adapter.job
        trained, _ = parse_args(adapter.command, "")
        assert (trained.technique, trained.quantization) == (job.technique, job.quantization)
        assert (trained.preset, trained.num_train_epochs) == ("paper", 5.0)


def plan_of_largest_model(memory_gb: float) -> StudyPlan:
    config = read_study_config(resolve_config_path("paper"))
    config = replace(config, hardware=replace(config.hardware, memory_gb=memory_gb))
    jobs = [
        job
        for job in study_jobs(config, "rq2")
        if job.model.name == "CodeLlama-34B-Python" and job.data.name == "conala"
    ]
    return build_plan(config, "rq2", jobs, CollectedRuns(), None)


def test_training_that_does_not_fit_accumulates_gradients() -> None:
    (adapter,) = plan_of_largest_model(24).adapters_to_train
    assert adapter.fit is not None
    assert (adapter.fit.batch, adapter.fit.checkpointing) == (2, False)
    # The study reports 23.59 GB for this run.
    assert adapter.fit.memory == pytest.approx(23.59e9, rel=0.05)
    trained, _ = parse_args(adapter.command, "")
    assert (trained.per_device_train_batch_size, trained.effective_batch_size) == (2, 8)
    (unlimited,) = plan_of_largest_model(80).adapters_to_train
    assert unlimited.fit is not None
    assert unlimited.fit.batch == 8
    assert "--gradient-accumulation-steps" not in unlimited.command


def test_training_that_does_not_fit_row_by_row_uses_checkpointing() -> None:
    (adapter,) = plan_of_largest_model(20).adapters_to_train
    assert adapter.fit is not None
    assert adapter.fit.checkpointing
    assert adapter.fit.memory < 20e9
    assert "--gradient-checkpointing" in adapter.command


def test_training_that_fits_in_no_way_is_marked() -> None:
    plan = plan_of_largest_model(10)
    (adapter,) = plan.adapters_to_train
    assert adapter.fit is not None
    text = render_plan(plan, Path("out"))
    assert f"{adapter.fit.memory / 1e9:.1f} !" in text
    assert "more than 10 GB" in text


def test_other_adapter_of_same_name_is_not_used(config: StudyConfig, home: Path) -> None:
    add_adapter(home, "lora-conala", "lora", "none", base="other")
    add_adapter(home, "qlora-4bit-conala", "qlora-4bit", "nf4", data="mbpp")
    found = {each.name: each for each in required_adapters(study_jobs(config, "rq2"))}
    assert "trained with base other, not tiny" in found["lora-conala"].problem
    assert "trained with data mbpp, not conala" in found["qlora-4bit-conala"].problem
    plan = build_plan(config, "rq2", study_jobs(config, "rq2"), CollectedRuns(), None)
    text = render_plan(plan, Path("out"))
    assert "unusable" in text
    assert "--adapter-name lora-conala " not in text


def test_unfinished_run_is_resumed(config: StudyConfig, home: Path) -> None:
    checkpoint = home / "adapters" / ".lora-conala.run" / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint.parents[1] / "settings.json").write_text("{}")
    plan = build_plan(config, "rq2", study_jobs(config, "rq2"), CollectedRuns(), None)
    assert plan.adapters_to_train[0].command == ["--adapter-name", "lora-conala", "--resume"]


def test_unknown_sizes_have_no_estimate(config: StudyConfig) -> None:
    model = replace(config.models[0], architecture=None)
    jobs = [StudyJob(model, job.data, job.quantization) for job in study_jobs(config, "rq1")]
    plan = build_plan(config, "rq1", jobs, CollectedRuns(), None)
    assert plan.seconds_left() is None
    assert "Time to answer: ?" in render_plan(plan, Path("out"))
