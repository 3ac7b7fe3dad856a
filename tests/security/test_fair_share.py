"""One address with many cookies, and answers that nobody reads (case 9)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from errors import BusyError
from serve.engine.llm_engine import EngineLoader
from tests import messages
from tests.browser.fake_app import make_engine
from tests.browser.page import until
from tests.fakes import FakeEngine
from ui import context as ui_context
from ui.access.guard import COOKIE_NAME, VisitorRegistry
from ui.access.logins import MAX_UNREAD, UnreadSessions
from ui.access.quota import AdmissionQueue, VisitorLimits, VisitorQuota
from ui.app import build_pages, launch
from ui.context import CancelRegistry, Context

JOIN, DATA = "gradio_api/queue/join", "gradio_api/queue/data"


def test_many_cookies_of_one_address_wait_for_each_other() -> None:
    queue = AdmissionQueue(max_concurrent=2)
    with ExitStack() as stack:
        crowd = [stack.enter_context(queue.enqueue(f"cookie {number % 14}", "crowd")) for number in range(28)]
        honest = stack.enter_context(queue.enqueue("ada", "home"))
        second = stack.enter_context(queue.enqueue("bob", "school"))
        assert [ticket.wait(0) for ticket in crowd[:2]] == [0, 0]
        assert (honest.wait(0), second.wait(0)) == (1, 2)
        assert crowd[2].wait(0) == 3


def test_a_run_that_ends_gives_its_turn_to_the_address_with_the_fewest() -> None:
    queue = AdmissionQueue()
    order = []
    with ExitStack() as stack:
        runs = {}
        waiting = [("cookie 1", "crowd"), ("cookie 2", "crowd"), ("cookie 1", "crowd"), ("ada", "home")]
        for visitor, address in [("cookie 0", "crowd"), *waiting]:
            run = stack.enter_context(ExitStack())
            runs[run] = (visitor, run.enter_context(queue.enqueue(visitor, address)))
        while runs:
            run = next(run for run, (_, ticket) in runs.items() if ticket.admitted)
            order.append(runs.pop(run)[0])
            run.close()
    assert order == ["cookie 0", "ada", "cookie 1", "cookie 2", "cookie 1"]


def test_runs_without_a_name_are_first_in_first_out() -> None:
    queue = AdmissionQueue()
    with ExitStack() as stack:
        tickets = [stack.enter_context(queue.enqueue()) for _ in range(4)]
        assert [ticket.wait(0) for ticket in tickets] == [0, 1, 2, 3]


def test_an_address_has_a_share_whatever_the_cookies() -> None:
    quota = VisitorQuota(VisitorLimits(rows_at_once=16, rows_per_hour=100, rows_per_address=32))
    with ExitStack() as stack:
        for number in range(4):
            stack.enter_context(quota.reserve(f"cookie {number}", 8, "crowd"))
        with pytest.raises(BusyError, match=messages.ADDRESS_IS_BUSY), quota.reserve("cookie 5", 1, "crowd"):
            pass
        with quota.reserve("ada", 16, "home"), quota.reserve("logged in", 16):
            pass
    for number in range(21):
        with quota.reserve(f"later {number}", 8, "crowd"):
            pass
    with pytest.raises(BusyError, match=messages.ADDRESS_HAD_ITS_ANSWERS), quota.reserve("cookie 9", 8, "crowd"):
        pass


def test_visitors_have_an_address_unless_they_are_logged_in() -> None:
    from tests.ui.access.test_visitors import request

    def address(**given: Any) -> str:
        return VisitorRegistry().identify(request(**given)).address

    assert address(cookie="a" * 32) == address(cookie="b" * 32) == address() != ""
    assert address(host="10.0.0.1") != address(host="10.0.0.2")
    assert address(username="ada") == ""
    assert address(host="2001:db8::1") == address(host="2001:db8::ffff:1") != address(host="2001:db8:0:1::1")
    assert address(host="::ffff:10.0.0.1") == address(host="10.0.0.1")


def test_unread_sessions_are_few_and_expire() -> None:
    now = [0.0]
    unread = UnreadSessions(clock=lambda: now[0])
    for number in range(MAX_UNREAD):
        assert unread.has_room("crowd", f"s{number}")
        unread.add("crowd", f"s{number}")
    assert not unread.has_room("crowd", "one more")
    assert not unread.has_room("crowd", None)
    assert unread.has_room("crowd", "s0")
    assert unread.has_room("home", "one")
    with unread.reading("crowd", "s0"):
        assert unread.has_room("crowd", "one more")
        unread.add("crowd", "s0")
    now[0] = 11.0
    assert unread.has_room("crowd", None)


def test_a_run_without_a_reader_is_cancelled_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_context, "READER_SECONDS", 0.01)
    runs = CancelRegistry()
    with runs.register("unwatched") as cancel:
        assert not cancel.is_set()
    runs.is_watched = True
    with runs.register("unread") as cancel:
        assert cancel.is_set()
    assert not runs._readers


@dataclass(frozen=True)
class Site:
    url: str
    engine: FakeEngine
    endpoint: int

    def join(self, client: httpx.Client, session: str, methods: list[str]) -> httpx.Response:
        data = ["say hello", methods, None, None]
        return client.post(JOIN, json={"fn_index": self.endpoint, "data": data, "session_hash": session})

    def client(self, address: str, cookie: str) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, cookies={COOKIE_NAME: cookie * 32}, timeout=20,
            transport=httpx.HTTPTransport(local_address=address),
        )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    engine = make_engine()
    engine._lock = _NoLock()  # type: ignore[assignment]  # several runs at once, as the real engine
    loader = EngineLoader(lambda report: engine).start()
    context = Context(loader, home=tmp_path_factory.mktemp("home"))
    pages = build_pages(loader, context=context)
    app, url, _ = launch(pages, port=None, prevent_thread_lock=True, runs=context.cancel_registry)
    config = app.get_blocks().config
    endpoint = next(each["id"] for each in config["dependencies"] if each["api_name"] == "compare")
    yield Site(url, engine, endpoint)
    pages.close()


class _NoLock:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def test_answers_that_nobody_reads_take_no_engine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """14 cookies of one address begin 28 comparisons of 8 methods and read none; a visitor of another one asks."""
    monkeypatch.setattr(ui_context, "READER_SECONDS", 1.0)
    before, statuses = site.engine.runs, []
    for number in range(14):
        with site.client("127.0.0.1", chr(97 + number)) as client:
            sessions = (f"crowd{number}x{run}" for run in range(2))
            statuses += [site.join(client, session, ["lora-slow"] * 8).status_code for session in sessions]
    assert statuses.count(200) <= MAX_UNREAD
    assert set(statuses) == {200, 429}
    with site.client("127.0.0.2", "z") as honest:
        assert site.join(honest, "honest", ["zero-shot"]).status_code == 200
        assert '"success":true' in honest.get(DATA, params={"session_hash": "honest"}).text
    assert site.engine.runs == before + 1


def test_a_run_whose_reader_leaves_is_cancelled(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_context, "LEFT_SECONDS", 0.05)
    before, cancelled = site.engine.runs, site.engine.cancelled
    with site.client("127.0.0.3", "y") as client:
        assert site.join(client, "leaves", ["lora-slow"]).status_code == 200
        with client.stream("GET", DATA, params={"session_hash": "leaves"}) as events:
            until(lambda: site.engine.runs == before + 1)
            assert events.status_code == 200
    until(lambda: site.engine.cancelled == cancelled + 1)


def test_reading_is_noted_from_other_threads() -> None:
    runs = CancelRegistry()
    runs.is_watched = True
    begun = threading.Event()

    def run() -> None:
        with runs.register("window") as cancel:
            assert not cancel.is_set()
            begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    runs._readers["window"] += 1
    with runs._changed:
        runs._changed.notify_all()
    thread.join(5)
    assert begun.is_set()
