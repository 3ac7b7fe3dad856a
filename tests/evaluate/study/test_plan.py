from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.study.cells import CollectedRuns, collect_jobs, read_runs
from evaluate.study.config import StudyConfig
from evaluate.study.jobs import StudyJob, required_adapters, study_jobs
from evaluate.study.plan import build_plan, expected_prompt_tokens, generation_seconds, render_plan
from evaluate.study.read_config import read_study_config, resolve_config_path
from tests.evaluate.study.conftest import add_adapter
from tests.evaluate.study.runs import made_problems, write_runs
from train.settings import parse_args as read_train


def test_a_plan_adds_up(config: StudyConfig, tmp_path: Path) -> None:
    wanted = study_jobs(config, "rq1")
    plan = build_plan(config, "rq1", wanted, CollectedRuns(), None)
    base = config.models[0].architecture
    assert base is not None
    expected = sum(
        40 * generation_seconds(base, "nf4", config.hardware, 4, 3, expected_prompt_tokens("conala", job.k), 64)
        for job in wanted
    )
    assert plan.seconds_left() == pytest.approx(expected)
    assert [line.problems for line in plan.jobs] == [40, 40, 40]
    text = render_plan(plan, tmp_path)
    assert "icl-1,4" in text
    assert "0/80" in text
    assert "3 methods: 0 done, 3 to run." in text


def test_what_is_done_takes_no_time(config: StudyConfig, tmp_path: Path) -> None:
    wanted = study_jobs(config, "rq1")
    write_runs(config, wanted[:1], tmp_path, made_problems(40))
    found = collect_jobs(wanted, read_runs(tmp_path), tmp_path)
    plan = build_plan(config, "rq1", wanted, found, None)
    assert [line.done for line in plan.jobs] == [40, 0, 0]
    assert plan.jobs[0].seconds_left == 0
    assert "1 done, 2 to run" in render_plan(plan, tmp_path)


def test_measured_seconds_scale_what_is_left(config: StudyConfig, tmp_path: Path) -> None:
    wanted = study_jobs(config, "rq1")
    before = build_plan(config, "rq1", wanted, CollectedRuns(), None)
    write_runs(config, wanted[:1], tmp_path, made_problems(40))
    found = collect_jobs(wanted, read_runs(tmp_path), tmp_path)
    after = build_plan(config, "rq1", wanted, found, None)
    # The first method took 0.4 s a problem.
    factor = 40 * 0.4 / (before.jobs[0].seconds or 0)
    assert after.jobs[1].seconds == pytest.approx(factor * (before.jobs[1].seconds or 0))


def test_a_missing_adapter_has_the_command_that_trains_it(config: StudyConfig, home: Path, tmp_path: Path) -> None:
    add_adapter(home, "lora-conala", "lora", "none")
    wanted = study_jobs(config, "rq2")
    plan = build_plan(config, "rq2", wanted, CollectedRuns(), tmp_path)
    text = render_plan(plan, tmp_path)
    assert "Adapters that are there: lora-conala." in text
    assert [lesson.adapter.name for lesson in plan.adapters_to_train] == [
        "qlora-4bit-conala",
        "qlora-4bit-conala-r4-a8",
    ]
    assert "python -m train --preset default --technique qlora-4bit" in text
    assert {line.job.technique for line in plan.blocked_jobs} == {"qlora-4bit"}
    assert all(lesson.seconds and lesson.memory for lesson in plan.adapters_to_train)
    trained, _ = read_train(plan.adapters_to_train[1].command, "")
    assert (trained.lora_r, trained.lora_alpha, trained.quantization) == (4, 8, "nf4")
    assert (trained.base, trained.dataset_name, trained.data_dir) == ("tiny", "conala", tmp_path)


def test_every_command_of_the_papers_grid_is_one_that_train_takes() -> None:
    config = read_study_config(resolve_config_path("paper"))
    for rq in config.questions:
        for lesson in build_plan(config, rq, study_jobs(config, rq), CollectedRuns(), None).adapters_to_train:
            job = lesson.adapter.job
            trained, _ = read_train(lesson.command, "")
            assert (trained.technique, trained.quantization) == (job.technique, job.quantization)
            assert (trained.preset, trained.num_train_epochs) == ("paper", 5.0)


def test_what_does_not_fit_is_marked_and_recomputes_its_activations() -> None:
    config = read_study_config(resolve_config_path("paper"))
    wanted = [
        job
        for job in study_jobs(config, "rq2")
        if job.model.name == "CodeLlama-34B-Python" and job.data.name == "conala"
    ]
    plan = build_plan(config, "rq2", wanted, CollectedRuns(), None)
    (lesson,) = plan.adapters_to_train
    assert lesson.checkpointing
    assert "--gradient-checkpointing" in lesson.command
    assert (lesson.memory or 0) < 24e9
    small = replace(config, hardware=replace(config.hardware, memory_gb=10))
    text = render_plan(build_plan(small, "rq2", wanted, CollectedRuns(), None), Path("out"))
    assert "18.2 !" in text or "18.3 !" in text or "18.4 !" in text or "18.5 !" in text
    assert "more than 10 GB" in text


def test_a_folder_of_that_name_that_is_another_adapter_is_said_and_not_used(config: StudyConfig, home: Path) -> None:
    add_adapter(home, "lora-conala", "lora", "none", base="other")
    add_adapter(home, "qlora-4bit-conala", "qlora-4bit", "nf4", data="mbpp")
    found = {each.name: each for each in required_adapters(study_jobs(config, "rq2"))}
    assert "trained with base other, not tiny" in found["lora-conala"].problem
    assert "trained with data mbpp, not conala" in found["qlora-4bit-conala"].problem
    plan = build_plan(config, "rq2", study_jobs(config, "rq2"), CollectedRuns(), None)
    text = render_plan(plan, Path("out"))
    assert "no use" in text
    assert "--adapter-name lora-conala " not in text


def test_an_unfinished_run_is_gone_on_with(config: StudyConfig, home: Path) -> None:
    checkpoint = home / "adapters" / ".lora-conala.run" / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint.parents[1] / "settings.json").write_text("{}")
    plan = build_plan(config, "rq2", study_jobs(config, "rq2"), CollectedRuns(), None)
    assert plan.adapters_to_train[0].command == ["--adapter-name", "lora-conala", "--resume"]


def test_without_sizes_there_is_no_estimate(config: StudyConfig) -> None:
    model = replace(config.models[0], architecture=None)
    wanted = [StudyJob(model, job.data, job.quantization) for job in study_jobs(config, "rq1")]
    plan = build_plan(config, "rq1", wanted, CollectedRuns(), None)
    assert plan.seconds_left() is None
    assert "Time to answer: ?" in render_plan(plan, Path("out"))
