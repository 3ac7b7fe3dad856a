"""Tables of methods, comparisons and text reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.format import text_table
from errors import PromptOrTuneError, UnknownNameError
from evaluate.report import markdown_report, text_report
from evaluate.results import Result, Run
from evaluate.scoring import score_candidates
from evaluate.stats import holm_correction, wilson_interval
from evaluate.table import (
    compare_methods,
    compare_results,
    compare_runs,
    method_rows,
    render_comparisons,
    render_methods,
)
from tests import messages

SETTINGS = {
    "base_id": "tiny",
    "base_revision": "abc",
    "quantization": "nf4",
    "device": "cpu",
    "data": "conala",
    "split": "test",
    "n": 20,
    "data_digest": "sha256:d",
    "decoding": {"mode": "beam", "candidates": 3, "max_new_tokens": 64},
    "batch": 4,
    "seed": 42,
}
REFERENCE = "x = y"


def result(method: str, index: int, codes: list[str], reference: str | None = REFERENCE) -> Result:
    return Result(method, f"p{index}", score_candidates(codes, reference, 3), seconds=0.5, prompt_tokens=30, tokens=6)


def made_run(path: str = "run.json", reference: str | None = REFERENCE, n: int = 20) -> Run:
    described = [{"id": f"p{index}", "intent": "do", "reference": reference} for index in range(n)]
    run = Run(Path(path), dict(SETTINGS), described, {"versions": {"torch": "2"}, "started": "today"})
    for method, right in (("zero-shot", 2), ("icl-8", 5), ("lora-tiny", 18)):
        run.methods[method] = {"style": "plain", "fingerprint": "f" * 16, "adapter": None}
        run.add(
            result(
                method,
                index,
                [REFERENCE] if index < right else ["print(1)", REFERENCE] if index < right + 2 else ["z("],
            )
            if (method, index) != ("icl-8", 19)
            else Result(method, "p19", score_candidates([], reference, 3), error="Too long.")
            for index in range(n)
        )
    return run


def test_rows_have_shares_with_wilson_intervals_and_counts_of_failures() -> None:
    rows = {row.method: row for row in method_rows(made_run(reference=REFERENCE))}
    assert list(rows) == ["zero-shot", "icl-8", "lora-tiny"]
    assert rows["zero-shot"].interval("em@1") == wilson_interval(2, 20)
    assert rows["zero-shot"].interval("em@3") == wilson_interval(4, 20)
    assert rows["lora-tiny"].interval("em@3") == wilson_interval(20, 20)
    assert rows["icl-8"].errors == 1
    assert rows["icl-8"].n == 20
    parsed = rows["icl-8"].interval("parses")
    assert parsed is not None
    assert parsed.value == pytest.approx(7 / 20)
    assert rows["icl-8"].cost.seconds == 0.5  # over the answered problems
    bleu = rows["lora-tiny"].interval("codebleu")
    assert bleu is not None
    assert bleu.low < bleu.value < bleu.high


def test_methods_are_compared_with_zero_shot_and_the_last_with_the_first() -> None:
    pairs = compare_methods(made_run())
    assert [(pair.a, pair.b, pair.metric, pair.test) for pair in pairs] == [
        ("icl-8", "zero-shot", "em@1", "McNemar"),
        ("icl-8", "zero-shot", "codebleu", "sign flip"),
        ("lora-tiny", "zero-shot", "em@1", "McNemar"),
        ("lora-tiny", "zero-shot", "codebleu", "sign flip"),
    ]
    assert pairs[2].difference.value == pytest.approx(0.8)
    assert pairs[2].p == pytest.approx(2 * 0.5**16)  # 16 problems differ, all in the same direction
    assert pairs[0].corrected >= pairs[0].p
    assert pairs[2].corrected < 0.05


def test_last_method_is_compared_with_the_first_without_zero_shot() -> None:
    run = made_run()
    del run.methods["zero-shot"]
    assert [(pair.a, pair.b) for pair in compare_methods(run)] == [("lora-tiny", "icl-8")] * 2


def test_chosen_pairs_are_corrected_together() -> None:
    run = made_run()
    pairs = compare_methods(run, [("lora-tiny", "icl-8"), ("icl-8", "zero-shot")])
    assert [(pair.a, pair.b) for pair in pairs[::2]] == [("lora-tiny", "icl-8"), ("icl-8", "zero-shot")]
    assert [pair.corrected for pair in pairs] == holm_correction([pair.p for pair in pairs])
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_METHOD_SUGGESTS_ICL):
        compare_methods(run, [("icl-9", "zero-shot")])
    results = run.results("lora-tiny"), run.results("icl-8")
    one = compare_results(*results, "a", "b", 0, ["em@3"])
    assert [(pair.metric, pair.test) for pair in one] == [("em@3", "McNemar")]


def test_different_problems_raise() -> None:
    left, right = [result("a", 1, ["x"])], [result("b", 2, ["x"])]
    with pytest.raises(PromptOrTuneError, match=messages.DIFFERENT_PROBLEMS):
        compare_results(left, right, "a", "b", 0)
    other = made_run("other.json")
    other.settings["data_digest"] = "sha256:e"
    with pytest.raises(PromptOrTuneError, match=messages.FILES_OVER_DIFFERENT_PROBLEMS):
        compare_runs([made_run(), other])


def test_report_contains_table_provenance_failures_and_comparisons() -> None:
    text = text_report([made_run()])
    for part in (
        "tiny at abc, nf4, cpu",
        "conala test, n = 20",
        "EM@1",
        "EM@3",
        "10.0 [2.8, 30.1]",
        "p (Holm)",
        "+80.0",
    ):
        assert part in text
    assert "1 failed, scored 0 and counted. The first: icl-8, problem p19: Too long." in text
    assert "plain ffffffffffffffff: zero-shot, icl-8, lora-tiny" in text
    table = render_methods(method_rows(made_run())).splitlines()
    assert len({len(line.rstrip()) for line in table[1:]}) == 1  # columns are aligned


def test_markdown_report_has_tables_and_the_commands() -> None:
    run = made_run()
    run.provenance["command"] = "python -m evaluate --data conala"
    text = markdown_report([run], "python -m evaluate report x.jsonl")
    assert "| method" in text
    assert "```sh\npython -m evaluate --data conala\npython -m evaluate report x.jsonl\n```" in text
    assert text.count("--data conala") == markdown_report([run], "python -m evaluate --data conala").count(
        "--data conala"
    )
    assert "- Base: tiny at abc" in text


def test_cells_are_escaped_in_markdown() -> None:
    assert text_table(["a", "b"], [["x|y", "1\n2"]], markdown=True).splitlines() == [
        "| a    |   b |",
        "| ---- | --: |",
        "| x\\|y | 1 2 |",
    ]


def test_unfinished_run_shows_its_progress_and_no_comparisons() -> None:
    run = made_run(n=20)
    run.methods["rag-8"] = {}
    text = text_report([run])
    assert "Not finished, of 20 problems: rag-8 0." in text
    assert "p (Holm)" not in text


def test_two_files_are_compared_by_method_or_the_reason_is_reported() -> None:
    other = made_run("other.json")
    assert "lora-tiny (other)" in text_report([made_run(), other])
    other.settings["data_digest"] = "sha256:e"
    assert "cannot be compared" in text_report([made_run(), other])


def test_without_references_only_the_parse_rate_is_displayed() -> None:
    run = Run(Path("run.json"), dict(SETTINGS), [{"id": f"p{index}"} for index in range(3)])
    for method in ("zero-shot", "icl-8"):
        run.methods[method] = {}
        run.add(result(method, index, ["x = 1"], None) for index in range(3))
    row = method_rows(run)[0]
    assert list(row.metrics) == ["parses"]
    assert row.metrics["parses"].interval == wilson_interval(3, 3)
    assert compare_methods(run) == []
    assert "EM@1" not in text_report([run])
    assert "parses" in text_report([run])


def test_small_runs_have_a_note_and_zero_differences_no_interval() -> None:
    run = made_run()
    assert "bootstrap intervals are too narrow" in text_report([run])
    same = compare_results(run.results("icl-8"), run.results("icl-8"), "a", "b", 0)
    assert "0 (no problem differs)" in render_comparisons(same)
    assert same[0].p == 1
