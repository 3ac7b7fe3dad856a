"""Tests on the Compare page: answers of a fake engine run in the real sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from evaluate.sandbox.sandbox import SandboxUnavailableError
from serve.engine.llm_engine import EngineLoader
from tests.browser.fake_app import serve
from tests.browser.page import ComparePage, until
from tests.fakes import FakeEngine
from ui.context import Context
from ui.test_bench import TestBench

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("sandbox")]

ANSWERS = {
    "zero-shot": "def double(x):\n    return x * x",
    "icl-8": "import os\nos._exit(0)",
    "rag-8": "def double(x):\n    return open('/etc/passwd').read()",
    "lora-starter": "def double(x):\n    return x + x",
}
TESTS = "assert double(2) == 4\nassert double('ab') == 'abab'\nassert double([1]) == [1, 1]"
NO_SANDBOX = "No code is run, because no layer of the sandbox works here."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(lambda report: FakeEngine(ANSWERS)) as address:
        yield address


def panels(page: ComparePage) -> list[str]:
    return [str(node.get_attribute("textContent")) for node in page.all("#comparison .card-tests")]


def ask(page: ComparePage, tests: str) -> None:
    page.intent("double a value")
    page.unfold_options()
    page.write("#tests textarea", tests)
    page.run()
    page.finish()
    until(lambda: "answer" in page.text("#status") or "pass" in page.text("#status"))
    until(lambda: "double a value" in page.text("#comparison .question"))


def test_pasted_tests_show_failures_with_reasons(page: ComparePage) -> None:
    ask(page, TESTS)
    assert page.text("#status").startswith("lora-starter passes all 3 tests; the others pass at most 1.")
    assert [card["badge"] for card in page.cards()] == ["", "", "", "passes"]
    first, leaves, reads, passes = panels(page)
    assert first.startswith("1 of 3 tests passes")
    assert "double('ab') raised TypeError" in first
    assert leaves.startswith("0 of 3 tests pass")
    assert "PermissionError" in reads or "FileNotFoundError" in reads
    assert passes.startswith("All 3 tests pass")
    assert "3 tests in the sandbox (" in page.text("#comparison .about")
    assert "expected" in page.open_details(0, "All tests").text
    assert page.console_errors() == []
    page.screenshot("compare-tests")


def test_input_and_output_pairs_run(page: ComparePage) -> None:
    ask(page, "input: 2\noutput: 4")
    assert page.text("#status") == "No answer passes the test."
    assert "input '2': printed nothing, expected '4'" in panels(page)[3]


def test_invalid_tests_show_their_line_and_stay_in_the_field(page: ComparePage) -> None:
    wrong = "assert double(2) == 4\nassert double(2 =="
    page.intent("double a value")
    page.unfold_options()
    page.write("#tests textarea", wrong)
    page.run()
    until(lambda: "Line 2: " in page.text("#intent-note"))
    assert "double a value" not in page.text("#comparison")  # the recorded example stays, and nothing is answered
    assert page.find("#tests textarea").get_property("value") == wrong


def test_tests_of_a_problem_are_restored_from_history(page: ComparePage) -> None:
    page.find("#suggestions button").click()
    until(page.intent_text)
    page.unfold_options()
    until(lambda: str(page.find("#tests textarea").get_property("value")).startswith("assert "))
    tests = page.find("#tests textarea").get_property("value")
    page.run()
    page.finish()
    until(lambda: all("tests pass" in panel for panel in panels(page)))
    page.write("#tests textarea", "")
    page.intent("something else")
    page.run()
    page.finish()
    until(lambda: panels(page) == [""] * 4)
    page.history()[1].click()
    until(lambda: page.find("#tests textarea").get_property("value") == tests)
    until(lambda: all("tests pass" in panel for panel in panels(page)))


def test_missing_sandbox_shows_its_reason(driver: WebDriver) -> None:
    def open_sandbox() -> Any:
        raise SandboxUnavailableError(NO_SANDBOX)

    loader = EngineLoader(lambda report: FakeEngine(ANSWERS))
    with serve(lambda report: FakeEngine(ANSWERS), Context(loader.start(), test_bench=TestBench(open_sandbox))) as url:
        page = ComparePage(driver, url).open()
        ask(page, TESTS)
        until(lambda: page.text("#comparison .error-message") == NO_SANDBOX)
        assert panels(page) == [""] * 4
        assert len(page.cards()) == 4
