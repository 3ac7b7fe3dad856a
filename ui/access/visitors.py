"""Identity of visitors, and what a visitor may do.

A visitor is identified by the name of the login, else by a random cookie of the browser, else (a program without
cookies) by the address. A cookie can be deleted to get a new identity, so training on a public Space needs a login.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ui.access.quota import VisitorLimits, VisitorQuota

COOKIE_NAME = "prompt_or_tune_visitor"
# The cookie of earlier versions, with the same kind of value.
OLD_COOKIE_NAME = "peft_arena_visitor"
TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{22,64}")

TrainingAccess = Literal["everyone", "owner", "nobody"]


@dataclass(frozen=True)
class Visitor:
    """One visitor. `id` is a stable hash; `name` is the name of the login, '' without one.

    `address` is a hash of the address (of the network, for IPv6) of a visitor without a login, '' with one.
    """

    id: str
    name: str = ""
    owner: bool = False
    address: str = field(default="", compare=False)


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
        address = _hashed_id("network", _network(_client_address(request)))
        token = read_visitor_token(_cookies(request))
        if token:
            return Visitor(_hashed_id("browser", token), "", owner, address=address)
        return Visitor(_hashed_id("address", _client_address(request)), "", owner, address=address)

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


def read_visitor_token(cookies: Mapping[str, str]) -> str:
    """Return the value of the visitor cookie, or of the one of earlier versions; '' if neither is valid."""
    tokens = (str(cookies.get(name) or "") for name in (COOKIE_NAME, OLD_COOKIE_NAME))
    return next((token for token in tokens if TOKEN_PATTERN.fullmatch(token)), "")


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


def _network(address: str) -> str:
    """Return the /64 network of an IPv6 address, within which anybody has any address; other addresses as they are."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))


def _scope(request: Any) -> Mapping[str, Any]:
    return getattr(getattr(request, "request", None), "scope", None) or {}


def _hashed_id(kind: str, value: str) -> str:
    return f"{kind}-{hashlib.sha256(f'{kind}:{value}'.encode()).hexdigest()[:16]}"
