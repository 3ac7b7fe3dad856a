"""HTTP client for an OpenAI-compatible server: bounded responses, server-sent events, and error messages.

Redirects are not followed and sizes are limited. The API key is sent to the given address only, in a header, and is
part of no message, log or representation.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from common.format import format_bytes, quote_untrusted
from errors import BusyError, EngineError, PromptOrTuneError, PromptTooLongError, says_context_exceeded

MAX_BODY_BYTES = 4 << 20
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 30.0
_MAX_RETRY_SECONDS = 3600.0
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_REFUSED_REQUEST = (200, 400, 413, 422)  # statuses with which servers refuse a prompt that is too long
_KEY_PATTERN = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class ServerResponse:
    """A complete response: status, headers, text, and its JSON value (None if it is not JSON)."""

    status: int
    headers: httpx.Headers
    value: Any
    text: str

    def field(self, name: str) -> Any:
        """Return the field of the JSON object; None if it is missing or the value is no object."""
        return self.value.get(name) if isinstance(self.value, dict) else None


class ServerClient:
    """Requests to one server with its API key. Thread-safe."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = _parse_url(url)
        self.url = url.strip().rstrip("/")
        self.host = parts.netloc
        self._root = self.url.removesuffix("/v1")
        if api_key is not None and not _KEY_PATTERN.fullmatch(api_key):
            raise PromptOrTuneError("The API key is empty or has characters that no header allows: check its variable.")
        self._key = api_key
        # Proxies of the environment are not used for a server on this machine.
        self._options: dict[str, Any] = {
            "headers": self._headers(),
            "trust_env": parts.hostname not in _LOCAL_HOSTS,
            "follow_redirects": False,
        }
        self._client = httpx.Client(**self._options, timeout=self._timeout(_READ_SECONDS))

    @property
    def sends_key_unencrypted(self) -> bool:
        """Whether the API key is sent unencrypted to another machine."""
        return self._key is not None and self.url.startswith("http://") and self._options["trust_env"]

    def __repr__(self) -> str:
        return f"ServerClient({self.host!r})"

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "prompt-or-tune"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _timeout(self, seconds: float | None) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=_CONNECT_SECONDS, pool=None)

    def streaming_client(self) -> httpx.AsyncClient:
        """Return a client for streams without read timeouts; callers set their own deadlines."""
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=8)
        return httpx.AsyncClient(**self._options, timeout=self._timeout(None), limits=unlimited)

    def get(self, path: str, *, at_root: bool = False) -> ServerResponse:
        """GET `path` below the address, or below the address without /v1 (`at_root`).

        Raises PromptOrTuneError when no response comes, or a too large one.
        """
        return self._request("GET", path, None, at_root, _READ_SECONDS)

    def post(
        self, path: str, body: Mapping[str, Any], *, at_root: bool = False, seconds: float = _READ_SECONDS
    ) -> ServerResponse:
        """POST a JSON body, as `get` does; the whole exchange may take `seconds`."""
        return self._request("POST", path, body, at_root, seconds)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, at_root: bool, seconds: float
    ) -> ServerResponse:
        until = time.monotonic() + seconds
        address = (self._root if at_root else self.url) + path
        try:
            with self._client.stream(method, address, json=body, timeout=self._timeout(seconds)) as response:
                content = bytearray()
                for chunk in response.iter_raw():
                    content += chunk
                    if len(content) > MAX_BODY_BYTES:
                        raise PromptOrTuneError(
                            f"{self.host} answered {path} with more than {format_bytes(MAX_BODY_BYTES)}."
                        )
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout("too slow")
                return ServerResponse(response.status_code, response.headers, *decode_json(bytes(content)))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.connection_error(error) from error

    def connection_error(self, error: Exception) -> EngineError:
        """Return the error for a connection that failed before or during a response."""
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            return EngineError(f"No server answers at {self.url}: start it, or check --url.")
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return EngineError(f"The server at {self.host} was silent for too long: try again, or look at its log.")
        return EngineError(
            f"The connection to {self.host} broke off ({type(error).__name__}): try again, or look at its log."
        )

    def status_error(self, status: int, headers: Mapping[str, str], value: Any, model: str = "") -> PromptOrTuneError:
        """Return the error for a response with an error status; it quotes the server's message without the key.

        Status 200 is that of a stream in which the server reports an error. The error is a PromptTooLongError where
        the prompt is longer than the server's context, and an EngineError or BusyError where the same request may
        succeed later.
        """
        message = self.sanitize(error_message(value))
        if status in (401, 403):
            problem = "refuses the key" if self._key else "wants a key and none was given"
            return PromptOrTuneError(f"The server at {self.host} {problem}: name its variable with --api-key-env.")
        if status == 404 and model:
            return PromptOrTuneError(
                f"The server at {self.host} does not have the model '{quote_untrusted(model)}'"
                f"{_in_parentheses(message)}: check --model, and that --url ends in /v1."
            )
        if status in (429, 503):
            seconds = _retry_after_seconds(headers.get("retry-after", ""))
            return BusyError(
                f"The server at {self.host} is busy, about {seconds:.0f} s{_in_parentheses(message)}.", seconds
            )
        if 300 <= status < 400:
            return PromptOrTuneError(
                f"The server at {self.host} redirects (status {status}), and the key is sent to no other address: "
                "give the final address as --url."
            )
        text = f"The server at {self.host} answered with status {status}{_in_parentheses(message)}."
        if status in _REFUSED_REQUEST and (
            says_context_exceeded(message) or _says_code(value, "context_length_exceeded")
        ):
            return PromptTooLongError(text)
        return EngineError(text) if status == 200 or status >= 500 or status == 408 else PromptOrTuneError(text)

    def sanitize(self, text: str) -> str:
        """Return text of a server for use in a message: short, without control characters and the key."""
        if self._key:
            text = text.replace(self._key, "…")
        return quote_untrusted(" ".join(text.split()), 300).rstrip(".")


