"""Requests to the pages as strangers, other web sites and other visitors send them (cases 1, 7, 8, 10, 11 and 13)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.api.app import Api, ApiSettings
from serve.api.auth import ApiKeys, WebAccess
from serve.engine.llm_engine import EngineLoader
from tests.browser.fake_app import make_engine
from tests.browser.page import until
from ui.access import quota
from ui.access.bodies import MAX_FILES, MAX_JSON_BYTES
from ui.access.guard import COOKIE_NAME
from ui.access.middleware import Rule, find_rule
from ui.access.quota import VisitorLimits
from ui.app import build_pages, launch
from ui.context import Context

EVIL, FRIEND = "https://evil.example", "https://friend.example"
ALICE, BOB = ("alice", "correct horse"), ("bob", "battery staple")
LIMITS = VisitorLimits(upload_bytes=1 << 20, archive_bytes=1 << 20, stored_bytes=3 << 20)
API = "gradio_api/"
CLOSED = """
    docs redoc openapi.json gradio_api/openapi.json gradio_api/token gradio_api/queue/status monitoring no/such/path
    gradio_api/proxy=https://x.hf.space/ gradio_api/deep_link?session_hash=x gradio_api/stream/x/x/1/playlist.m3u8
"""
CALL = {"data": ["say hello", ["zero-shot"], None, None]}


@dataclass(frozen=True)
class Site:
    """The pages at `url`; `app` is Gradio's application."""

    url: str
    app: Any

    def client(self, login: tuple[str, str] | None = None, /, **headers: Any) -> httpx.Client:
        cookies = httpx.Cookies()
        if login:
            given = httpx.post(f"{self.url}login", data={"username": login[0], "password": login[1]})
            assert given.status_code == 200
            cookies = given.cookies
        return httpx.Client(base_url=self.url, timeout=20, headers=headers, cookies=cookies)

    def visitor(self) -> httpx.Client:
        """Return a client with a visitor cookie of its own."""
        cookie = httpx.get(self.url).cookies[COOKIE_NAME]
        return httpx.Client(base_url=self.url, timeout=20, cookies={COOKIE_NAME: cookie})


@contextmanager
def running(
    home: Path, accounts: Sequence[tuple[str, str]] = (), limits: VisitorLimits = LIMITS, *, trust_proxy: bool = False
) -> Iterator[Site]:
    engine = make_engine()
    loader = EngineLoader(lambda report: engine).start()
    context = Context(loader, home=home)
    pages = build_pages(loader, context=context)
    web = WebAccess(frozenset({"arena.example"}), frozenset({FRIEND}), trust_proxy)
    app, url, _ = launch(
        pages, port=None, prevent_thread_lock=True, limits=limits, accounts=accounts, web=web,
        runs=context.cancel_registry, routes=Api(loader, ApiKeys(), ApiSettings(web=web)).routes(),
    )  # fmt: skip
    try:
        yield Site(url, app)
    finally:
        pages.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("plain")) as served:
        yield served


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("auth"), [ALICE, BOB]) as served:
        yield served


def cors(response: httpx.Response) -> list[str]:
    return [name for name in response.headers if name.startswith("access-control")]


def walk(routes: Sequence[Any]) -> Iterator[Any]:
    for route in routes:
        yield from walk(route.original_router.routes) if hasattr(route, "original_router") else [route]


def test_every_route_of_the_app_has_a_rule(private: Site) -> None:
    routes = {route.path.rstrip("/") or "/" for route in walk(private.app.router.routes)}
    assert len(routes) > 50
    assert {path for path in routes if not find_rule(path)[0]} == set()


def test_unknown_and_unused_paths_are_closed(site: Site) -> None:
    with site.client() as client:
        for path in CLOSED.split():
            assert client.get(path).status_code == 404, path
        assert client.post(f"{API}vibe-edit", json={"prompt": "x"}).status_code == 404
        assert find_rule("/gradio_api/a-route-of-a-later-version")[1] is Rule.OFF


def test_without_login_only_the_login_page_and_assets_are_answered(private: Site) -> None:
    with private.client() as client:
        for route in {route.path.rstrip("/") or "/" for route in walk(private.app.router.routes)}:
            rule = find_rule(route)[1]
            if rule in (Rule.MEMBER, Rule.OFF):
                path = route.replace(":path}", "}").format_map(_Names())
                for method in ("GET", "POST"):
                    assert client.request(method, path).status_code == 401, (method, path)
        assert client.get("nothing/here").status_code == 401
        page = client.get("")
        assert page.status_code == 200
        assert all(text in page.text for text in ('"auth_required":true', '"dependencies":[]'))
        assert client.get("theme.css").status_code == 200
        assert client.get("health").status_code == 200  # the API has keys of its own


