"""Data page in Chromium, on the fake engine: add a file, look at its rows, ask them all, delete the data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.fake_app import serve
from tests.browser.page import ComparePage, until
from tests.fakes import FakeEngine
from tests.ui.own_rows import write_rows

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("sandbox")]
ADD_SECONDS = 300  # a process imports torch first, with little priority
RIGHT = "def number_{0}():\n    return {0}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("data-home")
    write_rows(home / "My Rows.jsonl")
    engine = FakeEngine({"zero-shot": "pass", "icl-8": RIGHT.format(7), "rag-8": RIGHT.format(9)}, names=(), delay=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPT_OR_TUNE_HOME", str(home))
        with serve(lambda report: engine) as address:
            yield address


@pytest.fixture(scope="module")
def rows_file(url: str) -> str:
    import os

    return str(Path(os.environ["PROMPT_OR_TUNE_HOME"]) / "My Rows.jsonl")


def open_data(driver: WebDriver, url: str, theme: str = "light", width: int = 1440) -> ComparePage:
    page = ComparePage(driver, url)
    page.resize(width, 1000)
    driver.get(f"{url}?tab=data&__theme={theme}")
    until(lambda: page.find("#data-run").is_displayed() or page.find("#data-stop").is_displayed(), 40)
    until(lambda: page.text("#data-sets"), 20, "the list of data sets is empty")
    return page


def test_rows_are_added_asked_and_deleted(driver: WebDriver, url: str, rows_file: str) -> None:
    page = open_data(driver, url)
    assert driver.title == "Prompt or Tune · Data"
    assert page.text("#data-sets") == "None yet: add a file above."
    page.find("#data-file input[type=file]").send_keys(rows_file)
    until(lambda: page.find("#data-name input, #data-name textarea").get_property("value") == "my-rows", 20)
    page.find("#data-add").click()
    until(lambda: "21 train, 3 validation, 6 test rows of My Rows.jsonl" in page.text("#data-added"), ADD_SECONDS)
    assert "30 of 30 rows have tests" in page.text("#data-added")
    until(lambda: page.text("#data-sets h3") == "my-rows")
    page.find("#data-sets [data-do=rows]").click()
    until(lambda: "Held-out rows 6" in page.text("#data-rows [aria-current]"))
    assert len(page.all("#data-rows li")) == 6
    page.find("#data-rows [data-split=train]").click()
    until(lambda: "1 to 10 of 21" in page.text("#data-rows"))
    page.find("#data-rows [data-do=close]").click()
    until(lambda: not page.text("#data-rows"))

    page.find("#data-run").click()
    until(lambda: any(word in page.text("#data-run-status") for word in ("Answers:", "Scores:", "Done:")), 60)
    page = open_data(driver, url, "dark")  # the run goes on without the page, and is found again
    until(lambda: "Done: all rows are answered and scored." in page.text("#data-run-status"), 120)
    until(lambda: page.all("#data-problems li button"), 60)
    assert "Pass@1" in page.text("#data-summary table")
    assert page.text("#data-advice")
    assert page.text("#data-problems li .verdict").startswith("solved by 0 of 3")
    page.find("#data-problems li button").click()
    until(lambda: len(page.all("#data-answers .card")) == 3)
    assert "return the number" in page.text("#data-answers .question")

    driver.get(f"{url}?__theme=light")
    until(lambda: page.find("#run").is_displayed(), 40)
    page.find("#data-set input").click()
    until(lambda: "my-rows" in page.texts("ul[role=listbox] li"), 20)

    page = open_data(driver, url)
    driver.execute_script("window.confirm = () => true")
    page.find("#data-sets [data-do=delete]").click()
    until(lambda: "'my-rows' is deleted." in page.text("#data-note"))
    assert page.text("#data-sets") == "None yet: add a file above."
    assert page.console_errors() == []
