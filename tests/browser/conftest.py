"""Fixtures of the browser tests: a headless Chromium, the pages on a fake engine, and the real app."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from tests.browser.fake_app import make_engine, serve
from tests.browser.page import READ_TEXT, ComparePage
from tests.conftest import ROOT
from tests.fakes import FakeEngine

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1440,1000",
)  # fmt: skip
HEADLESS_SHELL = "chromium-headless-shell"
BROKEN_ADAPTER = "lora-broken"
START_SECONDS = 300  # the embedded base may have to be converted first


def chromium() -> tuple[str, str]:
    """Return the paths of the browser and its driver; if they are missing, skip the test, or fail it if CI is set.

    The headless shell is Chromium without the windows around its pages, which take half of the processor time.
    """
    binary, driver = shutil.which(HEADLESS_SHELL) or shutil.which("chromium"), shutil.which("chromedriver")
    if binary and driver:
        return binary, driver
    reason = "There is no Chromium for the browser tests: apt install chromium chromium-driver."
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class QuickElement(WebElement):
    """Element that is read with one line of script: Selenium's own take the browser tens of milliseconds each."""

    @property
    def text(self) -> str:
        """Return the text as it is rendered, '' for an element that is not."""
        return str(self.parent.execute_script(READ_TEXT + "return readText(arguments[0])", self))

    def is_displayed(self) -> bool:
        script = """
            const [e] = arguments, box = e.getBoundingClientRect();
            return e.checkVisibility({ checkVisibilityCSS: true, checkOpacity: true }) && box.width * box.height > 0;
        """
        return bool(self.parent.execute_script(script, self))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """Start a Chromium for each test file."""
    with browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@contextmanager
def browser(profile: Path, *more: str) -> Iterator[WebDriver]:
    """Start a Chromium as a new visitor, with its cookies and storage in `profile`, and `more` arguments."""
    binary, service = chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    if Path(binary).name == HEADLESS_SHELL:
        options.set_capability("browserName", "chrome-headless-shell")
    for argument in (*ARGUMENTS, *more, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(service))
    running._web_element_cls = QuickElement
    running.set_script_timeout(20)
    try:
        yield running
    finally:
        running.quit()


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    """Return the engine of the pages at `url`."""
    return make_engine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    """Serve the pages on the fake engine; yield their address."""
    with serve(lambda report: engine) as address:
        yield address


@pytest.fixture
def page(driver: WebDriver, url: str) -> ComparePage:
    """Load the Compare page on the fake engine."""
    return ComparePage(driver, url).open()


@pytest.fixture(scope="module")
def real_app(home: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `python app.py` on the embedded base, with a broken adapter in its store; yield its address.

    Its home is temporary, with links to the converted base and the indexes, which take long to make.
    """
    chromium()
    folder = tmp_path_factory.mktemp("home")
    for shared in ("bases", "indexes"):
        (home / shared).mkdir(exist_ok=True)
        (folder / shared).symlink_to(home / shared)
    broken = folder / "adapters" / BROKEN_ADAPTER
    broken.mkdir(parents=True)
    (broken / "adapter_config.json").write_text("{ this is no JSON", encoding="utf-8")
    with running_app(folder, data_dir, tmp_path_factory.mktemp("log") / "app.log") as address:
        yield address


@contextmanager
def running_app(home: Path, data_dir: Path, log: Path, **variables: str) -> Iterator[str]:
    """Run app.py with this home and further environment variables; yield its address."""
    port = free_port()
    command = [sys.executable, "app.py", "--port", str(port), "--data-dir", str(data_dir)]
    environment = {**os.environ, "PROMPT_OR_TUNE_HOME": str(home), **variables}
    with log.open("w") as out:
        app = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(app, port, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        if app.poll() is None:
            os.killpg(app.pid, signal.SIGTERM)
        app.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(app: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the page answers; fail with the log if the program ends before."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if app.poll() is not None:
            pytest.fail(f"app.py ended with status {app.returncode}:\n{log.read_text()}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"app.py does not answer after {START_SECONDS} s:\n{log.read_text()}")
