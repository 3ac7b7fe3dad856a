"""The outermost layer of the pages: the rule of each route, names, origins, logins, sessions, sizes and headers.

The rule of each route of the pages: who may use it, and which web pages may ask for it. A path without a rule is
answered with 404, so a route that a new version of Gradio brings is closed until it is listed here; a test compares the
table with the running app.

Gradio's own layer for other origins answers all of them with credentials, and is always placed outside of the layers
that an application gives it. `AccessMiddleware` is placed around everything instead, when the server starts (see
`access_lifespan`), and takes the Origin header away, so that Gradio's layer never acts.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.format import format_bytes
from serve.api.app import PATHS as API_PATHS
from serve.api.auth import WebAccess, client_address, client_network, is_https
from ui.access.bodies import (
    MAX_JSON_BYTES,
    MAX_LOGIN_BYTES,
    MULTIPART_OVERHEAD,
    BodyError,
    StoredUploads,
    UploadReceiver,
    content_length,
    read_body,
    replay,
)
from ui.access.guard import COOKIE_NAME, TOKEN_PATTERN, VisitorRegistry, read_visitor_token
from ui.access.logins import SessionOwners, UnreadSessions, login_address
from ui.access.policy import Visitor
from ui.access.quota import RequestPace, RequestQuota

HeaderList = list[tuple[bytes, bytes]]
_SPACE_FRAMES = "'self' https://huggingface.co https://*.huggingface.co"
# Gradio's page has inline scripts, and components that are made from text.
_POLICY = "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors {frames}"
_SCRIPTS = "; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; connect-src 'self' data: blob:"
_FILE_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
_SAFE_ATTRIBUTES = ("path", "max-age", "expires")
_log = logging.getLogger(__name__)
_YEAR_SECONDS = 365 * 24 * 3600
_API = "/gradio_api/"
_UPLOAD = f"{_API}upload"
# Routes whose answer has the whole page, and what one counts in requests.
_PAGE_ROUTES, _PAGE_COST = frozenset({"/", "/config"}), 10.0
_COMPONENT_SERVER = f"{_API}component_server"
_EVENT_ROUTES = (f"{_API}queue/join", f"{_API}call/")
# These begin a session; the others need one.
_CLAIMING_ROUTES = (*_EVENT_ROUTES, f"{_API}run/", f"{_API}api/", _COMPONENT_SERVER, f"{_API}heartbeat/")
# An event of a call without a session is a session of its own.
_READING_ROUTES = frozenset({f"{_API}queue/data", *(f"{_API}call/{v}{{api_name}}/{{event_id}}" for v in ("", "v2/"))})
_FOREIGN_SESSION = "This session belongs to somebody else or has ended: load the page again."
_UNREAD = "Too many runs were begun and nobody reads their events: read those first."
_NO_LOGIN = "Not authenticated"
# Headers by which a client could choose the address that Gradio writes into the page.
_PROXY_HEADERS = (b"x-forwarded-host", b"x-gradio-server")


def protected_headers(headers: Iterable[tuple[bytes, bytes]], *, space: bool, https: bool, file: bool) -> HeaderList:
    """Return the headers of a response with safe cookies, without CORS, and with those that protect the page added.

    `space`: shown in a frame of the Hub. `https`: the browser certainly uses TLS. `file`: the response is a file of a
    visitor, which is saved, never shown.
    """
    changed: HeaderList = []
    for name, value in headers:
        if name == b"set-cookie" and not space:
            changed.append((name, _safe_cookie(value, https)))
        elif file and name == b"content-disposition" and value.startswith(b"inline"):
            changed.append((name, b"attachment" + value.removeprefix(b"inline")))
        elif name.startswith(b"access-control-"):
            continue  # Gradio allows every origin
        else:
            changed.append((name, value))
    policy = _POLICY.format(frames=_SPACE_FRAMES if space else "'self'") + ("" if space else _SCRIPTS)
    added = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "content-security-policy": _FILE_POLICY if file else policy,
    }
    if not space:
        added |= {"x-frame-options": "SAMEORIGIN", "cross-origin-resource-policy": "same-origin"}
    names = {name.encode() for name in added}
    return [(name, value) for name, value in changed if name not in names] + encoded(added.items())


def encoded(headers: Iterable[tuple[str, str]]) -> HeaderList:
    """Return headers in the form of ASGI."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def visitor_cookie(name: str, value: str, max_age: int, *, space: bool, https: bool) -> str:
    """Return the Set-Cookie header of the visitor cookie.

    A Space is shown in a frame of another site: there browsers send only SameSite=None cookies, and only over HTTPS.
    """
    site = "None; Secure; Partitioned" if space and https else "Lax; Secure" if https else "Lax"
    return f"{name}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite={site}"


