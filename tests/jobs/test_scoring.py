"""Scoring on held-out rows: which rows, how far a kill sets it back, and what the manifest keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.scoring import (
    MAX_ROWS,
    HeldOutRows,
    adapter_scores,
    generate_and_score,
    load_held_out_rows,
    make_verdict,
    max_new_tokens_for,
)
from tasks.problem import Example, Problem
from tests.evaluate.fakes import FakeEngine, problems
from train.config import TrainConfig
from train.settings import make_config

ROWS = HeldOutRows("mine.csv", problems(40), [Example(f"e{at}", f"say {at}", f"print({at})") for at in range(9)])


def config(path: Path, **more: object) -> TrainConfig:
    return make_config({"adapter_name": "lora-mine", "dataset_name": str(path), **more})


def upload(path: Path, rows: int) -> Path:
    path.write_text("intent,code\n" + "".join(f"print the number {at},print({at})\n" for at in range(rows)))
    return path


def test_the_rows_are_those_that_training_holds_out(tmp_path: Path) -> None:
    rows = load_held_out_rows(config(upload(tmp_path / "mine.csv", 30)))
    assert (rows.name, len(rows.problems), len(rows.example_pool)) == ("mine.csv", 3, 27)
    assert not {problem.intent for problem in rows.problems} & {example.intent for example in rows.example_pool}
    assert all(problem.reference and problem.reference.startswith("print(") for problem in rows.problems)


def test_of_many_rows_a_seeded_sample_is_scored(tmp_path: Path) -> None:
    path = upload(tmp_path / "mine.csv", 400)
    first, again = (
        load_held_out_rows(config(path, validation_split=0.5)),
        load_held_out_rows(config(path, validation_split=0.5)),
    )
    assert len(first.problems) == MAX_ROWS
    assert first == again
    with_all = config(path, validation_split=0.25)
    assert len(load_held_out_rows(with_all).problems) == 100


def test_answers_may_be_as_long_as_the_references() -> None:
    def count(text: str) -> int:
        return len(text)

    assert max_new_tokens_for(count, [Problem("p", "x", "y" * 10)]) == 64
    assert max_new_tokens_for(count, [Problem("p", "x", "y" * 100), Problem("q", "x", None)]) == 116
    assert max_new_tokens_for(count, [Problem("p", "x", "y" * 1000)]) == 256


def test_all_three_methods_answer_greedily_and_are_scored(tmp_path: Path) -> None:
    engine, said = FakeEngine(), list[str]()
    run = generate_and_score(engine, ROWS, "lora-tiny", tmp_path / "scores.jsonl", 42, 64, said.append)
    assert list(run.methods) == ["zero-shot", "rag-8", "lora-tiny"]
    assert said[-1].startswith("120 of 120 scores")
    assert run.settings["decoding"]["mode"] == "greedy"
    verdict = make_verdict(run, "lora-tiny", "LoRA")
    assert verdict.sentence.startswith("LoRA beats zero-shot by 100 points of EM@1")
    scores = {score["metric"]: score for score in adapter_scores(run, "lora-tiny")}
    assert list(scores) == ["EM@1", "CodeBLEU", "parses"]
    assert scores["EM@1"]["value"] == 1.0
    assert scores["EM@1"]["n"] == 40
    assert scores["EM@1"]["dataset"] == "mine.csv"


def test_what_was_interrupted_goes_on_after_the_last_batch(tmp_path: Path) -> None:
    path, first, second = tmp_path / "scores.jsonl", FakeEngine(interrupt_at=4), FakeEngine()
    with pytest.raises(KeyboardInterrupt):
        generate_and_score(first, ROWS, "lora-tiny", path, 42, 64, lambda _: None)
    said: list[str] = []
    run = generate_and_score(second, ROWS, "lora-tiny", path, 42, 64, said.append)
    assert len(first.calls) + len(second.calls) == 9, "three batches a method, each asked once"
    whole = generate_and_score(FakeEngine(), ROWS, "lora-tiny", tmp_path / "whole.jsonl", 42, 64, said.append)
    assert make_verdict(run, "lora-tiny", "LoRA").compared == make_verdict(whole, "lora-tiny", "LoRA").compared


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b'{"kind": "run"}\n'])
def test_a_file_that_holds_another_run_or_none_gives_way(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(content)
    generate_and_score(FakeEngine(), ROWS, "lora-tiny", path, 42, 64, lambda _: None)
    engine = FakeEngine()
    generate_and_score(engine, ROWS, "lora-tiny", path, 42, 64, lambda _: None)
    assert engine.calls == [], "everything is there"
    generate_and_score(engine, ROWS, "lora-tiny", path, 42, 99, lambda _: None)
    assert len(engine.calls) == 9, "with other settings all of it is asked again"
