"""Reports as CSV, JSON and a figure."""

from __future__ import annotations

import csv
import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errors import PromptOrTuneError
from evaluate.report import build_figure, json_report, metrics_csv, plot_report_png, problems_csv, text_report
from evaluate.results import Result, Run
from evaluate.stats import wilson_interval
from evaluate.table import compare_methods, method_rows
from tests import messages
from tests.evaluate.test_table import made_run

pytestmark = pytest.mark.slow

N = 20


def run_with_tests() -> Run:
    """Return a run with the tests of 5 samples per problem, so that pass@1 and pass@5 differ."""
    run = made_run("tested.jsonl", n=N)
    run.settings["decoding"] = {"mode": "sample", "candidates": 5, "max_new_tokens": 64}
    for method, right in (("zero-shot", 1), ("icl-8", 2), ("lora-tiny", 4)):
        for index in range(N):
            passed = right if index % 2 else 0
            scores = {"tests": passed / 5, "pass@1": passed / 5, "pass@5": float(passed > 0)}
            run.set_scores(method, f"p{index}", scores)
    run.scored_with["tests"] = {"layer": "bubblewrap", "limits": {"wall_seconds": 10.0, "memory_bytes": 2**29}}
    return run


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_contains_every_metric_of_every_method_with_settings() -> None:
    rows = read(metrics_csv([made_run("a.jsonl")]))
    first = next(row for row in rows if (row["method"], row["metric"]) == ("zero-shot", "em@1"))
    expected = wilson_interval(2, N)
    assert (float(first["value"]), float(first["low"]), float(first["high"])) == (
        expected.value, expected.low, expected.high,
    )  # fmt: skip
    assert (first["n"], first["interval"], first["base"], first["quantization"]) == ("20", "wilson", "tiny", "nf4")
    assert (first["prompt"], first["seed"], first["file"], first["mode"]) == ("f" * 16, "42", "a.jsonl", "beam")
    metrics = [row["metric"] for row in rows if row["method"] == "lora-tiny"]
    assert metrics[:3] == ["em@1", "em@2", "em@3"], "EM@k for every k"
    assert {"codebleu", "codebleu.ngram", "codebleu-pypi", "parses", "seconds", "tokens_per_second"} <= set(metrics)
    cost = next(row for row in rows if (row["method"], row["metric"]) == ("icl-8", "seconds"))
    assert (cost["value"], cost["low"], cost["n"]) == ("0.5", "", "19")


def test_csv_of_problems_has_one_row_per_problem_and_no_formula() -> None:
    run = made_run("a.jsonl")
    hostile = replace(run.results("zero-shot")[0], method="evil", candidates=({"code": "=1+1", "text": ""},))
    run.methods["evil"] = {}
    run.add([hostile])
    rows = read(problems_csv([run]))
    assert [row["id"] for row in rows] == [f"p{index}" for index in range(N)]
    assert rows[0]["evil: answer"] == "'=1+1"
    assert rows[1]["evil: answer"] == ""
    assert (rows[1]["zero-shot: em@1"], rows[2]["zero-shot: em@1"], rows[2]["zero-shot: em@3"]) == ("1.0", "0.0", "1.0")
    assert rows[19]["icl-8: error"] == "Too long."
    both = read(problems_csv([run, made_run("b.jsonl")]))
    assert both[0]["zero-shot (b): em@1"] == "1.0"


def test_runs_over_different_problems_raise() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.DIFFERENT_PROBLEMS):
        problems_csv([made_run("a.jsonl"), made_run("b.jsonl", n=7)])


def test_json_contains_the_values_of_the_report() -> None:
    run, other = made_run("a.jsonl"), made_run("b.jsonl")
    values = json.loads(json_report([run, other], "python -m evaluate report a.jsonl b.jsonl"))
    assert [each["file"] for each in values["runs"]] == ["a.jsonl", "b.jsonl"]
    [pair, *_] = values["runs"][0]["comparisons"]
    expected = compare_methods(run)[0]
    assert (pair["a"], pair["b"], pair["metric"]) == ("icl-8", "zero-shot", "em@1")
    assert (pair["difference"], pair["corrected"]) == (expected.difference.value, expected.corrected)
    assert {each["a"] for each in values["across"]} == {f"{name} (b)" for name in run.methods}
    other.settings["data_digest"] = "sha256:e"
    assert json.loads(json_report([run, other], ""))["across"] == []


