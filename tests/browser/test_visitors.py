"""Two concurrent visitors in separate browsers, and the limits of one visitor, on a fake engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from serve.engine.llm_engine import EngineLoader
from tests.browser.conftest import browser
from tests.browser.fake_app import make_engine
from tests.browser.page import ComparePage, until
from tests.fakes import FakeEngine
from ui.access.guard import COOKIE_NAME, VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.access.quota import VisitorLimits
from ui.app import build_pages, launch
from ui.context import Context

pytestmark = pytest.mark.browser

LIMITS = VisitorLimits(rows_at_once=5, upload_bytes=100_000, archive_bytes=100_000)


class ConcurrentEngine(FakeEngine):
    """A fake engine that answers several runs concurrently, as the real one does."""

    def stream(self, requests, sampling_params, cancel=None, owner=""):  # type: ignore[no-untyped-def]
        return FakeEngine.stream(replace(self, _lock=threading.Lock()), requests, sampling_params, cancel, owner)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    plain = make_engine()
    engine = ConcurrentEngine(plain.answers, plain.errors, names=plain.names, delay=0.02)
    loader = EngineLoader(lambda report: engine).start()
    context = Context(
        loader, visitors=VisitorRegistry(AccessPolicy(limits=LIMITS)), home=tmp_path_factory.mktemp("home")
    )
    pages = build_pages(loader, context=context)
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True, limits=LIMITS)
    yield address
    pages.close()


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with browser(tmp_path_factory.mktemp("second")) as driver:
        yield driver


def streaming(page: ComparePage) -> bool:
    return bool(page.cards()) and page.cards()[-1]["state"] == "streaming"


def test_two_visitors_see_and_stop_only_their_own_runs(page: ComparePage, second: WebDriver) -> None:
    mine, theirs = page, ComparePage(second, page.url).open()
    for visitor, question in ((mine, "the first person's words"), (theirs, "the second person's words")):
        visitor.add_adapter("lora-slow")
        visitor.intent(question)
        visitor.run()
    until(lambda: streaming(mine) and streaming(theirs), describe="they do not run at the same time")
    mine.stop()
    mine.finish()
    assert mine.cards()[-1]["state"] == "stopped"
    code = theirs.cards()[-1]["code"]
    until(lambda: streaming(theirs) and len(theirs.cards()[-1]["code"]) > len(code), describe="the other one stopped")
    theirs.stop()
    theirs.finish()
    assert (mine.text(".question"), theirs.text(".question")) == (
        "the first person's words",
        "the second person's words",
    )
    assert "second person" not in mine.driver.page_source
    assert "first person" not in theirs.driver.page_source
    assert [len(visitor.history()) for visitor in (mine, theirs)] == [1, 1]
    cookies = {visitor.driver.get_cookie(COOKIE_NAME)["value"] for visitor in (mine, theirs)}
    assert len(cookies) == 2


def test_concurrent_answers_per_visitor_are_limited(page: ComparePage) -> None:
    page.add_adapter("lora-slow")
    page.intent("talk on and on")
    page.run()
    until(lambda: streaming(page))
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    other = ComparePage(page.driver, page.url).open(first=False)
    other.intent("and one more")
    other.run()
    until(lambda: "5 at once is the limit for one person" in other.text("#intent-note"))
    other.screenshot("compare-too-many")
    other.driver.close()
    page.driver.switch_to.window(first)
    page.stop()
    page.finish()
    page.run()
    until(lambda: streaming(page), describe="there is room again once the first one has ended")
    page.stop()


def test_too_large_upload_shows_a_message(page: ComparePage, tmp_path: Path) -> None:
    large = tmp_path / "large.csv"
    large.write_text("intent,snippet\n" + "say hello,print('hello')\n" * 20_000, encoding="utf-8")
    page.driver.get(f"{page.url}?tab=train")
    until(lambda: page.find("#train-file input[type=file]")).send_keys(str(large))
    # Gradio checks the size before the upload; without this check the server returns 413 (tests/ui/test_visitors.py).
    until(lambda: 'exceed the maximum allowed size of 97.7 Kb: "large.csv"' in page.text("body"))
