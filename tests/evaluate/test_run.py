"""Runs: generation of answers, resuming, and run files."""

from __future__ import annotations

import gzip
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errors import PromptOrTuneError, UnknownNameError
from evaluate.generate import (
    EvaluationPlan,
    ProgressBar,
    batch_problems,
    generate_results,
    make_sampling_params,
    package_versions,
    parse_methods,
)
from evaluate.journal import read_records
from evaluate.results import Run, open_run, problem_record, read_run, scores_path
from evaluate.scoring import score_run
from serve.types import RequestOutput
from tests import messages
from tests.evaluate.fakes import BASE, FakeEngine, problems

NAMES = ["zero-shot", "icl-8", "lora-tiny+rag-4"]


def plan(n: int = 7, batch: int = 2, beams: int = 3) -> EvaluationPlan:
    return EvaluationPlan(
        "conala",
        "test",
        problems(n),
        "sha256:d",
        lambda: "sha256:pool",
        make_sampling_params("beam", beams, 64, 42),
        batch,
    )


def open_file(path: Path, wanted: EvaluationPlan, overwrite: bool = False) -> Run:
    described = [problem_record(each) for each in wanted.problems]
    provenance = {"started": "2025-01-01T00:00:00+00:00", "versions": package_versions()}
    return open_run(path, wanted.settings(BASE), described, provenance, overwrite)


