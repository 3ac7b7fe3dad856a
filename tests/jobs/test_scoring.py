"""Scoring on held-out rows: choice of rows, resuming, scores in the manifest, and the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import EngineError, PromptOrTuneError
from evaluate.failures import RetryPolicy
from evaluate.generate import max_new_tokens_for
from evaluate.results import Result, Run
from jobs.job import ScoreComparison, Verdict
from jobs.scoring import (
    MAX_ROWS,
    HeldOutRows,
    adapter_scores,
    format_difference,
    generate_and_score,
    is_significant,
    load_held_out_rows,
    make_verdict,
    verdict_text,
)
from jobs.store import JobFolder
from serve.types import RequestOutput
from tasks.problem import Example, Problem
from tests import messages
from tests.evaluate.fakes import FakeEngine, problems
from tests.jobs.service import ServiceWithoutWorker, submit_named
from train.config import TrainConfig
from train.settings import make_config

ROWS = HeldOutRows(
    "mine.csv", problems(40), [Example(f"e{index}", f"say {index}", f"print({index})") for index in range(9)]
)


def config(path: Path, **more: object) -> TrainConfig:
    return make_config({"adapter_name": "lora-mine", "dataset_name": str(path), **more})


def upload(path: Path, rows: int) -> Path:
    path.write_text("intent,code\n" + "".join(f"print the number {index},print({index})\n" for index in range(rows)))
    return path


def test_rows_equal_those_held_out_by_training(tmp_path: Path) -> None:
    rows = load_held_out_rows(config(upload(tmp_path / "mine.csv", 30)))
    assert (rows.name, len(rows.problems), len(rows.example_pool)) == ("mine.csv", 3, 27)
    assert not {problem.intent for problem in rows.problems} & {example.intent for example in rows.example_pool}
    assert all(problem.reference and problem.reference.startswith("print(") for problem in rows.problems)


def test_many_rows_are_sampled_with_a_seed(tmp_path: Path) -> None:
    path = upload(tmp_path / "mine.csv", 400)
    first, again = (
        load_held_out_rows(config(path, validation_split=0.5)),
        load_held_out_rows(config(path, validation_split=0.5)),
    )
    assert len(first.problems) == MAX_ROWS
    assert first == again
    with_all = config(path, validation_split=0.25)
    assert len(load_held_out_rows(with_all).problems) == 100


def test_max_new_tokens_follows_references() -> None:
    def count(text: str) -> int:
        return len(text)

    assert max_new_tokens_for(count, [Problem("p", "x", "y" * 10)]) == 64
    assert max_new_tokens_for(count, [Problem("p", "x", "y" * 100), Problem("q", "x", None)]) == 116
    assert max_new_tokens_for(count, [Problem("p", "x", "y" * 1000)]) == 256


def test_three_methods_are_scored_with_greedy_answers(tmp_path: Path) -> None:
    engine, lines = FakeEngine(), list[str]()
    run = generate_and_score(engine, ROWS, "lora-tiny", tmp_path / "scores.jsonl", 42, 64, lines.append)
    assert list(run.methods) == ["zero-shot", "rag-8", "lora-tiny"]
    assert lines[-1].startswith("120 of 120 scores")
    assert run.settings["decoding"]["mode"] == "greedy"
    verdict = make_verdict(run, "lora-tiny", "LoRA")
    assert verdict.sentence.startswith("LoRA beats zero-shot by 100 points of EM@1")
    scores = {score["metric"]: score for score in adapter_scores(run, "lora-tiny")}
    assert list(scores) == ["EM@1", "CodeBLEU", "parses"]
    assert scores["EM@1"]["value"] == 1.0
    assert scores["EM@1"]["n"] == 40
    assert scores["EM@1"]["dataset"] == "mine.csv"


def test_interrupted_scoring_continues_after_last_batch(tmp_path: Path) -> None:
    path, first, second = tmp_path / "scores.jsonl", FakeEngine(interrupt_at=4), FakeEngine()
    with pytest.raises(KeyboardInterrupt):
        generate_and_score(first, ROWS, "lora-tiny", path, 42, 64, lambda _: None)
    lines: list[str] = []
    run = generate_and_score(second, ROWS, "lora-tiny", path, 42, 64, lines.append)
    assert len(first.calls) + len(second.calls) == 9, "three batches per method, each answered once"
    complete = generate_and_score(FakeEngine(), ROWS, "lora-tiny", tmp_path / "complete.jsonl", 42, 64, lines.append)
    assert make_verdict(run, "lora-tiny", "LoRA").compared == make_verdict(complete, "lora-tiny", "LoRA").compared


class DyingEngine(FakeEngine):
    """An engine that answers a number of calls and then fails at every one."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._left = calls

    def answer(self, *args: object, **kwargs: object) -> list[RequestOutput]:
        if not self._left:
            raise RuntimeError("CUDA error: out of memory")
        self._left -= 1
        return super().answer(*args, **kwargs)  # type: ignore[arg-type]