class _Names(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "x"


@pytest.mark.parametrize("host", ["evil.example", "rebind.evil.example:80", "127.0.0.1.evil.example", "localhost.evil"])
def test_pages_answer_their_own_names_alone(site: Site, host: str) -> None:
    with site.client(host=host) as client:
        for path in ("", "config", "theme.css", "v1/models"):
            response = client.get(path)
            assert response.status_code == 421, path
            assert "--allow-host" in response.text
    with site.client(host="arena.example") as client:
        assert client.get("config").json()["root"] == "http://arena.example"


def test_a_forwarded_host_does_not_change_the_page(site: Site) -> None:
    with site.client(**{"x-forwarded-host": "evil.example", "x-gradio-server": "http://evil.example"}) as client:
        assert client.get("config").json()["root"] == site.url.rstrip("/")


@pytest.mark.parametrize("host", ["arena.example", "127.0.0.2", "[::1]", "192.168.1.5", "localhost"])
def test_other_sites_get_no_cors_and_cannot_act(site: Site, host: str) -> None:
    with site.client(host=host, origin=EVIL) as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        for path in (f"{API}queue/join", f"{API}upload", "v1/completions", "login", "config"):
            response = client.options(path, headers=asked)
            assert response.status_code == 403, path
            assert not cors(response)
        for path in ("config", f"{API}queue/data?session_hash=x", f"{API}heartbeat/x", "v1/models", f"{API}info"):
            response = client.get(path)
            assert response.status_code == 403, path
            assert not cors(response)
        act = client.post(f"{API}queue/join", json={"fn_index": 0, "data": [], "session_hash": "abc"})
        assert act.status_code == 403
        assert client.post(f"{API}upload", files={"files": ("a.csv", b"a")}).status_code == 403
        assert not cors(client.get("health"))
        assert not cors(client.get("theme.css"))


@pytest.mark.parametrize("site_name", ["cross-site", "same-site"])
def test_requests_of_other_sites_without_an_origin_are_refused(site: Site, site_name: str) -> None:
    sent: Any = {"sec-fetch-site": site_name, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    with site.client(**sent) as client:
        for path in ("", "config", f"{API}queue/data?session_hash=x", f"{API}heartbeat/x", f"{API}file=/x", "logout"):
            assert client.get(path).status_code == 403, path
        assert client.get("theme.css").status_code == 200
    link: Any = {"sec-fetch-site": site_name, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    with site.client(**link) as client:
        assert client.get("").status_code == 200
        assert client.get("logout").status_code == 403
        assert client.get(f"{API}file=/x").status_code == 403
        assert client.get("", headers={"sec-fetch-dest": "iframe"}).status_code == 403


def test_an_allowed_origin_acts_as_a_program_without_cookies(private: Site) -> None:
    with private.client(ALICE) as client:
        granted = client.options(
            f"{API}queue/join", headers={"origin": FRIEND, "access-control-request-method": "POST"}
        )
        assert granted.headers["access-control-allow-origin"] == FRIEND
        assert "access-control-allow-credentials" not in granted.headers
        assert client.get("config").status_code == 200
        assert client.get("config", headers={"origin": FRIEND}).status_code == 401


def test_the_page_and_programs_still_work(site: Site) -> None:
    with site.client(origin=site.url.rstrip("/"), **{"sec-fetch-site": "same-origin"}) as page:
        assert answer(page, "fromthepage")
    with site.client() as program:
        event = program.post(f"{API}call/compare", json={"data": ["say hello", ["zero-shot"], None, None]}).json()[
            "event_id"
        ]
        assert "event: complete" in program.get(f"{API}call/compare/{event}").text


def answer(client: httpx.Client, session: str) -> str:
    """Join the queue with a comparison and return the events of the session."""
    config = client.get("config").json()
    index = next(each["id"] for each in config["dependencies"] if each["api_name"] == "compare")
    body = {"fn_index": index, "data": ["say hello", ["zero-shot"], None, None], "session_hash": session}
    assert client.post(f"{API}queue/join", json=body).status_code == 200
    events = client.get(f"{API}queue/data", params={"session_hash": session}).text
    assert '"process_completed"' in events
    return events


def test_headers_protect_every_response(private: Site) -> None:
    with private.client(ALICE) as client:
        answers = [
            client.get(""),
            client.get("config"),
            client.get("theme.css"),
            client.get("no/such"),
            client.get("health"),
            client.post(f"{API}queue/join", content=b"{", headers={"content-type": "application/json"}),
            client.get("config", headers={"host": "evil.example"}),
        ]
    for response in answers:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["x-frame-options"] == "SAMEORIGIN"
        assert "frame-ancestors 'self'" in response.headers["content-security-policy"]
        assert "object-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_cookies_are_sent_to_this_site_alone(private: Site, scheme: str, secure: bool) -> None:
    with private.client(**{"x-forwarded-proto": scheme}) as client:
        page = client.get("")
        login = client.post("login", data={"username": "alice", "password": "correct horse"})
        logout = client.get("logout")
    cookies = [each for reply in (page, login, logout) for each in reply.headers.get_list("set-cookie")]
    assert len(cookies) >= 4
    for cookie in cookies:
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=lax", "path=/"} <= attributes, cookie
        assert ("secure" in attributes) == secure, cookie


def test_a_session_belongs_to_whoever_began_it(private: Site) -> None:
    with private.client(ALICE) as alice, private.client(BOB) as bob:
        answer(alice, "alicespage")
        event = alice.post(f"{API}call/compare", json={"data": ["say hello", ["zero-shot"], None, None]}).json()[
            "event_id"
        ]
        index = 0
        for path in (f"{API}queue/data?session_hash=alicespage", f"{API}heartbeat/alicespage",
                     f"{API}call/compare/{event}", f"{API}queue/data?session_hash=bobspage&session_hash=alicespage",
                     f"{API}queue/data?session_hash=neverbegun"):  # fmt: skip
            assert bob.get(path).status_code == 403, path
        named = {"session_hash": "alicespage", "data": [], "fn_index": index}
        for path in ("queue/join", "run/predict", "api/predict", "call/compare"):
            assert bob.post(API + path, json=named).status_code == 403, path
        tool = {"component_id": 0, "fn_name": "difference", "data": {}}
        assert bob.post(f"{API}component_server", json={**tool, "session_hash": "alicespage"}).status_code == 403
        for session, of in (("alicespage", event), ("bobspage", event)):
            body = {"session_hash": session, "fn_index": index, "event_id": of}
            assert bob.post(f"{API}cancel", json=body).status_code == 403
        assert bob.post(f"{API}reset", json={"event_id": event}).status_code == 403
        assert "event: complete" in alice.get(f"{API}call/compare/{event}").text


def test_a_session_belongs_to_a_browser_where_there_are_no_logins(site: Site) -> None:
    with site.visitor() as first, site.visitor() as second:
        answer(first, "firstpage")
        assert second.get(f"{API}queue/data", params={"session_hash": "firstpage"}).status_code == 403
        assert answer(second, "secondpage")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"[" * 100_000, 400),
        (b'{"data": [], "session_hash": ["a"]}', 403),
        (b'{"data": [], "session_hash": "' + b"a" * 65 + b'"}', 403),
        (b'{"data": [], "session_hash": "../../x"}', 403),
        (b"[1]", 400),
        (b"\xff\xfe", 400),
        (b'{"data": ["' + b"x" * MAX_JSON_BYTES + b'"], "session_hash": "abc"}', 413),
    ],
)
def test_bodies_are_checked_before_gradio_reads_them(site: Site, content: bytes, status: int) -> None:
    with site.client(**{"content-type": "application/json"}) as client:
        for path in ("queue/join", "run/predict", "call/compare", "component_server", "cancel", "reset"):
            declared = client.post(API + path, content=content)
            chunked = client.post(API + path, content=iter([content[:10], content[10:]]))
            assert (declared.status_code, chunked.status_code) == (status, status), path
            assert len(declared.json()["detail"]) < 200