def _safe_cookie(header: bytes, https: bool) -> bytes:
    """Return a Set-Cookie header with SameSite=Lax and HttpOnly, and with Secure behind TLS alone.

    Gradio marks its login cookie SameSite=None, so that pages of other sites would send it.
    """
    cookie, *attributes = (part.strip() for part in header.decode("latin-1").split(";"))
    safe = [part for part in attributes if part.partition("=")[0].lower() in _SAFE_ATTRIBUTES]
    if not any(part.lower().startswith("path=") for part in safe):
        safe.append("Path=/")
    return "; ".join([cookie, *safe, "HttpOnly", "SameSite=Lax", *(["Secure"] if https else [])]).encode("latin-1")


class Rule(IntEnum):
    """What a route requires. Where several routes match a path, the highest value counts."""

    ASSET = 1  # a file of the program itself: nothing
    PAGE = 2  # a page that a link of another site may open
    OPEN = 3  # no login, but no page of another site
    API = 4  # checks its own keys, hosts and origins (serve/api/app.py)
    MEMBER = 5  # a login, where there are logins
    OFF = 6  # answered by nobody


_LISTS = {
    Rule.ASSET: """
        /svelte/{path:path} /static/{path:path} /assets/{path:path} /favicon.ico /theme.css /gradio_api/theme.css
        /robots.txt /manifest.json /pwa_icon /pwa_icon/{size}
    """,
    # The Hub sends a person back to the callback by a link.
    Rule.PAGE: "/ /login/callback",
    Rule.OPEN: """
        /login /login/huggingface /logout /gradio_api/user /gradio_api/login_check /gradio_api/app_id
        /gradio_api/startup-events
    """,
    Rule.API: " ".join(API_PATHS),
    Rule.MEMBER: """
        /config /gradio_api/info /gradio_api/file={path_or_url:path} /gradio_api/heartbeat/{session_hash}
        /gradio_api/queue/join /gradio_api/queue/data /gradio_api/cancel /gradio_api/reset /gradio_api/run/{api_name}
        /gradio_api/api/{api_name} /gradio_api/call/{api_name} /gradio_api/call/v2/{api_name}
        /gradio_api/call/{api_name}/{event_id} /gradio_api/call/v2/{api_name}/{event_id} /gradio_api/component_server
        /gradio_api/upload /gradio_api/upload_progress
    """,
    # Parts of Gradio that the pages do not use: sharing, monitoring, recording, an editor of the program's code.
    Rule.OFF: """
        /monitoring /monitoring/summary /monitoring/{key} /gradio_api/openapi.json /gradio_api/deep_link
        /gradio_api/token /gradio_api/dev/reload /gradio_api/runs /gradio_api/proxy={url_path:path}
        /gradio_api/custom_component/{id}/{environment}/{type}/{file_name} /gradio_api/file/{path:path}
        /gradio_api/queue/status /gradio_api/stream/{event_id} /gradio_api/stream/{event_id}/close
        /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8
        /gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}
        /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file /gradio_api/process_recording
        /gradio_api/vibe-edit /gradio_api/undo-vibe-edit /gradio_api/vibe-code /gradio_api/vibe-starter-queries
    """,
}
RULES: dict[str, Rule] = {path: rule for rule, paths in _LISTS.items() for path in paths.split()}
_PATTERNS = [(compile_path(path)[0], path, rule) for path, rule in RULES.items()]


def find_rule(path: str) -> tuple[str, Rule, dict[str, str]]:
    """Return the route of a path, its rule and the parameters in the path; ('', Rule.OFF, {}) for an unknown one."""
    path = path.rstrip("/") or "/"
    found = [(rule, route, match.groupdict()) for pattern, route, rule in _PATTERNS if (match := pattern.match(path))]
    rule, route, parameters = max(found, key=lambda entry: entry[0], default=(Rule.OFF, "", {}))
    return route, rule, parameters


@dataclass(frozen=True)
class AccessSettings:
    """`upload_bytes` bounds the files of one upload, `requests_per_second` those of an address; 0 or less: no limit."""

    web: WebAccess = field(default_factory=WebAccess)
    upload_bytes: int = 0
    requests_per_second: float = 0
    stored: StoredUploads = field(default_factory=lambda: StoredUploads(0, 0))
    # Is entered with the session while its events are read.
    reading: Callable[[str], AbstractContextManager[Any]] = nullcontext


def access_lifespan(settings: AccessSettings) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Return a lifespan for Gradio's application that places an AccessMiddleware around all of its layers."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        app.middleware_stack = AccessMiddleware(app.middleware_stack, app, settings)
        yield

    return lifespan


