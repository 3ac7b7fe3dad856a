"""Evaluation run on disk as `python -m evaluate` writes it: two methods, three problems, real test results."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from evaluate.generate import ProgressBar
from evaluate.results import Result, open_run, problem_record
from evaluate.sandbox.sandbox import open_sandbox
from evaluate.scoring import score_run
from tasks.problem import AssertTest, Problem

EVIL = "<img src=x onerror=\"document.title = 'owned'\">${document.title = 'owned'}</code></pre>{{value}}"
PROBLEMS = (
    Problem("p1", "double a value", "def double(x):\n    return 2 * x", (AssertTest("assert double(2) == 4"),) * 2),
    Problem("p2", f"say {EVIL}", "def say(): return 'hi'", (AssertTest("assert say() == 'hi'"),)),
    Problem("p3", "sort a list", "def order(x): return sorted(x)", (AssertTest("assert order([2, 1]) == [1, 2]"),)),
)
ANSWERS = {
    "zero-shot": ["def double(x):\n    return 3 * x", EVIL, "def order(x): return sorted(x)"],
    "lora-starter": [problem.reference or "" for problem in PROBLEMS],
}


def write_run(path: Path, *, digest: str = "sha256:1", scored: bool = True, failing: bool = True) -> Path:
    """Write a run to `path`: zero-shot solves only p3 (no answer to p2 if `failing`); lora-starter solves all."""
    settings: dict[str, Any] = {
        "base_id": "HuggingFaceTB/SmolLM2-135M-Instruct", "base_revision": "main", "quantization": "nf4",
        "device": "cpu", "data": "starter", "split": "test", "n": len(PROBLEMS), "data_digest": digest,
        "decoding": {
            "mode": "sample", "max_new_tokens": 64, "candidates": 2, "temperature": 0.6, "top_p": 0.95, "seed": 1,
        },
        "batch": 4, "seed": 1, "prompt_version": 1,
    }  # fmt: skip
    provenance = {"started": "2026-11-22T07:04:26+00:00", "versions": {}}
    with open_run(path, settings, [problem_record(problem) for problem in PROBLEMS], provenance) as run:
        for method, codes in ANSWERS.items():
            run.set_method(method, {"adapter": None, "style": "plain", "fingerprint": "0123"})
            run.add(_result(method, problem, code, failing) for problem, code in zip(PROBLEMS, codes, strict=True))
        run.save()
        if scored:
            with open_sandbox() as sandbox:
                score_run(run, lambda count: ProgressBar(count, io.StringIO()), sandbox)
    return path


def _result(method: str, problem: Problem, code: str, failing: bool) -> Result:
    if failing and method == "zero-shot" and problem.id == "p2":
        return Result(method, problem.id, error="The prompt has 9999 tokens and 2048 fit: shorten the intent.")
    candidates = [{"text": code, "code": code, "logprob": -1.5, "tokens": 7, "times": 2}]
    return Result(method, problem.id, candidates=candidates, seconds=0.5, prompt_tokens=20, tokens=7)
