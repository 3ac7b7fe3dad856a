"""Errors on the Compare page and their messages, on a fake engine."""

from __future__ import annotations

import threading

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from errors import BaseModelError
from serve.engine.llm_engine import ProgressFn
from tests.browser.fake_app import ANSWERS, DEFAULTS, FAILS, serve
from tests.browser.page import ComparePage, until
from tests.fakes import FakeEngine

pytestmark = pytest.mark.browser


def test_stop_keeps_the_partial_answer(page: ComparePage, engine: FakeEngine) -> None:
    page.add_adapter("lora-slow")
    page.intent("talk on and on")
    before = engine.cancelled
    page.run()
    until(lambda: page.cards() and page.cards()[-1]["state"] == "streaming" and page.cards()[0]["state"] == "done")
    page.stop()
    page.finish(5)
    slow = page.cards()[-1]
    assert (slow["state"], slow["badge"]) == ("stopped", "stopped")
    assert slow["code"].startswith("word word")
    assert "1 answer was stopped before its end" in page.text("#status")
    assert engine.cancelled == before + 1
    page.screenshot("compare-stopped")


def test_closing_the_page_cancels_its_run(driver: WebDriver, page: ComparePage, engine: FakeEngine) -> None:
    page.add_adapter("lora-slow")
    page.intent("talk on and on")
    before = engine.cancelled
    page.run()
    until(lambda: page.cards() and page.cards()[-1]["state"] == "streaming")
    driver.get("about:blank")
    until(lambda: engine.cancelled == before + 1, 15, "the engine did not stop")


@pytest.mark.parametrize("intent", ["", "   \n "])
def test_empty_question_is_refused_and_fields_are_not_lost(page: ComparePage, intent: str) -> None:
    page.intent("reverse the string `s`")
    page.run()
    page.finish()
    page.reference("s[::-1]")
    page.intent(intent)
    page.run()
    assert page.text("#intent-note") == "Say first what the Python should do: one sentence is enough."
    assert len(page.cards()) == 4
    assert page.find("#reference textarea").get_property("value") == "s[::-1]"


def test_too_long_question_fails_in_every_column(page: ComparePage) -> None:
    page.intent("x" * 20_000)
    page.run()
    page.finish()
    assert all("shorten the intent" in card["code"] for card in page.cards())
    assert len(page.intent_text()) == 20_000
    page.intent("reverse the string `s`")
    page.run()
    page.finish()
    assert {card["state"] for card in page.cards()} == {"done"}


def test_one_failed_column_does_not_affect_others(page: ComparePage) -> None:
    page.add_adapter("lora-broken (cannot be used here)")
    page.intent("reverse the string `s`")
    page.run()
    page.finish()
    cards = page.cards()
    assert [card["state"] for card in cards] == ["done"] * 4 + ["failed"]
    assert cards[4]["code"] == FAILS["lora-broken"]
    assert "1 method gave no answer" in page.text("#status")
    page.screenshot("compare-one-failed")


def test_second_visitor_waits_for_the_first(driver: WebDriver, page: ComparePage, engine: FakeEngine) -> None:
    page.add_adapter("lora-slow")
    page.intent("the first one")
    page.run()
    until(lambda: page.cards() and page.cards()[-1]["state"] == "streaming")
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    other = ComparePage(driver, page.url).open()
    other.intent("the second one")
    other.run()
    until(lambda: "Waiting: 1 run before yours." in other.text("#status"))
    other.screenshot("compare-waiting")
    second = driver.current_window_handle
    driver.switch_to.window(first)
    page.stop()
    page.finish()
    driver.switch_to.window(second)
    other.finish()
    assert other.text(".question") == "the second one"
    assert {card["state"] for card in other.cards()} == {"done"}
    driver.close()
    driver.switch_to.window(first)


def test_page_is_usable_while_the_model_loads(driver: WebDriver) -> None:
    go = threading.Event()

    def build(report: ProgressFn) -> FakeEngine:
        report("Converting the embedded base: 40%")
        go.wait(60)
        return FakeEngine(ANSWERS)

    with serve(build) as url:
        page = ComparePage(driver, url).open(ready=False)
        until(lambda: page.text(".model-text") == "Converting the embedded base: 40%")
        page.intent("reverse the string `s`")
        page.run()
        until(lambda: "Waiting for the model" in page.text("#status"))
        page.screenshot("compare-loading")
        go.set()
        page.finish()
        assert len(page.cards()) == 3
        until(lambda: page.find(".model.ready"))
        until(lambda: page.chips() == [*DEFAULTS[:3], "lora-starter"])


def test_failed_model_load_shows_its_message(driver: WebDriver) -> None:
    def build(report: ProgressFn) -> FakeEngine:
        raise BaseModelError("No base 'x' on the Hub: check the name, or use --base embedded.")

    with serve(build) as url:
        page = ComparePage(driver, url).open(ready=False)
        until(lambda: page.text(".model.failed") == "No base 'x' on the Hub: check the name, or use --base embedded.")
        page.intent("reverse the string `s`")
        page.run()
        page.finish()
        assert page.text("#status") == "No base 'x' on the Hub: check the name, or use --base embedded."
        assert page.intent_text() == "reverse the string `s`"
