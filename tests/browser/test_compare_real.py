"""Compare page in a browser on the real app: `python app.py` with the embedded base in NF4."""

from __future__ import annotations

from typing import Any

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.conftest import BROKEN_ADAPTER
from tests.browser.page import ComparePage, until

pytestmark = [pytest.mark.browser, pytest.mark.model]

RUN_SECONDS = 240  # enough for four prompts, two of them with eight examples, on a busy machine with two cores
LONG_TASK = "write a long module with twenty functions about strings, each with a docstring and an example"


@pytest.fixture
def page(driver: WebDriver, real_app: str) -> ComparePage:
    return ComparePage(driver, real_app).open()


def count_streaming(cards: list[dict[str, Any]]) -> int:
    """Return the number of columns that are streaming."""
    return sum(card["state"] == "streaming" and bool(card["code"].strip()) for card in cards)


def test_four_methods_answer_a_real_problem(page: ComparePage) -> None:
    assert "NF4" in page.text(".model-text")
    page.choose("#data-set", "conala")
    page.search("#problem", "dictionary")
    until(page.intent_text, describe="the problem did not fill the question")
    assert "dictionary" in page.intent_text()
    until(lambda: "examples from conala" in page.text("#options button"))
    until(lambda: len(page.chips()) == 4, describe="no adapter among the methods")
    assert page.chips()[:3] == ["zero-shot", "ICL 8", "RAG 8"]
    page.run()
    until(lambda: count_streaming(page.cards()) >= 2, RUN_SECONDS, "no two columns streamed at the same time")
    page.screenshot("real-streaming")
    page.finish(RUN_SECONDS)
    cards = page.cards()
    assert {card["state"] for card in cards} == {"done"}
    assert len({card["code"] for card in cards}) >= 3, "all methods gave the same answer"
    assert all(card["code"].strip() for card in cards)
    for card in cards:
        assert 0 <= float(card["numbers"]["CodeBLEU"]) <= 1
        assert card["numbers"]["EM"] in ("0", "1")
        assert card["numbers"]["parses"] in ("yes", "no")
        assert int(card["numbers"]["tokens"]) > 0
        assert float(card["numbers"]["tokens/s"]) > 0
    assert len({card["numbers"]["CodeBLEU"] for card in cards}) >= 2
    assert page.text("#status")
    prompts = [page.open_details(i, "Exact prompt").text for i in range(4)]
    assert all(page.intent_text() in prompt for prompt in prompts)
    assert len(prompts[1]) > 2 * len(prompts[0])
    assert page.console_errors() == []
    page.screenshot("real-done-light")


def test_running_answer_is_stopped(page: ComparePage) -> None:
    page.intent(LONG_TASK)
    page.run()
    until(lambda: count_streaming(page.cards()) >= 1, RUN_SECONDS)
    page.stop()
    page.finish(20)
    stopped = [card for card in page.cards() if card["state"] == "stopped"]
    assert stopped
    assert not any("CodeBLEU" in card["numbers"] for card in stopped)
    page.screenshot("real-stopped")


def test_empty_question_is_refused(page: ComparePage) -> None:
    page.intent("   ")
    page.run()
    assert page.text("#intent-note") == "Say first what the Python should do: one sentence is enough."
    assert not page.running()


def test_too_long_question_fails_in_its_columns(page: ComparePage) -> None:
    page.intent("add up " + "7" * 19_900)  # a token for each digit
    assert len(page.intent_text()) > 19_000
    page.run()
    page.finish(RUN_SECONDS)
    cards = page.cards()
    assert len(cards) == 4
    assert {card["state"] for card in cards} == {"failed"}
    assert all("shorten the intent" in card["code"] for card in cards)
    assert len(page.intent_text()) > 19_000, "nothing typed is lost"


def test_broken_adapter_fails_in_its_own_column(page: ComparePage) -> None:
    until(lambda: len(page.chips()) == 4)
    for label in page.chips()[1:]:
        page.remove_chip(label)
    page.add_adapter(f"{BROKEN_ADAPTER} (cannot be used here)")
    page.intent("reverse the string `s`")
    page.run()
    page.finish(RUN_SECONDS)
    good, broken = page.cards()
    assert good["state"] == "done"
    assert broken["state"] == "failed"
    assert BROKEN_ADAPTER in broken["code"]
    assert "adapter_model.safetensors" in broken["code"]
    page.screenshot("real-broken-adapter")
