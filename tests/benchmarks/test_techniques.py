"""Tests of benchmarks/techniques.py: the table from manifests and runs, recorded scores, and resuming."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from adapters.manifest import Manifest
from benchmarks.techniques import TechniqueResult, TechniqueRun, main, manifest_scores, render_markdown
from evaluate.results import Result, Run
from evaluate.scoring import score_candidates
from tasks.prompt import STYLES
from train.save import record_scores

REFERENCE = "x = y"


def _run(method: str, num_correct: int, quantization: str = "nf4") -> Run:
    settings = {
        "base_id": "tiny", "base_revision": "abc", "quantization": quantization, "device": "cpu", "data": "conala",
        "split": "test", "n": 20, "data_digest": "sha256:d", "batch": 8, "seed": 42,
        "decoding": {"mode": "beam", "candidates": 10, "max_new_tokens": 64},
    }  # fmt: skip
    problems = [{"id": f"p{index}", "intent": "do", "reference": REFERENCE} for index in range(20)]
    run = Run(Path(f"{method}.json"), settings, problems, {"versions": {"torch": "2"}})
    run.methods[method] = {}
    run.add(
        Result(method, f"p{index}", score_candidates([REFERENCE if index < num_correct else "print(1)"], REFERENCE, 10))
        for index in range(20)
    )
    return run


def _manifest(technique: str) -> Manifest:
    style = STYLES["plain"]
    config = {"num_train_epochs": 2.0, "trainable_parameters": 1843200, "peak_memory_bytes": 1_500_000_000,
              "train_seconds": 601.2}  # fmt: skip
    return Manifest(
        f"{technique}-conala", technique, "tiny", "abc", "none" if technique == "lora" else "nf4", style.name,
        style.fingerprint, "conala", "sha256:d", 42, "cc-by-sa-4.0", config=config,
        scores=({"metric": "validation loss", "value": 1.2, "n": 9, "dataset": "conala"},),
    )  # fmt: skip


def _results() -> list[TechniqueResult]:
    return [
        TechniqueResult("zero-shot", None, _run("zero-shot", 0)),
        TechniqueResult("lora", _manifest("lora"), _run("lora-conala", 4, "none")),
        TechniqueResult("ia3", _manifest("ia3"), _run("ia3-conala", 14)),
    ]


def test_page_contains_scores_and_comparisons() -> None:
    page = render_markdown(_results(), "python -m benchmarks.techniques --output x")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    ia3_row = next(row for row in rows if row[0] == "IA3" and len(row) == 11)
    assert ia3_row[:7] == ["IA3", "2", "nf4", "nf4", "1,843,200", "1.50 GB", "601"]
    assert ia3_row[7].startswith("70.0 [")
    assert next(row for row in rows if row[0] == "zero-shot")[1:4] == ["-", "-", "nf4"]
    pair = next(row for row in rows if row[:3] == ["IA3 (nf4)", "LoRA (none)", "EM@1"])
    assert pair[3].startswith("+50.0 ["), "IA3 solved 14 of 20, LoRA 4"
    assert "python -m benchmarks.techniques --output x" in page


def test_scores_are_written_to_manifest_and_card_once(tmp_path: Path) -> None:
    folder = tmp_path / "ia3-conala"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    _manifest("ia3").write(folder)
    result = _results()[2]
    record_scores(folder, manifest_scores(result))
    record_scores(folder, manifest_scores(result))
    scores = Manifest.read(folder).scores
    assert [score["metric"] for score in scores] == ["validation loss", "EM@1", "EM@10", "CodeBLEU", "parses"]
    assert scores[1]["value"] == pytest.approx(0.7)
    assert (scores[1]["n"], scores[1]["split"], scores[1]["quantization"]) == (20, "test", "nf4")
    card = (folder / "README.md").read_text()
    assert "model-index" in card
    assert "0.7" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ia3-conala"], "temporary files are removed"


def test_unfinished_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))
    run = TechniqueRun("lora", "conala", "2")
    checkpoint = tmp_path / "adapters" / ".lora-conala.run" / "checkpoints" / "checkpoint-7"
    options = Namespace(base="embedded", data_dir=None)
    assert "--resume" not in run.train_arguments(options)
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    assert run.train_arguments(options)[-1] == "--resume"


def test_table_without_finished_runs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))
    assert main(["--table", "--output", str(tmp_path / "out")]) == 2
    assert "Nothing is finished yet" in capsys.readouterr().err
