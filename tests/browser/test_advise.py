"""Advise page in Chromium; the tests write the files that the process of an advice writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from common.format import utc_timestamp
from jobs.api import JobService
from jobs.job import Job
from serve.engine.llm_engine import EngineLoader
from tests.browser.axe import violations
from tests.browser.fake_app import EVIL, make_engine
from tests.browser.page import ComparePage, until
from tests.ui.advise import advice_on_disk as on_disk
from tests.ui.train.jobs_on_disk import set_state
from ui.app import build_pages, launch
from ui.context import Context

pytestmark = pytest.mark.browser
ROWS = "intent,code\n" + "".join(f"load record {n} of kind {n * 7},store.get({n})\n" for n in range(30))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobService]:
    """Return the job service of the app, without a worker."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("PROMPT_OR_TUNE_HOME", str(home))
        patch.setattr(JobService, "ensure_worker", lambda _: None)
        yield JobService(home)


@pytest.fixture(scope="module")
def url(service: JobService) -> Iterator[str]:
    source = EngineLoader(lambda _: make_engine()).start()
    pages = build_pages(source, context=Context(source, home=service.home))
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True)
    yield address
    pages.close()


@pytest.fixture(autouse=True)
def no_jobs(service: JobService) -> None:
    """Delete all jobs and data sets before a test."""
    for folder in ("jobs", "datasets"):
        shutil.rmtree(service.home / folder, ignore_errors=True)


@pytest.fixture
def page(driver: WebDriver, url: str) -> ComparePage:
    return ComparePage(driver, url)


def opened(page: ComparePage, job: Job | None = None, *, theme: str = "light", width: int = 1440) -> None:
    """Load the Advise page with this advice, or with the one that it selects."""
    page.resize(width, 900)
    at = f"&advice={job.id}" if job else ""
    page.driver.get(f"{page.url}?tab=advise{at}&__theme={theme}")
    until(lambda: page.all("#advise-poller") and "Looking for advice" not in page.text("#advise-jobs"), 40)
    if job:
        until(lambda: job.data_name in page.text("#advise-job-head"), describe="the advice is not shown")


def press(page: ComparePage, name: str) -> None:
    until(lambda: page.find(f"#{name}").is_displayed(), describe=f"{name} is not visible")
    page.find(f"#{name}").click()


def line(page: ComparePage) -> str:
    return page.text("#advise-job-line")


def buttons(page: ComparePage) -> set[str]:
    return {button.text for button in page.all("#advise-job-actions button") if button.is_displayed()}


def test_advice_is_started_watched_and_found_again(page: ComparePage, service: JobService) -> None:
    opened(page)
    assert "No advice yet" in page.text("#advise-jobs-empty")
    until(lambda: page.find("#advise-file").is_displayed(), describe="no place for own rows")
    page.screenshot("advise-empty")
    page.find("#advise-minutes input").send_keys(Keys.CONTROL, "a")
    page.find("#advise-minutes input").send_keys("8")
    page.find("#advise-minutes input").send_keys(Keys.TAB)
    press(page, "advise-start")
    until(lambda: "it is next" in line(page))
    (job,) = service.list_jobs()
    assert (job.kind, job.data_name, job.config["minutes"]) == ("advise", "house", 8.0)
    set_state(service, job.id, state="running", stage="advising", started=utc_timestamp())
    until(lambda: "Planning" in line(page))
    on_disk.run_to(service, job.id, "search")
    until(lambda: "goes on without it" in line(page))
    until(lambda: len(page.all("#advise-job-curves polyline")) == 3)
    assert "1 of 4" in page.text("#advise-job-head")
    assert "left out" in page.text("#advise-job-plan")
    page.screenshot("advise-running")
    assert f"advice={job.id}" in page.driver.current_url
    page.driver.refresh()
    until(lambda: len(page.all("#advise-job-curves polyline")) == 3, 40)
    press(page, "advise-job-cancel")
    until(lambda: "Stopping" in line(page))
    set_state(service, job.id, state="stopped", ended=utc_timestamp())
    until(lambda: "'Resume' goes on behind the last finished step" in line(page))
    assert buttons(page) == {"Resume", "Delete"}
    press(page, "advise-job-again")
    until(lambda: "it is next" in line(page))
    assert page.console_errors() == []


def test_finished_advice_has_a_report_that_is_saved_and_opened(
    page: ComparePage, service: JobService, tmp_path: Path
) -> None:
    job = on_disk.submit(service)
    result = on_disk.finish(service, job.id)
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path), "eventsEnabled": False}
    )
    opened(page, job)
    until(lambda: on_disk.SENTENCE in page.text("#advise-job-report"))
    assert page.all("#advise-job-plan details:not([open])")
    for button, name in (("json", "advice-house.json"), ("page", "advice-house.html")):
        press(page, f"advise-job-{button}")
        until((tmp_path / name).exists, describe=name)
    assert json.loads((tmp_path / "advice-house.json").read_text()) == result
    assert on_disk.SENTENCE in (tmp_path / "advice-house.html").read_text()
    page.find("#advise-job-report details:last-of-type summary").click()
    press(page, "advise-job-open")
    until(lambda: page.find("#run").is_displayed())
    until(lambda: "RAG 4" in page.text("#chips"))
    page.find("#tab-advise-button").click()
    press(page, "advise-job-delete")
    until(lambda: page.find("#advise-delete-job").is_displayed())
    assert "Delete the advice on 'house'?" in page.text("#advise-delete-text")
    press(page, "advise-delete-job")
    until(lambda: "No advice yet" in page.text("#advise-jobs"))
    assert service.list_jobs() == []


def test_uploaded_rows_become_a_data_set(page: ComparePage, service: JobService, tmp_path: Path) -> None:
    (tmp_path / "My Rows.csv").write_text(ROWS + "only an intent,\n")
    opened(page)
    until(lambda: page.find("#advise-file").is_displayed())
    page.find("#advise-file input[type=file]").send_keys(str(tmp_path / "My Rows.csv"))
    until(lambda: "my-rows: " in page.text("#advise-added"), 120)
    assert "1 rows could not be read" in page.text("#advise-added")
    until(lambda: page.find("#advise-data input").get_property("value") == "my-rows")
    press(page, "advise-start")
    until(lambda: "it is next" in line(page))
    assert service.list_jobs()[0].config["data"] == "my-rows"


def test_hostile_result_stays_text(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service)
    answer = {"label": "RAG", "code": EVIL, "right": False, "kind": EVIL, "detail": EVIL}
    on_disk.finish(
        service,
        job.id,
        recommendation={"sentence": EVIL, "method": None, "family": None, "adapter": None},
        answers=[{"id": EVIL, "intent": EVIL, "reference": EVIL, "answers": [answer]}],
    )
    opened(page, job)
    until(lambda: "onerror" in page.text("#advise-job-report"))
    assert page.driver.title != "owned"


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
def test_running_and_finished_advice_is_accessible(
    page: ComparePage, service: JobService, theme: str, width: int
) -> None:
    first, second = on_disk.submit(service), on_disk.submit(service, "starter")
    on_disk.finish(service, first.id)
    on_disk.run_to(service, second.id, "search")
    for job, part in ((first, "report"), (second, "curves")):
        opened(page, job, theme=theme, width=width)
        until(partial(page.text, f"#advise-job-{part}"))
        assert violations(page.driver) == []
        assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(f"advise-{part}-{theme}-{width}")
