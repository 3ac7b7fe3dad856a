"""HTTP connections of uvicorn with limits: for slow and silent clients, and for the connections of one address."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import h11
import uvicorn.config
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.api.origins import client_network

HEADER_TIMEOUT_S = 15.0
# How long the send buffer of a connection may stay full.
WRITE_TIMEOUT_S = 90.0
# A page has about three: a class room fits, and a thousand open files do not end at one program.
MAX_CONNECTIONS_PER_ADDRESS = 256


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
