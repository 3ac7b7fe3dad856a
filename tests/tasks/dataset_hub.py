"""Local server of data sets in place of the Hub, for the real client: folders on disk with one commit each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

_INFO = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)")


@dataclass
class DatasetHub:
    """The served repositories; `requests` lists the requests so far, `tokens` the Authorization header of each.

    A repository of `private` is served to those who send its token.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    private: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def commit(self, name: str) -> str:
        digest = hashlib.sha1(name.encode())
        for path in self.files(name):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def files(self, name: str) -> list[Path]:
        return sorted(path for path in self.repositories[name].rglob("*") if path.is_file())


@contextmanager
def dataset_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    """Serve on a free port, and make the client use the server and a temporary cache."""
    hub = DatasetHub()

    class Handler(_Handler):
        hub_state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub_state: DatasetHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        return

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub_state.requests.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "")
        self.hub_state.tokens.append(token)
        match = _INFO.fullmatch(path) or _FILE.fullmatch(path)
        if match is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif match[1] not in self.hub_state.repositories or self.hub_state.private.get(match[1]) not in (
            None,
            token.removeprefix("Bearer "),
        ):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif match[1] in self.hub_state.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif match[2] not in (None, "main", self.hub_state.commit(match[1])):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif match.re is _INFO:
            self._send(200, self._info(match[1]), {"Content-Type": "application/json"})
        else:
            content = (self.hub_state.repositories[match[1]] / match[3]).read_bytes()
            etag = hashlib.sha1(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": match[2]})

    def _info(self, name: str) -> bytes:
        folder = self.hub_state.repositories[name]
        siblings = [
            {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size}
            for path in self.hub_state.files(name)
        ]
        return json.dumps({"id": name, "sha": self.hub_state.commit(name), "siblings": siblings, "tags": []}).encode()

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
