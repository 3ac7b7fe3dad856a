"""Identity of visitors.

A visitor is identified by the name of the login, else by a random cookie of the browser, else (a program without
cookies) by the address. A cookie can be deleted to get a new identity, so training on a public Space needs a login.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from serve.api.auth import client_network
from ui.access.policy import AccessPolicy, Visitor
from ui.access.quota import VisitorQuota

COOKIE_NAME = "prompt_or_tune_visitor"
# The cookie of earlier versions, with the same kind of value.
OLD_COOKIE_NAME = "peft_arena_visitor"
TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{22,64}")


class VisitorRegistry:
    """Identifies visitors and holds their quota. Thread-safe."""

    def __init__(self, policy: AccessPolicy | None = None) -> None:
        self.policy = policy or AccessPolicy()
        self.quota = VisitorQuota(self.policy.limits)

    def identify(self, request: Any) -> Visitor:
        """Return the visitor of a `gr.Request` or of a request of the web framework: by login, cookie or address."""
        name = _login_name(request)
        owner = self.policy.is_owner(name)
        if name:
            return Visitor(_hashed_id("user", name.casefold()), name, owner)
        address = _hashed_id("network", client_network(_client_address(request)))
        token = read_visitor_token(_cookies(request))
        if token:
            return Visitor(_hashed_id("browser", token), "", owner, address=address)
        return Visitor(_hashed_id("address", _client_address(request)), "", owner, identified=False, address=address)


def login_token(request: Any) -> str | None:
    """Return the Hub token of the visitor's login with the Hub; None without a login."""
    return str(_hub_login(request).get("access_token") or "") or None


def read_visitor_token(cookies: Mapping[str, str]) -> str:
    """Return the value of the visitor cookie, or of the one of earlier versions; '' if neither is valid."""
    tokens = (str(cookies.get(name) or "") for name in (COOKIE_NAME, OLD_COOKIE_NAME))
    return next((token for token in tokens if TOKEN_PATTERN.fullmatch(token)), "")


def _login_name(request: Any) -> str:
    """Return the name of the login (of --auth, or of the Hub on a Space); '' without one."""
    username = getattr(request, "username", None) or _name_of_gradio_login(request)
    if username:
        return str(username)
    return str((_hub_login(request).get("userinfo") or {}).get("preferred_username") or "")


def _hub_login(request: Any) -> Mapping[str, Any]:
    """Return what Gradio stores of a login with the Hub that is still valid; {} without one."""
    info = _scope(request).get("session", {}).get("oauth_info")
    is_valid = isinstance(info, Mapping) and float(info.get("expires_at") or math.inf) > time.time()
    return info if is_valid else {}


def _name_of_gradio_login(request: Any) -> str:
    """Return the name of the login behind a request of the web framework, which components' server functions get."""
    app = _scope(request).get("app")
    cookie_id, tokens, cookies = getattr(app, "cookie_id", None), getattr(app, "tokens", None) or {}, _cookies(request)
    names = (f"access-token-{cookie_id}", f"access-token-unsecure-{cookie_id}")
    return str(next((tokens[cookies[name]] for name in names if cookies.get(name) in tokens), "") or "")


def _cookies(request: Any) -> Mapping[str, str]:
    # gr.Request wraps the mappings of the web framework in objects of its own.
    return getattr(_inner(request), "cookies", None) or {}


def _client_address(request: Any) -> str:
    headers = dict(_scope(request).get("headers") or ())
    forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1") if os.environ.get("SPACE_ID") else ""
    # On a Space requests come from the proxy of the Hub, which appends the address of its client.
    return forwarded.rpartition(",")[2].strip() or str((_scope(request).get("client") or ("",))[0])


def _scope(request: Any) -> Mapping[str, Any]:
    return getattr(_inner(request), "scope", None) or {}


def _inner(request: Any) -> Any:
    """Return the request of the web framework in a `gr.Request`, or the request itself."""
    return getattr(request, "request", None) or request


def _hashed_id(kind: str, value: str) -> str:
    return f"{kind}-{hashlib.sha256(f'{kind}:{value}'.encode()).hexdigest()[:16]}"
