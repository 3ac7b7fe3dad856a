"""Reports, tables and figures from Run files, and the command line."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from errors import PromptOrTuneError
from evaluate.results import read_run
from evaluate.stats import metric_values
from evaluate.study import schema
from evaluate.study.__main__ import main
from evaluate.study.config import StudyConfig
from evaluate.study.jobs import CollectedRuns, StudyJob, collect_jobs, read_runs, require_results, run_path, study_jobs
from evaluate.study.read_config import read_study_config
from evaluate.study.report import write_report
from evaluate.study.tables import build_tables
from tests import messages
from tests.evaluate.study.conftest import STUDY, add_adapter
from tests.evaluate.study.runs import made_problems, write_runs

pytestmark = pytest.mark.slow

FACTS = {"trainable_parameters": 1290240, "train_seconds": 812.5, "peak_memory_bytes": 2_000_000_000}


def facts(job: StudyJob) -> dict[str, Any]:
    return FACTS if job.technique else {}


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write finished runs of all four questions."""
    base = tmp_path_factory.mktemp("study")
    (base / "study.yaml").write_text(STUDY, encoding="utf-8")
    config, out = read_study_config(base / "study.yaml"), base / "out"
    every = [job for rq in ("rq1", "rq2", "rq3") for job in study_jobs(config, rq)]
    write_runs(config, list(dict.fromkeys(every)), out, made_problems(40), facts)
    write_runs(config, study_jobs(config, "rq4"), out, made_problems(40, tests=True), facts)
    return out


