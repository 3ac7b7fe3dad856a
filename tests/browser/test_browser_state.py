"""State of the browser on a fake engine: restored fields and runs on Compare and Results, and the introduction."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.fake_app import DEFAULTS, EVIL, REFERENCE, make_engine, serve
from tests.browser.page import ComparePage, until
from tests.ui.runs import write_run
from ui.results.runs import RunLibrary

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("sandbox")]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first.jsonl", failing=False)
    write_run(folder / "other.jsonl", failing=True)
    engine = make_engine()
    engine.delay = 0.0
    with serve(lambda report: engine, run_library=RunLibrary([("runs", folder)])) as address:
        yield address


def reload(page: ComparePage) -> ComparePage:
    return page.open(first=False)


def value(page: ComparePage, css: str) -> str:
    return str(page.find(css).get_property("value"))


def test_refresh_restores_question_settings_and_runs(page: ComparePage) -> None:
    page.intent(EVIL)
    page.run()
    page.finish()
    page.intent("map two lists into a dictionary")
    page.reference(REFERENCE)
    page.remove_chip("RAG 8")
    page.find("#mode input[value=beam]").click()
    until(lambda: "beam search" in page.text("#options button"))
    page.run()
    page.finish()
    status, cards = page.text("#status"), page.cards()
    page.intent("and now something that is not asked yet")
    reload(page)
    until(lambda: page.intent_text() == "and now something that is not asked yet")
    until(lambda: page.chips() == [label for label in DEFAULTS if label != "RAG 8"])
    until(lambda: "beam search, 5 candidates" in page.text("#options button"))
    assert page.text("#status") == status
    assert page.text(".question") == "map two lists into a dictionary"
    assert [card["code"] for card in page.cards()] == [card["code"] for card in cards]
    page.unfold_options()
    assert value(page, "#reference textarea") == REFERENCE
    assert len(page.history()) == 2
    page.history()[1].click()
    until(lambda: page.intent_text() == EVIL)
    reload(page)
    until(lambda: page.history() and page.history()[1].get_attribute("aria-current") == "true")
    assert page.driver.title == "Prompt or Tune · Compare"
    assert page.all("#comparison script, #comparison img, #history img") == []


def test_refresh_restores_the_selected_problem(page: ComparePage) -> None:
    page.find("#random").click()
    until(page.intent_text)
    until(lambda: value(page, "#problem input") != "Pick a test problem")
    problem, intent = value(page, "#problem input"), page.intent_text()
    until(lambda: page.driver.execute_script("return localStorage['prompt-or-tune.chosen']"))
    reload(page)
    until(lambda: page.intent_text() == intent)
    until(lambda: value(page, "#problem input") == problem)
    page.intent("words of my own")
    page.run()
    page.finish()
    until(lambda: "its reference and its tests are no longer used" in page.text("#intent-note"))


def test_clearing_the_storage_removes_everything(page: ComparePage) -> None:
    page.intent("something private")
    page.run()
    page.finish()
    page.find("#clear-storage").click()
    page.driver.switch_to.alert.accept()
    until(lambda: page.find("#run-example").is_displayed())
    until(lambda: page.find(".model.ready"))
    assert page.intent_text() == ""
    assert page.history() == []
    stored = page.driver.execute_script("return Object.values(localStorage).join()")
    assert "something private" not in stored


def test_invalid_storage_is_ignored(page: ComparePage) -> None:
    script = """
        localStorage.setItem("prompt-or-tune.runs", '[[{"method": "<img src=x onerror=alert(1)>"}], 7, null]');
        localStorage.setItem("prompt-or-tune.fields", '{"intent": 5, "mode": "loud", "chips": [{"name": 3}, "x"]}');
        localStorage.setItem("prompt-or-tune.chosen", '{"id": {}}');
        localStorage.setItem("prompt-or-tune.shown", "no JSON");
    """
    page.driver.execute_script(script)
    reload(page)
    # The fields are stored again when the page has restored what it can.
    stored = "return localStorage.getItem('prompt-or-tune.fields')"
    until(lambda: "loud" not in str(page.driver.execute_script(stored)))
    page.intent("reverse the string `s`")
    until(lambda: len(page.chips()) > 0)
    page.run()
    page.finish()
    assert {card["state"] for card in page.cards()} == {"done"}
    until(lambda: len(page.history()) == 1)


def test_storage_of_an_earlier_version_is_migrated(page: ComparePage) -> None:
    page.intent("map two lists into a dictionary")
    page.run()
    page.finish()
    until(lambda: page.driver.execute_script("return localStorage['prompt-or-tune.runs']"))
    script = """
        for (const name of ["fields", "chosen", "runs", "shown", "seen"]) {
          const value = localStorage.getItem("prompt-or-tune." + name);
          if (value !== null) localStorage.setItem("peft-arena." + name, value);
          localStorage.removeItem("prompt-or-tune." + name);
        }
        localStorage.setItem("peft-arena-duel", "old");
        localStorage.setItem("prompt-or-tune-duel", "new");
        return localStorage["peft-arena.runs"];
    """
    runs = page.driver.execute_script(script)
    reload(page)
    until(lambda: page.intent_text() == "map two lists into a dictionary")
    until(lambda: len(page.history()) == 1)
    assert not page.find("#welcome").is_displayed()
    stored = page.driver.execute_script("return {...localStorage}")
    assert stored["prompt-or-tune.runs"] == runs
    assert not [key for key in stored if key.startswith("peft-arena")]


def test_first_visit_shows_introduction_and_runs_an_example(page: ComparePage) -> None:
    assert len(page.all("#welcome .welcome p")) == 3
    until(lambda: page.chips() == DEFAULTS)
    page.find("#run-example").click()
    until(lambda: not page.find("#welcome").is_displayed(), describe="the introduction stays")
    page.finish()
    assert page.intent_text()
    assert len(page.cards()) == 4
    assert len(page.history()) == 1
    reload(page)
    assert not page.find("#welcome").is_displayed()
    page.find("#show-welcome").click()
    assert page.find("#welcome").is_displayed()
    page.find("#hide-welcome").click()
    assert not page.find("#welcome").is_displayed()


def test_url_restores_runs_filters_and_open_problem(driver: WebDriver, url: str) -> None:
    page = ComparePage(driver, url)
    page.resize(1440, 900)
    driver.get(f"{url}?tab=results&run=runs/other.jsonl&run=no/such.jsonl&show=some&words=double")
    until(lambda: page.texts("#problems li .intent") == ["double a value"])
    until(lambda: "Comparisons" in page.text("#summary"), describe=page.text("#summary") or "nothing")
    # Repeat the click: until all runs are read, they replace what is shown.
    until(lambda: "problem=" in driver.current_url or page.find("#problems li button").click())
    until(lambda: page.all("#answers .card"))
    question = page.text("#answers .question")
    driver.refresh()
    until(lambda: page.all("#answers .card"))
    assert page.text("#answers .question") == question
    assert value(page, "#filter-words textarea, #filter-words input") == "double"
    assert page.texts("#problems li .intent") == ["double a value"]
    page.write("#filter-words textarea, #filter-words input", "")
    until(lambda: "words=" not in driver.current_url)


def test_invalid_url_parameters_are_ignored(driver: WebDriver, url: str) -> None:
    page = ComparePage(driver, url)
    driver.get(f"{url}?tab=results&run=../../etc/passwd&method=%3Cimg src=x onerror=alert(1)%3E&show=x&words=%24{{1}}")
    until(lambda: len(page.all("#problems li")) == 3)
    assert page.all("#results img, #results script") == []
