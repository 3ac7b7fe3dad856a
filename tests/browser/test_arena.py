"""Arena page in Chromium: anonymous answers before the vote, votes by keyboard, ratings, downloads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from evaluate.arena.votes import VOTES_FILE, VoteStore
from serve.engine.llm_engine import EngineLoader
from tests.browser.page import ComparePage, until
from tests.fakes import FakeEngine
from tests.ui.arena.runners import EVIL
from ui.app import build_pages, launch
from ui.context import Context

pytestmark = pytest.mark.browser

NAMES = ("zero-shot", "ICL", "icl-8", "RAG", "rag-8", "lora-quokka")
ANSWERS = {
    "zero-shot": "def solve(values):\n    return sorted(values)", "icl-8": "sorted(values)",
    "rag-8": f"print({EVIL!r})", "lora-quokka": EVIL,
}  # fmt: skip
# Script that records every text from the server; it runs before the scripts of the page.
RECORD_MESSAGES = """
    window.heard = "";
    const ask = window.fetch;
    window.fetch = async (...given) => {
      const answer = await ask(...given);
      const reader = answer.clone().body?.getReader(), decoder = new TextDecoder();
      (async () => {
        for (;;) {
          const { done, value } = await reader.read();
          if (done) return;
          window.heard += decoder.decode(value, { stream: true });
        }
      })().catch(() => {});
      return answer;
    };
    const Source = window.EventSource;
    window.EventSource = class extends Source {
      constructor(...given) { super(...given); this.addEventListener("message", (e) => { window.heard += e.data; }); }
    };
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arena")


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    engine = FakeEngine(ANSWERS, names=("lora-quokka",), delay=0.02)
    source = EngineLoader(lambda report: engine).start()
    pages = build_pages(source, context=Context(source, home=home))
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True)
    yield address
    pages.close()


class ArenaPage(ComparePage):
    """Page object of the Arena."""

    def load(self, theme: str = "light", width: int = 1440, height: int = 1000) -> ArenaPage:
        """Load the page and wait until it is filled from the server: methods, ratings, open match."""
        self.resize(width, height)
        self.driver.get(f"{self.url}?tab=arena&__theme={theme}")
        until(lambda: "4 methods" in self.text("#arena-fold"), 60, "the page was not displayed")
        return self

    def press(self, key: str) -> None:
        self.find("body").send_keys(key)

    def is_visible(self, css: str) -> bool:
        return any(element.is_displayed() for element in self.all(css))

    def is_quiet(self) -> bool:
        """Return whether the server sends nothing for a second."""
        script = "const n = heard.length, done = arguments[0]; setTimeout(() => done(n === heard.length), 1000)"
        return bool(self.driver.execute_async_script(script))

    def next_match(self) -> None:
        """Press n and wait for both answers."""
        before = self.match_id()
        self.press("n")
        until(lambda: self.is_visible("#arena-left") and self.match_id() != before, describe="no match was displayed")

    def vote(self, key: str) -> None:
        self.press(key)
        until(
            lambda: self.is_visible("#arena-outcome p") and not self.is_visible("#arena-left"),
            describe="the vote did nothing",
        )

    def match_id(self) -> str:
        return self.driver.execute_script("return document.querySelector('#arena-comparison .cards').dataset.run || ''")

    def heads(self) -> list[str]:
        return self.texts("#arena-comparison h3")


@pytest.fixture
def page(driver: WebDriver, url: str) -> Iterator[ArenaPage]:
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": RECORD_MESSAGES})
    yield ArenaPage(driver, url).load()
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": added["identifier"]})


def test_first_visit_shows_the_introduction(page: ArenaPage) -> None:
    assert "Two methods of the same model answer one question" in page.text("#arena-comparison")
    assert "No votes yet" in page.text("#arena-ratings")
    assert not page.is_visible("#arena-votes button")
    page.screenshot("arena-empty")


def test_browser_receives_no_name_before_the_vote(page: ArenaPage) -> None:
    # Wait for the first updates of the other pages, which contain names.
    until(page.is_quiet, 60, "the server did not stop sending")
    page.driver.execute_script("window.heard = ''")
    page.next_match()
    received = page.driver.execute_script("return window.heard")
    assert "arena" in received or "answering" in received
    assert "Both are answering" in received
    assert page.match_id() in received
    source = page.find("#arena-comparison").get_attribute("outerHTML") or ""
    for name in NAMES:
        position = received.find(name)
        assert name not in received, received[max(0, position - 300) : position + 100]
        assert name not in source
    for word in ("tokens", "seconds", "prompt_tokens", "examples"):
        assert word not in received
    assert page.heads() == ["A", "B"]
    page.screenshot("arena-blind")


def test_refresh_shows_the_same_match(page: ArenaPage) -> None:
    until(lambda: page.is_visible("#arena-left"), describe="the open match was not restored")
    match_id, code = page.match_id(), page.text("#arena-comparison")
    page.load()
    until(lambda: page.match_id() == match_id)
    assert page.text("#arena-comparison") == code
    assert page.heads() == ["A", "B"]


