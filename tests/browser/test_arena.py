"""The Arena page in a real browser: ten votes by keyboard, the reveal, the ratings, and no name before the vote."""

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
from tests.ui.arena.arenas import EVIL
from ui.app import build_pages, launch
from ui.context import Context

pytestmark = pytest.mark.browser

NAMES = ("zero-shot", "ICL", "icl-8", "RAG", "rag-8", "lora-quokka")
SAYS = {
    "zero-shot": "def solve(values):\n    return sorted(values)", "icl-8": "sorted(values)",
    "rag-8": f"print({EVIL!r})", "lora-quokka": EVIL,
}  # fmt: skip
# Notes every text that the server sends, from before the page's own scripts run.
LISTEN = """
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
    engine = FakeEngine(SAYS, names=("lora-quokka",), delay=0.02)
    source = EngineLoader(lambda report: engine).start()
    pages = build_pages(source, context=Context(source, home=home))
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True)
    yield address
    pages.close()


class ArenaPage(ComparePage):
    """The page as a person at a keyboard uses it."""

    def look(self, theme: str = "light", width: int = 1440, height: int = 1000) -> ArenaPage:
        """Opens the page by its address."""
        self.resize(width, height)
        self.driver.get(f"{self.url}?tab=arena&__theme={theme}")
        # The page is filled from the server: methods that can be used, ratings, the open duel.
        until(lambda: "4 methods" in self.text("#arena-fold"), 60, "the page did not come up")
        return self

    def press(self, key: str) -> None:
        self.find("body").send_keys(key)

    def seen(self, css: str) -> bool:
        return any(each.is_displayed() for each in self.all(css))

    def duel(self) -> None:
        """Presses n and waits for both answers."""
        before = self.asked()
        self.press("n")
        until(lambda: self.seen("#arena-left") and self.asked() != before, describe="no duel came")

    def vote(self, key: str) -> None:
        self.press(key)
        until(lambda: self.seen("#arena-outcome p") and not self.seen("#arena-left"), describe="the vote did nothing")

    def asked(self) -> str:
        return self.driver.execute_script("return document.querySelector('#arena-comparison .cards').dataset.run || ''")

    def heads(self) -> list[str]:
        return [head.text for head in self.all("#arena-comparison h3")]


@pytest.fixture
def page(driver: WebDriver, url: str) -> Iterator[ArenaPage]:
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LISTEN})
    yield ArenaPage(driver, url).look()
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": added["identifier"]})


def test_a_first_visit_is_told_what_to_do(page: ArenaPage) -> None:
    assert "Two methods of the same model answer one question" in page.text("#arena-comparison")
    assert "No votes yet" in page.text("#arena-ratings")
    assert not page.seen("#arena-votes button")
    page.screenshot("arena-empty")


def test_no_name_reaches_the_browser_before_the_vote(page: ArenaPage) -> None:
    page.driver.execute_script("window.heard = ''")
    page.duel()
    heard = page.driver.execute_script("return window.heard")
    assert "arena" in heard or "answering" in heard
    assert "Both are answering" in heard
    assert page.asked() in heard
    source = page.find("#arena-comparison").get_attribute("outerHTML") or ""
    for name in NAMES:
        assert name not in heard
        assert name not in source
    for word in ("tokens", "seconds", "prompt_tokens", "examples"):
        assert word not in heard
    assert page.heads() == ["A", "B"]
    page.screenshot("arena-blind")


def test_a_refresh_shows_the_same_duel(page: ArenaPage) -> None:
    until(lambda: page.seen("#arena-left"), describe="the open duel did not come back")
    asked, code = page.asked(), page.text("#arena-comparison")
    page.look()
    until(lambda: page.asked() == asked)
    assert page.text("#arena-comparison") == code
    assert page.heads() == ["A", "B"]


def test_tests_and_reference_are_there_on_request_and_noted(page: ArenaPage, home: Path) -> None:
    until(lambda: page.seen("#arena-left"))
    assert not page.all("#arena-comparison .about details")
    page.press("r")
    until(lambda: len(page.all("#arena-comparison .tally .cells")) == 2 and not page.seen("#arena-stop"), 60)
    page.find("#arena-reference").click()
    until(lambda: page.seen("#arena-comparison .about pre"))
    assert not page.seen("#arena-run")
    assert page.heads() == ["A", "B"]
    page.screenshot("arena-tested")
    page.vote("4")
    assert "You found both bad" in page.text("#arena-outcome")
    (vote,) = VoteStore(home / VOTES_FILE).export()
    assert (vote["winner"], vote["tests_run"], vote["reference_seen"]) == ("both bad", True, True)


def test_ten_votes_by_keyboard_make_a_rating(page: ArenaPage, home: Path) -> None:
    before = VoteStore(home / VOTES_FILE).count()
    for number in range(9):
        page.duel()
        page.vote("1213"[number % 4])
    assert VoteStore(home / VOTES_FILE).count() == before + 9 == 10
    assert any(name in page.text("#arena-outcome") for name in NAMES)
    assert sorted(head[:2] for head in page.heads()) == ["A:", "B:"]
    until(lambda: "10 votes of one person" in page.text("#arena-ratings"))
    assert len(page.all("#arena-ratings .dot")) >= 2
    assert page.all("#arena-ratings .matrix")
    page.screenshot("arena-ratings")


def test_after_a_refresh_the_vote_stands_and_counts_once(page: ArenaPage, home: Path) -> None:
    until(lambda: page.seen("#arena-outcome p"))
    assert "You " in page.text("#arena-outcome")
    page.press("1")
    assert VoteStore(home / VOTES_FILE).count() == 10


def test_keys_write_where_somebody_types(page: ArenaPage, home: Path) -> None:
    field = page.find("#arena-question textarea")
    field.send_keys("sort n 1 2 3 4 r")
    assert field.get_property("value") == "sort n 1 2 3 4 r"
    page.driver.execute_script("document.activeElement.blur()")
    page.duel()
    assert "sort n 1 2 3 4 r" in page.text("#arena-comparison .question")
    assert "your own question" in page.text("#arena-comparison .about")
    assert not page.seen("#arena-run")
    assert page.find("#arena-tie").get_attribute("aria-keyshortcuts") == "3"
    page.find("#arena-tie").send_keys(Keys.ENTER)
    until(lambda: "You called it a tie" in page.text("#arena-outcome"))
    assert VoteStore(home / VOTES_FILE).count() == 11
    page.look()
    until(lambda: page.find("#arena-question textarea").get_property("value") == "sort n 1 2 3 4 r")
    page.write("#arena-question textarea", "")


def test_a_hostile_answer_is_text(page: ArenaPage) -> None:
    def hostile() -> bool:
        return "<img src=x" in page.text("#arena-comparison .cards")

    for _ in range(12):
        page.duel()
        if hostile():
            break
    assert hostile()
    assert page.all("#arena img, #arena script") == []
    page.vote("3")
    assert page.all("#arena img, #arena script") == []
    assert page.driver.title == "Prompt or Tune · Arena"


def test_another_person_has_a_duel_of_their_own(page: ArenaPage, home: Path) -> None:
    page.duel()
    mine = page.asked()
    page.driver.delete_all_cookies()
    page.look()
    assert not page.seen("#arena-left")
    page.duel()
    assert page.asked() != mine
    page.vote("2")
    until(lambda: "of 2 people" in page.text("#arena-ratings"))
    assert {vote["person"] for vote in VoteStore(home / VOTES_FILE).export()} == {1, 2}


def test_votes_are_saved(page: ArenaPage, tmp_path: Path, home: Path) -> None:
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
def test_a_phone_votes_without_a_sideways_scroll(driver: WebDriver, url: str, theme: str) -> None:
    page = ArenaPage(driver, url).look(theme, 390, 844)
    page.duel()
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    tops = [card.rect["y"] for card in page.all("#arena-comparison .card")]
    assert tops[1] > tops[0]
    for button in page.all("#arena-votes button"):
        assert button.rect["height"] >= 44
    page.screenshot(f"arena-phone-{theme}")
    page.find("#arena-left").click()
    until(lambda: page.seen("#arena-outcome p"))
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(f"arena-phone-voted-{theme}")
    assert page.complaints() == []
