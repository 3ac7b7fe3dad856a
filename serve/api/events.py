"""A call's events on their way out, and what becomes of a stream that fails after it has begun."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator

from errors import PeftArenaError
from serve.api.calls import ClientGoneError
from serve.api.chunks import Chunks
from serve.api.errors import from_ours, internal
from serve.api.service import failure
from serve.api.wire import Out
from serve.rows import Answer, Partial

_log = logging.getLogger(__name__)


async def send_stream(events: AsyncGenerator[Partial | Answer], chunks: Chunks, out: Out) -> None:
    """Sends events as they come. Once something has been sent, a failure becomes the last event."""
    try:
        async for event in sound(events):
            pieces = b"".join(chunks.of(event))
            if pieces:
                await out.event(pieces)
        last = chunks.end()
    except PeftArenaError as fault:
        if not out.started:
            raise
        last = chunks.broken(from_ours(fault))
    except ClientGoneError:
        raise
    except Exception as fault:
        if not out.started:
            raise
        log_defect(fault)
        last = chunks.broken(internal())
    await out.event(b"".join(last))
    await out.end()


async def sound(events: AsyncIterator[Partial | Answer]) -> AsyncIterator[Partial | Answer]:
    """The events; ApiError where an answer has failed."""
    async for event in events:
        fault = failure(event) if isinstance(event, Answer) else None
        if fault is not None:
            raise fault
        yield event


def log_defect(fault: BaseException) -> None:
    """Writes down where a defect of ours happened, but no values: they may be what a person asked."""
    where = "".join(traceback.format_tb(fault.__traceback__))
    _log.error("A request failed with %s:\n%s", type(fault).__name__, where)
