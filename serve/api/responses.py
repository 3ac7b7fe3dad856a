"""OpenAI responses: whole ones as one JSON object, streamed ones as server-sent events (SSE).

A stream has chunks with new text, a last chunk per choice, the usage if requested, and [DONE]. If it fails after the
first event, its last event is the error.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from errors import PromptOrTuneError
from serve.api.errors import ApiError, internal_error, to_api_error
from serve.api.protocol import OpenAIRequest
from serve.api.serving import ClientGoneError, output_error
from serve.types import Candidate, PartialOutput, RequestOutput, TokenLogprob, stable_prefix

_log = logging.getLogger(__name__)

DONE_EVENT = b"data: [DONE]\n\n"
_ID_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}
_OBJECT_TYPES = {"chat": "chat.completion", "text": "text_completion"}


@dataclass(frozen=True)
class ResponseBuilder:
    """Builds one response, or the common fields of its chunks: id, creation time, model as requested."""

    request: OpenAIRequest
    fingerprint: str
    id: str
    created: int

    @classmethod
    def create(cls, request: OpenAIRequest, fingerprint: str) -> ResponseBuilder:
        """Return a builder with a new id and the current time."""
        return cls(request, fingerprint, f"{_ID_PREFIXES[request.kind]}-{secrets.token_hex(12)}", int(time.time()))

    def common_fields(self, chunk: bool = False) -> dict[str, Any]:
        """Return the fields beside the choices."""
        kind = _OBJECT_TYPES[self.request.kind]
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if chunk and self.request.kind == "chat" else kind,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
        }

    def full_response(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """Return the whole response; `outputs` are in the order of the prompts."""
        choices = [
            self._choice(index, candidate, output)
            for output in outputs
            for index, candidate in enumerate(expand_samples(output, self.request), output.index * self.request.n)
        ]
        return {**self.common_fields(), "choices": choices, "usage": usage_info(outputs, self.request)}

    def _choice(self, index: int, candidate: Candidate, output: RequestOutput) -> dict[str, Any]:
        fields = {"finish_reason": finish_reason(candidate), "logprobs": logprobs_content(candidate, self.request)}
        if self.request.kind == "text":
            return {"index": index, "text": candidate.text, **fields}
        message = {"role": "assistant", "content": candidate.text, "refusal": None, **extra_fields(candidate, output)}
        return {"index": index, "message": message, **fields}


def expand_samples(output: RequestOutput, request: OpenAIRequest) -> list[Candidate]:
    """Return the n choices of one prompt: its samples, or n copies of the one greedy answer."""
    samples = list(output.samples)
    if not samples:  # an engine that returns only merged candidates counts the equal ones
        samples = [candidate for candidate in output.candidates for _ in range(candidate.count)]
    return samples * request.n if request.sampling_params.mode == "greedy" else samples


def extra_fields(candidate: Candidate, output: RequestOutput) -> dict[str, Any]:
    """Return the fields of a message that OpenAI does not have: the code in the answer, and notes if there are any."""
    notes = {"notes": list(output.notes)} if output.notes else {}
    return {"code": candidate.code, **notes}


def finish_reason(candidate: Candidate) -> str:
    """Return OpenAI's finish reason."""
    return "length" if candidate.finish == "length" else "stop"


def usage_info(outputs: Iterable[RequestOutput], request: OpenAIRequest) -> dict[str, int]:
    """Return the token counts; a prompt counts once, whatever the number of its answers."""
    outputs = list(outputs)
    prompt = sum(output.prompt_tokens for output in outputs)
    completion = sum(candidate.tokens for output in outputs for candidate in expand_samples(output, request))
    return usage_fields(prompt, completion)


def usage_fields(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the fields of `usage`."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def logprobs_content(candidate: Candidate, request: OpenAIRequest) -> dict[str, Any] | None:
    """Return the log-probabilities in the format of the endpoint; None if they were not requested."""
    if request.sampling_params.top_logprobs is None:
        return None
    format_logprobs = _chat_logprobs if request.kind == "chat" else _text_logprobs
    return format_logprobs(candidate.token_logprobs)


def _chat_logprobs(token_logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token_entry(entry.token, entry.logprob),
            "top_logprobs": [_token_entry(token, value) for token, value in entry.top],
        }
        for entry in token_logprobs
    ]
    return {"content": content, "refusal": None}


def _token_entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite_logprob(logprob), "bytes": list(token.encode("utf-8", "replace"))}


def _finite_logprob(logprob: float) -> float:
    """Replace infinity, which JSON does not have, by OpenAI's value for a token that is practically impossible."""
    return logprob if math.isfinite(logprob) else -9999.0


def _text_logprobs(token_logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`text_offset` counts characters from the start of the choice's own text."""
    offsets, offset = [], 0
    for entry in token_logprobs:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in token_logprobs],
        "token_logprobs": [_finite_logprob(entry.logprob) for entry in token_logprobs],
        "top_logprobs": [{token: _finite_logprob(value) for token, value in entry.top} for entry in token_logprobs],
        "text_offset": offsets,
    }


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
