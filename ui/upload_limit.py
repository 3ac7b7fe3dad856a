"""Refuses a request that is too large before its first byte is kept: 413 with a sentence."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# What a form puts around its file.
_MULTIPART_OVERHEAD = 64 << 10


class UploadLimitMiddleware:
    """ASGI middleware: a body that announces more than `most` bytes is not read.

    One that announces nothing is left to Gradio's own `max_file_size`, which counts each file as it comes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._max_bytes = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = _content_length(scope)
        if size <= self._max_bytes + _MULTIPART_OVERHEAD:
            await self._app(scope, receive, send)
            return
        sentence = (
            f"An upload may have {self._max_bytes / 1e6:.0f} MB here and this one has {size / 1e6:.1f} MB: make the file "
            "smaller, or run Peft Arena on a machine of your own."
        )
        # The body stays unread, so the line cannot be used again.
        await PlainTextResponse(sentence, 413, headers={"connection": "close"})(scope, receive, send)


def _content_length(scope: Scope) -> int:
    if scope["type"] != "http":
        return 0
    text = dict(scope["headers"]).get(b"content-length", b"")
    return int(text) if text.isdigit() and len(text) < 20 else 0
