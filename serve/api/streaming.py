"""SSE chunks.

A growing answer as server-sent events: chunks of text, a last one a choice, the usage, and [DONE].

A call's events on their way out, and what becomes of a stream that fails after it has begun.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from errors import PromptOrTuneError
from serve.api.errors import ApiError, internal_error, to_api_error
from serve.api.http import ResponseWriter
from serve.api.protocol import (
    ResponseBuilder,
    expand_samples,
    extra_fields,
    finish_reason,
    logprobs_content,
    usage_info,
)
from serve.api.serving import ClientGoneError, output_error
from serve.generated_text import stable_prefix
from serve.types import PartialOutput, RequestOutput

DONE_EVENT = b"data: [DONE]\n\n"


class SSEStream:
    """Turns one call's events into server-sent events; what has been sent is never taken back."""

    def __init__(self, response: ResponseBuilder) -> None:
        self._response = response
        self._request = response.request
        self._common_fields = response.common_fields(chunk=True)
        self._sent: dict[int, str] = {}
        self._tokens: dict[int, int] = {}
        self._outputs: list[RequestOutput] = []

    def encode(self, event: PartialOutput | RequestOutput) -> Iterator[bytes]:
        """The server-sent events that one event makes; none where nothing of it is certain yet."""
        if isinstance(event, PartialOutput):
            yield from self._encode_partial(event)
        else:
            yield from self._encode_finished(event)

    def encode_end(self) -> Iterator[bytes]:
        """What comes after the last answer."""
        if self._request.include_usage:
            yield _encode_event(
                {**self._common_fields, "choices": [], "usage": usage_info(self._outputs, self._request)}
            )
        yield DONE_EVENT

    def encode_error(self, error: ApiError) -> Iterator[bytes]:
        """What ends a stream that cannot be finished."""
        yield b"data: " + error.encoded() + b"\n\n"
        yield DONE_EVENT

    def _encode_partial(self, partial: PartialOutput) -> Iterator[bytes]:
        text = partial.text if self._request.kind == "text" else stable_prefix(partial.text).rstrip()
        copies = range(self._request.n) if self._request.sampling_params.mode == "greedy" else (partial.candidate,)
        for copy in copies:
            place = partial.index * self._request.n + copy
            self._tokens[place] = partial.tokens
            yield from self._encode_text(place, text)

    def _encode_finished(self, output: RequestOutput) -> Iterator[bytes]:
        self._outputs.append(output)
        for place, candidate in enumerate(expand_samples(output, self._request), output.index * self._request.n):
            self._tokens[place] = candidate.tokens
            yield from self._encode_text(place, candidate.text)
            more = extra_fields(candidate, output) if self._request.kind == "chat" else {}
            yield self._encode_chunk(
                place, "", more, finish_reason(candidate), logprobs_content(candidate, self._request)
            )

    def _encode_text(self, index: int, text: str) -> Iterator[bytes]:
        """What is new in the choice's text."""
        if index not in self._sent:
            self._sent[index] = ""
            if self._request.kind == "chat":
                yield self._encode_chunk(index, "", {"role": "assistant", "content": ""})
        sent = self._sent[index]
        if len(text) > len(sent) and text.startswith(sent):
            self._sent[index] = text
            yield self._encode_chunk(index, text[len(sent) :])

    def _encode_chunk(
        self,
        index: int,
        text: str,
        delta: dict[str, Any] | None = None,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        if self._request.kind == "text":
            choice: dict[str, Any] = {"index": index, "text": text}
        else:
            choice = {"index": index, "delta": delta if delta is not None else {"content": text}}
        choice |= {"finish_reason": reason, "logprobs": logprobs}
        more = {"usage": self._current_usage()} if self._request.include_usage else {}
        return _encode_event({**self._common_fields, "choices": [choice], **more})

    def _current_usage(self) -> dict[str, int] | None:
        """Where it is asked for in every chunk. A prompt's tokens are known once its answer is whole."""
        if not self._request.continuous_usage_stats:
            return None
        read, said = sum(answer.prompt_tokens for answer in self._outputs), sum(self._tokens.values())
        return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def _encode_event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


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
    except PromptOrTuneError as error:
        if not writer.started:
            raise
        last = sse.encode_error(to_api_error(error))
    except ClientGoneError:
        raise
    except Exception as error:
        if not writer.started:
            raise
        log_unexpected_error(error)
        last = sse.encode_error(internal_error())
    await writer.send_event(b"".join(last))
    await writer.end_stream()


async def raise_failed(
    events: AsyncIterator[PartialOutput | RequestOutput],
) -> AsyncIterator[PartialOutput | RequestOutput]:
    """The events; ApiError where an answer has failed."""
    async for event in events:
        error = output_error(event) if isinstance(event, RequestOutput) else None
        if error is not None:
            raise error
        yield event


def log_unexpected_error(error: BaseException) -> None:
    """Writes down where a defect of ours happened, but no values: they may be what a person asked."""
    where = "".join(traceback.format_tb(error.__traceback__))
    _log.error("A request failed with %s:\n%s", type(error).__name__, where)
