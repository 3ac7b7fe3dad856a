"""End-to-end training on the embedded base: upload, stop, resume, verdict, and use in Compare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from jobs.api import JobService
from jobs.store import JobFolder
from tests.browser.conftest import chromium, free_port, wait_for
from tests.browser.page import ComparePage, until
from tests.conftest import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.model]

ROWS = [(f"add {n} to the number x", f"x + {n}") for n in range(24)]
FINISH_SECONDS = 600  # takes one or two minutes on two idle cores


@dataclass(frozen=True)
class App:
    """The running app and the job service of its home."""

    url: str
    service: JobService


@pytest.fixture(scope="module")
def app(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Run `python app.py` with a temporary home that shares the converted base; stop it and its worker at the end."""
    chromium()
    folder = tmp_path_factory.mktemp("home")
    for shared in ("bases", "indexes"):
        (home / shared).mkdir(exist_ok=True)
        (folder / shared).symlink_to(home / shared)
    port, log = free_port(), tmp_path_factory.mktemp("log") / "app.log"
    environment = {**os.environ, "PROMPT_OR_TUNE_HOME": str(folder)}
    with log.open("w") as out:
        program = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(program, port, log)
        yield App(f"http://127.0.0.1:{port}/", JobService(folder))
    finally:
        os.killpg(program.pid, signal.SIGTERM)
        program.wait(20)
        end_workers(folder)


def end_workers(home: Path) -> None:
    """Stop the worker and its job, which do not end with the app."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PROMPT_OR_TUNE_HOME") == str(home) and "jobs" in process.cmdline():
                processes.append(process)
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(processes, 30)[1]:
        process.kill()


def points(page: ComparePage) -> int:
    lines = page.all("#train-job-curve polyline.training")
    return len((lines[0].get_attribute("points") or "").split()) if lines else 0


def upload(page: ComparePage, file: Path) -> None:
    """Upload the rows and choose LoRA, four epochs and a name."""
    until(lambda: page.all("#train-file input[type=file]"))[0].send_keys(str(file))
    until(lambda: "24" in page.text("#train-report"), 60, "the rows were not reported")
    page.find("#train-technique input[value=lora]").click()
    for field, text in (("adapter-name", "lora-adder"), ("num-train-epochs", "4")):
        until(lambda field=field, text=text: write_setting(page, field, text), 30, f"{field} was overwritten")  # type: ignore[misc]


def write_setting(page: ComparePage, field: str, text: str) -> bool:
    """Write into a field; return whether the text is still there after the technique's defaults arrived."""
    css = f"#train-{field} input, #train-{field} textarea"
    page.write(css, text)
    page.driver.execute_async_script("setTimeout(arguments[0], 1500)")
    return page.find(css).get_property("value") == text


def test_adapter_is_trained_stopped_resumed_scored_and_used(driver: WebDriver, app: App, tmp_path: Path) -> None:
    file = tmp_path / "adder.csv"
    file.write_text("intent,snippet\n" + "".join(f"{intent},{code}\n" for intent, code in ROWS), encoding="utf-8")
    page = ComparePage(driver, app.url)
    page.resize(1440, 1000)
    driver.get(f"{app.url}?tab=train")
    until(lambda: page.all(".model.ready"), 240, "the model did not become ready")
    upload(page, file)
    page.find("#train-start").click()
    until(lambda: page.all("#train-job-head h3"), 60, "no job was shown")
    (job,) = app.service.list_jobs()

    until(lambda: points(page) >= 3, 240, "the curve did not begin")
    before = points(page)
    driver.refresh()
    until(lambda: points(page) >= before, 60, "a refresh lost the curve")
    assert f"job={job.id}" in driver.current_url
    page.screenshot("train-real-live")

    page.find("#train-job-cancel").click()
    until(lambda: "goes on from step" in page.text("#train-job-line"), 120, "it did not stop with a checkpoint")
    stopped = app.service.progress(job.id).step
    assert app.service.get_job(job.id).state == "stopped"
    page.find("#train-job-again").click()
    until(lambda: app.service.progress(job.id).step > stopped, 240, "it did not go on")

    until(lambda: app.service.get_job(job.id).is_ended, FINISH_SECONDS, "the job did not end")
    log = "\n".join(app.service.log_lines(job.id))
    assert app.service.get_job(job.id).state == "done", log
    steps = [step for step, _ in app.service.progress(job.id).losses]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-1] == JobFolder(app.service.root, job.id).read_state().steps
    verdict = app.service.verdict(job.id)
    assert verdict is not None
    until(lambda: verdict.sentence in page.text("#train-job-verdict"), 30, "the verdict is not shown")
    page.screenshot("train-real-done")

    page.find("#train-job-open").click()
    until(lambda: "lora-adder" in page.chips(), 30, "the adapter is not among the methods")
    for label in [chip for chip in page.chips() if chip != "lora-adder"]:
        page.remove_chip(label)
    page.intent("add 30 to the number x")
    page.run()
    page.finish(120)
    (card,) = page.cards()
    assert card["name"] == "lora-adder"
    assert card["state"] == "done"
    assert "x + 30" in card["code"]
