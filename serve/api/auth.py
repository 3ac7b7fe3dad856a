"""API keys, their rights, and rate limits per caller."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.command import read_secrets
from errors import PromptOrTuneError
from serve.api.errors import ApiError, rate_limited

ENV_VARIABLE = "PROMPT_OR_TUNE_API_KEYS"
MIN_KEY_LENGTH = 16
_MAX_OWNERS = 10_000
_NAME = re.compile(r"[\w.@-]{1,64}")
_ENTRY_FORMAT = "name:key, name:key:rows-per-minute or name:key:rows-per-minute:admin"


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
