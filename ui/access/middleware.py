"""ASGI middleware of the pages: the visitor cookie, and the size of uploads."""

from __future__ import annotations

import secrets

from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.format import format_bytes
from ui.access.visitors import COOKIE_NAME, TOKEN_PATTERN, read_visitor_token

_YEAR_SECONDS = 365 * 24 * 3600


class VisitorCookieMiddleware:
    """ASGI middleware that sets the visitor cookie with each page that is requested without it.

    A request that brings the cookie of an earlier version gets the new cookie with the same value.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        cookies = cookie_parser(dict(scope["headers"]).get(b"cookie", b"").decode("latin-1"))
        if TOKEN_PATTERN.fullmatch(cookies.get(COOKIE_NAME, "")):
            await self._app(scope, receive, send)
            return
        token = read_visitor_token(cookies) or secrets.token_urlsafe(24)

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_html_response(message):
                message["headers"] = [*message.get("headers", []), (b"set-cookie", _cookie_header(scope, token))]
            await send(message)

        await self._app(scope, receive, send_with_cookie)


def _is_html_response(message: Message) -> bool:
    headers = dict(message.get("headers", []))
    return bool(headers.get(b"content-type", b"").startswith(b"text/html"))


def _cookie_header(scope: Scope, token: str) -> bytes:
    headers = dict(scope["headers"])
    secure = scope.get("scheme") == "https" or headers.get(b"x-forwarded-proto", b"").startswith(b"https")
    # A Space is shown in a frame of another site: there browsers send only SameSite=None cookies, and only over HTTPS.
    site = "None; Secure; Partitioned" if secure else "Lax"
    return f"{COOKIE_NAME}={token}; Path=/; Max-Age={_YEAR_SECONDS}; HttpOnly; SameSite={site}".encode()


# Bytes that a multipart form adds to its file.
_MULTIPART_OVERHEAD = 64 << 10


class UploadLimitMiddleware:
    """ASGI middleware that refuses (413) a request whose Content-Length exceeds `max_bytes`, before reading the body.

    Requests without Content-Length are limited by Gradio's `max_file_size`, which counts the bytes of each file.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = _content_length(scope)
        if size <= self._max_bytes + _MULTIPART_OVERHEAD:
            await self._app(scope, receive, send)
            return
        message = (
            f"An upload may have {format_bytes(self._max_bytes)} here and this one has {format_bytes(size)}: "
            "make the file smaller, or run Prompt or Tune on a machine of your own."
        )
        # The body is not read, so the connection cannot be used again.
        await PlainTextResponse(message, 413, headers={"connection": "close"})(scope, receive, send)


def _content_length(scope: Scope) -> int:
    if scope["type"] != "http":
        return 0
    text = dict(scope["headers"]).get(b"content-length", b"")
    return int(text) if text.isdigit() and len(text) < 20 else 0
