"""Result and report of an advice: recommendation, families, comparisons, answers, commands, HTML."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from advise.folder import AdviseOptions, Folds
from advise.report import render_body, render_page
from advise.result import FAMILY_LABELS, build_result, chosen_family
from serve.options import ModelOptions
from tests.advise.results import FINALISTS, OPTIONS, TRIAL, answers_of, result_of, right
from train.settings import parse_args

ADAPTER_WINS = right(adapter=30, rag=4)
ADDED: dict[str, Any] = {"adapter": {"family": "adapter", "adapter": "mine-advised", "settings": TRIAL.settings}}


def test_family_that_beats_zero_shot_is_recommended_with_its_adapter() -> None:
    result = result_of(ADAPTER_WINS, **ADDED)
    assert result["recommendation"]["family"] == "adapter"
    assert result["recommendation"]["method"] == result["recommendation"]["adapter"] == "mine-advised"
    assert "adapter is right on 75.0 % of 40 rows" in result["recommendation"]["sentence"]


def test_nothing_is_recommended_without_a_difference_and_the_power_says_what_n_shows() -> None:
    result = result_of(right(adapter=2, rag=2), n=40)
    assert result["recommendation"] == {
        "sentence": result["recommendation"]["sentence"],
        "method": None,
        "family": None,
        "adapter": None,
    }
    assert result["recommendation"]["sentence"].startswith("Nothing is recommended")
    assert result["power"]["comparisons"] == 10
    assert 0.1 < result["power"]["detectable_difference"] < 0.5
    assert result["commands"]["use"] == []


def test_families_have_scores_intervals_and_costs() -> None:
    rows = {row["family"]: row for row in result_of(ADAPTER_WINS)["families"]}
    assert list(rows) == list(FAMILY_LABELS)
    assert rows["adapter"]["value"] == 0.75
    assert 0.55 < rows["adapter"]["low"] < 0.75 < rows["adapter"]["high"] < 0.9
    assert rows["adapter"]["train_seconds"] == 120.0
    assert rows["adapter"]["adapter_bytes"] == 5_000_000
    assert rows["rag"]["train_seconds"] is None
    assert rows["rag"]["prompt_tokens"] == 100
    assert rows["adapter with examples"]["method"].endswith("3 epochs + rag-4")


def test_cross_fitted_family_has_the_choice_of_most_folds() -> None:
    longer = replace(TRIAL, settings=TRIAL.settings | {"num_train_epochs": 12}, share=0.5)
    found = [replace(answers_of(ADAPTER_WINS), trials=[trial]) for trial in (TRIAL, longer, longer)]
    folds = Folds("mine", [each.fold for each in found], "80 rows to learn from.")
    result = build_result(
        OPTIONS, ModelOptions("embedded"), folds, "em@1", found, finished=True, started="", seconds=1.0, steps={}
    )
    rows = {row["family"]: row for row in result["families"]}
    assert rows["adapter"]["method"] == "qlora-4bit, rank 16, learning rate 0.001, 12 epochs"
    assert rows["adapter"]["note"] == "the choice of 2 of 3 folds; each chose anew"
    assert rows["rag"]["note"] == ""


def test_comparisons_are_of_all_pairs_with_corrected_p() -> None:
    pairs = result_of(ADAPTER_WINS)["comparisons"]
    assert len(pairs) == 10
    assert all(pair["corrected"] >= pair["p"] for pair in pairs)


def test_answers_that_the_best_family_misses_come_first_with_a_kind() -> None:
    rows = result_of(ADAPTER_WINS)["answers"]
    assert len(rows) == 40
    assert [row["id"] for row in rows[:2]] == ["row-30", "row-31"]
    first = next(answer for answer in rows[0]["answers"] if answer["label"] == "adapter")
    assert (first["right"], first["kind"], first["detail"]) == (False, "calls other functions", "without kit.where")


def test_commands_repeat_the_advice_and_use_the_winner() -> None:
    commands = result_of(ADAPTER_WINS, **ADDED)["commands"]
    assert commands["repeat"][0] == "python -m advise mine --minutes 15 --seed 42"
    assert "--technique qlora-4bit --lora-r 16" in commands["repeat"][1]
    assert "--max-length 512 --seed 42 --lora-alpha 32" in commands["repeat"][1]
    assert commands["use"][0] == "python -m serve   # then ask the model mine-advised"


def test_training_that_ended_early_is_called_so() -> None:
    assert replace(TRIAL, share=0.6).describe().endswith("3 epochs (ended after 60 % of its steps)")
    assert TRIAL.describe().endswith("3 epochs")


def test_commands_for_another_base_and_a_data_set_of_files_are_complete() -> None:
    options = AdviseOptions("conala", "mine-advised", 60, 7, memory_gb=4)
    model = ModelOptions("someone/model", quantization="int8")
    commands = result_of(ADAPTER_WINS, options=options, model=model, **ADDED)["commands"]
    assert commands["repeat"][0] == (
        "python -m advise conala --minutes 60 --seed 7 --base someone/model --quantization int8 --data-dir DATA_DIR "
        "--memory-gb 4"
    )
    trained = commands["repeat"][1].split()
    assert trained[3:11] == [
        "--dataset-name", "conala", "--adapter-name", "mine-advised", "--model-name-or-path", "someone/model",
        "--data-dir", "DATA_DIR",
    ]  # fmt: skip
    config, _ = parse_args(trained[3:], "")
    assert (config.base, config.technique, config.lora_r) == ("someone/model", "qlora-4bit", 16)
    assert commands["use"][1].startswith("python app.py --base someone/model --quantization int8 --data-dir DATA_DIR")


def test_winner_that_was_not_added_is_trained_by_a_command() -> None:
    result = result_of(ADAPTER_WINS, adapter={"family": "adapter", "adapter": None, "settings": TRIAL.settings})
    assert result["recommendation"]["adapter"] is None
    assert result["commands"]["use"][0].startswith("python -m train --dataset-name mine --adapter-name mine-advised")


def test_retrieval_that_wins_is_served_with_the_rows_as_pool() -> None:
    result = result_of(right(rag=30))
    assert result["recommendation"]["method"] == FINALISTS["rag"]
    assert result["commands"]["use"][0] == "python -m serve --pool mine   # then ask the model rag-4"


def test_best_family_is_the_recommended_one_or_that_with_the_highest_score() -> None:
    families = ("adapter", "adapter with examples")
    assert chosen_family(OPTIONS, "em@1", [answers_of(ADAPTER_WINS)], families) == "adapter"
    weak = right(adapter=1, adapter_with_examples=3)
    assert chosen_family(OPTIONS, "em@1", [answers_of(weak)], families) == "adapter with examples"


def test_result_is_json() -> None:
    result = result_of(ADAPTER_WINS, **ADDED)
    assert json.loads(json.dumps(result)) == result


def test_report_states_the_recommendation_and_escapes_texts_of_rows() -> None:
    result = result_of(ADAPTER_WINS)
    result["answers"][0]["intent"] = "<script>alert(1)</script>"
    body = render_body(result)
    assert "adapter is right on 75.0 % of 40 rows" in body
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "<script>" not in body
    page = render_page(result)
    assert page.startswith("<!doctype html>")
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("value", [0.3, None])
def test_report_has_the_curve_only_where_it_was_measured(value: float | None) -> None:
    points = [{"rows": rows, "value": 0.3, "low": 0.2, "high": 0.4, "n": 40} for rows in (20, 40, 80)]
    curve = {"label": "adapter", "points": points, "sentence": "More rows help."} if value else None
    assert ("Would more rows help?" in render_body(result_of(ADAPTER_WINS, curve=curve))) == (value is not None)