def _parse_url(url: str) -> Any:
    """Split an http(s) address; raises PromptOrTuneError for anything else."""
    example = "give one such as http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise PromptOrTuneError(f"'{quote_untrusted(url)}' is not an address: {example}.") from None
    if parts.username or parts.password:
        raise PromptOrTuneError("--url holds a name or password: take it out, keys come with --api-key-env.")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise PromptOrTuneError(f"'{quote_untrusted(url)}' is not the address of a server: {example}.")
    return parts


def decode_json(content: bytes) -> tuple[Any, str]:
    """Return the JSON value of `content` (None if it is not JSON) and its text."""
    text = content.decode("utf-8", "replace")
    try:
        return json.loads(text), text
    except (ValueError, RecursionError):
        return None, text


def error_message(value: Any) -> str:
    """Return the message of an error response in any of the servers' formats; '' for other values."""
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and name in value:
            value = value[name]
    if isinstance(value, list) and value:
        value = value[0].get("msg", "") if isinstance(value[0], dict) else value[0]
    return value if isinstance(value, str) else ""


def _says_code(value: Any, code: str) -> bool:
    """Return whether an error response in OpenAI's format has this code."""
    error = value.get("error") if isinstance(value, dict) else None
    return isinstance(error, dict) and error.get("code") == code


def _in_parentheses(text: str) -> str:
    return f" ({text})" if text else ""


def _retry_after_seconds(header: str) -> float:
    """Return the seconds of a Retry-After header; 1 if it is missing or a date."""
    try:
        return min(max(float(header), 1.0), _MAX_RETRY_SECONDS)
    except ValueError:
        return 1.0


MAX_LINE_BYTES = 1 << 20
_DONE = "[DONE]"


class SSEDecoder:
    """Decodes the JSON objects of one stream of server-sent events; `done` is set by OpenAI's end mark, [DONE].

    httpx-sse is not used here because it has no limit for the length of a line or a stream, and skips unknown fields,
    while this decoder must stop at floods and name a server that sends something else than events.
    """

    def __init__(self, host: str, max_bytes: int, sanitize: Callable[[str], str] = repr) -> None:
        self.done = False
        self._host = host
        self._sanitize = sanitize
        self._bytes_left = max_bytes
        self._buffer = bytearray()
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """Yield the events that `chunk` completes.

        Raises EngineError for other data than events of JSON objects, and beyond `max_bytes` or MAX_LINE_BYTES.
        """
        self._bytes_left -= len(chunk)
        self._buffer += chunk
        if self._bytes_left < 0 or len(self._buffer) - (self._buffer.rfind(b"\n") + 1) > MAX_LINE_BYTES:
            raise EngineError(f"The server at {self._host} sent far more than requested: the stream was closed.")
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            yield from self._decode_line(line)

    def _decode_line(self, raw: bytes) -> list[dict[str, Any]]:
        line = raw.decode("utf-8", "replace").removesuffix("\r")
        if self.done or line.startswith(":"):  # a comment keeps a silent connection open
            return []
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif name not in ("event", "id", "retry"):
                raise self._invalid_stream_error(line)
            return []
        data, self._data = "\n".join(self._data), []
        if data.strip() == _DONE:
            self.done = True
        return [] if self.done or not data.strip() else [self._parse_object(data)]

    def _parse_object(self, data: str) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise self._invalid_stream_error(data) from None
        if not isinstance(value, dict):
            raise self._invalid_stream_error(data)
        return value

    def _invalid_stream_error(self, text: str) -> EngineError:
        sent = self._sanitize(text[:80])
        return EngineError(f"The server at {self._host} does not speak OpenAI's stream (it sent {sent}): check --url.")
