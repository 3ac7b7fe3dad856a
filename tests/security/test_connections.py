"""Connections of the pages: many of one address, and those that send nothing or read nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
import uvicorn.config

from serve.api import server
from serve.api.server import AddressLimitProtocol
from tests.browser.fake_app import make_engine, serve
from tests.browser.page import until

OTHER = "127.0.0.2"  # an address of this machine from which a client may connect


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(lambda report: make_engine()) as address:
        yield address


def connect(url: str, source: str = "127.0.0.1") -> socket.socket:
    port = int(url.rstrip("/").rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))


def test_connections_of_one_address_are_limited(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another address is answered, and the first one again when its connections have ended."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS_PER_ADDRESS", 20)
    until(lambda: AddressLimitProtocol._open["127.0.0.1"] == 0)
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(url)) for _ in range(20)]
        until(lambda: AddressLimitProtocol._open["127.0.0.1"] == 20)
        with pytest.raises(httpx.TransportError):
            httpx.get(url)
        with httpx.Client(transport=httpx.HTTPTransport(local_address=OTHER)) as client:
            assert client.get(url).status_code == 200
        assert opened[0].fileno() > 0
    until(lambda: AddressLimitProtocol._open["127.0.0.1"] == 0)
    assert httpx.get(url).status_code == 200


def test_connections_that_send_no_head_are_closed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.3)
    for partial_head in (b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n"):
        with connect(url) as client:
            client.sendall(partial_head)
            assert client.recv(100) == b""


def test_other_servers_keep_their_protocol(url: str) -> None:
    assert url
    assert uvicorn.config.HTTP_PROTOCOLS["auto"] == "uvicorn.protocols.http.auto:AutoHTTPProtocol"