def test_a_body_is_refused_while_it_arrives(site: Site) -> None:
    """150 MB are announced in chunks: the answer comes after little more than 1 MB."""
    host, _, port = site.url.removeprefix("http://").rstrip("/").partition(":")
    head = "POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"%x\r\n" % 100_000 + b"x" * 100_000 + b"\r\n"
    sent = 0
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        client.settimeout(0.05)
        reply = b""
        while not reply and sent < 150_000_000:
            client.sendall(chunk)
            sent += len(chunk)
            try:
                reply = client.recv(100)
            except TimeoutError:
                continue
    assert reply.startswith(b"HTTP/1.1 413")
    assert sent < 5_000_000


def test_differences_of_one_address_are_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_PER_MINUTE", 3)
    components = httpx.get(f"{site.url}config").json()["components"]
    component = next(each["id"] for each in components if each["props"].get("server_fns"))
    statuses = []
    for number in range(5):
        body = {"component_id": component, "fn_name": "difference", "session_hash": f"diff{number}", "data": {}}
        with site.visitor() as client:
            statuses.append(client.post(f"{API}component_server", json=body).status_code)
    assert statuses == [200, 200, 200, 429, 429]


def test_a_flood_of_requests_is_slowed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests of another address are answered meanwhile; a network of IPv6 is one address."""
    monkeypatch.setattr(quota, "MAX_DELAY_SECONDS", 2.0)
    with running(tmp_path, limits=VisitorLimits(requests_per_second=5), trust_proxy=True) as site:
        crowd, other = (site.client(**{"x-forwarded-for": address}) for address in ("2001:db8::1", "2001:db8:0:1::1"))

        def ask(number: int) -> int:
            return crowd.get("config", headers={"x-forwarded-for": f"2001:db8::{number:x}"}).status_code

        with ThreadPoolExecutor(20) as threads:
            statuses = list(threads.map(ask, range(1, 21)))
        assert sorted(statuses) == [200] * 5 + [429] * 15
        assert other.get("config").status_code == 200


def test_forms_are_no_way_around_the_check_of_bodies(site: Site) -> None:
    form = {"component_id": "1", "session_hash": "x", "fn_name": "difference"}
    with site.client() as client:
        assert client.post(f"{API}component_server", data=form, files={"f": b"x"}).status_code == 415
        plain = {"content-type": "text/plain"}
        assert client.post(f"{API}queue/join", content=b"{}", headers=plain).status_code == 415
        assert client.post("login", data={"username": "a" * 20_000, "password": "b"}).status_code == 413


def parts(sizes: Sequence[int]) -> list[bytes]:
    """Return the chunks of a multipart form with files of these sizes; sent without Content-Length."""
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="%d.csv"\r\n\r\n'
    return [head % number + b"x" * size + b"\r\n" for number, size in enumerate(sizes)] + [b"--edge--\r\n"]


def upload(client: httpx.Client, sizes: Sequence[int]) -> httpx.Response:
    given = {"content-type": "multipart/form-data; boundary=edge"}
    return client.post(f"{API}upload", content=iter(parts(sizes)), headers=given)


def uploaded(site: Site) -> int:
    total = 0
    for folder, _, names in os.walk(site.app.uploaded_file_dir):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    return total


def test_the_files_of_one_upload_are_limited_together(site: Site) -> None:
    with site.visitor() as client:
        before = uploaded(site)
        refused = upload(client, [500_000] * 3)
        assert refused.status_code == 413
        assert "maximum allowed size" in refused.text
        assert upload(client, [1] * (MAX_FILES + 1)).status_code == 400
        assert client.post(f"{API}upload", files={"f": b"x" * 2_000_000}).status_code == 413
        assert client.post(f"{API}upload", json={}).status_code == 415
        assert uploaded(site) == before
        assert upload(client, [10] * MAX_FILES).status_code == 200


def test_an_upload_that_ends_early_leaves_no_file(site: Site) -> None:
    host, _, port = site.url.removeprefix("http://").rstrip("/").partition(":")
    before = uploaded(site)
    body = parts([800_000])[0]
    with socket.create_connection((host, int(port)), timeout=10) as client:
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\n"
        head += "Content-Type: multipart/form-data; boundary=edge\r\n"
        client.sendall(f"{head}Content-Length: 900000\r\n\r\n".encode() + body)
        until(lambda: uploaded(site) > before)
    until(lambda: uploaded(site) == before)


def test_stored_uploads_of_one_visitor_have_a_total(site: Site) -> None:
    with site.visitor() as client, site.visitor() as other:
        answers = [upload(client, [1_000_000]) for _ in range(4)]
        assert [each.status_code for each in answers] == [200, 200, 200, 413]
        assert "limit for one person" in answers[-1].text
        assert upload(other, [1_000_000]).status_code == 200


@pytest.mark.parametrize("name", ["page.html", "picture.svg", "script.js", "picture.png"])
def test_uploaded_files_are_attachments(site: Site, name: str) -> None:
    script = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    with site.visitor() as client:
        path = client.post(f"{API}upload", files={"files": (name, script)}).json()[0]
        for headers in ({}, {"range": "bytes=0-10", "x-evil": "reflected"}):
            file = client.get(f"{API}file={path}", headers=headers)
            assert file.status_code == 200
            assert file.headers["content-disposition"].startswith("attachment")
            assert file.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
            assert file.headers["x-content-type-options"] == "nosniff"
            assert "html" not in file.headers["content-type"]
            assert "x-evil" not in file.headers


def test_wrong_logins_wait_and_are_answered_at_once(tmp_path: Path) -> None:
    with running(tmp_path, [ALICE, BOB]) as site, site.client() as client:
        wrong = [
            client.post("login", data={"username": "alice", "password": f"guess {number}"}) for number in range(40)
        ]
        statuses = [each.status_code for each in wrong]
        assert statuses[:5] == [400] * 5
        assert statuses.count(400) <= 8
        assert set(statuses[5:]) <= {400, 429}
        assert int(wrong[-1].headers["retry-after"]) >= 1
        assert "try again in" in wrong[-1].json()["detail"]
        right = client.post("login", data={"username": "alice", "password": ALICE[1]})
        assert right.status_code == 429
        assert client.post("login", data={"username": "bob", "password": BOB[1]}).status_code == 200


def test_config_is_json_for_programs_of_this_machine(site: Site) -> None:
    with site.client() as client:
        assert json.loads(client.get("config").text)["version"]
