"""A result of an advice for tests: 40 rows, on which the adapter is right more often than the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advise.folder import AdviseOptions, Fold, Folds
from advise.result import FAMILY_LABELS, FoldAnswers, build_result
from advise.training import Trained
from evaluate.results import Result, Run, problem_record
from serve.options import ModelOptions
from tasks.problem import Problem

TRIAL = Trained(
    "fold-0-trial-1",
    {"technique": "qlora-4bit", "lora_r": 16, "learning_rate": 1e-3, "num_train_epochs": 3},
    0.5,
    120.0,
    5_000_000,
)
FINALISTS = {
    "zero-shot": "zero-shot",
    "icl": "icl-8",
    "rag": "rag-4",
    "adapter": TRIAL.name,
    "adapter with examples": f"{TRIAL.name}+rag-4",
}
OPTIONS = AdviseOptions("mine", "mine-advised", 15)


def problem(number: int) -> Problem:
    return Problem(f"row-{number}", f"keep rows over {number}", f"kit.where(rows, over={number})")


def run_of(right: dict[str, int], n: int, seed: int = 42) -> Run:
    """Return a scored run of n rows, of which the method of each family has the first so many right."""
    problems = [problem(number) for number in range(n)]
    settings = {
        "base_id": "base",
        "base_revision": "sha256:1",
        "quantization": "nf4",
        "device": "cpu",
        "data_digest": "sha256:2",
        "decoding": {"mode": "greedy", "max_new_tokens": 64, "candidates": 1},
        "prompt_version": 1,
        "seed": seed,
    }
    run = Run(Path("run.jsonl"), settings, [problem_record(each) for each in problems], {"versions": {"python": "3"}})
    for family, method in FINALISTS.items():
        run.set_method(method, {"style": "plain", "fingerprint": "f1", "peak_memory_bytes": 10**9})
        run.add(
            Result(
                method,
                each.id,
                scores={"em@1": float(number < right[family]), "codebleu": 0.5, "parses": 1.0},
                candidates=({"code": each.reference if number < right[family] else "print(1)", "tokens": 20},),
                seconds=0.5,
                prompt_tokens=100,
                tokens=20,
            )
            for number, each in enumerate(problems)
        )
    return run


def answers_of(right: dict[str, int], n: int = 40) -> FoldAnswers:
    rows = [problem(number) for number in range(n)]
    train = [Problem(f"train-{number}", f"train {number}", "x") for number in range(80)]
    scores = dict.fromkeys(FINALISTS.values(), (0.1, 0.2))
    return FoldAnswers(Fold(0, train, rows[:5], rows), FINALISTS, scores, [TRIAL], run_of(right, n))


def result_of(
    right: dict[str, int],
    n: int = 40,
    options: AdviseOptions = OPTIONS,
    model: ModelOptions = ModelOptions("embedded"),  # noqa: B008 - it is frozen
    **steps: Any,
) -> dict[str, Any]:
    found = answers_of(right, n)
    return build_result(
        options,
        model,
        Folds("mine", [found.fold], "80 rows to learn from."),
        "em@1",
        [found],
        finished=True,
        started="2026-01-01T00:00:00Z",
        seconds=600.0,
        steps=steps,
    )


def right(**counts: int) -> dict[str, int]:
    return {family: counts.get(family.replace("-", "_").replace(" ", "_"), 0) for family in FAMILY_LABELS}