def test_tests_and_reference_are_displayed_on_request(page: ArenaPage, home: Path) -> None:
    until(lambda: page.is_visible("#arena-left"))
    assert not page.all("#arena-comparison .about details")
    page.press("r")
    until(lambda: len(page.all("#arena-comparison .tally .cells")) == 2 and not page.is_visible("#arena-stop"), 60)
    page.find("#arena-reference").click()
    until(lambda: page.is_visible("#arena-comparison .about pre"))
    assert not page.is_visible("#arena-run")
    assert page.heads() == ["A", "B"]
    page.screenshot("arena-tested")
    page.vote("4")
    assert "You found both bad" in page.text("#arena-outcome")
    (vote,) = VoteStore(home / VOTES_FILE).export()
    assert (vote["winner"], vote["tests_run"], vote["reference_seen"]) == ("both bad", True, True)


def test_ten_votes_by_keyboard_give_a_rating(page: ArenaPage, home: Path) -> None:
    before = VoteStore(home / VOTES_FILE).count()
    for number in range(9):
        page.next_match()
        page.vote("1213"[number % 4])
    assert VoteStore(home / VOTES_FILE).count() == before + 9 == 10
    assert any(name in page.text("#arena-outcome") for name in NAMES)
    assert sorted(head[:2] for head in page.heads()) == ["A:", "B:"]
    until(lambda: "10 votes of one person" in page.text("#arena-ratings"))
    assert len(page.all("#arena-ratings .dot")) >= 2
    assert page.all("#arena-ratings .matrix")
    page.screenshot("arena-ratings")


def test_vote_is_counted_once_after_a_refresh(page: ArenaPage, home: Path) -> None:
    until(lambda: page.is_visible("#arena-outcome p"))
    assert "You " in page.text("#arena-outcome")
    page.press("1")
    assert VoteStore(home / VOTES_FILE).count() == 10


def test_keys_in_a_text_field_do_not_vote(page: ArenaPage, home: Path) -> None:
    field = page.find("#arena-question textarea")
    field.send_keys("sort n 1 2 3 4 r")
    assert field.get_property("value") == "sort n 1 2 3 4 r"
    page.driver.execute_script("document.activeElement.blur()")
    page.next_match()
    assert "sort n 1 2 3 4 r" in page.text("#arena-comparison .question")
    assert "your own question" in page.text("#arena-comparison .about")
    assert not page.is_visible("#arena-run")
    assert page.find("#arena-tie").get_attribute("aria-keyshortcuts") == "3"
    page.find("#arena-tie").send_keys(Keys.ENTER)
    until(lambda: "You called it a tie" in page.text("#arena-outcome"))
    assert VoteStore(home / VOTES_FILE).count() == 11
    page.load()
    until(lambda: page.find("#arena-question textarea").get_property("value") == "sort n 1 2 3 4 r")
    page.write("#arena-question textarea", "")


def test_html_in_answers_is_escaped(page: ArenaPage) -> None:
    def has_html_answer() -> bool:
        return "<img src=x" in page.text("#arena-comparison .cards")

    for _ in range(12):
        page.next_match()
        if has_html_answer():
            break
    assert has_html_answer()
    assert page.all("#arena img, #arena script") == []
    page.vote("3")
    assert page.all("#arena img, #arena script") == []
    assert page.driver.title == "Prompt or Tune · Arena"


def test_another_visitor_gets_another_match(page: ArenaPage, home: Path) -> None:
    page.next_match()
    first = page.match_id()
    page.driver.delete_all_cookies()
    page.load()
    assert not page.is_visible("#arena-left")
    page.next_match()
    assert page.match_id() != first
    page.vote("2")
    until(lambda: "of 2 people" in page.text("#arena-ratings"))
    assert {vote["person"] for vote in VoteStore(home / VOTES_FILE).export()} == {1, 2}


def test_votes_are_downloaded(page: ArenaPage, tmp_path: Path, home: Path) -> None:
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for kind in ("JSONL", "CSV"):
        button = f"//*[@id='arena-exports']//button[normalize-space()='Save votes as {kind}']"
        page.driver.find_element(By.XPATH, button).click()
        pattern = f"arena-votes-*.{kind.lower()}"
        until(lambda pattern=pattern: list(tmp_path.glob(pattern)))  # type: ignore[misc]
    (path,) = tmp_path.glob("*.jsonl")
    until(lambda: len(path.read_text(encoding="utf-8").splitlines()) == VoteStore(home / VOTES_FILE).count())
    assert all(json.loads(line)["left"]["code"] for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_phone_votes_without_horizontal_scroll(driver: WebDriver, url: str, theme: str) -> None:
    page = ArenaPage(driver, url).load(theme, 390, 844)
    page.next_match()
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    tops = [card.rect["y"] for card in page.all("#arena-comparison .card")]
    assert tops[1] > tops[0]
    for button in page.all("#arena-votes button"):
        assert button.rect["height"] >= 44
    page.screenshot(f"arena-phone-{theme}")
    page.find("#arena-left").click()
    until(lambda: page.is_visible("#arena-outcome p"))
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(f"arena-phone-voted-{theme}")
    assert page.console_errors() == []