def execute(
    path: Path, engine: FakeEngine, wanted: EvaluationPlan | None = None, names: list[str] | None = None
) -> list[str]:
    wanted = wanted or plan()
    steps: list[str] = []
    methods = parse_methods(names or NAMES, engine.adapters())
    with open_file(path, wanted) as run:
        generate_results(engine, wanted, methods, run, lambda count, label: steps.append(f"{count} {label}"))
        score_run(run, lambda total: ProgressBar(total, io.StringIO()))
    return steps


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file without peak memory, which differs between processes."""
    records, _ = read_records(path)
    for record in records:
        if record["kind"] == "method":
            record["values"].pop("peak_memory_bytes", None)
    return [record for record in records if record["kind"] != "method" or record["values"]]


def test_every_problem_gets_a_result_with_candidates_and_scores(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    steps = execute(path, FakeEngine())
    run = read_run(path)
    assert list(run.methods) == NAMES
    assert [result.problem for result in run.results("icl-8")] == [problem.id for problem in problems(7)]
    first = run.results("icl-8")[0]
    assert [candidate["code"] for candidate in first.candidates] == ["x = 1", "x6 = y + 6", "print(x)"]
    assert (first.scores["em@1"], first.scores["em@2"], first.scores["em@3"]) == (0, 1, 1)
    assert run.results("icl-8")[1].seconds == 1.0  # two problems shared a batch of two seconds
    assert first.examples == ["e1"] * 8
    assert sum(int(step.split()[0]) for step in steps) == 21


def test_file_has_settings_and_provenance(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine())
    run = read_run(path)
    assert run.settings["base_id"] == "tiny"
    assert run.settings["base_revision"] == "sha256:0123456789abcdef"
    assert run.settings["decoding"] == {
        "mode": "beam", "max_new_tokens": 64, "candidates": 3, "temperature": 0.6, "top_p": 0.95, "seed": 42,
    }  # fmt: skip
    adapted = run.methods["lora-tiny+rag-4"]
    assert adapted["adapter_digest"] == "lora-tiny:d1"
    assert adapted["pool_digest"] == "sha256:pool"
    assert len(adapted["fingerprint"]) == 16
    assert run.methods["zero-shot"]["pool_digest"] is None
    assert {"python", "torch", "transformers", "bitsandbytes"} <= set(run.provenance["versions"])


def test_problems_of_similar_length_share_a_batch() -> None:
    found = [[problem.id for problem in batch] for batch in batch_problems(problems(5), 2)]
    assert found == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    by_prompt = batch_problems(problems(5), 2, [40, 10, 30, 20, 10])
    assert [[problem.id for problem in batch] for batch in by_prompt] == [["p0", "p3"], ["p1", "p2"], ["p4"]]


def test_peak_memory_is_recorded_for_every_method(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine())
    peaks = [method["peak_memory_bytes"] for method in read_run(path).methods.values()]
    assert len(peaks) == 3
    assert all(20e6 < peak < 100e9 for peak in peaks), "outside of the range for a Python process"


@pytest.mark.parametrize("stop", range(12))
def test_resumed_run_writes_the_same_file_as_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    execute(whole, FakeEngine())
    with pytest.raises(KeyboardInterrupt):
        execute(broken, FakeEngine(interrupt_at=stop))
    second = FakeEngine()
    execute(broken, second)
    assert read_results(broken) == read_results(whole)
    assert scores_path(broken).read_bytes() == scores_path(whole).read_bytes()
    assert len(second.calls) == 12 - stop  # no batch was run twice


def test_results_of_an_incomplete_batch_are_used_and_completed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine(), names=["zero-shot"])
    whole, lines = read_results(path), path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(lines[:-2]) + lines[-2][:-7]
    )  # the last batch has one problem, the batch before it has two
    engine = FakeEngine()
    assert execute(path, engine, names=["zero-shot"]) == ["1 zero-shot", "1 zero-shot"]
    assert [[request.problem.id for request in call] for call in engine.calls] == [["p4", "p5"], ["p6"]]
    assert read_results(path) == whole


def test_gzip_run_is_read_and_scored_but_not_continued(tmp_path: Path) -> None:
    path, packed = tmp_path / "run.jsonl", tmp_path / "run.jsonl.gz"
    execute(path, FakeEngine())
    expected = [(each.problem, each.scores) for each in read_run(path).results("icl-8")]
    for name in (path, scores_path(path)):
        name.with_name(name.name + ".gz").write_bytes(gzip.compress(name.read_bytes()))
        name.unlink()
    assert [(each.problem, each.scores) for each in read_run(packed).results("icl-8")] == expected
    (tmp_path / "run.scores.jsonl.gz").unlink()
    assert not read_run(packed).results("icl-8")[0].scores
    score_run(read_run(packed), lambda total: ProgressBar(total, io.StringIO()))
    assert [(each.problem, each.scores) for each in read_run(packed).results("icl-8")] == expected
    with pytest.raises(PromptOrTuneError, match=messages.GUNZIP_FIRST):
        execute(packed, FakeEngine())


def test_file_that_is_not_a_score_file_raises_and_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine(), names=["zero-shot"])
    for text in ("my notes\n", '{"kind": "other"}\n', '{"kind": "scores"}\n', '{"kind": "key", "of": "text"}\n'):
        scores_path(path).write_text(text)
        with pytest.raises(PromptOrTuneError, match=messages.NOT_A_SCORE_FILE):
            read_run(path)
        with pytest.raises(PromptOrTuneError, match=messages.NOT_A_SCORE_FILE):
            execute(path, FakeEngine(), names=["zero-shot"])
        assert scores_path(path).read_text() == text


def test_cancelled_batch_is_not_saved(tmp_path: Path) -> None:
    class Cancelled(FakeEngine):
        def answer(self, *args: object, **kwargs: object) -> list[RequestOutput]:
            answers = super().answer(*args, **kwargs)  # type: ignore[arg-type]
            return [replace(answers[0], cancelled=len(self.calls) > 1), *answers[1:]]

    path = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        execute(path, Cancelled())
    assert [result.problem for result in read_run(path).results("zero-shot")] == ["p1", "p0"]


def test_finished_run_generates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine())
    before = path.read_bytes()
    engine = FakeEngine()
    execute(path, engine)
    assert engine.calls == []
    assert path.read_bytes() == before


def test_another_method_is_added_to_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine(), names=["zero-shot"])
    engine = FakeEngine()
    execute(path, engine, names=["zero-shot", "rag-2"])
    assert {request.method.name for call in engine.calls for request in call} == {"rag-2"}
    assert list(read_run(path).methods) == ["zero-shot", "rag-2"]


def test_other_settings_raise_and_overwrite_starts_a_new_run(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine())
    before = path.read_bytes()
    with pytest.raises(PromptOrTuneError, match=messages.FILE_HAS_OTHER_SETTINGS):
        execute(path, FakeEngine(), plan(batch=3))
    with pytest.raises(PromptOrTuneError, match=messages.DIFFERENT_PROBLEM_COUNT):
        execute(path, FakeEngine(), plan(n=6))
    with pytest.raises(PromptOrTuneError, match=messages.NAMES_DECODING):
        execute(path, FakeEngine(), plan(beams=1))
    assert path.read_bytes() == before
    with open_file(path, plan(batch=3), overwrite=True) as run:
        assert path.read_bytes() == before  # not replaced before the first batch is done
        generate_results(FakeEngine(), plan(batch=3), parse_methods(["zero-shot"], []), run, lambda *_: None)
    assert list(read_run(path).methods) == ["zero-shot"]


def test_changed_adapter_with_results_raises(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine())
    with pytest.raises(PromptOrTuneError, match=messages.ADAPTER_DIGEST_CHANGED):
        execute(path, FakeEngine(digest="d2"))


def test_changed_adapter_without_results_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        execute(path, FakeEngine(interrupt_at=5))
    execute(path, FakeEngine(digest="d2"))
    assert read_run(path).methods["lora-tiny+rag-4"]["adapter_digest"] == "lora-tiny:d2"


def test_failed_answer_is_a_result_with_an_error_and_score_zero(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine(failing="p3"))
    results = read_run(path).results("lora-tiny+rag-4")
    assert len(results) == 7
    failed = [result for result in results if result.error]
    assert [(result.problem, result.scores["em@1"], result.scores["codebleu"]) for result in failed] == [("p3", 0, 0)]
    assert failed[0].error is not None
    assert "9999 tokens" in failed[0].error


def test_file_that_is_not_a_run_raises_and_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    for text in ("my notes", "[]", '{"version": 1}\n', '{"kind": "run", "version": 99}\n', '{"kind": "problem"}\n'):
        path.write_text(text)
        with pytest.raises(PromptOrTuneError, match=messages.NAMES_NOTES_JSONL):
            execute(path, FakeEngine())
        assert path.read_text() == text


def test_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine(), names=["zero-shot"])
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(PromptOrTuneError, match=messages.NO_SPACE_LEFT_ON_DEVICE):
            execute(path, FakeEngine())
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run.jsonl", "run.scores.jsonl"]
    execute(path, FakeEngine())
    assert list(read_run(path).methods) == NAMES


def test_surrogates_in_an_answer_are_saved_and_loaded(tmp_path: Path) -> None:
    wanted = plan(1)
    wanted = replace(wanted, problems=[replace(wanted.problems[0], reference="x = '\ud800'")])
    path = tmp_path / "run.jsonl"
    execute(path, FakeEngine(), wanted, ["lora-tiny"])
    assert read_run(path).results("lora-tiny")[0].candidates[0]["code"] == "x = '\ud800'"


def test_unknown_and_missing_methods_raise() -> None:
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_METHOD_SUGGESTS_LORA_TINY):
        parse_methods(["lora-tin"], ["lora-tiny"])
    with pytest.raises(PromptOrTuneError, match=messages.NO_METHOD_GIVEN):
        parse_methods(["", " "], [])
    assert [method.name for method in parse_methods(["icl-8", " icl-8"], [])] == ["icl-8"]
