"""Who may ask, and how much: API keys, their rights, and limits per key."""

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

from errors import PeftArenaError
from serve.api.errors import ApiError, too_many
from serve.command import secret_lines

VARIABLE = "PEFT_ARENA_API_KEYS"
SHORTEST_KEY = 16
_MAX_OWNERS = 10_000
_NAME = re.compile(r"[\w.@-]{1,64}")
_LINE = "name:key, name:key:rows-per-minute or name:key:rows-per-minute:admin"


@dataclass(frozen=True)
class Key:
    """A key, known by its digest alone. Without `rows_per_minute` the server's own limit holds."""

    name: str
    digest: bytes
    rows_per_minute: int | None = None
    admin: bool = False


class Keys:
    """The keys of a server; without any it is open to whoever reaches it."""

    def __init__(self, keys: tuple[Key, ...] = ()) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, authorization: str) -> Key:
        """The key that an Authorization header holds; ApiError 401 otherwise.

        Digests of equal length are compared, all of them, so that time tells nothing.
        """
        scheme, _, given = authorization.partition(" ")
        digest = _digest(given.strip())
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if scheme.casefold() != "bearer" or not found:
            what = "is not known" if authorization else "is missing"
            raise ApiError(
                401,
                f"The API key {what}: send one of this server's keys as 'Authorization: Bearer <key>'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return found[0]


def read_keys(file: Path | None) -> Keys:
    """The keys in `file`, and those of PEFT_ARENA_API_KEYS (separated by commas); PeftArenaError in one sentence.

    No message repeats a key.
    """
    lines = secret_lines(file, VARIABLE, "keys", "--api-key-file")
    keys: dict[bytes, Key] = {}
    for where, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = _key(line.strip(), where)
        if key.digest in keys or key.name in {known.name for known in keys.values()}:
            raise PeftArenaError(f"The name or the key in {where} is there twice: give every user one of their own.")
        keys[key.digest] = key
    if file is not None and not keys:
        raise PeftArenaError(f"There is no key in {file}: write one a line, as {_LINE}.")
    return Keys(tuple(keys.values()))


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine as it calls itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(line: str, where: str) -> Key:
    name, *rest = line.split(":")
    if not 1 <= len(rest) <= 3 or not _NAME.fullmatch(name):
        raise PeftArenaError(f"There is no valid entry in {where}: write {_LINE}.")
    if len(rest[0]) < SHORTEST_KEY or not rest[0].isascii() or any(letter.isspace() for letter in rest[0]):
        raise PeftArenaError(
            f"The key of '{name}' in {where} is too weak: use {SHORTEST_KEY} or more letters and digits."
        )
    rows = rest[1].strip() if len(rest) > 1 else ""
    if rows and not (rows.isascii() and rows.isdigit() and 1 <= int(rows) <= 1_000_000):
        raise PeftArenaError(f"The rows per minute of '{name}' in {where} are no number from 1 to 1000000: mend them.")
    if len(rest) == 3 and rest[2].strip() != "admin":
        raise PeftArenaError(f"The right of '{name}' in {where} is unknown: the only one is 'admin'.")
    return Key(name, _digest(rest[0]), int(rows) if rows else None, len(rest) == 3)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


@dataclass
class _Account:
    """What one owner has left of this minute's rows, and how many of its rows are being answered."""

    left: float
    at: float
    open: int = 0


class Meter:
    """Rows a minute and rows at once, per owner. Used in the event loop's thread alone."""

    def __init__(
        self, rows_per_minute: int | None, rows_at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute = rows_per_minute
        self._at_once = rows_at_once
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    @contextmanager
    def rows(self, owner: str, key: Key | None, rows: int) -> Iterator[None]:
        """Counts `rows` as asked for and, until the block ends, as being answered; ApiError 429 beyond a limit."""
        limit = key.rows_per_minute if key and key.rows_per_minute is not None else self._per_minute
        account = self._account(owner, limit)
        if account.open + rows > self._at_once:
            if rows > self._at_once:
                raise ApiError(
                    400, f"{rows} answers asked for at once: ask for at most {self._at_once}.", code="too_many_rows"
                )
            raise too_many(
                f"{account.open} of your answers are on their way and {self._at_once} may be at once: wait for some.",
                2,
                "concurrency_limit_exceeded",
            )
        if limit is not None:
            if rows > limit:
                raise ApiError(
                    400,
                    f"{rows} answers asked for at once and {limit} a minute are allowed: ask for fewer.",
                    code="too_many_rows",
                )
            if account.left < rows:
                seconds = (rows - account.left) * 60 / limit
                raise too_many(
                    f"{limit} answers a minute are allowed: ask again in {max(1, round(seconds))} s.",
                    seconds,
                    "rate_limit_exceeded",
                )
            account.left -= rows
        account.open += rows
        try:
            yield
        finally:
            account.open -= rows

    def _account(self, owner: str, limit: int | None) -> _Account:
        """The owner's account, filled up by the time that has passed; those not seen for long are forgotten."""
        now = self._clock()
        account = self._accounts.setdefault(owner, _Account(limit or 0, now))
        self._accounts.move_to_end(owner)
        account.left = min(limit or 0, account.left + (now - account.at) * (limit or 0) / 60)
        account.at = now
        while len(self._accounts) > _MAX_OWNERS:
            _, oldest = next(iter(self._accounts.items()))
            if oldest.open:
                break
            self._accounts.popitem(last=False)
        return account