def test_engine_that_fails_is_no_score_and_resumed_job_continues(tmp_path: Path) -> None:
    path, waits = tmp_path / "scores.jsonl", list[float]()
    with pytest.raises(EngineError, match=messages.RESUMED_JOB_ASKS_FOR_THE_REST):
        generate_and_score(
            DyingEngine(4), ROWS, "lora-tiny", path, 42, 64, lambda _: None, retries=RetryPolicy(sleep=waits.append)
        )
    assert waits == [1.0, 5.0, 20.0]
    second = FakeEngine()
    run = generate_and_score(second, ROWS, "lora-tiny", path, 42, 64, lambda _: None)
    assert len(second.calls) == 5
    complete = generate_and_score(FakeEngine(), ROWS, "lora-tiny", tmp_path / "all.jsonl", 42, 64, lambda _: None)
    assert make_verdict(run, "lora-tiny", "LoRA").compared == make_verdict(complete, "lora-tiny", "LoRA").compared


def test_no_verdict_over_missing_or_unscored_rows() -> None:
    run = run_of(40, zero_shot=[0], rag_8=[1], lora_mine=[0, 1, 2])
    del run._results["rag-8", "p7"]
    with pytest.raises(PromptOrTuneError, match=messages.RAG_8_HAS_39_OF_40_ANSWERS):
        make_verdict(run, "lora-mine", "LoRA")
    run.add([Result("rag-8", "p7")])
    with pytest.raises(PromptOrTuneError, match=messages.HOLDS_1_ANSWERS_WITHOUT_2):
        make_verdict(run, "lora-mine", "LoRA")


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b'{"kind": "run"}\n'])
def test_file_of_another_run_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(content)
    generate_and_score(FakeEngine(), ROWS, "lora-tiny", path, 42, 64, lambda _: None)
    engine = FakeEngine()
    generate_and_score(engine, ROWS, "lora-tiny", path, 42, 64, lambda _: None)
    assert engine.calls == [], "all answers are in the file"
    generate_and_score(engine, ROWS, "lora-tiny", path, 42, 99, lambda _: None)
    assert len(engine.calls) == 9, "other settings are answered again"


SETTINGS = {
    "base_id": "tiny", "base_revision": "1", "quantization": "nf4", "device": "cpu", "data": "mine.csv",
    "split": "held-out rows", "data_digest": "sha256:1", "decoding": {"mode": "greedy"}, "seed": 42,
}  # fmt: skip


def run_of(n: int, **em: list[int]) -> Run:
    """Return a scored run of n rows; `em` lists the rows with an exact match by method."""
    run = Run(Path("none.jsonl"), {**SETTINGS, "n": n}, [{"id": f"p{index}"} for index in range(n)])
    for name, right in em.items():
        method = name.replace("_", "-")
        run.set_method(method, {"pool_digest": "sha256:2", "adapter_digest": "sha256:3"})
        for index in range(n):
            hit = float(index in right)
            run.add([Result(method, f"p{index}", {"em@1": hit, "codebleu": 0.5 + hit / 10})])
    return run


def compared(**changes: object) -> ScoreComparison:
    values = {"metric": "em", "other": "rag-8", "adapter_score": 0.3, "other_score": 0.18, "value": 0.12, "low": 0.06,
              "high": 0.18, "p": 0.01, "n": 40}  # fmt: skip
    return ScoreComparison(**{**values, **changes})  # type: ignore[arg-type]


def both(**changes: object) -> list[ScoreComparison]:
    return [compared(**{"other": method_name, **changes}) for method_name in ("zero-shot", "rag-8")]


def test_verdict_names_the_significantly_better_method() -> None:
    assert verdict_text(both(), "LoRA", 40) == (
        "LoRA beats zero-shot by 12 points of EM@1, 95 % interval 6 to 18 (n = 40). "
        "LoRA beats RAG-8 by 12 points of EM@1, 95 % interval 6 to 18 (n = 40)."
    )
    worse = both(value=-0.125, low=-0.2, high=-0.025)
    assert verdict_text(worse, "IA3", 40).endswith(
        "RAG-8 beats IA3 by 12.5 points of EM@1, 95 % interval 2.5 to 20 (n = 40)."
    )


