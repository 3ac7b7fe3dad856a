"""Access to the API: keys, rights, rate limits per caller, names of the server, and origins of pages that may use it.

Names under which a server answers, and the origins of the pages that may use it. The pages (ui/access/middleware.py)
and the API check both, so that no other web site acts in the name of a person who visits it: neither by a request of
its own, nor by a name of its own that it lets resolve to this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import ipaddress
import os
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from common.command import read_secrets
from errors import PromptOrTuneError
from serve.api.errors import ApiError, rate_limited

ENV_VARIABLE = "PROMPT_OR_TUNE_API_KEYS"
MIN_KEY_LENGTH = 16
_MAX_OWNERS = 10_000
_NAME = re.compile(r"[\w.@-]{1,64}")
_ENTRY_FORMAT = "name:key, name:key:rows-per-minute or name:key:rows-per-minute:admin"
HOSTS_VARIABLE = "PROMPT_OR_TUNE_ALLOW_HOST"
ORIGINS_VARIABLE = "PROMPT_OR_TUNE_ALLOW_ORIGIN"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.]+)?\]|[A-Za-z0-9_.-]+)(?::(\d{1,5}))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")
_PREFLIGHT_SECONDS = "600"


@dataclass(frozen=True)
class ApiKey:
    """An API key, stored as its digest. Without `rows_per_minute` the limit of the server applies."""

    name: str
    digest: bytes
    rows_per_minute: int | None = None
    admin: bool = False


class ApiKeys:
    """All keys of a server; without any, the API needs no key."""

    def __init__(self, keys: tuple[ApiKey, ...] = ()) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, authorization: str) -> ApiKey:
        """Return the key in an Authorization header; raises ApiError 401 if it is not a known one.

        All digests are compared, in constant time, so that response times reveal nothing about the keys.
        """
        scheme, _, token = authorization.partition(" ")
        digest = _digest(token.strip())
        matching = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if scheme.casefold() != "bearer" or not matching:
            problem = "is not known" if authorization else "is missing"
            raise ApiError(
                401,
                f"The API key {problem}: send one of this server's keys as 'Authorization: Bearer <key>'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return matching[0]


def read_keys(file: Path | None) -> ApiKeys:
    """Return the keys in `file` and in PROMPT_OR_TUNE_API_KEYS (separated by commas).

    Raises PromptOrTuneError for an invalid entry; no message contains a key.
    """
    lines = read_secrets(file, ENV_VARIABLE, "keys", "--api-key-file")
    keys: dict[bytes, ApiKey] = {}
    for location, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = _parse_key(line.strip(), location)
        if key.digest in keys or key.name in {other.name for other in keys.values()}:
            raise PromptOrTuneError(
                f"The name or the key in {location} is there twice: give every user a different one."
            )
        keys[key.digest] = key
    if file is not None and not keys:
        raise PromptOrTuneError(f"There is no key in {file}: write one a line, as {_ENTRY_FORMAT}.")
    return ApiKeys(tuple(keys.values()))


def is_loopback(host: str) -> bool:
    """Whether `host` is 'localhost' or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse_key(entry: str, location: str) -> ApiKey:
    name, *rest = entry.split(":")
    if not 1 <= len(rest) <= 3 or not _NAME.fullmatch(name):
        raise PromptOrTuneError(f"There is no valid entry in {location}: write {_ENTRY_FORMAT}.")
    if len(rest[0]) < MIN_KEY_LENGTH or not rest[0].isascii() or any(letter.isspace() for letter in rest[0]):
        raise PromptOrTuneError(
            f"The key of '{name}' in {location} is too weak: use {MIN_KEY_LENGTH} or more letters and digits."
        )
    rows = rest[1].strip() if len(rest) > 1 else ""
    if rows and not (rows.isascii() and rows.isdigit() and 1 <= int(rows) <= 1_000_000):
        raise PromptOrTuneError(
            f"The rows per minute of '{name}' in {location} are no number from 1 to 1000000: correct them."
        )
    if len(rest) == 3 and rest[2].strip() != "admin":
        raise PromptOrTuneError(f"The right of '{name}' in {location} is unknown: the only one is 'admin'.")
    return ApiKey(name, _digest(rest[0]), int(rows) if rows else None, len(rest) == 3)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


@dataclass
class _Quota:
    """Token bucket of one owner: rows left in this minute, and number of rows being answered."""

    remaining: float
    updated_at: float
    in_flight: int = 0


