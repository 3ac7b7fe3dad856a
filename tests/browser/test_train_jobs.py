"""Jobs panel of the Train page in Chromium; the tests write the files that a worker writes."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from adapters.store import LIBRARY
from common.format import utc_timestamp
from jobs.api import JobService
from jobs.job import Job
from serve.engine.llm_engine import EngineLoader
from tests.browser.fake_app import EVIL, make_engine
from tests.browser.page import ComparePage, until
from tests.ui.train import jobs_on_disk as on_disk
from ui.app import build_pages, launch
from ui.context import Context

# Script that counts the polls of the jobs panel among all requests.
COUNT_POLLS = """
    const fetched = window.fetch;
    window.polls = 0;
    window.fetch = (...given) => {
      if (String(given[1]?.body || "").includes('"seen":')) window.polls += 1;
      return fetched(...given);
    };
"""
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobService]:
    """Return the job service of the app, without a worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobService, "ensure_worker", lambda _: None)
        yield JobService(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def url(service: JobService) -> Iterator[str]:
    source = EngineLoader(lambda _: make_engine()).start()
    pages = build_pages(source, context=Context(source, home=service.home))
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True)
    yield address
    pages.close()


@pytest.fixture(autouse=True)
def no_jobs(service: JobService) -> None:
    """Delete all jobs and adapters before a test."""
    for folder in ("jobs", "adapters"):
        shutil.rmtree(service.home / folder, ignore_errors=True)


@pytest.fixture
def page(driver: WebDriver, url: str) -> ComparePage:
    return ComparePage(driver, url)


def opened(page: ComparePage, job: Job | None = None, *, theme: str = "light", width: int = 1440) -> None:
    """Load the Train page with this job, or with the job that it selects."""
    page.resize(width, 900)
    at = f"&job={job.id}" if job else ""
    page.driver.get(f"{page.url}?tab=train{at}&__theme={theme}")
    until(lambda: page.all("#train-poller") and "Looking for jobs" not in page.text("#train-jobs"), 40)
    if job:
        until(lambda: job.adapter in page.text("#train-job-head"), describe=f"{job.adapter} is not shown")


def line(page: ComparePage) -> str:
    return page.text("#train-job-line")


def press(page: ComparePage, name: str) -> None:
    until(lambda: page.find(f"#{name}").is_displayed(), describe=f"{name} is not visible")
    page.find(f"#{name}").click()


def points(page: ComparePage, series: str) -> int:
    found = page.all(f"#train-job-curve polyline.{series}")
    return len((found[0].get_attribute("points") or "").split()) if found else 0


def visible_buttons(page: ComparePage) -> set[str]:
    return {button.text for button in page.all("#train-job-actions button") if button.is_displayed()}


def test_page_without_jobs_has_a_note(page: ComparePage) -> None:
    opened(page)
    until(lambda: "No training yet" in page.text("#train-jobs"))
    assert not any(columns.is_displayed() for columns in page.all("#train-jobs-columns"))
    page.screenshot("train-empty")


def test_curve_grows_and_is_equal_after_a_refresh_and_in_another_window(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service, "lora-snippets", data_name="my-snippets.csv")
    other = on_disk.submit(service, "lora-next")
    opened(page)
    until(lambda: page.all("#train-job-list li"))
    assert [item.text.split("\n")[:2] for item in page.all("#train-job-list li")] == [
        ["lora-next", "Waiting"],
        ["lora-snippets", "Waiting"],
    ]
    page.all("#train-job-list button")[1].click()
    until(lambda: "it is next" in line(page), 6)
    on_disk.write_training(service, job.id, 30)
    until(lambda: points(page, "training") == 30)
    assert points(page, "validation") == 2
    assert "Step\n30 of 120" in page.text("#train-job-head")
    on_disk.write_training(service, job.id, 48, since=30)
    until(lambda: points(page, "training") == 48)
    page.screenshot("train-live")
    assert f"job={job.id}" in page.driver.current_url
    page.driver.refresh()
    until(lambda: points(page, "training") == 48, 40)
    assert "Training" in line(page)
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("window")
    try:
        opened(page)
        # Without a job in the URL, the running job is selected.
        until(lambda: points(page, "training") == 48)
        on_disk.set_state(service, job.id, stage="scoring")
        until(lambda: "Trained. Now it answers" in line(page))
        page.driver.close()
    finally:
        page.driver.switch_to.window(first)
    until(lambda: "Trained. Now it answers" in line(page))
    page.all("#train-job-list button")[0].click()
    until(lambda: "one job is ahead" in line(page))
    assert f"job={other.id}" in page.driver.current_url
    assert page.console_errors() == []


