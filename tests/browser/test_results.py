"""Results page in a browser, with small runs written by the code of `python -m evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.fake_app import make_engine, serve
from tests.browser.page import ComparePage, until
from tests.ui.runs import write_run
from ui.results.runs import RunLibrary

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("sandbox")]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first.jsonl", failing=False)
    write_run(folder / "other.jsonl", digest="sha256:2", scored=False)
    (folder / "broken.jsonl").write_text("no run\n")
    with serve(lambda report: make_engine(), run_library=RunLibrary([("runs", folder)])) as address:
        yield address


@pytest.fixture
def page(driver: WebDriver, url: str) -> ComparePage:
    return open_results(driver, url)


def open_results(driver: WebDriver, url: str, theme: str = "light", width: int = 1440) -> ComparePage:
    page = ComparePage(driver, url)
    page.resize(width, 900)
    driver.get(f"{url}?tab=results&__theme={theme}")
    until(lambda: rows(page), 40, "the problems are not listed")
    until(lambda: "Comparisons" in page.text("#summary"), 40, "the tables are not shown")
    return page


def rows(page: ComparePage) -> list[str]:
    return page.texts("#problems li .intent")


def test_url_opens_a_run_with_its_tables(page: ComparePage) -> None:
    assert page.driver.title == "Prompt or Tune · Results"
    table = page.text("#summary table")
    assert "Pass@1" in table
    assert "lora-starter" in table
    assert len(page.all("#summary .plot")) >= 3
    assert page.text("#problems .result-count") == "3 problems"
    assert page.console_errors() == []
    page.screenshot("results-light")


def test_problem_opens_with_all_answers_escaped(page: ComparePage) -> None:
    page.all("#problems li button")[1].click()
    until(lambda: page.all("#answers .card"))
    assert page.texts("#answers h3:not(.question)") == ["zero-shot", "lora-starter"]
    assert page.texts("#answers .badge") == ["passes"]
    assert "onerror" in page.text("#answers .question")
    assert page.all("#results img, #results script") == []
    assert page.driver.title == "Prompt or Tune · Results"
    page.screenshot("results-problem")


def test_problems_are_filtered_and_searched(page: ComparePage) -> None:
    page.choose("#filter-show", "Solved by some")
    until(lambda: len(rows(page)) == 2)
    page.write("#filter-words textarea, #filter-words input", "double")
    until(lambda: rows(page) == ["double a value"])
    page.choose("#filter-show", "Solved by nobody")
    until(lambda: "None of 3 problems" in page.text("#problems .result-count"))


def test_click_on_a_method_shows_its_failures(page: ComparePage) -> None:
    page.find("#summary button[data-method$='|zero-shot']").click()
    until(lambda: len(rows(page)) == 2)
    assert page.find("#filter-method input").get_property("value") == "zero-shot"
    page.find("#summary button[data-method$='|lora-starter']").click()
    until(lambda: "None of 3 problems" in page.text("#problems .result-count"))


def test_broken_and_incompatible_runs_have_a_message_each(page: ComparePage) -> None:
    page.choose("#runs", "runs/broken.jsonl")
    until(lambda: "'runs/broken.jsonl' is not a file that" in page.text("#results-note"))
    page.choose("#runs", "runs/other.jsonl")
    until(lambda: "leave out 'runs/other.jsonl'" in page.text("#results-note"))
    until(lambda: "6 answers, not scored yet" in page.text("#summary"))
    assert len(rows(page)) == 3


def test_tables_are_downloaded_in_each_format(page: ComparePage, tmp_path: Path) -> None:
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for label, ending in (("Save JSON", "json"), ("Save PNG", "png")):
        page.find("#downloads").find_element(By.XPATH, f".//button[normalize-space()='{label}']").click()
        saved = tmp_path / f"first.{ending}"
        until(saved.exists)
        assert saved.stat().st_size > 0
    assert json.loads((tmp_path / "first.json").read_text(encoding="utf-8"))


def test_tabs_change_the_url(page: ComparePage) -> None:
    page.find("#tab-compare-button").click()
    until(lambda: "tab=" not in page.driver.current_url)
    until(lambda: page.driver.title == "Prompt or Tune · Compare")
    page.find("#tab-results-button").click()
    until(lambda: "tab=results" in page.driver.current_url)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_phone_layout_of_results_has_no_horizontal_scroll(driver: WebDriver, url: str, theme: str) -> None:
    page = open_results(driver, url, theme, 390)
    page.all("#problems li button")[0].click()
    until(lambda: page.all("#answers .card"))
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(f"results-phone-{theme}")


def test_page_without_runs_shows_the_command(driver: WebDriver, tmp_path: Path) -> None:
    with serve(lambda report: make_engine(), run_library=RunLibrary([("runs", tmp_path)])) as url:
        driver.get(f"{url}?tab=results")
        page = ComparePage(driver, url)
        until(lambda: "No results yet" in page.text("#summary"))
        assert "python -m evaluate" in page.text("#summary pre")
        page.screenshot("results-empty")
