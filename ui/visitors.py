"""Visitor identity, access policy, quotas, upload limits and login.

A visitor is identified by the name of the login, else by a random cookie of the browser, else (a program without
cookies) by the address. A cookie can be deleted to get a new identity, so training on a public Space needs a login.

Outside a Space Gradio would replace the login with the machine's own account, so the button exists on Spaces only.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.command import read_secrets
from common.format import format_bytes
from errors import BusyError, PromptOrTuneError, unknown_name_error
from serve.api.auth import is_loopback
from space.settings import SpaceSettings

HOUR = 3600.0
_MAX_TRACKED_VISITORS = 10_000


@dataclass(frozen=True)
class VisitorLimits:
    """Limits for one visitor; zero or less: no limit. `rows` are answers: a comparison of four methods has four."""

    rows_at_once: int = 16
    rows_per_hour: int = 1200
    jobs_at_once: int = 3  # waiting or running
    upload_bytes: int = 20 << 20
    archive_bytes: int = 200 << 20  # an adapter's zip


class VisitorQuota:
    """Counts the answers of each visitor. Thread-safe; visitors without answers in the last hour are removed."""

    def __init__(self, limits: VisitorLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, int] = {}
        self._recent_rows: dict[str, deque[tuple[float, int]]] = {}

    @contextmanager
    def reserve(self, visitor: str, count: int) -> Iterator[None]:
        """Reserve `count` answers until the block ends. Raises BusyError if that exceeds a limit."""
        with self._lock:
            self._reserve(visitor, count)
        try:
            yield
        finally:
            with self._lock:
                self._running[visitor] -= count
                if not self._running[visitor]:
                    del self._running[visitor]

    def _reserve(self, visitor: str, count: int) -> None:
        now, limits = self._clock(), self.limits
        running = self._running.get(visitor, 0)
        if 0 < limits.rows_at_once < running + count:
            raise BusyError(
                f"You have {running} answers running and {limits.rows_at_once} at once is the limit for one person: "
                "wait for these, or stop them.",
                seconds=10.0,
            )
        recent = self._recent_rows.setdefault(visitor, deque())
        while recent and recent[0][0] <= now - HOUR:
            recent.popleft()
        if 0 < limits.rows_per_hour < sum(rows for _, rows in recent) + count:
            seconds = recent[0][0] + HOUR - now if recent else HOUR
            raise BusyError(
                f"You have had {limits.rows_per_hour} answers within an hour, the limit for one person: try again in "
                f"about {math.ceil(seconds / 60)} min.",
                seconds=seconds,
            )
        recent.append((now, count))
        self._running[visitor] = running + count
        if len(self._recent_rows) > _MAX_TRACKED_VISITORS:
            self._evict_idle(now)

    def _evict_idle(self, now: float) -> None:
        idle = [name for name, recent in self._recent_rows.items() if not recent or recent[-1][0] <= now - HOUR]
        for visitor in idle:
            del self._recent_rows[visitor]


def check_upload_size(size: int, limit: int, what: str = "the file") -> None:
    """Raise PromptOrTuneError if an upload of `size` bytes exceeds `limit`."""
    if 0 < limit < size:
        raise PromptOrTuneError(
            f"{what[:1].upper()}{what[1:]} has {format_bytes(size)} and {format_bytes(limit)} is the limit here: "
            "make it smaller, or run Prompt or Tune on a machine of your own."
        )


COOKIE_NAME = "prompt_or_tune_visitor"
# The cookie of earlier versions, with the same kind of value.
OLD_COOKIE_NAME = "peft_arena_visitor"
_YEAR_SECONDS = 365 * 24 * 3600
_TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{22,64}")

TrainingAccess = Literal["everyone", "owner", "nobody"]


@dataclass(frozen=True)
class Visitor:
    """One visitor. `id` is a stable hash; `name` is the name of the login, '' without one."""

    id: str
    name: str = ""
    owner: bool = False


@dataclass(frozen=True)
class AccessPolicy:
    """The owners (compared without case; without any, every visitor is an owner), and the visitors that may train."""

    training: TrainingAccess = "everyone"
    owners: frozenset[str] = frozenset()
    limits: VisitorLimits = field(default_factory=VisitorLimits)


class VisitorRegistry:
    """Identifies visitors and holds their quota. Thread-safe."""

    def __init__(self, policy: AccessPolicy | None = None) -> None:
        self.policy = policy or AccessPolicy()
        self.quota = VisitorQuota(self.policy.limits)

    def identify(self, request: Any) -> Visitor:
        """Return the visitor of a `gr.Request`: by login, else by cookie, else by address."""
        name = _login_name(request)
        owners = {owner.casefold() for owner in self.policy.owners}
        owner = not owners or name.casefold() in owners
        if name:
            return Visitor(_hashed_id("user", name.casefold()), name, owner)
        token = _visitor_token(_cookies(request))
        if token:
            return Visitor(_hashed_id("browser", token), "", owner)
        return Visitor(_hashed_id("address", _client_address(request)), "", owner)

    def training_denied_reason(self, visitor: Visitor) -> str | None:
        """Return the reason why this visitor may not train, add or remove adapters; None if they may."""
        if self.policy.training == "nobody":
            return (
                "Training is switched off here: run Prompt or Tune on a machine of your own, or ask this one's owner."
            )
        if self.policy.training == "owner" and not visitor.owner:
            owners = " or ".join(sorted(self.policy.owners)) or "its owner"
            return (
                f"Only {owners} may train and change adapters here: log in as the owner, or duplicate this Space and "
                "train in your own."
            )
        return None


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
        if _TOKEN_PATTERN.fullmatch(cookies.get(COOKIE_NAME, "")):
            await self._app(scope, receive, send)
            return
        token = _visitor_token(cookies) or secrets.token_urlsafe(24)

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_html_response(message):
                message["headers"] = [*message.get("headers", []), (b"set-cookie", _cookie_header(scope, token))]
            await send(message)

        await self._app(scope, receive, send_with_cookie)


def _visitor_token(cookies: Mapping[str, str]) -> str:
    """Return the value of the visitor cookie, or of the one of earlier versions; '' if neither is valid."""
    tokens = (str(cookies.get(name) or "") for name in (COOKIE_NAME, OLD_COOKIE_NAME))
    return next((token for token in tokens if _TOKEN_PATTERN.fullmatch(token)), "")


def _is_html_response(message: Message) -> bool:
    headers = dict(message.get("headers", []))
    return bool(headers.get(b"content-type", b"").startswith(b"text/html"))


def _cookie_header(scope: Scope, token: str) -> bytes:
    headers = dict(scope["headers"])
    secure = scope.get("scheme") == "https" or headers.get(b"x-forwarded-proto", b"").startswith(b"https")
    # A Space is shown in a frame of another site: there browsers send only SameSite=None cookies, and only over HTTPS.
    site = "None; Secure; Partitioned" if secure else "Lax"
    return f"{COOKIE_NAME}={token}; Path=/; Max-Age={_YEAR_SECONDS}; HttpOnly; SameSite={site}".encode()


def _login_name(request: Any) -> str:
    """Return the name of the login (of --auth, or of the Hub on a Space); '' without one."""
    username = getattr(request, "username", None)
    if username:
        return str(username)
    info = _scope(request).get("session", {}).get("oauth_info")
    if not isinstance(info, Mapping) or float(info.get("expires_at") or math.inf) <= time.time():
        return ""
    return str((info.get("userinfo") or {}).get("preferred_username") or "")


def _cookies(request: Any) -> Mapping[str, str]:
    # gr.Request wraps the mappings of the web framework in objects of its own.
    return getattr(getattr(request, "request", None), "cookies", None) or {}


def _client_address(request: Any) -> str:
    headers = dict(_scope(request).get("headers") or ())
    forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1") if os.environ.get("SPACE_ID") else ""
    # On a Space requests come from the proxy of the Hub, which appends the address of its client.
    return forwarded.rpartition(",")[2].strip() or str((_scope(request).get("client") or ("",))[0])


def _scope(request: Any) -> Mapping[str, Any]:
    return getattr(getattr(request, "request", None), "scope", None) or {}


def _hashed_id(kind: str, value: str) -> str:
    return f"{kind}-{hashlib.sha256(f'{kind}:{value}'.encode()).hexdigest()[:16]}"


AUTH_VARIABLE = "PROMPT_OR_TUNE_AUTH"
MIN_PASSWORD_LENGTH = 8
TRAINING_CHOICES: tuple[TrainingAccess, ...] = ("everyone", "owner", "nobody")
# Field of Limits: (option, unit by which its value is multiplied, description).
_LIMIT_OPTIONS = {
    "rows_at_once": ("--rows-at-once", 1, "answers running for one person"),
    "rows_per_hour": ("--rows-per-hour", 1, "answers an hour for one person"),
    "jobs_at_once": ("--jobs-at-once", 1, "training jobs that wait or run for one person"),
    "upload_bytes": ("--max-upload", 1 << 20, "megabytes of a file with rows"),
    "archive_bytes": ("--max-archive", 1 << 20, "megabytes of an adapter's zip"),
}


@dataclass(frozen=True)
class AccessOptions:
    """The parsed options. `accounts` are (name, password); `note` is printed at the start, '' for none."""

    policy: AccessPolicy = field(default_factory=AccessPolicy)
    accounts: tuple[tuple[str, str], ...] = ()
    note: str = ""


def add_access_options(parser: argparse.ArgumentParser) -> None:
    """Add the access options to `parser`; `parse_access_options` reads them."""
    group = parser.add_argument_group("access")
    group.add_argument(
        "--auth",
        type=Path,
        metavar="FILE",
        help=f"a login for the pages: name:password, one a line (or {AUTH_VARIABLE})",
    )
    group.add_argument("--owner", action="append", metavar="NAME", help="a login that owns this app (repeatable)")
    group.add_argument(
        "--train",
        metavar="VISITORS",
        help="who may train and change adapters: everyone, owner or nobody (default: everyone on this machine or "
        "with --auth; the owner on a Space; nobody where other machines can connect)",
    )
    for name, (option, unit, description) in _LIMIT_OPTIONS.items():
        default = getattr(VisitorLimits(), name) // unit
        group.add_argument(option, dest=name, metavar="N", help=f"{description}; 0: no limit ({default})")


def parse_access_options(args: argparse.Namespace, host: str, space: SpaceSettings | None = None) -> AccessOptions:
    """Return the checked options; `space` describes the Space this runs on. Raises PromptOrTuneError for a bad one."""
    space = space or SpaceSettings()
    accounts = _read_accounts(args.auth)
    names = [name.casefold() for name, _ in accounts]
    owners = frozenset(args.owner or space.owners or [name for name, _ in accounts[:1]])
    for owner in owners:
        if accounts and owner.casefold() not in names:
            raise PromptOrTuneError(f"--owner '{owner}' has no login: add a line for it to the file of --auth.")
    training, note = _resolve_training(args.train, host, owners, bool(accounts), space)
    policy = AccessPolicy(training=training, owners=owners, limits=_parse_limits(args))
    return AccessOptions(policy, accounts, note)


def _resolve_training(
    requested: str | None, host: str, owners: frozenset[str], login: bool, space: SpaceSettings
) -> tuple[TrainingAccess, str]:
    """Return the visitors that may train, and a note for the log where that is not obvious ('' otherwise)."""
    choices: Mapping[str, TrainingAccess] = {name: name for name in TRAINING_CHOICES}
    if space.zero_gpu:
        return "nobody", "ZeroGPU gives its GPU for seconds only, so nobody can train here."
    if requested is not None:
        if requested not in choices:
            raise unknown_name_error("choice for --train", requested, TRAINING_CHOICES)
        if requested == "owner" and not owners:
            raise PromptOrTuneError("--train owner needs an owner: name one with --owner and give logins with --auth.")
        return choices[requested], ""
    if space.is_space:
        return space.training_access, ""
    if login or is_loopback(host):
        return "everyone", ""
    return "nobody", (
        f"Others can reach {host}, so nobody may train or change adapters: give logins with --auth, or "
        "--train everyone."
    )


def _parse_limits(args: argparse.Namespace) -> VisitorLimits:
    limits = VisitorLimits()
    for name, (option, unit, _) in _LIMIT_OPTIONS.items():
        text = getattr(args, name)
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise PromptOrTuneError(f"{option} '{text}' is no whole number: give one, or 0 for no limit.")
        limits = replace(limits, **{name: int(text) * unit})
    return limits


def _read_accounts(file: Path | None) -> tuple[tuple[str, str], ...]:
    """Return the logins of the file and of the environment. No error message contains a password."""
    lines = read_secrets(file, AUTH_VARIABLE, "logins", "--auth")
    accounts: dict[str, tuple[str, str]] = {}
    for location, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not name or not colon or len(password) < MIN_PASSWORD_LENGTH:
            raise PromptOrTuneError(
                f"{location[:1].upper()}{location[1:]} is no login: write name:password, the password with at least "
                f"{MIN_PASSWORD_LENGTH} characters."
            )
        if accounts.setdefault(name.casefold(), (name, password)) != (name, password):
            raise PromptOrTuneError(
                f"{location[:1].upper()}{location[1:]} gives '{name}' a second time: keep one line a name."
            )
    if file is not None and not accounts:
        raise PromptOrTuneError(f"There is no login in {file}: write name:password, one a line.")
    return tuple(accounts.values())


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


# Environment variables that a Space with `hf_oauth: true` sets and Gradio's login routes need.
_REQUIRED_VARIABLES = ("SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


def is_login_available() -> bool:
    """Return whether visitors can log in with the Hub here."""
    # Gradio recognises a Space by this variable, and mocks the login elsewhere.
    return os.environ.get("SYSTEM") == "spaces" and all(os.environ.get(name) for name in _REQUIRED_VARIABLES)


def build_login(elem_id: str = "login") -> gr.LoginButton | None:
    """Add the login button to the current Blocks and return it; None where the login is not available."""
    if not is_login_available():
        return None
    return gr.LoginButton(
        "Log in with Hugging Face", logout_value="Log out ({})", size="sm", variant="secondary", elem_id=elem_id
    )


def resolve_token(login: gr.OAuthToken | None, typed: str | None = "") -> str | None:
    """Return the Hub token of the login, else the typed one; None without either."""
    if login is not None:
        return str(login.token)
    return (typed or "").strip() or None