def test_verdict_without_a_significant_difference_states_it() -> None:
    unclear = both(value=-0.02, low=-0.09, high=0.05, p=0.8)
    assert verdict_text(unclear, "LoRA", 40).endswith(
        "No difference shown between LoRA and RAG-8 at n = 40: -2 points of EM@1, 95 % interval -9 to 5. "
        "40 rows can show no difference below 7 wins (18 points); a true difference of 22 points is shown in four of "
        "five repeats, if nothing is lost."
    )
    few = both(value=-0.16, low=-0.307, high=-0.047, p=0.25)
    text = verdict_text(few, "LoRA", 5)
    assert "-16 points of EM@1, 95 % interval -30.7 to -4.7 but p = 0.25." in text
    assert text.endswith("5 rows can show no difference: even 5 wins without a loss may be chance. It takes 7 wins.")
    same = both(value=0.0, low=0.0, high=0.0, p=1.0)
    assert "at n = 40: the same EM@1 on every row." in verdict_text(same, "LoRA", 40)


def test_metrics_that_agree_are_joined() -> None:
    found = [*both(), *both(metric="codebleu", value=0.01, low=0.001, high=0.02)]
    assert verdict_text(found, "LoRA", 40).startswith(
        "LoRA beats zero-shot by 12 points of EM@1, 95 % interval 6 to 18, and 1 point of CodeBLEU, 95 % interval "
        "0.1 to 2 (n = 40). "
    )
    mixed = [*both(), *both(metric="codebleu", value=0.01, low=-0.01, high=0.02)]
    text = verdict_text(mixed, "LoRA", 40)
    assert "LoRA beats RAG-8 by 12 points of EM@1" in text
    assert "No difference shown between LoRA and RAG-8 at n = 40: 1 point of CodeBLEU" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"p": 0.06}, False), ({"low": 0.0}, False), ({"value": -0.1, "low": -0.2, "high": -0.01}, True)],
)
def test_significance_requires_interval_and_p(changes: dict[str, float], expected: bool) -> None:
    assert is_significant(compared(**changes)) is expected


@pytest.mark.parametrize(
    ("share", "text"), [(0.12, "12"), (-0.025, "-2.5"), (0.0, "0"), (-0.0001, "0"), (0.999, "99.9"), (1.0, "100")]
)
def test_points_are_rounded(share: float, text: str) -> None:
    assert format_difference(share) == text


def test_verdict_has_values_and_provenance(service: ServiceWithoutWorker) -> None:
    run = run_of(40, zero_shot=[0, 1], rag_8=list(range(12)), lora_mine=list(range(30)))
    verdict = make_verdict(run, "lora-mine", "LoRA")
    assert verdict.n == 40
    assert [(each.other, each.metric) for each in verdict.compared] == [
        ("zero-shot", "em"), ("zero-shot", "codebleu"), ("rag-8", "em"), ("rag-8", "codebleu"),
    ]  # fmt: skip
    em = verdict.compared[2]
    assert (em.adapter_score, em.other_score, em.n) == (0.75, 0.3, 40)
    assert em.value == pytest.approx(0.45)
    assert 0.2 < em.low < 0.45 < em.high < 0.7
    assert em.p < 0.01
    assert verdict.sentence.startswith("LoRA beats zero-shot by 70 points of EM@1, 95 % interval ")
    assert "LoRA beats RAG-8 by 45 points of EM@1" in verdict.sentence
    assert verdict.provenance["adapter_digest"] == "sha256:3"
    assert verdict.provenance["pool_digest"] == "sha256:2"
    folder = JobFolder(service.root, submit_named(service, "lora-mine").id)
    folder.write_verdict(verdict)
    assert service.verdict(folder.id) == verdict


def test_p_values_are_corrected() -> None:
    # Six of 40 rows differ, in one direction: p = 2/64, which is not significant after correction for four comparisons.
    run = run_of(40, zero_shot=[], rag_8=list(range(6)), lora_mine=list(range(12)))
    verdict = make_verdict(run, "lora-mine", "LoRA")
    assert verdict.compared[2].p == pytest.approx(4 * 2 / 64 / 2, rel=0.5)
    assert not is_significant(verdict.compared[2])
    assert "No difference shown between LoRA and RAG-8" in verdict.sentence


@pytest.mark.parametrize(("n", "rows"), [(1, "Only 1 row was held out"), (4, "Only 4 rows were held out")])
def test_too_few_rows_give_no_verdict(n: int, rows: str) -> None:
    verdict = make_verdict(run_of(n, zero_shot=[], rag_8=[0], lora_mine=list(range(n))), "lora-mine", "LoRA")
    assert verdict.sentence.startswith(f"{rows}, too few to say which method is better")
    assert f"(exactly right: LoRA {n}, zero-shot 0 and RAG-8 1)" in verdict.sentence
    assert isinstance(verdict, Verdict)