class AccessMiddleware:
    """ASGI middleware around `app`; `gradio` is the application that holds the logins."""

    def __init__(self, app: ASGIApp, gradio: Any, settings: AccessSettings) -> None:
        self._app = app
        self._gradio = gradio
        self._settings = settings
        self._web = settings.web
        self._sessions = SessionOwners()
        self._unread = UnreadSessions()
        self._requests = RequestQuota()
        self._pace = RequestPace(settings.requests_per_second)
        self._is_warned = False
        self._visitors = VisitorRegistry()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        route, rule, parameters = find_rule(get_route_path(scope))
        send = self._protect(scope, headers, route, send)
        if rule is Rule.API:
            await (self._preflight(headers, scope) or self._app)(scope, receive, send)
            return
        inner = self._inner_scope(scope, headers, route)
        try:
            if rule is not Rule.ASSET:
                await self._pace.wait(client_network(inner["client"][0]), _PAGE_COST if route in _PAGE_ROUTES else 1.0)
            refused = self._refusal(headers, scope, rule)
            if refused is not None:
                await refused(scope, receive, send)
            elif route == _UPLOAD:
                await self._upload(inner, receive, send)
            elif route == "/login":
                login_address.set(client_network(str((inner["client"] or ("",))[0])))
                body = await read_body(headers, receive, MAX_LOGIN_BYTES)
                await self._app(inner, replay(body, receive), send)
            elif rule is Rule.MEMBER:
                await self._use(inner, route, parameters, receive, send)
            else:
                await self._app(inner, receive, send)
        except BodyError as error:
            await _refuse(error.status, str(error))(inner, receive, send)

    def _refusal(self, headers: Headers, scope: Scope, rule: Rule) -> Response | None:
        """Return the answer to a request that is not let in; None for the others."""
        if message := self._web.host_refusal(headers):
            return PlainTextResponse(message, 421)
        if preflight := self._preflight(headers, scope):
            return preflight
        navigable = rule is Rule.PAGE and scope["method"] in ("GET", "HEAD")
        if rule is not Rule.ASSET and (message := self._web.origin_refusal(headers, is_https(scope), navigable)):
            return _refuse(403, message)
        if rule >= Rule.MEMBER and self._gradio.auth is not None and not self._user(scope):
            return _refuse(401, {"error": _NO_LOGIN, "auth_message": None})
        if rule is Rule.OFF:
            return _refuse(404, "There is nothing here: open the page without a path.")
        return None

    def _preflight(self, headers: Headers, scope: Scope) -> Response | None:
        """Return the answer to a preflight request, which Gradio would grant to everybody; None for the others."""
        granted = self._web.preflight_headers(headers) if scope["method"] == "OPTIONS" else None
        return None if granted is None else Response(status_code=204 if granted else 403, headers=granted)

    def _inner_scope(self, scope: Scope, headers: Headers, route: str) -> Scope:
        """Return the scope for Gradio: the address of the client, and no header that it would trust wrongly."""
        if "x-forwarded-for" in headers and not self._web.trust_proxy and not self._is_warned:
            self._is_warned = True
            _log.warning("Requests come through a proxy: start with --trust-proxy, or all visitors share one address.")
        dropped = {b"origin", *(() if self._trusts_host(headers) else _PROXY_HEADERS)}
        if self._web.allowed_origin(headers):
            dropped.add(b"cookie")  # a page of another origin acts as a program, never as the person
        if route.startswith(f"{_API}file="):
            dropped.add(b"range")  # Gradio answers it with the headers of the request
        passed = [(name, value) for name, value in scope["headers"] if name not in dropped]
        client = (client_address(scope, self._web), (scope.get("client") or ("", 0))[1])
        return {**scope, "headers": passed, "client": client}

    def _trusts_host(self, headers: Headers) -> bool:
        forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        return self._web.trust_proxy and "x-gradio-server" not in headers and self._web.is_answered(forwarded)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, stored = Headers(scope=scope), self._settings.stored
        visitor, limit, size = self._visitor(scope), self._settings.upload_bytes, content_length(headers)
        if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise BodyError(415, "An upload must be a form with files: send it as multipart/form-data.")
        if 0 < limit < size - MULTIPART_OVERHEAD:
            raise BodyError(413, _too_large(limit, size))
        if message := stored.refusal(visitor.id, size, visitor.address):
            raise BodyError(413, message)
        upload = UploadReceiver(headers, receive, limit, stored, visitor.id, visitor.address)
        status = 500

        async def send_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status != 200:
                    # The rest of the body is not read, so the connection cannot be used again.
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, upload, send_status)
        finally:
            if status != 200:
                upload.forget()

    async def _use(self, scope: Scope, route: str, parameters: dict[str, str], receive: Receive, send: Send) -> None:
        """Answer a request to a route of MEMBER: sessions and events that it names must be the visitor's."""
        visitor, claim = self._visitor(scope), route.startswith(_CLAIMING_ROUTES)
        who = visitor.address or visitor.id
        named = [parameters[name] for name in ("session_hash", "event_id") if name in parameters]
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        named += query.get("session_hash", [])
        if scope["method"] == "POST":
            headers = Headers(scope=scope)
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise BodyError(415, "The body must be JSON: send it with 'Content-Type: application/json'.")
            body = await read_body(headers, receive, MAX_JSON_BYTES)
            values = _parse_object(body)
            session = values.get("session_hash")
            if not self._may_use(session, visitor, claim) or not self._may_use(
                values.get("event_id"), visitor, claim=False
            ):
                raise BodyError(403, _FOREIGN_SESSION)
            receive = replay(body, receive)
            if route.startswith(_EVENT_ROUTES):
                if not self._unread.has_room(who, session):
                    raise BodyError(429, _UNREAD)
                send = self._record_event(visitor, session, send)
        if not all(self._may_use(name, visitor, claim) for name in named):
            raise BodyError(403, _FOREIGN_SESSION)
        if route in _READING_ROUTES and named:
            session = self._session_of(named[-1])
            with self._unread.reading(who, session), self._settings.reading(session):
                await self._app(scope, receive, send)
            return
        with self._requests.reserve(who) if route == _COMPONENT_SERVER else nullcontext():
            await self._app(scope, receive, send)

    def _may_use(self, name: object, visitor: Visitor, claim: bool) -> bool:
        return name is None or self._sessions.may_use(name, visitor.id, claim)

    def _session_of(self, name: str) -> str:
        """Return the session of an event, by which its runs are known; `name` itself if it is a session."""
        event = self._gradio.get_blocks()._queue.event_ids_to_events.get(name)
        return name if event is None else str(event.session_hash)

    def _record_event(self, visitor: Visitor, session: str | None, send: Send) -> Send:
        """Return a `send` that notes the event in the answer, {"event_id"}, as the visitor's."""

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.body" and b'"event_id"' in message.get("body", b""):
                event = str(_parse_object(message["body"]).get("event_id"))
                self._may_use(event, visitor, claim=True)
                self._unread.add(visitor.address or visitor.id, session or event)
            await send(message)

        return recorded

    def _user(self, scope: Scope) -> str:
        """Return the name of the login, found as Gradio finds it; '' without one."""
        cookies, suffix = _cookies(scope), self._gradio.cookie_id
        token = cookies.get(f"access-token-{suffix}") or cookies.get(f"access-token-unsecure-{suffix}")
        return str(self._gradio.tokens.get(token) or "")

    def _visitor(self, scope: Scope) -> Visitor:
        request = SimpleNamespace(request=Request(scope), username=self._user(scope))
        return self._visitors.identify(request)

    def _protect(self, scope: Scope, request_headers: Headers, route: str, send: Send) -> Send:
        """Return a `send` that adds the headers that protect the page, and the visitor cookie to pages."""
        space, https = self._web.frame, is_https(scope)
        cors = self._web.cors_headers(request_headers)

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                if scope["method"] == "GET" and _is_html(headers) and (cookie := _new_cookie(scope, space, https)):
                    headers.append((b"set-cookie", cookie.encode()))
                file = route.startswith(f"{_API}file=")
                headers = protected_headers(headers, space=space, https=https, file=file)
                headers += encoded(cors.items())
                message = {**message, "headers": headers}
            await send(message)

        return protected


