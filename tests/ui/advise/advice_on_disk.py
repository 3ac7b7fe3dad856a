"""Advice on disk in every state as a job's process writes it, without a process."""

from __future__ import annotations

import json
import math
from typing import Any

from adapters.manifest import Owner
from advise.folder import AdviceFolder, AdviseOptions, Curve, PlannedStep, ProgressWriter
from common.format import utc_timestamp
from jobs.api import JobService
from jobs.job import Job, ServingOptions
from tests.ui.train.jobs_on_disk import set_state

SENTENCE = (
    "Retrieve examples (RAG-4): 14 of 40 test rows right, 27.5 points more than zero-shot (p 0.004 after correction). "
    "A fine-tuned adapter is not better than that."
)
STEPS = (
    PlannedStep("prompts", "Choose the examples for prompts, on validation rows", 92.0),
    PlannedStep("search", "Train adapters and choose their settings, on validation rows", 410.0),
    PlannedStep(
        "examples",
        "Train an adapter with examples in its prompts",
        530.0,
        False,
        "takes about 9 min more than the budget has",
    ),
    PlannedStep("test", "Ask the best of each family the test rows", 205.0),
    PlannedStep("curve", "Train with a quarter and a half of the rows: would more rows help?", 260.0, False, "no time"),
    PlannedStep("retention", "Measure what the adapter forgot", 64.0),
)
POWER = "40 rows show a difference of 22.5 points or more in four of five repeats, among 10 comparisons."
TRIALS = ("QLoRA-4bit, rank 16, 1e-3, 3 epochs", "QLoRA-4bit, rank 32, 2e-3, 4 epochs", "IA3, 1e-2, 4 epochs")
FAMILIES = (
    ("zero-shot", "zero-shot", "zero-shot", 0.075, None),
    ("icl", "ICL", "icl-8", 0.2, None),
    ("rag", "RAG", "rag-4", 0.35, None),
    ("adapter", "adapter", "QLoRA-4bit, rank 16, 3 epochs", 0.3, 131.0),
    ("adapter with examples", "adapter + RAG", "QLoRA-4bit, rank 16, 3 epochs + rag-4", 0.325, 131.0),
)


def submit(service: JobService, data: str = "house", *, owner: str = "", adapter: str = "", minutes: float = 15) -> Job:
    """Submit an advice."""
    options = AdviseOptions(data, adapter or f"advice-{data}", minutes)
    return service.submit_advice(options, ServingOptions(), owner=Owner(owner))


def run_to(service: JobService, id: str, step: str | None) -> AdviceFolder:
    """Write what a process has written when it is in this step; None for a process that has finished them all."""
    advice = service.advice(id)
    advice.subfolder("steps")
    included = [each for each in STEPS if each.included]
    seconds = sum(each.seconds for each in included)
    advice.write_plan(
        {
            "sentence": "48 training rows, 12 validation rows and 40 test rows.",
            "power": POWER,
            "steps": [vars(each) for each in STEPS],
            "seconds": seconds,
            "n": 40,
            "folds": 1,
        }
    )
    writer = ProgressWriter(advice, lambda _: None, 900.0)
    writer._earlier_seconds = 240.0
    writer.plan(STEPS, seconds)
    for each in included:
        if each.id == step:
            writer.step(each.id, "running", "48 training rows")
            break
        writer.step(each.id, "done", "best: icl-8, rag-4" if each.id == "prompts" else "3 trials")
        advice.once(f"fold-0-{each.id}", dict)
    if step != "prompts":
        for curve in curves():
            for share, loss in curve.points:
                writer.point(curve.name, share, loss)
            if curve.state != "running":
                writer.end_curve(curve.name, curve.state)
    writer.message("IA3: step 12/40")
    writer.flush()
    set_state(
        service, id, state="running", stage="advising", started=utc_timestamp(), attempts=1, message="IA3: step 12/40"
    )
    return advice


def curves() -> list[Curve]:
    """Return the losses of three trainings: one that is done, one that was ended early, one that runs."""
    shares = [each / 8 for each in range(1, 9)]
    losses = [
        [(share, 1.1 + rise * share + 1.4 * math.exp(-share * speed)) for share in shares] for speed, rise in _FITS
    ]
    return [
        Curve(TRIALS[0], losses[0], "done"),
        Curve(TRIALS[1], losses[1][:4], "stopped early"),
        Curve(TRIALS[2], losses[2][:5], "running"),
    ]


