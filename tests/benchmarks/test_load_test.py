"""Tests of benchmarks/load_test.py: wrong answers, counts, percentiles, memory slope, and the page."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.load_test import LoadRequest, LoadResponse, make_requests, percentile, single_user_error, summarize_load
from benchmarks.load_test_app import MemorySampler
from benchmarks.report import render_load_test_page

REQUESTS = [LoadRequest("reverse", ("zero-shot",)), LoadRequest("sort", ("lora-starter",))]


def record(index: int, **changes: Any) -> dict[str, Any]:
    """Return the record of an answer to the request at `index`."""
    request = REQUESTS[index]
    (method,) = request.methods
    values: dict[str, Any] = {
        "method": method, "intent": request.intent, "adapter": None if index == 0 else method, "prompt": request.intent,
        "examples": [], "prompt_tokens": 3, "error": None, "reference": None, "text": f"text {index}", "tokens": 2,
    }  # fmt: skip
    return {**values, **changes}


BASELINE = [LoadResponse(1.0, 0.5, records=[record(index)]) for index in range(2)]


def summarize(*responses: tuple[int, LoadResponse]) -> dict[str, Any]:
    return summarize_load(responses, BASELINE, REQUESTS, 1.0)


def test_answers_of_the_baseline_are_correct() -> None:
    line = summarize((0, BASELINE[0]), (1, BASELINE[1]), (1, BASELINE[1]))
    assert (line["asked"], line["answered"], line["answers"], line["wrong"], line["identical_share"]) == (3, 3, 3, 0, 1)
    assert (line["first_token_p50_seconds"], line["whole_p95_seconds"]) == (0.5, 1.0)


def test_answer_with_a_different_end_is_correct_but_not_identical() -> None:
    line = summarize((0, LoadResponse(1.0, 0.5, records=[record(0, text="text 0, and more")])))
    assert (line["wrong"], line["identical_share"]) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"text": "text 1"},
        {"intent": "sort"},
        {"prompt": "sort"},
        {"adapter": "lora-starter"},
        {"error": "out of memory"},
        {"examples": [{"intent": "sort"}]},
    ],
)
def test_answer_of_another_request_is_wrong(change: dict[str, Any]) -> None:
    assert summarize((0, LoadResponse(1.0, 0.5, records=[record(0, **change)])))["wrong"] == 1


def test_rejections_and_errors_are_counted_separately() -> None:
    line = summarize(
        (0, LoadResponse(0.1, rejected="busy")), (0, LoadResponse(0.1, error="ReadTimeout: x")), (1, BASELINE[1])
    )
    assert (line["asked"], line["answered"], line["busy"], line["failed"], line["wrong"]) == (3, 1, 1, 1, 0)
    assert line["failures"] == ["ReadTimeout: x"]


def test_single_user_error_returns_the_first_error_of_the_baseline() -> None:
    assert single_user_error(BASELINE) == ""
    assert single_user_error([*BASELINE, LoadResponse(1.0, error="ValueError: x")]) == "ValueError: x"
    assert single_user_error([LoadResponse(1.0, records=[record(0, error="No adapter 'x'.")])]) == "No adapter 'x'."


def test_percentile_of_values_and_without_values() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.95)] == [3.0, 4.0]
    assert percentile([], 0.5) is None


def test_memory_summary_contains_the_slope() -> None:
    flat = MemorySampler(1, [(float(second), 100.0) for second in range(120)]).summary()
    assert flat["memory_slope_mib_per_minute"] == 0
    rising = MemorySampler(1, [(float(second), 100.0 + second) for second in range(120)]).summary()
    assert rising["memory_slope_mib_per_minute"] == pytest.approx(60)
    assert rising["memory_end_mib"] > rising["memory_middle_mib"] > rising["memory_begin_mib"]


def test_requests_depend_on_the_seed_and_the_page_contains_the_metrics() -> None:
    assert make_requests(3) == make_requests(3)
    assert len({request.intent for request in make_requests(3)}) == len(make_requests(3))
    memory = MemorySampler(1, [(float(second), 100.0) for second in range(30)]).summary()
    settings = {
        "visitors": 50, "hung": 0, "crashed": False, "cores": 2, "load_before": 0.1, "python": "3.11", "base": "b",
        "quantization": "nf4", "device": "cpu",
    }  # fmt: skip
    text = render_load_test_page(
        summarize((0, BASELINE[0])) | memory | settings, "python -m benchmarks.load_test", "load-test.json"
    )
    assert text.startswith("# Load test with 50 concurrent visitors")
    assert "| wrong answers (of another question, adapter, prompt or example)" in text