@pytest.fixture
def folder(finished_runs: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs, which the test may change."""
    return Path(shutil.copytree(finished_runs, tmp_path / "out"))


def collect(config: StudyConfig, rq: str, folder: Path) -> CollectedRuns:
    return collect_jobs(study_jobs(config, rq), read_runs(folder), folder)


def rows_of(config: StudyConfig, rq: str, folder: Path, name: str) -> list[dict[str, str]]:
    (table,) = [each for each in build_tables(config, rq, collect(config, rq, folder)) if each.name == name]
    return list(csv.DictReader(io.StringIO(table.to_csv())))


def test_scores_have_intervals_and_published_values(config: StudyConfig, folder: Path) -> None:
    rows = {(row["method"], row["weights"]): row for row in rows_of(config, "rq2", folder, "rq2-scores-conala")}
    lora = rows["LoRA", "none"]
    job = next(job for job in study_jobs(config, "rq2") if job.technique == "lora")
    values = metric_values(read_run(run_path(folder, job)).results(job.method), "em@1")
    assert float(lora["EM@1"]) == pytest.approx(100 * sum(values.values()) / len(values))
    assert float(lora["EM@1 low"]) < float(lora["EM@1"]) < float(lora["EM@1 high"])
    assert float(lora["parameters"]) == 1290240
    row = schema.published_score("CodeLlama-7B", "lora", "conala")
    assert row is not None
    assert (float(lora["study EM@1"]), float(lora["study EM@10"])) == (row.em1, row.em10) == (20.07, 39.31)
    assert set(rows) == {("zero-shot", "nf4"), ("zero-shot", "none"), ("LoRA", "none"), ("QLoRA-4bit", "nf4")}


def test_table_4_has_a_row_per_difficulty(config: StudyConfig, folder: Path) -> None:
    rows = rows_of(config, "rq4", folder, "rq4-tests-apps")
    tuned = {row["difficulty"]: row for row in rows if row["method"] == "QLoRA-4bit"}
    assert [int(float(row["n"])) for row in tuned.values()] == [14, 13, 13, 40]
    parts = sum(float(row["n"]) * float(row["Pass@1"]) for name, row in tuned.items() if name != "all")
    assert parts / 40 == pytest.approx(float(tuned["all"]["Pass@1"]), abs=0.001)
    assert float(tuned["introductory"]["study tests passed"]) == 20.84
    assert tuned["all"]["study tests passed"] == ""


def test_train_rows_of_apps_have_no_published_values(config: StudyConfig, folder: Path) -> None:
    for path in folder.glob("*-apps-*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace("apps-test-", "apps-train-"), encoding="utf-8")
    (table,) = [
        each for each in build_tables(config, "rq4", collect(config, "rq4", folder)) if each.name == "rq4-tests-apps"
    ]
    assert "study tests passed" not in table.to_markdown()
    assert "never compare" in table.note


def test_cost_table_has_the_cost_per_solved_problem(config: StudyConfig, folder: Path) -> None:
    rows = {row["method"]: row for row in rows_of(config, "rq3", folder, "rq3-cost-conala")}
    icl_row = rows["ICL (4)"]
    solved = float(icl_row["solved"])
    assert solved > 0
    # 40 problems of 0.8 s, 180 tokens read and 3 candidates of 5 tokens written.
    assert float(icl_row["s an exact match"]) == pytest.approx(40 * 0.8 / solved, rel=1e-4)
    assert float(icl_row["tokens an exact match"]) == pytest.approx(40 * (180 + 15) / solved, rel=1e-4)
    assert float(rows["LoRA"]["training s"]) == 812.5
    assert icl_row["training s"] == ""


def test_rank_alpha_table_has_default_pair(config: StudyConfig, folder: Path) -> None:
    rows = rows_of(config, "rq2", folder, "rq2-rank-alpha-conala")
    assert [(float(row["rank"]), float(row["alpha"])) for row in rows] == [(4, 8), (16, 32)]


def test_memory_table_has_published_and_measured_rows(config: StudyConfig, folder: Path) -> None:
    rows = {(row["model"], row["technique"]): row for row in rows_of(config, "rq2", folder, "rq2-memory")}
    assert float(rows["CodeLlama-7B", "LoRA"]["study"]) == 19.06
    assert float(rows["CodeLlama-7B", "LoRA"]["estimated here"]) == pytest.approx(19.8, abs=0.1)
    assert float(rows["tiny", "LoRA"]["measured here"]) == 2.0
    assert len([row for row in rows.values() if row["study"]]) == 10


@pytest.mark.parametrize(
    ("rq", "names"),
    [
        ("rq1", {"rq1-figure3.png"}),
        ("rq2", {"rq2-figure1.png", "rq2-figure4.png", "rq2-figure5.png", "rq2-rank-alpha.png"}),
        ("rq3", {"rq3-figure6.png", "rq3-figure7.png", "rq3-cost.png"}),
        ("rq4", {"rq4-tests-apps.png"}),
    ],
)
def test_report_shows_all_figures(config: StudyConfig, folder: Path, rq: str, names: set[str]) -> None:
    pages = write_report(config, rq, collect(config, rq, folder), folder, "the command")
    assert {path.name for path in pages if path.suffix == ".png"} == names
    text = pages[0].read_text(encoding="utf-8")
    for name in names:
        assert f"]({name})" in text
        with Image.open(folder / name) as image:
            assert min(image.size) >= 500
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or ()}
        # Measured values are drawn in the first colour of a figure, or in the colour of RAG.
        assert colours & {(0x00, 0x72, 0xB2), (0x56, 0xB4, 0xE9)}
    for words in ("## Findings", "95 % interval", "the command", "Seed: 42", "sha256:0"):
        assert words in text


def test_reports_are_reproducible(config: StudyConfig, folder: Path) -> None:
    found = collect(config, "rq1", folder)
    first = [path.read_bytes() for path in write_report(config, "rq1", found, folder, "c")]
    assert [path.read_bytes() for path in write_report(config, "rq1", found, folder, "c")] == first


def test_unfinished_method_is_left_out(config: StudyConfig, folder: Path) -> None:
    jobs = study_jobs(config, "rq1")
    path = run_path(folder, jobs[0])
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(index for index, line in enumerate(lines) if '"kind": "result"' in line and '"icl-4"' in line)
    path.write_text("".join(line for index, line in enumerate(lines) if index != last), encoding="utf-8")
    found = collect_jobs(jobs, read_runs(folder), folder)
    assert list(found.unfinished.values()) == [(39, 40)]
    text = write_report(config, "rq1", found, folder, "c")[0].read_text(encoding="utf-8")
    assert "Not finished, left out: icl-4 (39 of 40)" in text


def test_run_files_are_recognised_by_settings(config: StudyConfig, folder: Path) -> None:
    jobs = study_jobs(config, "rq1")
    path = run_path(folder, jobs[0])
    path.rename(folder / "mine.jsonl")
    path.with_name(f"{path.stem}.scores.jsonl").rename(folder / "mine.scores.jsonl")
    assert list(collect_jobs(jobs, read_runs(folder), folder).finished) == jobs
    other = [replace(job, data=replace(job.data, problems=20)) for job in jobs]
    assert not collect_jobs(other, read_runs(folder), folder).finished


def test_training_facts_come_from_adapter_with_same_weights(config: StudyConfig, tmp_path: Path, home: Path) -> None:
    add_adapter(home, "lora-conala", "lora", "none")
    job = next(job for job in study_jobs(config, "rq2") if job.technique == "lora")
    for digest, seconds in (("sha256:w", 60.5), ("sha256:other", None)):
        out = tmp_path / digest.partition(":")[2]
        write_runs(config, [job], out, made_problems(40))
        runs = read_runs(out)
        runs[0].update_method(job.method, {"adapter_digest": digest})
        assert collect_jobs([job], runs, out).finished[job].training_facts.get("train_seconds") == seconds


def test_report_without_finished_results_is_an_error(config: StudyConfig, tmp_path: Path) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.NO_FINISHED_RESULTS):
        require_results(collect_jobs(study_jobs(config, "rq1"), [], tmp_path), "rq1", tmp_path)


class TestCommand:
    def write(self, tmp_path: Path) -> str:
        path = tmp_path / "study.yaml"
        path.write_text(STUDY, encoding="utf-8")
        return str(path)

    def test_tables_without_model(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["rq3", self.write(tmp_path), "--tables", "--output", str(folder)]) == 0
        assert "rq3.md" in capsys.readouterr().out
        assert "--tables" not in (folder / "rq3.md").read_text(encoding="utf-8")

    def test_missing_scores_are_computed(self, folder: Path, tmp_path: Path) -> None:
        for path in folder.glob("*-conala-*.scores.jsonl"):
            path.unlink()
        assert main(["rq1", self.write(tmp_path), "--tables", "--output", str(folder)]) == 0
        assert "EM@1" in (folder / "rq1.md").read_text(encoding="utf-8")

    def test_plan_writes_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["rq2", self.write(tmp_path), "--plan", "--output", str(tmp_path / "new")]) == 0
        out = capsys.readouterr().out
        assert "python -m train --preset default --technique lora" in out
        assert not (tmp_path / "new").exists()

    def train(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *ends: int | None) -> tuple[int, list[list[str]]]:
        """Return the status of `--train` and the started commands. `ends` are exit statuses; None is a Ctrl-C."""
        started: list[list[str]] = []
        statuses = list(ends)

        class Process:
            def __init__(self, command: list[str]) -> None:
                started.append(command[1:])

            def wait(self) -> int:
                end = statuses.pop(0)
                if end is None:
                    raise KeyboardInterrupt
                return end

        monkeypatch.setattr(subprocess, "Popen", Process)
        return main(["rq2", self.write(tmp_path), "--train", "--output", str(tmp_path / "new")]), started

    def test_train_stops_at_first_failed_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, started = self.train(tmp_path, monkeypatch, 0, 3)
        assert status == 2
        assert [command[:2] for command in started] == [["-m", "train"]] * 2
        assert started[0][8:10] == ["--adapter-name", "lora-conala"]
        assert "Training qlora-4bit-conala ended with status 3" in capsys.readouterr().err

    def test_ctrl_c_waits_for_the_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, started = self.train(tmp_path, monkeypatch, None, 130)
        assert (status, len(started)) == (130, 1)
        assert "To go on: python -m evaluate.study rq2" in capsys.readouterr().err

    def test_missing_question(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        file = tmp_path / "small.yaml"
        file.write_text(STUDY.replace("rq4:", "# rq4:"), encoding="utf-8")
        assert main(["rq4", str(file), "--plan"]) == 2
        assert "small.yaml has no section rq4" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["rq1", "nothing.yaml", "--plan"], "There is no file nothing.yaml"),
            (["rq1", "--limit", "0", "--plan"], "A limit of 0 problems asks for none"),
            (["rq1", "--tables", "--output", "nowhere"], "nowhere holds no finished results of rq1"),
        ],
    )
    def test_errors(
        self,
        arguments: list[str],
        expected: str,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