_FITS = ((3.2, 0.0), (6.0, 0.55), (1.3, 0.0))


def finish(service: JobService, id: str, **changes: Any) -> dict[str, Any]:
    """Write a finished advice with its result, and return the result. `changes` replace fields of the result."""
    advice = run_to(service, id, None)
    result = {**make_result(service.get_job(id)), **changes}
    advice.result_path.write_text(json.dumps(result), encoding="utf-8")
    advice.report_path.write_text("<!doctype html><p>report</p>", encoding="utf-8")
    set_state(service, id, state="done", stage="", ended=utc_timestamp(), message=result["recommendation"]["sentence"])
    return result


def make_result(job: Job) -> dict[str, Any]:
    """Return a result as advise.result makes it."""
    return {
        "version": 1,
        "finished": True,
        "missing": [],
        "data": {
            "name": job.data_name, "train": 48, "validation": 12, "test": 40, "folds": 1,
            "note": "48 training rows, 12 validation rows and 40 test rows.",
        },
        "metric": "pass@1",
        "metric_title": "Pass@1",
        "recommendation": {"sentence": SENTENCE, "method": "rag-4", "family": "rag", "adapter": None},
        "families": [_family(*values) for values in FAMILIES],
        "comparisons": [
            {"a": "RAG", "b": "zero-shot", "difference": 0.275, "p": 0.0004, "corrected": 0.004},
            {"a": "adapter", "b": "RAG", "difference": -0.05, "p": 0.68, "corrected": 1.0},
        ],
        "power": {"n": 40, "comparisons": 10, "detectable_difference": 0.225, "text": POWER},
        "curve": {
            "label": "RAG",
            "points": [
                {"rows": rows, "value": value, "low": value - 0.09, "high": value + 0.11, "n": 40}
                for rows, value in ((12, 0.2), (24, 0.275), (48, 0.35))
            ],
            "sentence": "More rows helped up to the last ones: some hundred more are likely to help further.",
        },
        "retention": {
            "sentence": "On starter the adapter answers 5 of 48 right and the base 6: no difference is shown.",
            "n": 48, "before": 0.125, "after": 0.104, "metric": "em@1",
            "perplexity_before": 4.1, "perplexity_after": 4.6,
        },
        "search": [
            {"fold": 0, "name": name, "validation": value, "state": state}
            for name, value, state in (
                ("icl-4", 0.083, ""), ("icl-8", 0.167, "chosen"), ("rag-4", 0.333, "chosen"),
                (TRIALS[0], 0.25, "chosen"), (TRIALS[1], None, "stopped early"),
            )
        ],
        "answers": [_answer(number) for number in range(40)],
        "commands": {
            "repeat": [f"python -m advise {job.data_name} --minutes 15 --seed 42"],
            "use": [f"python -m serve --pool {job.data_name}   # then ask the model rag-4"],
        },
        "provenance": {"seed": 42, "started": "2026-11-30T12:00:00+00:00", "seconds": 771.0},
    }  # fmt: skip


def _family(family: str, label: str, method: str, value: float, train_seconds: float | None) -> dict[str, Any]:
    return {
        "family": family, "label": label, "method": method, "value": value,
        "low": max(value - 0.12, 0.0), "high": value + 0.15, "n": 40, "codebleu": value / 2 + 0.2,
        "prompt_tokens": 60.0 if family in ("zero-shot", "adapter") else 410.0, "tokens": 38.0, "seconds": 0.9,
        "memory_bytes": 1_200_000_000, "train_seconds": train_seconds,
        "adapter_bytes": 3_400_000 if train_seconds else None, "validation": value - 0.02, "settings": {}, "note": "",
    }  # fmt: skip


def _answer(number: int) -> dict[str, Any]:
    right = number % 3 == 0
    return {
        "id": f"row-{number}",
        "intent": f"load the record `key_{number}` from the store, or None",
        "reference": f"store.get('key_{number}')",
        "answers": [
            {
                "label": label,
                "code": f"store.get('key_{number}')" if right else f"store['key_{number}']",
                "right": right,
                "kind": "right" if right else "wrong result",
                "detail": "" if right else "expected None, got KeyError",
            }
            for _, label, *_ in FAMILIES
        ],
    }
