"""Who looks at the pages: the same person over refreshes and tabs, what they may do, and how much of it.

A person is the name they logged in with, else a random cookie of their browser, else (a program without cookies) its
address. A cookie can be thrown away, so what must not be had twice (training on a public Space) needs a login.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.limits import Limits, VisitorQuota

COOKIE_NAME = "peft_arena_visitor"
_YEAR_SECONDS = 365 * 24 * 3600
_TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{22,64}")

TrainingAccess = Literal["everyone", "owner", "nobody"]


@dataclass(frozen=True)
class Visitor:
    """One person. `id` is stable and says nothing of them; `name` is shown, '' without a login."""

    id: str
    name: str = ""
    owner: bool = False


@dataclass(frozen=True)
class AccessPolicy:
    """Who owns the app and who may train: of the owners' names, case does not count. Without owners all own it."""

    training: TrainingAccess = "everyone"
    owners: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)


class VisitorRegistry:
    """Tells visitors apart, and keeps the count of what each of them had lately. Thread-safe."""

    def __init__(self, policy: AccessPolicy | None = None) -> None:
        self.policy = policy or AccessPolicy()
        self.quota = VisitorQuota(self.policy.limits)

    def identify(self, request: Any) -> Visitor:
        """The visitor behind a `gr.Request`; one without cookies, login and address is nobody in particular."""
        name = _login_name(request)
        owners = {owner.casefold() for owner in self.policy.owners}
        owner = not owners or name.casefold() in owners
        if name:
            return Visitor(_hashed_id("user", name.casefold()), name, owner)
        token = str(_cookies(request).get(COOKIE_NAME) or "")
        if _TOKEN_PATTERN.fullmatch(token):
            return Visitor(_hashed_id("browser", token), "", owner)
        return Visitor(_hashed_id("address", _client_address(request)), "", owner)

    def training_denied_reason(self, visitor: Visitor) -> str | None:
        """Why this visitor may not train, add or remove adapters, in one sentence; None where they may."""
        if self.policy.training == "nobody":
            return "Training is switched off here: run Peft Arena on a machine of your own, or ask this one's owner."
        if self.policy.training == "owner" and not visitor.owner:
            who = " or ".join(sorted(self.policy.owners)) or "its owner"
            return (
                f"Only {who} may train and change adapters here: log in as the owner, or duplicate this Space and "
                "train in your own."
            )
        return None


class VisitorCookieMiddleware:
    """ASGI middleware: a browser that opens a page without the cookie gets one. On HTTPS it works in a frame too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or _has_cookie(scope):
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_html_response(message):
                message["headers"] = [*message.get("headers", []), (b"set-cookie", _new_cookie(scope))]
            await send(message)

        await self._app(scope, receive, sending)


def _has_cookie(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"cookie":
            found = SimpleCookie(value.decode("latin-1", "replace")).get(COOKIE_NAME)
            return bool(found and _TOKEN_PATTERN.fullmatch(found.value))
    return False


def _is_html_response(message: Message) -> bool:
    headers = dict(message.get("headers", []))
    return bool(headers.get(b"content-type", b"").startswith(b"text/html"))


def _new_cookie(scope: Scope) -> bytes:
    headers = dict(scope["headers"])
    secure = scope.get("scheme") == "https" or headers.get(b"x-forwarded-proto", b"").startswith(b"https")
    # A Space stands in a frame of another site: only SameSite=None comes along there, and only over HTTPS.
    site = "None; Secure; Partitioned" if secure else "Lax"
    return f"{COOKIE_NAME}={secrets.token_urlsafe(24)}; Path=/; Max-Age={_YEAR_SECONDS}; HttpOnly; SameSite={site}".encode()


def _login_name(request: Any) -> str:
    """The name a person logged in with: `--auth`'s, or the Hub's on a Space; '' without one."""
    username = getattr(request, "username", None)
    if username:
        return str(username)
    info = _scope(request).get("session", {}).get("oauth_info")
    if not isinstance(info, Mapping) or float(info.get("expires_at") or math.inf) <= time.time():
        return ""
    return str((info.get("userinfo") or {}).get("preferred_username") or "")


def _cookies(request: Any) -> Mapping[str, str]:
    # gr.Request answers with objects of its own where the web framework has mappings.
    return getattr(getattr(request, "request", None), "cookies", None) or {}


def _client_address(request: Any) -> str:
    headers = dict(_scope(request).get("headers") or ())
    forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1") if os.environ.get("SPACE_ID") else ""
    # Of a Space only the Hub's own proxy is seen, which puts who asked it at the end.
    return forwarded.rpartition(",")[2].strip() or str((_scope(request).get("client") or ("",))[0])


def _scope(request: Any) -> Mapping[str, Any]:
    return getattr(getattr(request, "request", None), "scope", None) or {}


def _hashed_id(kind: str, value: str) -> str:
    return f"{kind}-{hashlib.sha256(f'{kind}:{value}'.encode()).hexdigest()[:16]}"
