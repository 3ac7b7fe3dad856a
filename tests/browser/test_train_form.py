"""Form of the Train page in Chromium, with the tokenizer of the embedded base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from jobs.api import JobService
from serve.engine.llm_engine import EngineLoader
from tests.browser.fake_app import make_engine, serve
from tests.browser.page import ComparePage, until
from ui.context import Context

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=\"document.title='owned'\">${document.title='owned'}"
WITH_ERRORS = (
    f"{EVIL},wish,gold\n"
    "t,reverse the string `s`,s[::-1]\n"
    "t,no code,\n"
    f't,"{EVIL.replace(chr(34), chr(34) * 2)}",print(1)\n'
    "t,,print(2)\n"
    "t,one,too,many\n" + "".join(f"t,make {n} zeros,[0] * {n}\n" for n in range(24))
)
# The first preview imports torch in a separate process, possibly on a busy machine.
FIRST_PREVIEW_SECONDS = 120.0


class TrainPage(ComparePage):
    """Page object of the Train form."""

    def open(
        self, *, theme: str = "light", width: int = 1440, height: int = 1000, ready: bool = True, first: bool = True
    ) -> TrainPage:
        self.resize(width, height)
        self.driver.get(f"{self.url}?__theme={theme}&tab=train")
        until(lambda: self.find("#train-example").is_displayed(), 60, "the page was not displayed")
        until(lambda: self.find("#train-technique[role=radiogroup]"), 10, "the radio buttons are not a group")
        return self

    def upload(self, path: Path) -> None:
        self.find("#train-file input[type=file]").send_keys(str(path))

    def report(self, begins: str, seconds: float = FIRST_PREVIEW_SECONDS) -> str:
        """Wait for a complete report whose heading starts with `begins`; return its text."""

        def is_complete() -> bool:
            return self.text("#train-report").startswith(begins) and not self.text("#train-busy")

        until(is_complete, seconds, f"no report '{begins}'")
        return self.text("#train-report")

    def value(self, css: str) -> str:
        return str(self.find(f"{css} input").get_property("value"))

    def type(self, css: str, text: str) -> None:
        """Replace a field's text with key events, as settings are checked while they are typed."""
        field = self.find(f"{css} input")
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def overflow_pixels(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.driver.execute_script("return document.documentElement.scrollWidth - innerWidth"))


@pytest.fixture(scope="module")
def served(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Serve the pages without a worker; yield their address and home, which shares the converted base."""
    folder = tmp_path_factory.mktemp("train-home")
    (home / "bases").mkdir(exist_ok=True)
    (folder / "bases").symlink_to(home / "bases")
    quiet = pytest.MonkeyPatch()
    quiet.setattr(JobService, "ensure_worker", lambda self: None)
    source = EngineLoader(lambda report: make_engine()).start()
    with serve(lambda report: make_engine(), Context(source, home=folder)) as address:
        yield address, folder
    quiet.undo()


@pytest.fixture
def page(driver: WebDriver, served: tuple[str, Path]) -> TrainPage:
    driver.delete_all_cookies()
    return TrainPage(driver, served[0]).open()


def test_file_with_errors_is_mapped_reported_restored_and_submitted(
    page: TrainPage, served: tuple[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "my rows.csv"
    path.write_text(WITH_ERRORS, encoding="utf-8")
    page.upload(path)

    # The columns are unknown, so the user must choose them.
    until(lambda: "choose which one says what the code should do" in page.text("#train-note"), 60)
    page.screenshot("train-columns")
    page.choose("#train-intent-column", "wish")
    page.choose("#train-code-column", "gold")

    report = page.report("my-rows.csv: 29 rows, 23 to learn, 3 held out")
    assert "3 rows left out" in report
    for line in ("line 3: column 'gold' is empty.", "line 5: column 'wish' is empty.", "line 6: has 4 cells"):
        assert line in report
    assert page.text("#train-note") == ""
    labelled = page.all("#train-examples figure mark")
    assert len(labelled) == 3
    assert all(mark.text.endswith("<|im_end|>") for mark in labelled)
    assert "underline" in labelled[0].value_of_css_property("text-decoration-line")
    assert "### Instruction:" in page.find("#train-examples figure pre").text
    assert "Memory" in page.text("#train-cost")
    assert page.value("#train-adapter-name") == "qlora-my-rows"
    page.screenshot("train-report")

    assert page.console_errors() == []
    page.open()
    page.console_errors()  # drop the errors of requests that the refresh interrupts
    page.report("my-rows.csv: 29 rows", 20)
    until(lambda: page.value("#train-intent-column") == "wish")
    assert page.value("#train-adapter-name") == "qlora-my-rows"

    page.find("#train-start").click()
    until(lambda: "qlora-my-rows is queued below" in page.text("#train-start-note"))
    (job,) = JobService(served[1]).list_jobs()
    assert (job.adapter, job.data_name, job.state) == ("qlora-my-rows", "my-rows.csv", "queued")
    assert (job.config["intent_column"], job.config["code_column"]) == ("wish", "gold")
    until(lambda: "qlora-my-rows" in page.text("#train-jobs"), 20, "the panel does not display the job")
    assert "owned" not in page.driver.title
    assert page.console_errors() == []


def test_settings_are_validated_and_follow_the_technique(page: TrainPage) -> None:
    page.find("#train-example").click()
    page.report("example-60.csv: 60 rows, 54 to learn, 6 held out")
    page.type("#train-learning-rate", "quick")
    until(lambda: page.all("#train-learning-rate.wrong"), 20, "the field shows no error")
    assert "must be a number" in page.text("#train-learning-rate")
    assert page.value("#train-adapter-name") == "qlora-example-60"

    # Arrow keys change the selected radio button.
    chosen = page.find("#train-technique input:checked")
    page.driver.execute_script("arguments[0].focus()", chosen)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    until(lambda: page.value("#train-adapter-name") == "ia3-example-60", 20)
    assert page.value("#train-learning-rate") == "0.01"
    assert not any(field.is_displayed() for field in page.all("#train-lora-r"))
    until(lambda: "kB" in page.text("#train-cost"), FIRST_PREVIEW_SECONDS, "IA3's adapter is not small")
    assert page.all(".wrong") == []

    page.find("#train-commands button").click()
    until(lambda: "--technique ia3" in page.find("#train-command-here textarea").get_property("value"), 20)
    page.find("#train-remove-rows").click()
    until(lambda: not page.find("#train-report").is_displayed())
    page.open()
    assert page.text("#train-report") == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "empty.csv is empty"),
        ("picture.csv", bytes(range(256)), "NUL bytes"),
        ("few.csv", b"intent,code\nadd,a + b\nsub,a - b\n", "fewer than one batch of 8"),
        ("program.exe", b"MZ", "of no known format"),
    ],
)
def test_invalid_file_shows_one_error(page: TrainPage, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    page.upload(tmp_path / name)
    until(lambda: message in page.text("#train-note"), FIRST_PREVIEW_SECONDS)
    assert len(page.all("#train-note p")) == 1


def test_form_works_on_a_phone_in_dark_theme(page: TrainPage) -> None:
    page.open(theme="dark", width=390, height=844)
    page.find("#train-example").click()
    page.report("example-60.csv")
    page.screenshot("train-phone")
    assert page.overflow_pixels() == 0
    assert page.find("#train-start").size["height"] >= 44
