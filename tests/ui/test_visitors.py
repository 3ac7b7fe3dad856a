"""Who is who over refreshes and tabs, what they may do, and how much of it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from errors import BusyError, PromptOrTuneError
from ui.visitors import (
    COOKIE_NAME,
    OLD_COOKIE_NAME,
    AccessPolicy,
    Limits,
    UploadLimitMiddleware,
    VisitorCookieMiddleware,
    VisitorQuota,
    VisitorRegistry,
    check_upload_size,
)

TOKEN = "a" * 32


def request(cookie: str = "", username: str | None = None, host: str = "10.0.0.9", **scope: Any) -> Any:
    """What an event of the page gets, as far as visitors are told apart by it."""
    headers = [(b"cookie", f"{COOKIE_NAME}={cookie}".encode())] if cookie else []
    headers += scope.pop("headers", [])
    headers += [(b"x-forwarded-for", scope.pop("forwarded").encode())] if "forwarded" in scope else []
    inner = Request({"type": "http", "headers": headers, "client": (host, 1), **scope})
    return SimpleNamespace(request=inner, username=username)


def test_a_browser_is_the_same_person_again_and_another_is_not() -> None:
    visitors = VisitorRegistry()
    first = visitors.identify(request(TOKEN, host="10.0.0.1"))
    assert first == visitors.identify(request(TOKEN, host="10.0.0.2"))
    assert first.id != visitors.identify(request("b" * 32)).id
    assert TOKEN not in first.id


def test_a_login_goes_before_the_cookie_and_case_does_not_count() -> None:
    visitors = VisitorRegistry(AccessPolicy(owners=frozenset({"Ada"})))
    ada = visitors.identify(request(TOKEN, username="ada"))
    assert (ada.name, ada.owner) == ("ada", True)
    assert ada.id == visitors.identify(request("b" * 32, username="ADA")).id
    assert not visitors.identify(request(TOKEN, username="bob")).owner
    assert not visitors.identify(request(TOKEN)).owner


def test_the_hubs_login_counts_until_it_ends() -> None:
    visitors = VisitorRegistry(AccessPolicy(owners=frozenset({"ada"})))
    info = {"userinfo": {"preferred_username": "ada"}, "expires_at": time.time() + 60}
    assert visitors.identify(request(session={"oauth_info": info})).name == "ada"
    ended = {**info, "expires_at": time.time() - 1}
    assert visitors.identify(request(TOKEN, session={"oauth_info": ended})).name == ""


def test_a_forged_cookie_is_no_name_of_anybody() -> None:
    visitors = VisitorRegistry()
    for forged in ("short", "x" * 65, "../../etc/passwd" * 3, "a b" * 12):
        assert visitors.identify(request(forged)).id.startswith("address-")


def test_behind_a_spaces_proxy_the_address_is_the_one_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    visitors = VisitorRegistry()
    plain = visitors.identify(request(host="10.0.0.9", forwarded="1.1.1.1, 2.2.2.2"))
    assert plain == visitors.identify(request(host="10.0.0.9"))  # elsewhere anybody could write that header
    monkeypatch.setenv("SPACE_ID", "ada/arena")
    assert visitors.identify(request(forwarded="1.1.1.1, 2.2.2.2")) == visitors.identify(request(forwarded="2.2.2.2"))
    assert visitors.identify(request(forwarded="2.2.2.2")).id != plain.id


def test_who_may_train() -> None:
    anybody, ada = request(TOKEN), request(TOKEN, username="ada")
    everyone, owner, nobody = (
        VisitorRegistry(AccessPolicy(training=who, owners=frozenset({"ada"})))
        for who in ("everyone", "owner", "nobody")
    )
    assert everyone.training_denied_reason(everyone.identify(anybody)) is None
    assert owner.training_denied_reason(owner.identify(ada)) is None
    assert "Only ada may train" in str(owner.training_denied_reason(owner.identify(anybody)))
    assert "switched off" in str(nobody.training_denied_reason(nobody.identify(ada)))


def web(max_bytes: int = 1000) -> TestClient:
    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse("<p>page</p>")

    async def data(_: Request) -> PlainTextResponse:
        return PlainTextResponse("data")

    async def upload(given: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await given.body())))

    routes = [Route("/", page), Route("/data", data), Route("/gradio_api/upload", upload, methods=["POST"])]
    layers = [Middleware(VisitorCookieMiddleware), Middleware(UploadLimitMiddleware, max_bytes=max_bytes)]
    return TestClient(Starlette(routes=routes, middleware=layers), base_url="http://testserver")


def test_a_browser_gets_its_cookie_once_and_with_a_page_alone() -> None:
    client = web()
    assert COOKIE_NAME not in client.get("/data").cookies
    token = client.get("/").cookies[COOKIE_NAME]
    assert len(token) >= 22
    assert "set-cookie" not in client.get("/").headers
    assert "httponly" in web().get("/").headers["set-cookie"].casefold()


def test_cookie_of_an_earlier_version_is_taken_over() -> None:
    client = web()
    client.cookies.set(OLD_COOKIE_NAME, TOKEN)
    assert client.get("/").cookies[COOKIE_NAME] == TOKEN
    assert "set-cookie" not in client.get("/").headers
    old = request(headers=[(b"cookie", f"{OLD_COOKIE_NAME}={TOKEN}".encode())])
    assert VisitorRegistry().identify(old) == VisitorRegistry().identify(request(TOKEN))


def test_invalid_cookie_of_an_earlier_version_is_replaced() -> None:
    client = web()
    client.cookies.set(OLD_COOKIE_NAME, "short")
    assert len(client.get("/").cookies[COOKIE_NAME]) >= 22


def test_in_a_frame_of_a_space_the_cookie_comes_along() -> None:
    header = web().get("/", headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    assert "SameSite=None; Secure" in header


def test_an_upload_over_the_limit_is_refused_unread_with_a_sentence() -> None:
    client = web(max_bytes=1_000_000)
    assert client.post("/gradio_api/upload", content=b"x" * 1_000_000).text == "1000000"
    refused = client.post("/gradio_api/upload", content=b"x" * 1_500_000)
    assert refused.status_code == 413
    assert refused.text.startswith("An upload may have 1 MB here and this one has 1.5 MB: make the file smaller")


def test_answers_at_once_are_counted_and_given_back() -> None:
    quota = VisitorQuota(Limits(rows_at_once=4))
    with quota.reserve("ada", 3):
        with pytest.raises(BusyError, match="You have 3 answers running and 4 at once"), quota.reserve("ada", 2):
            pass
        with quota.reserve("bob", 4):
            pass
    with quota.reserve("ada", 4):
        pass


def test_answers_of_an_hour_are_counted_and_forgotten_after_it() -> None:
    now = [0.0]
    quota = VisitorQuota(Limits(rows_at_once=0, rows_per_hour=10), clock=lambda: now[0])
    for minute in (0, 10):
        now[0] = 60.0 * minute
        with quota.reserve("ada", 5):
            pass
    with pytest.raises(BusyError, match="try again in about 50 min") as refused, quota.reserve("ada", 1):
        pass
    assert refused.value.seconds == pytest.approx(3000)
    now[0] = 3601.0
    with quota.reserve("ada", 5):
        pass


def test_no_limit_is_no_limit() -> None:
    quota = VisitorQuota(Limits(rows_at_once=0, rows_per_hour=0))
    with quota.reserve("ada", 10_000), quota.reserve("ada", 10_000):
        check_upload_size(10**12, 0)


def test_an_upload_is_measured_in_words() -> None:
    check_upload_size(100, 100)
    with pytest.raises(PromptOrTuneError, match=r"My\.csv has 30\.0 MB and 20 MB is the limit here"):
        check_upload_size(30_000_000, 20_000_000, "my.csv")
