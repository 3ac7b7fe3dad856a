"""Use of the Compare page on a fake engine: runs, details, methods, problems, history and exports."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.fake_app import ANSWERS, DEFAULTS, REFERENCE
from tests.browser.page import ComparePage, until

pytestmark = pytest.mark.browser


def test_run_displays_answers_and_verdict(page: ComparePage) -> None:
    page.intent("map two lists `keys` and `values` into a dictionary")
    page.reference(REFERENCE)
    until(lambda: page.chips() == DEFAULTS)
    page.watch_columns()
    page.run()
    page.finish()
    assert page.max_streaming() >= 2, "no two columns streamed at the same time"
    cards = page.cards()
    assert [card["name"] for card in cards] == DEFAULTS
    assert cards[0]["code"] == ANSWERS["zero-shot"].removeprefix("```python\n").removesuffix("\n```")
    assert cards[3]["numbers"]["EM"] == "1"
    assert cards[3]["numbers"]["CodeBLEU"] == "1.00"
    assert [card["badge"] for card in cards] == ["", "", "", "matches"]
    assert page.text("#status").startswith("lora-starter matches the reference; closest of the others is")
    assert len({card["top"] for card in cards}) == 1, "the tops of the code are aligned"
    assert len({card["below"] for card in cards}) == 1, "the numbers are aligned"
    assert "2 of 8 examples were left out" in page.all(".card")[1].text


def test_details_of_an_answer_are_displayed(page: ComparePage) -> None:
    page.intent("reverse the string `s`")
    page.reference(REFERENCE)
    page.run()
    page.finish()
    assert "### Instruction:\nreverse the string `s`" in page.open_details(0, "Exact prompt").text
    assert "```python" in page.open_details(0, "Raw output").text
    assert page.open_details(1, "Examples in the prompt").text.count("reverse the string") == 8
    assert "CodeBLEU" in page.open_details(2, "All scores").text
    difference = page.open_details(2, "Difference")
    until(lambda: difference.find_elements(By.CSS_SELECTOR, ".line.del"))
    assert difference.find_element(By.CSS_SELECTOR, ".line.del").text.endswith(REFERENCE)
    select = difference.find_element(By.TAG_NAME, "select")
    select.find_element(By.XPATH, "./option[text()='ICL 8']").click()
    until(lambda: "keys[i]" in difference.text)


def test_details_stay_open_while_other_columns_stream(page: ComparePage) -> None:
    page.remove_chip("ICL 8")
    page.remove_chip("RAG 8")
    page.remove_chip("zero-shot")
    page.add_adapter("lora-slow")
    page.intent("anything")
    page.run()
    until(lambda: [card["state"] for card in page.cards()] == ["done", "streaming"])
    page.open_details(0, "Exact prompt")
    time.sleep(0.5)
    assert page.all(".card")[0].find_elements(By.CSS_SELECTOR, "details[open]")
    page.stop()
    page.finish()


def test_methods_are_added_and_removed(page: ComparePage) -> None:
    page.remove_chip("ICL 8")
    page.open_method_form()
    page.write("#method-k input", "3")
    page.find("#method-add").click()
    until(lambda: "ICL 3" in page.chips())
    page.find("#method-add").click()
    until(lambda: page.text("#method-note") == "ICL 3 is already in the comparison.")
    assert page.chips() == ["zero-shot", "RAG 8", "lora-starter", "ICL 3"]
    page.intent("reverse the string `s`")
    page.run()
    page.finish()
    assert [card["name"] for card in page.cards()] == ["zero-shot", "RAG 8", "lora-starter", "ICL 3"]
    for label in page.chips():
        page.remove_chip(label)
    page.run()
    assert page.text("#intent-note") == "Add at least one method: each method gives one answer."


def test_test_problem_fills_question_and_reference(page: ComparePage) -> None:
    page.find("#suggestions button").click()
    until(page.intent_text)
    page.unfold_options()
    assert "def " in str(page.find("#reference textarea").get_property("value"))
    first = page.intent_text()
    page.find("#random").click()
    until(lambda: page.intent_text() != first)
    assert "examples from house" in page.text("#options button")
    page.run()
    page.finish()
    assert page.cards()[0]["numbers"]["CodeBLEU"] != "–"
    page.intent("something of my own")
    page.run()
    page.finish()
    assert "CodeBLEU" not in page.cards()[0]["numbers"]
    assert "its reference and its tests are no longer used" in page.text("#intent-note")


def test_history_restores_runs_and_exports_contain_them(page: ComparePage, tmp_path: Path) -> None:
    for intent in ("first question", "second question"):
        page.intent(intent)
        page.run()
        page.finish()
    page.remove_chip("RAG 8")
    assert [entry.find_element(By.CLASS_NAME, "intent").text for entry in page.history()] == [
        "second question",
        "first question",
    ]
    page.history()[1].click()
    until(lambda: page.intent_text() == "first question")
    assert page.text(".question") == "first question"
    assert page.chips() == DEFAULTS
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    page.find("#save-json").click()
    file = until(lambda: next(tmp_path.glob("*.json"), None))
    assert file is not None
    records = until(lambda: json.loads(file.read_text(encoding="utf-8")))
    assert {record["intent"] for record in records} == {"first question"}
    assert all(record["base_revision"] and record["prompt_fingerprint"] for record in records)
    page.find("#save-csv").click()
    until(lambda: next(tmp_path.glob("*.csv"), None))


def test_candidates_of_beam_search_can_be_selected(page: ComparePage) -> None:
    page.unfold_options()
    page.find("#mode input[value=beam]").click()
    until(lambda: page.find("#candidates").is_displayed())
    until(lambda: "beam search, 5 candidates" in page.text("#options button"))
    page.intent("reverse the string `s`")
    page.run()
    page.finish()
    assert "candidate 3" in page.open_details(1, "Other candidates").text


def test_page_can_be_used_by_keyboard(page: ComparePage) -> None:
    field = page.find("#intent textarea")
    field.send_keys("reverse the string `s`")
    field.send_keys(Keys.CONTROL, Keys.ENTER)
    until(lambda: page.text(".question") == "reverse the string `s`")
    page.finish()
    assert {card["state"] for card in page.cards()} == {"done"}
    page.find("#chips button[aria-label='Remove RAG 8']").send_keys(Keys.ENTER)
    until(lambda: "RAG 8" not in page.chips())