def test_figure_has_a_panel_per_metric_and_curves_over_k() -> None:
    def panels(*runs: Run) -> list[str]:
        return [axes.get_title(loc="left").partition(",")[0] for axes in build_figure(runs).axes]

    assert panels(made_run()) == ["EM@1", "EM@3", "tree@1", "CodeBLEU", "parses", "EM@k"]
    tested = run_with_tests()
    assert panels(tested) == ["tests passed", "Pass@1", "Pass@5", "CodeBLEU", "parses"]
    for method in tested.methods:
        for index in range(N):
            tested.set_scores(method, f"p{index}", {"pass@2": 0.5})
    assert panels(tested)[-1] == "Pass@k"


def test_points_have_the_values_of_the_metrics() -> None:
    run = made_run()
    [bars, *_] = build_figure([run]).axes
    drawn = [float(np.asarray(line.get_xdata())[0]) for line in bars.get_lines() if line.get_marker() == "o"]
    expected = [100 * row.metrics["em@1"].interval.value for row in method_rows(run)]
    assert drawn == pytest.approx(expected)
    assert [label.get_text() for label in bars.get_yticklabels()] == list(run.methods)


def test_method_of_several_files_is_labelled_with_its_file() -> None:
    run, other = made_run("a.jsonl"), made_run("folder/" + "b" * 60 + ".jsonl.gz")
    other.methods["only-here"] = {}
    other.add([replace(each, method="only-here") for each in other.results("icl-8")])
    labels = [label.get_text() for label in build_figure([run, other]).axes[0].get_yticklabels()]
    assert labels[0] == "zero-shot (a)"
    assert labels[-1] == "only-here"
    assert labels[3].startswith("zero-shot (bbb")
    assert labels[3].endswith("b)")
    assert max(map(len, labels)) <= 40


def test_figure_is_reproducible() -> None:
    runs = [made_run("a.jsonl"), made_run("b.jsonl")]
    png = plot_report_png(runs)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) > (1200, 400)
    assert plot_report_png(runs) == png


def test_run_without_results_has_no_figure() -> None:
    run = Run(Path("a.jsonl"), made_run().settings, [{"id": "p0"}])
    with pytest.raises(PromptOrTuneError, match=messages.NOTHING_TO_DRAW):
        plot_report_png([run])


def test_runs_with_unscored_results_raise() -> None:
    unscored, partly_scored = made_run("fresh.jsonl"), run_with_tests()
    unscored.add([Result("rag-8", "p0")])
    unscored.methods["rag-8"] = {}
    partly_scored.add([Result("rag-8", "p0", {"tests": 1.0})])
    partly_scored.add(
        [Result("rag-8", problem_id, {"parses": 1.0}) for problem_id in ("p1", "p2")]
    )  # without test scores
    partly_scored.methods["rag-8"] = {}
    partly_scored.problems = [
        {**problem, "tests": [{"kind": "assert", "code": "assert f()"}]} for problem in partly_scored.problems
    ]
    for run, message in (
        (unscored, r"fresh\.jsonl holds 1 answers without"),
        (partly_scored, "holds 2 answers without scores"),
    ):
        for write in (metrics_csv, problems_csv, plot_report_png, lambda runs: json_report(runs, "")):
            with pytest.raises(PromptOrTuneError, match=message):
                write([run])
        assert "without scores" in text_report([run])


def test_unfinished_method_is_not_compared() -> None:
    run, other = made_run("a.jsonl"), made_run("b.jsonl")
    run.methods["rag-8"] = other.methods["rag-8"] = {}
    run.add(replace(each, method="rag-8") for each in run.results("icl-8")[:5])
    other.add(replace(each, method="rag-8") for each in run.results("icl-8"))
    assert {pair.a for pair in compare_methods(run)} == {"icl-8", "lora-tiny"}
    with pytest.raises(PromptOrTuneError, match=messages.DIFFERENT_PROBLEMS):
        compare_methods(run, [("rag-8", "zero-shot")])
    values = json.loads(json_report([run, other], ""))
    assert values["across"] == []
    assert len(values["runs"][0]["comparisons"]) == 4


def test_table_with_tests_shows_them_first() -> None:
    rows: dict[str, Any] = {row.method: row for row in method_rows(run_with_tests())}
    assert rows["lora-tiny"].interval("pass@5") == wilson_interval(10, N)
    assert rows["lora-tiny"].metrics["pass@1"].kind == "bootstrap"
    pairs = compare_methods(run_with_tests(), [("lora-tiny", "icl-8")])
    assert [(pair.metric, pair.test) for pair in pairs] == [
        ("tests", "sign flip"), ("pass@1", "sign flip"), ("codebleu", "sign flip"),
    ]  # fmt: skip
