"""The recorded choice of prompt styles is the one that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.prompt import choose_style

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("data", ["conala", "starter"])
def test_each_baseline_gets_the_style_in_which_it_did_best_on_validation(data: str) -> None:
    measured = json.loads((RESULTS / f"prompt-style-{data}.json").read_text(encoding="utf-8"))
    assert measured["settings"]["split"] == "validation"
    for shots in ("zero-shot", "few-shot"):
        scores = [score for score in measured["scores"] if score["shots"] == shots]
        best = max(scores, key=lambda score: score["mean"])  # the first of equals, as the command has it
        chosen = choose_style(measured["settings"]["base_id"], True, data, shots == "few-shot")
        assert (chosen.name, chosen.fingerprint) == (best["style"], best["fingerprint"])


def test_a_base_that_was_not_measured_gets_what_it_can_read() -> None:
    assert choose_style("someone/new", True, "starter", False).format == "chat"
    assert choose_style("someone/new", False, "starter", True).format == "plain"
