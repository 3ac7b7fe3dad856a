"""Stand-in server for OpenAI's completions API over real sockets, with behaviour chosen by the test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def event(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def chunk(text: str, index: int = 0, finish: str | None = None, logprob: float | None = None) -> bytes:
    """Return one chunk of a stream as vLLM sends it."""
    choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": finish, "logprobs": None}
    if logprob is not None:
        choice["logprobs"] = {"tokens": [text], "token_logprobs": [logprob], "top_logprobs": [{text: logprob}]}
    return event({"object": "text_completion", "choices": [choice]})


DONE = event(b"[DONE]")


@dataclass
class Reply:
    """A complete response to one request."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Stream = Callable[[dict[str, Any]], Iterator[bytes]]


@dataclass
class StandIn:
    """The behaviour of the server, and the requests that it has received.

    `stream` answers POST /v1/completions with chunks of bytes. `models` are the entries of /v1/models (None: no such
    list), `pages` complete responses by path, `asked` the received requests: path, body and headers. `cut` counts
    streams that the client closed early. The connections of the next `drops` requests for a stream are closed without
    a response.
    """

    stream: Stream
    models: list[dict[str, Any]] | None = None
    pages: dict[str, Reply | Callable[[dict[str, Any]], Reply]] = field(default_factory=dict)
    logprobs: bool = True
    content_type: str = "text/event-stream; charset=utf-8"
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    cut: int = 0
    drops: int = 0
    open: int = 0
    most_open: int = 0
    host: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://{self.host}/v1"

    def bodies(self, path: str = "/v1/completions") -> list[dict[str, Any]]:
        """Return the bodies received at `path`, without the discovery request for one token."""
        return [body for asked_path, body, _ in self.asked if asked_path == path and body.get("max_tokens") != 1]

    def answer(self, path: str, body: dict[str, Any]) -> Reply | None:
        """Return the complete response to a request; None if it is to be streamed."""
        if path in self.pages:
            page = self.pages[path]
            return page(body) if callable(page) else page
        if path == "/v1/models" and self.models is not None:
            return Reply({"object": "list", "data": self.models})
        if path == "/v1/completions":
            return None if body.get("stream") else self._one_token(body)
        return Reply({"detail": "Not Found"}, 404)

    def _one_token(self, body: dict[str, Any]) -> Reply:
        logprobs_value = {"tokens": ["y"], "token_logprobs": [-0.5], "top_logprobs": [{"y": -0.5}]}
        logprobs = logprobs_value if self.logprobs and body.get("logprobs") else None
        return Reply({"choices": [{"index": 0, "text": "y", "finish_reason": "length", "logprobs": logprobs}]})


@contextmanager
def served(standin: StandIn, port: int = 0) -> Iterator[StandIn]:
    """Serve the stand-in during the block, on a free local port unless one is given."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # a complete response in one packet

        def do_GET(self) -> None:
            self._handle({})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            self._handle(json.loads(content))

        def _handle(self, body: dict[str, Any]) -> None:
            with standin.lock:
                standin.asked.append((self.path, body, {name.lower(): value for name, value in self.headers.items()}))
            reply = standin.answer(self.path, body)
            if reply is None and standin.drops:
                standin.drops -= 1
                self.close_connection = True
                return
            if reply is None:
                self._stream(body)
                return
            content = reply.value if isinstance(reply.value, bytes) else json.dumps(reply.value).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        def _stream(self, body: dict[str, Any]) -> None:
            with standin.lock:
                standin.open += 1
                standin.most_open = max(standin.most_open, standin.open)
            try:
                self.send_response(200)
                self.send_header("Content-Type", standin.content_type)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.flush()
                for piece in standin.stream(body):
                    self.wfile.write(piece)
                    self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                standin.cut += 1
            finally:
                with standin.lock:
                    standin.open -= 1
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            """Ignore clients that have disconnected."""

    server = Server(("127.0.0.1", port), Handler)
    standin.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()


def saying(*pieces: str, finish: str = "stop", delay: float = 0.0, logprob: float | None = None) -> Stream:
    """Return a stream of one chunk per piece for each requested sample, with a normal end."""

    def stream(body: dict[str, Any]) -> Iterator[bytes]:
        for index in range(body.get("n", 1)):
            for piece in pieces:
                time.sleep(delay)
                yield chunk(piece, index, logprob=logprob)
            yield chunk("", index, finish)
        yield event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(pieces)}})
        yield DONE

    return stream


VLLM_MODELS: list[dict[str, Any]] = [
    {"id": "owner/base", "owned_by": "vllm", "root": "owner/base", "parent": None, "max_model_len": 4096},
    {"id": "sql-lora", "owned_by": "vllm", "root": "/adapters/sql-lora", "parent": "owner/base"},
]
