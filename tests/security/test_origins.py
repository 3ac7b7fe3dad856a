"""Names and origins (cases 1 and 8): what a server answers, as a table, and the API over HTTP."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from errors import PromptOrTuneError
from serve.api.app import ApiSettings
from serve.api.auth import ApiKeys, WebAccess, add_web_options, client_address, client_network, read_web_access
from tests import messages
from tests.serve.api.conftest import Served, serving

EVIL, FRIEND = "https://evil.example", "https://friend.example"
WEB = WebAccess(hosts=frozenset({"arena.example"}), origins=frozenset({FRIEND}))


def access(*arguments: str, host: str = "127.0.0.1", environ: Mapping[str, str] | None = None) -> WebAccess:
    parser = ArgumentParser()
    add_web_options(parser)
    return read_web_access(parser.parse_args(arguments), host, environ or {})


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:7860", "127.0.0.1:7860", "127.8.8.8", "[::1]:7860", "192.168.1.5", "[fe80::1%eth0]:1",
     "arena.example", "Arena.Example.:443"],
)  # fmt: skip
def test_own_names_and_addresses_are_answered(host: str) -> None:
    assert WEB.is_answered(host)


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:127", "arena.example.evil",
     "localhost:x", "localhost@evil.example", "[::1", "xn--localhost", "a b", "local\thost", "127.0.0.1/", "0x7f.1"],
)  # fmt: skip
def test_other_names_are_not_answered(host: str) -> None:
    assert not WEB.is_answered(host)


def test_several_host_headers_are_not_answered() -> None:
    assert WEB.host_refusal(Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.example")]))
    assert WEB.host_refusal(Headers())


def page(origin: str | None = None, host: str = "arena.example", **fetch: str) -> dict[str, str]:
    given = {"host": host} | ({} if origin is None else {"origin": origin})
    return given | {f"sec-fetch-{name}": value for name, value in fetch.items()}


@pytest.mark.parametrize(
    "headers",
    [
        page(),  # a program
        page("https://arena.example"),
        page("http://arena.example:80", "arena.example:80"),
        page("http://127.0.0.1:7860", "127.0.0.1:7860", site="same-origin"),
        page(site="same-origin"),
        page(site="none", mode="navigate", dest="document"),
        page(FRIEND, site="cross-site"),
    ],
)
def test_own_pages_and_programs_may_act(headers: dict[str, str]) -> None:
    assert WEB.origin_refusal(Headers(headers), https=False) is None


@pytest.mark.parametrize(
    "headers",
    [
        page(EVIL),
        page("null"),
        page("https://www.arena.example"),  # a sibling
        page("http://127.0.0.1:8000", "127.0.0.1:7860"),  # another program of this machine
        page("http://localhost:7860", "127.0.0.1:7860"),
        page("https://arena.example:8443"),
        page("https://arena.example@evil.example"),
        page("file://arena.example"),
        page(site="cross-site", mode="no-cors", dest="image"),
        page(site="same-site", mode="cors", dest="empty"),
        page("http://arena.example", site="cross-site"),  # the same name without TLS
        page(site="cross-site", mode="navigate", dest="iframe"),
        page(site="cross-site", mode="navigate", dest="document"),
        page(FRIEND + ".evil.example"),
    ],
)
def test_pages_of_other_origins_may_not(headers: dict[str, str]) -> None:
    assert "may not use this server" in str(WEB.origin_refusal(Headers(headers), https=False))


def test_links_of_other_pages_open_pages_alone_and_frames_on_a_space() -> None:
    link = Headers(page(site="cross-site", mode="navigate", dest="document"))
    frame = Headers(page(site="cross-site", mode="navigate", dest="iframe"))
    assert WEB.origin_refusal(link, False, navigable=True) is None
    assert WEB.origin_refusal(frame, False, navigable=True)
    assert WebAccess(frame=True).origin_refusal(frame, False, navigable=True) is None


def test_a_page_without_tls_is_another_origin_where_tls_is_certain() -> None:
    assert WEB.origin_refusal(Headers(page("http://arena.example")), https=True)
    assert WEB.origin_refusal(Headers(page("https://arena.example")), https=True) is None


def test_options_and_environment_name_hosts_and_origins() -> None:
    environ = {"PROMPT_OR_TUNE_ALLOW_HOST": "a.example, b.example", "SPACE_HOST": "x.hf.space"}
    web = access("--allow-host", "Lab.Example", "--allow-origin", "https://Site.example:443/", environ=environ)
    assert {"lab.example", "a.example", "b.example"} < web.hosts
    assert "x.hf.space" not in web.hosts
    assert web.origins == {"https://site.example"}
    assert not web.trust_proxy
    space = access(environ={"SPACE_ID": "ada/x", "SPACE_HOST": "ada-x.hf.space,x.example"}, host="0.0.0.0")
    assert {"ada-x.hf.space", "x.example"} < space.hosts
    assert space.frame
    assert space.trust_proxy


@pytest.mark.parametrize(
    "arguments",
    [("--allow-host", "https://x.example"), ("--allow-host", "x:80"), ("--allow-host", "*"), ("--allow-origin", "*"),
     ("--allow-origin", "null"), ("--allow-origin", "x.example"), ("--allow-origin", "https://x.example/path")],
)  # fmt: skip
def test_values_that_are_no_names_are_refused(arguments: tuple[str, str]) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.NO_NAME_OR_ORIGIN):
        access(*arguments)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:0:5:1:2:3:4", "2001:db8:0:5::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_limits_count_by_network(address: str, network: str) -> None:
    assert client_network(address) == network


def test_forwarded_address_counts_with_a_trusted_proxy_alone() -> None:
    scope: Any = {"client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", b"6.6.6.6, 7.7.7.7")]}
    assert client_address(scope, WebAccess()) == "10.0.0.1"
    assert client_address(scope, WebAccess(trust_proxy=True)) == "7.7.7.7"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    web = WebAccess(origins=frozenset({FRIEND}))
    with serving(tmp_path_factory.mktemp("api"), settings=ApiSettings(web=web), keys=ApiKeys()) as served:
        yield served


def test_api_refuses_pages_of_other_origins(api: Served) -> None:
    body = {"model": "zero-shot", "prompt": "x", "max_tokens": 1}
    refused = httpx.post(f"{api.url}/v1/completions", json=body, headers={"origin": EVIL})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "origin_not_allowed"
    assert not [name for name in refused.headers if name.startswith("access-control")]
    read = httpx.get(f"{api.url}/v1/models", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"})
    assert read.status_code == 403


def test_api_answers_preflights_of_allowed_origins_alone(api: Served) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    granted = httpx.options(f"{api.url}/v1/completions", headers={"origin": FRIEND, **asked})
    assert granted.status_code == 204
    assert granted.headers["access-control-allow-origin"] == FRIEND
    assert "access-control-allow-credentials" not in granted.headers
    assert httpx.get(f"{api.url}/v1/models", headers={"origin": FRIEND}).headers["vary"] == "Origin"
    refused = httpx.options(f"{api.url}/v1/completions", headers={"origin": EVIL, **asked})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


def test_api_with_keys_answers_its_own_names_alone(tmp_path: Path) -> None:
    from tests.serve.api.test_limits import BERT, keys

    with serving(tmp_path, keys=keys(tmp_path, f"bert:{BERT}")) as served:
        given = {"authorization": f"Bearer {BERT}", "host": "evil.example"}
        assert httpx.get(f"{served.url}/v1/models", headers=given).status_code == 421
        assert httpx.get(f"{served.url}/health", headers={"host": "evil.example"}).status_code == 421