def _refuse(status: int, detail: Any) -> Response:
    # In the form of Gradio's errors, which its page shows. The body may be unread.
    return JSONResponse({"detail": detail}, status, {"connection": "close"} if status in (408, 413) else None)


def _too_large(limit: int, size: int) -> str:
    return (
        f"An upload may have {format_bytes(limit)} here and this one has {format_bytes(size)}: make the file smaller, "
        "or run Prompt or Tune on a machine of your own."
    )


def _parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body` as Gradio will read it; raises BodyError 400 if it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BodyError(400, "The body is no JSON object: see the endpoints on the page ?view=api.")
    return value


def _cookies(scope: Scope) -> dict[str, str]:
    return cookie_parser(Headers(scope=scope).get("cookie", ""))


def _is_html(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)


def _new_cookie(scope: Scope, space: bool, https: bool) -> str:
    """Return the visitor cookie for a browser that has none; '' otherwise. One of earlier versions is taken over."""
    cookies = _cookies(scope)
    if TOKEN_PATTERN.fullmatch(cookies.get(COOKIE_NAME, "")):
        return ""
    token = read_visitor_token(cookies) or secrets.token_urlsafe(24)
    return visitor_cookie(COOKIE_NAME, token, _YEAR_SECONDS, space=space, https=https)
