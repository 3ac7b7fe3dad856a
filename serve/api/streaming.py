"""SSE streaming: converts the outputs of a call into server-sent events of OpenAI's chunks.

A stream has chunks with new text, a last chunk per choice, the usage if requested, and [DONE]. If it fails after the
first event, its last event is the error.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from errors import PromptOrTuneError
from serve.api.errors import ApiError, internal_error, to_api_error
from serve.api.responses import (
    ResponseBuilder,
    expand_samples,
    extra_fields,
    finish_reason,
    logprobs_content,
    usage_fields,
    usage_info,
)
from serve.api.serving import ClientGoneError, output_error
from serve.generated_text import stable_prefix
from serve.types import PartialOutput, RequestOutput

DONE_EVENT = b"data: [DONE]\n\n"


class SSEStream:
    """Encodes the outputs of one call as server-sent events; sent text is never withdrawn."""

    def __init__(self, response: ResponseBuilder) -> None:
        self._response = response
        self._request = response.request
        self._common_fields = response.common_fields(chunk=True)
        self._sent: dict[int, str] = {}
        self._tokens: dict[int, int] = {}
        self._outputs: list[RequestOutput] = []

    def encode(self, event: PartialOutput | RequestOutput) -> Iterator[bytes]:
        """Yield the events for one output; none if it has no text that is certain to stay."""
        if isinstance(event, PartialOutput):
            yield from self._encode_partial(event)
        else:
            yield from self._encode_finished(event)

    def encode_end(self) -> Iterator[bytes]:
        """Yield the events after the last output."""
        if self._request.include_usage:
            yield _encode_event(
                {**self._common_fields, "choices": [], "usage": usage_info(self._outputs, self._request)}
            )
        yield DONE_EVENT

    def encode_error(self, error: ApiError) -> Iterator[bytes]:
        """Yield the events that end a failed stream."""
        yield b"data: " + error.encoded() + b"\n\n"
        yield DONE_EVENT

    def _encode_partial(self, partial: PartialOutput) -> Iterator[bytes]:
        text = partial.text if self._request.kind == "text" else stable_prefix(partial.text).rstrip()
        copies = range(self._request.n) if self._request.sampling_params.mode == "greedy" else (partial.candidate,)
        for copy in copies:
            index = partial.index * self._request.n + copy
            self._tokens[index] = partial.tokens
            yield from self._encode_text(index, text)

    def _encode_finished(self, output: RequestOutput) -> Iterator[bytes]:
        self._outputs.append(output)
        for index, candidate in enumerate(expand_samples(output, self._request), output.index * self._request.n):
            self._tokens[index] = candidate.tokens
            yield from self._encode_text(index, candidate.text)
            more = extra_fields(candidate, output) if self._request.kind == "chat" else {}
            yield self._encode_chunk(
                index, "", more, finish_reason(candidate), logprobs_content(candidate, self._request)
            )

    def _encode_text(self, index: int, text: str) -> Iterator[bytes]:
        """Yield a chunk with the text that is new in the choice."""
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
        """Return the usage so far, if every chunk has it. Prompt tokens are counted once the answer is finished."""
        if not self._request.continuous_usage_stats:
            return None
        return usage_fields(sum(output.prompt_tokens for output in self._outputs), sum(self._tokens.values()))


def _encode_event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


_log = logging.getLogger(__name__)


async def encode_stream(events: AsyncGenerator[PartialOutput | RequestOutput], sse: SSEStream) -> AsyncGenerator[bytes]:
    """Yield server-sent events as outputs come. An error after the first event becomes the last event."""
    started = False
    try:
        async with aclosing(events):
            async for event in raise_failed(events):
                encoded = b"".join(sse.encode(event))
                if encoded:
                    started = True
                    yield encoded
        last = sse.encode_end()
    except ClientGoneError:
        raise
    except Exception as error:
        if not started:
            raise
        if not isinstance(error, PromptOrTuneError):
            log_unexpected_error(error)
        last = sse.encode_error(to_api_error(error) if isinstance(error, PromptOrTuneError) else internal_error())
    yield b"".join(last)


async def raise_failed(
    events: AsyncIterator[PartialOutput | RequestOutput],
) -> AsyncIterator[PartialOutput | RequestOutput]:
    """Yield the outputs; raises ApiError for a failed one."""
    async for event in events:
        error = output_error(event) if isinstance(event, RequestOutput) else None
        if error is not None:
            raise error
        yield event


def log_unexpected_error(error: BaseException) -> None:
    """Log the type and the stack of an exception, but not its message, which may contain a person's prompt."""
    stack = "".join(traceback.format_tb(error.__traceback__))
    _log.error("A request failed with %s:\n%s", type(error).__name__, stack)
