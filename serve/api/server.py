"""API server: uvicorn with limits for slow and silent clients and for one address, and its command-line options.

The options are the same for `python -m serve` and `python app.py --api`.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h11
import uvicorn
import uvicorn.config
from uvicorn.protocols.http.h11_impl import H11Protocol

from errors import PromptOrTuneError, unknown_name_error
from serve.api.app import Api, ApiSettings
from serve.api.auth import ENV_VARIABLE, ApiKeys, add_web_options, client_network, read_keys, read_web_access
from tasks.datasets.own import is_own_dataset
from tasks.datasets.registry import TRAINING_DATASETS

HEADER_TIMEOUT_S = 15.0
# How long the send buffer of a connection may stay full.
WRITE_TIMEOUT_S = 90.0
# A page has about three: a class room fits, and a thousand open files do not end at one program.
MAX_CONNECTIONS_PER_ADDRESS = 256
# Request line and headers together.
MAX_HEADER_BYTES = 32_768
MAX_CONNECTIONS = 1024
# How long the last messages of ended answers may take to reach their clients.
SHUTDOWN_TIMEOUT_S = 5


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 protocol that closes a connection if a request's head is not complete in time or the client stalls.

    uvicorn has no timeout for the head of a connection's first request, nor for a client that does not read: a few
    thousand idle connections would use up MAX_CONNECTIONS.
    """

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._update_header_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_header_timer()
        self._cancel_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._write_timer = self._write_timer or self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._cancel_write_timer()
        super().resume_writing()

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _update_header_timer(self) -> None:
        """Start the timer while a head is awaited, and stop it once the head is complete."""
        if self.conn.their_state is not h11.IDLE:
            self._cancel_header_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._on_header_timeout)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.transport.close()


class AddressLimitProtocol(HeaderTimeoutProtocol):
    """As HeaderTimeoutProtocol; closes connections of an address that has MAX_CONNECTIONS_PER_ADDRESS already.

    Not for a server behind a proxy, from whose address all connections come.
    """

    _open: ClassVar[Counter[str]] = Counter()
    _address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        address = client_network(str((transport.get_extra_info("peername") or ("",))[0]))
        if self._open[address] >= MAX_CONNECTIONS_PER_ADDRESS:
            transport.abort()
            return
        self._open[address] += 1
        self._address = address
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._address:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._address:
            return
        self._open[self._address] -= 1
        if not self._open[self._address]:
            del self._open[self._address]
        super().connection_lost(exc)


@contextmanager
def connection_limits(*, behind_proxy: bool) -> Iterator[None]:
    """Give the servers that are configured in the block these limits; Gradio makes its uvicorn.Config itself."""
    protocols: dict[Any, Any] = uvicorn.config.HTTP_PROTOCOLS
    previous = protocols["auto"]
    protocols["auto"] = HeaderTimeoutProtocol if behind_proxy else AddressLimitProtocol
    try:
        yield
    finally:
        protocols["auto"] = previous


class ApiServer(uvicorn.Server):
    """Serves an API until a signal, or until `should_stop` returns True.

    On shutdown it ends the requests in flight with an error before uvicorn waits for their responses.
    """

    def __init__(self, api: Api, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._api = api
        self._should_stop = should_stop
        super().__init__(
            uvicorn.Config(
                api,
                http=HeaderTimeoutProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
            )
        )

    async def on_tick(self, counter: int) -> bool:
        return self._should_stop() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._api.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises OSError if the address cannot be used."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


@dataclass(frozen=True)
class ApiOptions:
    """API keys and limits from the command line."""

    keys: ApiKeys
    settings: ApiSettings


def add_api_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_api_options` reads."""
    defaults = ApiSettings()
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys, one a line: see docs/serving.md")
    parser.add_argument("--open", action="store_true", help="serve other machines without any API key")
    parser.add_argument("--rows-per-minute", metavar="N", help="answers a minute for keys without a limit of their own")
    parser.add_argument(
        "--pool",
        default=defaults.pool,
        help=f"whose examples icl and rag show: {', '.join(TRAINING_DATASETS)}, or one of yours (%(default)s)",
    )
    for option, value, text in (
        ("--max-body-kb", defaults.max_body_bytes // 1000, "the largest body of a request, in kB"),
        ("--timeout", int(defaults.request_timeout_s), "seconds that one request may take"),
    ):
        parser.add_argument(option, default=str(value), metavar="N", help=f"{text} (%(default)s)")
    add_web_options(parser)


def read_api_options(args: argparse.Namespace, host: str) -> ApiOptions:
    """Return the options with the keys read; raises PromptOrTuneError, also if others reach it without keys."""
    keys, web = read_keys(args.api_key_file), read_web_access(args, host)
    if not (len(keys) or args.open or not web.public_name):
        raise PromptOrTuneError(
            f"Without keys anybody who reaches {web.public_name} could ask: "
            f"give --api-key-file, set {ENV_VARIABLE}, or allow it with --open."
        )
    if args.pool not in TRAINING_DATASETS and not is_own_dataset(args.pool):
        raise unknown_name_error("data set", args.pool, TRAINING_DATASETS)
    rows = args.rows_per_minute
    settings = ApiSettings(
        pool=args.pool,
        max_body_bytes=parse_count(args.max_body_kb, "--max-body-kb") * 1000,
        request_timeout_s=parse_count(args.timeout, "--timeout"),
        rows_per_minute=None if rows is None else parse_count(rows, "--rows-per-minute"),
        web=web,
    )
    return ApiOptions(keys, settings)


def parse_count(text: str, option: str) -> int:
    """Return the number in `text`; raises PromptOrTuneError if it is none."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise PromptOrTuneError(f"'{text}' is no number for {option}: give one from 1 to 1000000.")
    return int(text)