def test_curve_values_are_read_by_keyboard(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service)
    on_disk.write_training(service, job.id, 24)
    opened(page, job)
    reader = until(lambda: page.find("#train-job-curve [role=slider]"))
    reader.send_keys(Keys.HOME)
    assert page.text("#train-job-curve .readout").startswith("Step 1 · training loss 2.5")
    reader.send_keys(Keys.END)
    assert "validation loss" in page.text("#train-job-curve .readout")
    assert reader.get_attribute("aria-valuetext") == page.text("#train-job-curve .readout")
    label = page.find("#train-job-curve svg[role=img]").get_attribute("aria-label") or ""
    assert "at step 24 of 120" in label


def test_job_is_cancelled_resumed_and_finished_by_its_buttons(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service)
    on_disk.write_training(service, job.id, 36)
    opened(page, job)
    press(page, "train-job-cancel")
    until(lambda: "Stopping" in line(page))
    assert service.get_job(job.id).state == "stopping"
    on_disk.stop(service, job.id, 36)
    until(lambda: "goes on from step 36 of 120" in line(page))
    assert visible_buttons(page) == {"Resume", "Make the adapter of the best checkpoint", "Delete"}
    page.screenshot("train-stopped")
    press(page, "train-job-again")
    until(lambda: "it is next" in line(page))
    assert service.get_job(job.id).state == "queued"
    on_disk.set_state(service, job.id, state="stopped", ended=utc_timestamp())
    press(page, "train-job-finish")
    until(lambda: on_disk.read_state(service, job.id).finish)


def test_failed_job_shows_its_error_and_can_be_retried(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service)
    message = "The base needs 3.1 GB of memory and 1.2 GB are free: close other programs."
    on_disk.fail(service, job.id, message)
    opened(page, job)
    assert message in line(page)
    assert page.text("#train-job-failed pre").endswith(message)
    page.screenshot("train-failed")
    press(page, "train-job-again")
    until(lambda: service.get_job(job.id).state == "queued")
    until(lambda: not page.text("#train-job-failed"))


def test_opened_log_is_updated_and_scrolled(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service)
    on_disk.write_log(service, job.id, *(f"line {n}" for n in range(100)))
    opened(page, job)
    assert page.find("#train-job-log pre").get_property("textContent") == ""
    page.find("#train-job-log summary").click()
    until(lambda: "line 99" in page.text("#train-job-log pre"))
    on_disk.write_log(service, job.id, "the newest")
    until(lambda: "the newest" in page.text("#train-job-log pre"))
    at_end = "const log = arguments[0]; return log.scrollTop + log.clientHeight >= log.scrollHeight - 4"
    assert page.driver.execute_script(at_end, page.find("#train-job-log pre"))


def test_finished_job_shows_its_verdict_and_opens_in_compare(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service, "lora-long")  # an adapter of the fake engine
    on_disk.complete(service, job.id)
    opened(page, job)
    until(lambda: "beats RAG-8 by 12.5 points" in page.text("#train-job-verdict"))
    assert len(page.all("#train-job-verdict tbody tr")) == 4
    page.find("#train-job-verdict summary").click()
    assert "sha256:0123456789abcdef" in page.text("#train-job-verdict")
    page.screenshot("train-done")
    until(lambda: page.all(".model.ready"))
    press(page, "train-job-open")
    until(lambda: page.find("#run").is_displayed())
    until(lambda: "lora-long" in page.chips())
    until(lambda: "job=" not in page.driver.current_url)