class RateLimiter:
    """Limits rows per minute and concurrent rows per owner. Used only in the event loop's thread, without a lock."""

    def __init__(
        self, rows_per_minute: int | None, max_concurrent_rows: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rows_per_minute = rows_per_minute
        self._max_concurrent_rows = max_concurrent_rows
        self._clock = clock
        self._quotas: OrderedDict[str, _Quota] = OrderedDict()

    @contextmanager
    def acquire(self, owner: str, key: ApiKey | None, rows: int) -> Iterator[None]:
        """Count `rows` as requested and, until the block ends, as being answered; raises ApiError 429 over a limit."""
        limit = key.rows_per_minute if key and key.rows_per_minute is not None else self._rows_per_minute
        quota = self._quota(owner, limit)
        if quota.in_flight + rows > self._max_concurrent_rows:
            if rows > self._max_concurrent_rows:
                raise ApiError(
                    400,
                    f"{rows} answers requested at once: ask for at most {self._max_concurrent_rows}.",
                    code="too_many_rows",
                )
            raise rate_limited(
                f"{quota.in_flight} of your answers are being generated "
                f"and {self._max_concurrent_rows} may be at once: wait for some.",
                2,
                "concurrency_limit_exceeded",
            )
        if limit is not None:
            if rows > limit:
                raise ApiError(
                    400,
                    f"{rows} answers requested at once and {limit} a minute are allowed: ask for fewer.",
                    code="too_many_rows",
                )
            if quota.remaining < rows:
                seconds = (rows - quota.remaining) * 60 / limit
                raise rate_limited(
                    f"{limit} answers a minute are allowed: ask again in {max(1, round(seconds))} s.",
                    seconds,
                    "rate_limit_exceeded",
                )
            quota.remaining -= rows
        quota.in_flight += rows
        try:
            yield
        finally:
            quota.in_flight -= rows

    def _quota(self, owner: str, limit: int | None) -> _Quota:
        """Return the owner's quota, refilled by the time that has passed; drops the least recently used quotas."""
        now = self._clock()
        quota = self._quotas.setdefault(owner, _Quota(limit or 0, now))
        self._quotas.move_to_end(owner)
        quota.remaining = min(limit or 0, quota.remaining + (now - quota.updated_at) * (limit or 0) / 60)
        quota.updated_at = now
        while len(self._quotas) > _MAX_OWNERS:
            _, oldest = next(iter(self._quotas.items()))
            if oldest.in_flight:
                break
            self._quotas.popitem(last=False)
        return quota


@dataclass(frozen=True)
class WebAccess:
    """What a server answers to.

    `hosts` are names in lower case beside 'localhost' and addresses, which are always answered. `origins` are those of
    other sites whose pages may call the server, without cookies. With `trust_proxy` the headers X-Forwarded-For and
    X-Forwarded-Host count, so that only a proxy may reach the server. With `frame` the pages are shown in a frame of
    the Hub. `public_name` is the address or the name by which others reach the server, '' if only this machine does.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    trust_proxy: bool = False
    frame: bool = False
    public_name: str = ""

    def host_refusal(self, headers: Headers) -> str | None:
        """Return why the request's Host is not answered (status 421); None if it is."""
        given = headers.getlist("host")
        if len(given) == 1 and self.is_answered(given[0]):
            return None
        name = _printable(given[0]) if given else ""
        return (
            f"This server does not answer to the name '{name}': start it with --allow-host and the name, or ask its "
            "address."
        )

    def is_answered(self, host: str) -> bool:
        """Return whether `host`, the value of a Host header, names this server."""
        name = _split_host(host)[0]
        return name == "localhost" or name in self.hosts or _is_address(name)

    def origin_refusal(self, headers: Headers, https: bool, navigable: bool = False) -> str | None:
        """Return why the page that sent the request may not do so (status 403); None if it may, or if no page did.

        `https` tells whether the browser certainly used TLS. A `navigable` request may also be a link of another page:
        it opens in a window of its own (or in the frame of the Hub), which the other page cannot read.
        """
        origins = headers.getlist("origin")
        if self.allowed_origin(headers):
            return None
        if origins and not (len(origins) == 1 and self._is_own(origins[0], headers.get("host", ""), https)):
            return _origin_refusal(origins[0])
        site = headers.get("sec-fetch-site")
        if site in (None, "same-origin", "none") or (navigable and not origins and self._opens_page(headers)):
            return None
        return _origin_refusal("another site")

    def allowed_origin(self, headers: Headers) -> str:
        """Return the request's origin if it is one of `origins`; '' otherwise."""
        given = headers.getlist("origin")
        return given[0] if len(given) == 1 and given[0] in self.origins else ""

    def cors_headers(self, headers: Headers) -> dict[str, str]:
        """Return the headers with which a page of an allowed origin may read the response; {} for other pages."""
        origin = self.allowed_origin(headers)
        return {"access-control-allow-origin": origin, "vary": "Origin"} if origin else {}

    def preflight_headers(self, headers: Headers) -> dict[str, str] | None:
        """Return the headers that answer a preflight request, also {} to refuse it; None if it is not one."""
        if "access-control-request-method" not in headers or "origin" not in headers:
            return None
        allowed = self.cors_headers(headers)
        if not allowed:
            return {}
        return allowed | {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": headers.get("access-control-request-headers", ""),
            "access-control-max-age": _PREFLIGHT_SECONDS,
        }

    def _is_own(self, origin: str, host: str, https: bool) -> bool:
        match = _ORIGIN.fullmatch(origin)
        if match is None or match[1] not in (("https",) if https else _DEFAULT_PORTS):
            return False
        default = _DEFAULT_PORTS[match[1]]
        name, port = _split_host(match[2])
        own_name, own_port = _split_host(host)
        return bool(name) and (name, port or default) == (own_name, own_port or default)

    def _opens_page(self, headers: Headers) -> bool:
        destinations = ("document", "iframe") if self.frame else ("document",)
        return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") in destinations


def add_web_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_web_access` reads."""
    group = parser.add_argument_group("names and origins")
    group.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help=f"a name under which browsers and programs reach this server (repeatable; or {HOSTS_VARIABLE})",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        metavar="ORIGIN",
        help=f"https://site whose pages may call this server, without cookies (repeatable; or {ORIGINS_VARIABLE})",
    )
    group.add_argument(
        "--trust-proxy",
        action="store_true",
        help="only a proxy reaches this server, and it sets X-Forwarded-For: clients are told apart by that",
    )


def read_web_access(args: argparse.Namespace, host: str, environ: Mapping[str, str] = os.environ) -> WebAccess:
    """Return the access that the options give a server on `host`; raises PromptOrTuneError for a bad value."""
    names = [*(args.allow_host or ()), *_listed(environ, HOSTS_VARIABLE)]
    for name in names:
        if _split_host(name) != (name.rstrip(".").lower(), 0):
            raise PromptOrTuneError(f"--allow-host '{name}' is no name: give it alone, as in --allow-host example.org.")
    origins = [*(args.allow_origin or ()), *_listed(environ, ORIGINS_VARIABLE)]
    space = bool(environ.get("SPACE_ID"))
    hosts = {*names, host, *(_listed(environ, "SPACE_HOST") if space else ())}
    public_name = names[0] if names else "this server by its proxy" if args.trust_proxy else ""
    if not is_loopback(host):
        public_name = host
        machine = socket.gethostname()
        hosts |= {machine, machine.partition(".")[0], f"{machine.partition('.')[0]}.local"}
    return WebAccess(
        frozenset(name.rstrip(".").lower() for name in hosts),
        frozenset(map(_checked_origin, origins)),
        bool(args.trust_proxy) or space,
        space,
        public_name,
    )


def _listed(environ: Mapping[str, str], variable: str) -> list[str]:
    return [value.strip() for value in environ.get(variable, "").split(",") if value.strip()]


def _checked_origin(origin: str) -> str:
    match = _ORIGIN.fullmatch(origin.rstrip("/").lower())
    name, port = _split_host(match[2]) if match else ("", 0)
    if match is None or not name:
        raise PromptOrTuneError(
            f"--allow-origin '{origin}' is no origin: give scheme and name, as in --allow-origin https://example.org."
        )
    # Browsers leave out the default port.
    return f"{match[1]}://{match[2].rpartition(':')[0]}" if port == _DEFAULT_PORTS.get(match[1], -1) else match[0]


def _split_host(host: str) -> tuple[str, int]:
    """Return the name of a Host header in lower case without brackets, and its port (0: none); ('', 0) if it is bad."""
    match = _HOST.fullmatch(host)
    if match is None:
        return "", 0
    return match[1].strip("[]").rstrip(".").lower(), int(match[2] or 0)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _origin_refusal(origin: str) -> str:
    return (
        f"Pages of {_printable(origin)} may not use this server: open its own page, or start it with --allow-origin "
        "and the origin."
    )


def _printable(text: str) -> str:
    return "".join(letter for letter in text[:100] if letter.isprintable())


def is_https(scope: Scope) -> bool:
    """Return whether the client certainly used TLS, to this server or to a proxy in front of it."""
    return bool(scope.get("scheme") == "https" or Headers(scope=scope).get("x-forwarded-proto", "").startswith("https"))


def client_network(address: str) -> str:
    """Return the /64 network of an IPv6 address, within which anybody has any address; other addresses as they are.

    Limits count by it.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))


def client_address(scope: Scope, web: WebAccess) -> str:
    """Return the address of the client, behind a trusted proxy the one that the proxy appended; '' if unknown."""
    forwarded = Headers(scope=scope).get("x-forwarded-for", "") if web.trust_proxy else ""
    return forwarded.rpartition(",")[2].strip() or str((scope.get("client") or ("",))[0])
