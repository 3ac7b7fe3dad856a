"""What the benchmark of many visitors counts as wrong, and what it makes of its samples."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.load_test import LoadRequest, LoadResponse, make_requests, percentile, single_user_error, summarize_load
from benchmarks.load_test_app import MemorySampler
from benchmarks.report import render_load_test_page

REQUESTS = [LoadRequest("reverse", ("zero-shot",)), LoadRequest("sort", ("lora-starter",))]


def record(index: int, **changes: Any) -> dict[str, Any]:
    """The record of an answer to the request at `index`."""
    request = REQUESTS[index]
    (method,) = request.methods
    values: dict[str, Any] = {
        "method": method, "intent": request.intent, "adapter": None if index == 0 else method, "prompt": request.intent,
        "examples": [], "prompt_tokens": 3, "error": None, "reference": None, "text": f"text {index}", "tokens": 2,
    }  # fmt: skip
    return {**values, **changes}


ALONE = [LoadResponse(1.0, 0.5, records=[record(index)]) for index in range(2)]


def counted(*asked: tuple[int, LoadResponse]) -> dict[str, Any]:
    return summarize_load(asked, ALONE, REQUESTS, 1.0)


def test_the_same_answers_are_right() -> None:
    line = counted((0, ALONE[0]), (1, ALONE[1]), (1, ALONE[1]))
    assert (line["asked"], line["answered"], line["answers"], line["wrong"], line["identical_share"]) == (3, 3, 3, 0, 1)
    assert (line["first_token_p50_seconds"], line["whole_p95_seconds"]) == (0.5, 1.0)


def test_another_end_of_the_same_answer_is_not_wrong_but_not_identical() -> None:
    line = counted((0, LoadResponse(1.0, 0.5, records=[record(0, text="text 0, and more")])))
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
def test_what_belongs_to_another_request_is_wrong(change: dict[str, Any]) -> None:
    assert counted((0, LoadResponse(1.0, 0.5, records=[record(0, **change)])))["wrong"] == 1


def test_refusals_and_failures_are_counted_apart() -> None:
    line = counted(
        (0, LoadResponse(0.1, rejected="busy")), (0, LoadResponse(0.1, error="ReadTimeout: x")), (1, ALONE[1])
    )
    assert (line["asked"], line["answered"], line["busy"], line["failed"], line["wrong"]) == (3, 1, 1, 1, 0)
    assert line["failures"] == ["ReadTimeout: x"]


def test_what_fails_alone_is_reported() -> None:
    assert single_user_error(ALONE) == ""
    assert single_user_error([*ALONE, LoadResponse(1.0, error="ValueError: x")]) == "ValueError: x"
    assert single_user_error([LoadResponse(1.0, records=[record(0, error="No adapter 'x'.")])]) == "No adapter 'x'."


def test_percentiles() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.95)] == [3.0, 4.0]
    assert percentile([], 0.5) is None


def test_memory_that_grows_has_its_slope() -> None:
    flat = MemorySampler(1, [(float(second), 100.0) for second in range(120)]).summary()
    assert flat["memory_slope_mib_per_minute"] == 0
    grown = MemorySampler(1, [(float(second), 100.0 + second) for second in range(120)]).summary()
    assert grown["memory_slope_mib_per_minute"] == pytest.approx(60)
    assert grown["memory_end_mib"] > grown["memory_middle_mib"] > grown["memory_begin_mib"]


def test_requests_are_the_same_for_a_seed_and_the_page_says_what_was_measured() -> None:
    assert make_requests(3) == make_requests(3)
    assert len({request.intent for request in make_requests(3)}) == len(make_requests(3))
    memory = MemorySampler(1, [(float(second), 100.0) for second in range(30)]).summary()
    about = {"visitors": 50, "hung": 0, "crashed": False, "cores": 2, "load_before": 0.1, "python": "3.11", "base": "b",
             "quantization": "nf4", "device": "cpu"}  # fmt: skip
    text = render_load_test_page(
        counted((0, ALONE[0])) | memory | about, "python -m benchmarks.load_test", "load-test.json"
    )
    assert text.startswith("# 50 visitors at once")
    assert "| wrong: of another question, adapter, prompt or example" in text
