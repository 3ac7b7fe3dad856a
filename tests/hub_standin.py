"""A local server in place of the Hugging Face Hub: enough of its API for the real client to read and write models.

It has repositories (folders on disk, or created over HTTP with several commits), accounts with tokens of different
rights, gated and private repositories, and connections that break during a transfer. Large files are transferred by
LFS, or by Xet if it has a folder for them (tests/hub/xet.py). Data sets are repositories named `datasets/...`.
Jobs are in tests/hub/jobs.py, Spaces in tests/hub/spaces.py.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub import jobs, openid, reading, spaces, writing, xet
from tests.hub.reading import Reply
from tests.hub.state import Account, Hub

__all__ = ["Account", "Hub", "hub_standin"]

_NAME = r"((?:datasets/)?[^/]+/[^/]+)"
_API = rf"/api/(?:models/)?{_NAME}"
_INFO = re.compile(rf"{_API}(?:/revision/(.+))?")
_TREE = re.compile(rf"{_API}/tree/([^/]+)")
_FILE = re.compile(rf"/{_NAME}/resolve/([^/]+)/(.+)")
_ACCESS = re.compile(rf"{_API}/auth-check(/write)?")
_XET = re.compile(rf"{_API}/xet-(read|write)-token/([^/]+)")
_PREUPLOAD = re.compile(rf"{_API}/preupload/main")
_COMMIT = re.compile(rf"{_API}/commit/main")
_BATCH = re.compile(rf"/{_NAME}\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/([0-9a-f]{64})")


@contextmanager
def hub_standin() -> Iterator[Hub]:
    """Serve a Hub on a free port of this machine during the block."""
    hub = Hub()

    class Handler(_Handler):
        hub_state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _CutError(Exception):
    """Raised to break the connection."""


class _Handler(BaseHTTPRequestHandler):
    hub_state: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._write)

    def do_PUT(self) -> None:
        self._answer(self._write)

    def log_message(self, *_: Any) -> None:
        return

    def _answer(self, reply: Callable[[str], Reply]) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub_state.requests.append(f"{self.command} {path}")
        try:
            self._send(reply(path))
        except _CutError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _account(self) -> Account | None:
        return self.hub_state.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _read(self, path: str) -> Reply:
        hub, account = self.hub_state, self._account()
        if path == "/api/whoami-v2":
            return writing.whoami(account)
        if (reply := spaces.read(hub, account, path)) is not None:
            return reply
        query = urlsplit(self.path).query
        for reply in (openid.read(hub, path, query), jobs.read(hub, account, path, query)):
            if reply is not None:
                return reply
        for pattern in (_TREE, _ACCESS, _XET, _INFO, _FILE):
            match = pattern.fullmatch(path)
            if match:
                if not hub.knows(match[1]) or not hub.may_read(match[1], account):
                    return reading.missing(account)
                return self._of_repository(pattern, match, account)
        return Reply(404, error="EntryNotFound", message="Entry not found")

    def _of_repository(self, pattern: re.Pattern[str], match: re.Match[str], account: Account | None) -> Reply:
        hub, name = self.hub_state, match[1]
        has_access = name not in hub.gated or (account is not None and account.may_write(name))
        if pattern in (_FILE, _ACCESS) and not has_access:
            return Reply(403, error="GatedRepo", message=f"Access to model {name} is restricted")
        if pattern is _ACCESS:
            return (writing.refusal(account, name) if match[2] else None) or Reply(200)
        if pattern is _XET:
            if hub.breaks("xet"):
                raise _CutError
            return (writing.refusal(account, name) if match[2] == "write" else None) or xet.token(hub)
        commit = hub.at(name, match[2])
        if commit is None:
            return Reply(404, error="RevisionNotFound", message="Invalid rev id")
        if pattern is _TREE:
            return reading.tree(commit)
        if pattern is _FILE:
            if self.command == "GET" and hub.breaks("answer"):
                raise _CutError
            return reading.file(hub, name, commit, match[3], self.command == "HEAD")
        return reading.info(hub, name, commit)

    def _write(self, path: str) -> Reply:
        hub, account = self.hub_state, self._account()
        if match := _OBJECT.fullmatch(path):
            return writing.lfs_store(hub, match[1], self._body("upload"))
        if path == "/api/validate-yaml":
            return writing.validate(self._body())
        if path == "/api/repos/create" or path.startswith(("/api/spaces/", "/spaces/", "/api/buckets/")):
            body = self._body("commit" if path.endswith("/commit/main") else "")
            return spaces.write(hub, account, path, body) or writing.create(hub, account, body)
        if (login := openid.write(hub, path, self.headers.get("Authorization", ""), self._body)) is not None:
            return login
        if (answer := jobs.write(hub, account, path, self._body)) is not None:
            if answer[1]:
                raise _CutError
            return answer[0]
        for pattern in (_PREUPLOAD, _BATCH, _COMMIT):
            match = pattern.fullmatch(path)
            if match:
                body = self._body("commit" if pattern is _COMMIT else "")
                refused = None if hub.knows(match[1]) else reading.missing(account)
                refused = refused or writing.refusal(account, match[1])
                return refused or self._to_repository(pattern, match[1], body)
        self._body()
        return Reply(404, error="EntryNotFound", message="Entry not found")

    def _to_repository(self, pattern: re.Pattern[str], name: str, body: bytes) -> Reply:
        if pattern is _PREUPLOAD:
            return writing.preupload(self.hub_state, name, body)
        if pattern is _BATCH:
            return writing.lfs_batch(self.hub_state, body)
        reply = writing.commit(self.hub_state, name, body)
        if self.hub_state.breaks("reply"):
            raise _CutError
        return reply

    def _body(self, breaks: str = "") -> bytes:
        """Read the request body, or only half of it if the connection is to break at the event `breaks`."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                if breaks and self.hub_state.breaks(breaks):
                    self.rfile.read(size // 2)
                    raise _CutError
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        size = int(self.headers.get("Content-Length", 0))
        if breaks and self.hub_state.breaks(breaks):
            self.rfile.read(size // 2)
            raise _CutError
        return self.rfile.read(size)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        errors = {"X-Error-Code": reply.error, "X-Error-Message": reply.message}
        for key, value in (reply.headers | {key: text for key, text in errors.items() if text}).items():
            self.send_header(key, value)
        if reply.stream is not None:
            self._send_stream(reply.stream)
            return
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        if reply.cut:
            self.wfile.write(reply.content[: len(reply.content) // 2])
            raise _CutError
        if self.command != "HEAD":
            self.wfile.write(reply.content)

    def _send_stream(self, parts: Iterator[bytes]) -> None:
        """Send events as they are produced, until the connection is closed."""
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):  # the client has closed the connection
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()
