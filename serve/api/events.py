"""A call's events on their way out, and what becomes of a stream that fails after it has begun."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator

from errors import PromptOrTuneError
from serve.api.calls import ClientGoneError
from serve.api.chunks import SSEStream
from serve.api.errors import internal_error, to_api_error
from serve.api.service import output_error
from serve.api.wire import ResponseWriter
from serve.rows import PartialOutput, RequestOutput

_log = logging.getLogger(__name__)


async def send_stream(
    events: AsyncGenerator[PartialOutput | RequestOutput], sse: SSEStream, writer: ResponseWriter
) -> None:
    """Sends events as they come. Once something has been sent, a failure becomes the last event."""
    try:
        async for event in raise_failed(events):
            pieces = b"".join(sse.encode(event))
            if pieces:
                await writer.send_event(pieces)
        last = sse.encode_end()
    except PromptOrTuneError as fault:
        if not writer.started:
            raise
        last = sse.encode_error(to_api_error(fault))
    except ClientGoneError:
        raise
    except Exception as fault:
        if not writer.started:
            raise
        log_unexpected_error(fault)
        last = sse.encode_error(internal_error())
    await writer.send_event(b"".join(last))
    await writer.end_stream()


async def raise_failed(
    events: AsyncIterator[PartialOutput | RequestOutput],
) -> AsyncIterator[PartialOutput | RequestOutput]:
    """The events; ApiError where an answer has failed."""
    async for event in events:
        fault = output_error(event) if isinstance(event, RequestOutput) else None
        if fault is not None:
            raise fault
        yield event


def log_unexpected_error(error: BaseException) -> None:
    """Writes down where a defect of ours happened, but no values: they may be what a person asked."""
    where = "".join(traceback.format_tb(error.__traceback__))
    _log.error("A request failed with %s:\n%s", type(error).__name__, where)