def test_unusable_adapter_shows_the_reason(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service, "lora-broken")
    on_disk.complete(service, job.id)
    opened(page, job)
    until(lambda: page.all(".model.ready"))
    press(page, "train-job-open")
    until(lambda: "cannot be used here" in page.text("#train-job-note"))
    assert "tab=train" in page.driver.current_url


def test_adapter_is_downloaded_and_job_deleted_after_confirmation(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service, "lora-mine")
    copied = Path(shutil.copytree(LIBRARY / "lora-starter", service.home / "copied"))
    on_disk.complete(service, job.id, copied)
    opened(page, job)
    page.driver.execute_script("window.promptOrTune.downloadFile = (file) => { window.saved = file; }")
    press(page, "train-job-download")
    file = until(lambda: page.driver.execute_script("return window.saved"))
    assert file["orig_name"] == "lora-mine.zip"
    cookies = {cookie["name"]: cookie["value"] for cookie in page.driver.get_cookies()}
    answer = requests.get(file["url"], cookies=cookies, timeout=10)
    assert "lora-mine/adapter_config.json" in zipfile.ZipFile(io.BytesIO(answer.content)).namelist()

    press(page, "train-job-delete")
    until(lambda: "Delete the job of 'lora-mine'?" in page.text("#train-delete-text"))
    page.screenshot("train-question")
    press(page, "train-delete-keep")
    until(lambda: not any(button.is_displayed() for button in page.all("#train-delete-both")))
    assert service.get_job(job.id).state == "done"
    press(page, "train-job-delete")
    press(page, "train-delete-both")
    until(lambda: "No training yet" in page.text("#train-jobs"))
    assert service.list_jobs() == []
    assert not (service.home / "adapters" / "lora-mine").exists()


def test_html_in_jobs_is_escaped(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service, data_name=f"{EVIL}.csv")
    on_disk.fail(service, job.id, EVIL)
    opened(page, job)
    page.find("#train-job-log summary").click()
    until(lambda: "onerror" in page.text("#train-job-log pre"))
    for css in ("#train-job-head", "#train-job-line", "#train-job-failed"):
        assert "onerror" in page.text(css)
    assert page.all("#train-jobs img, #train-jobs script") == []
    assert page.driver.title == "Prompt or Tune · Train"


def test_phone_has_no_horizontal_scroll_in_both_themes(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service, "a" * 64, data_name="long" * 30 + ".csv")
    on_disk.complete(service, job.id)
    for theme in ("light", "dark"):
        opened(page, job, theme=theme, width=390)
        until(lambda: points(page, "training") == on_disk.STEPS)
        width = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390
        page.screenshot(f"train-done-phone-{theme}")


def test_hidden_panel_does_not_poll(page: ComparePage, service: JobService) -> None:
    job = on_disk.submit(service)
    on_disk.write_training(service, job.id, 5)
    opened(page, job)
    page.driver.execute_script(COUNT_POLLS)
    until(lambda: page.driver.execute_script("return window.polls") > 0)
    page.driver.execute_script("window.promptOrTune.openTab('compare')")
    until(lambda: "tab=" not in page.driver.current_url and "job=" not in page.driver.current_url)
    page.driver.execute_script("window.polls = 0")
    on_disk.write_training(service, job.id, 9, since=5)
    page.driver.execute_async_script("setTimeout(arguments[0], 3500)")
    assert page.driver.execute_script("return window.polls") == 0
    page.driver.execute_script("window.promptOrTune.openTab('train')")
    until(lambda: points(page, "training") == 9)
