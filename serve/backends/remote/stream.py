"""Streamed completions of a remote server: each row of a batch is one or more HTTP streams of its own.

The streams run as asyncio tasks on the backend's thread for them (backend.py).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from errors import BusyError, EngineError, PromptOrTuneError
from serve.backends.remote.client import MAX_BODY_BYTES, ServerClient, SSEDecoder, decode_json
from serve.types import (
    Candidate,
    PartialOutput,
    Row,
    RowOutput,
    SamplingParams,
    TokenLogprob,
    dedupe_candidates,
    find_stop,
    stable_prefix,
)
from tasks.extract import answer_end, extract_code, may_have_ended
from tasks.prompt import PromptStyle

RowEvent = PartialOutput | RowOutput
# A chunk has one token or more, seldom none: a stream is cut at this many chunks beyond twice the limit of tokens.
_EXTRA_CHUNKS = 16
# Reasons with which vLLM and others end an answer that they have given up.
_FAILED_REASONS = ("abort", "error", "cancelled")
# Longer than the text of any token of a well-behaved server.
_MAX_TOKEN_CHARACTERS = 256


class StreamedCandidate:
    """One candidate of a row; it ends by `answer_end` (tasks/extract), at a stop string, or by the server.

    The server knows no `answer_end`: its stream is closed when the text received so far shows the answer's end.
    """

    def __init__(self, style: PromptStyle | None, decoding: SamplingParams) -> None:
        self._style = style
        self._decoding = decoding
        self._text = ""
        self._end: int | None = None
        self._chunks = 0
        self._server_token_count: int | None = None
        self._logprob = 0.0
        self._tokens: list[TokenLogprob] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.ended_by_server = False

    @property
    def is_finished(self) -> bool:
        """Whether the answer has ended; later chunks are ignored."""
        return self.finish_reason is not None

    @property
    def has_logprobs(self) -> bool:
        """Whether the server has sent log-probabilities."""
        return bool(self._tokens)

    @property
    def text(self) -> str:
        """The text so far, up to the answer's end."""
        return self._text if self._end is None else self._text[: self._end]

    @property
    def stable_text(self) -> str:
        """The part of the text that no later chunk can remove."""
        return (
            stable_prefix(self.text, self._decoding.stop, raw=self._style is None) if self._end is None else self.text
        )

    @property
    def tokens(self) -> int:
        """The number of tokens: the server's count, else that of its log-probabilities, else one per chunk."""
        if self._server_token_count is not None:
            return self._server_token_count
        return min(len(self._tokens) or self._chunks, self._decoding.max_new_tokens)

    def feed(self, choice: Mapping[str, Any]) -> None:
        """Add one chunk of a `choices` list."""
        if self.is_finished:
            return
        text, length = choice.get("text"), len(self._text)
        if isinstance(text, str) and text:
            self._text += text
            self._chunks += 1
        for token in parse_logprobs(choice.get("logprobs")):
            self._tokens.append(token)
            self._logprob += token.logprob
        self._end = self._find_end(length)
        reason = choice.get("finish_reason")
        self.ended_by_server = reason is not None
        if self._end is not None or reason is not None:
            self.finish_reason = "length" if self._end is None and reason == "length" else "stop"
        elif self._exceeds_limits():
            self.finish_reason = "length"

    def set_token_count(self, tokens: object) -> None:
        """Set the server's own count so far; other values than a possible count are ignored."""
        if type(tokens) is int and 0 <= tokens <= self._decoding.max_new_tokens:
            self._server_token_count = tokens

    def candidate(self) -> Candidate:
        """Return the answer so far, with its code."""
        return Candidate(
            text=self.text,
            code=self.text if self._style is None else extract_code(self.text, self._style),
            logprob=self._logprob,
            tokens=self.tokens,
            finish=self.finish_reason or "cancelled",
            token_logprobs=tuple(self._tokens) if self._decoding.top_logprobs is not None else (),
        )

    def _find_end(self, new_from: int) -> int | None:
        text = self._text[: find_stop(self._text, self._decoding.stop)]
        end = None
        if self._style is not None and may_have_ended(text, min(new_from, len(text))):
            end = answer_end(text, self._style)
        return end if end is not None or len(text) == len(self._text) else len(text)

    def _exceeds_limits(self) -> bool:
        limit = self._decoding.max_new_tokens
        return (
            len(self._tokens) >= limit
            or self._chunks >= 2 * limit + _EXTRA_CHUNKS
            or len(self._text) > _MAX_TOKEN_CHARACTERS * (limit + _EXTRA_CHUNKS)
        )


def parse_logprobs(logprobs: object) -> Iterator[TokenLogprob]:
    """Yield the tokens of a chunk's `logprobs` in either of OpenAI's formats; invalid entries are skipped."""
    if not isinstance(logprobs, dict):
        return
    if "content" in logprobs:
        for entry in _items(logprobs["content"]):
            if isinstance(entry, dict):
                top_entries = [top for top in _items(entry.get("top_logprobs")) if isinstance(top, dict)]
                pairs = [(top.get("token"), top.get("logprob")) for top in top_entries]
                yield from _parse_token(entry.get("token"), entry.get("logprob"), pairs)
        return
    tokens, values, tops = (_items(logprobs.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    for index, (token, value) in enumerate(zip(tokens, values, strict=False)):
        top = tops[index] if index < len(tops) else None
        yield from _parse_token(token, value, list(top.items()) if isinstance(top, dict) else [])


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _parse_token(token: object, value: object, tops: list[tuple[Any, Any]]) -> Iterator[TokenLogprob]:
    logprob = _finite_number(value)
    if isinstance(token, str) and logprob is not None:
        numbers = [(str(name), _finite_number(number)) for name, number in tops]
        yield TokenLogprob(token, logprob, tuple((name, number) for name, number in numbers if number is not None))


def _finite_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


MISSING_LOGPROBS_NOTE = "This engine did not send all log-probabilities: the missing ones count as 0."
# The largest size of a token in a stream, including twenty top log-probabilities, and of a stream without tokens.
_BYTES_PER_STREAM_TOKEN, _BYTES_PER_STREAM = 8 << 10, 256 << 10
# Seconds to wait for the usage after a finished answer.
_USAGE_SECONDS = 1.0


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds.

    `startup`: for a server that is loading its model. `first_token`: until a row's first token, including the server's
    queue. `between_tokens`: from one token to the next. `busy`: for retries of a row while the server is busy.
    """

    startup: float = 600.0
    first_token: float = 300.0
    between_tokens: float = 60.0
    busy: float = 30.0


@dataclass(frozen=True)
class Connection:
    """What rows need to reach the server; `stream_slots` limits the number of open streams."""

    server_client: ServerClient
    http_client: httpx.AsyncClient
    timeouts: Timeouts
    stream_slots: asyncio.Semaphore


@dataclass(frozen=True)
class CompletionCall:
    """One POST to /completions for `count` samples, of which the first has index `first_index`."""

    body: Mapping[str, Any]
    first_index: int
    count: int


class RemoteRow:
    """All calls of one row. `run` runs on the event loop's thread; `row_output` may be called from any thread."""

    def __init__(
        self, key: int, row: Row, decoding: SamplingParams, calls: Sequence[CompletionCall], notes: tuple[str, ...]
    ) -> None:
        self.key = key
        self.num_seqs = decoding.candidates
        self._decoding = decoding
        self._calls = calls
        self._notes = notes
        self._raw = row.style is None
        self._candidates = [StreamedCandidate(row.style, decoding) for _ in range(decoding.candidates)]
        self._started_at: float | None = None

    def row_output(self, *, cancelled: bool = False, error: PromptOrTuneError | None = None) -> RowOutput:
        """Return the row's last event with everything received so far; the error's message says if it is kept."""
        seconds = 0.0 if self._started_at is None else time.perf_counter() - self._started_at
        samples = tuple(
            candidate.candidate() for candidate in self._candidates if candidate.is_finished or candidate.text
        )
        return RowOutput(
            self.key,
            dedupe_candidates(samples, raw=self._raw),
            seconds,
            cancelled=cancelled,
            samples=samples if self._decoding.mode == "sample" else (),
            error=None if error is None else self._error_message(error),
            exception=error,
            notes=(*self._notes, *self._logprobs_notes()),
        )

    def _logprobs_notes(self) -> tuple[str, ...]:
        """Return a note if log-probabilities matter (several candidates, or requested) and some are missing."""
        is_read = self._decoding.candidates > 1 or self._decoding.top_logprobs is not None
        is_missing = any(candidate.text and not candidate.has_logprobs for candidate in self._candidates)
        return (MISSING_LOGPROBS_NOTE,) if is_read and is_missing else ()

    async def run(self, connection: Connection, emit: Callable[[PartialOutput | RowOutput], None]) -> None:
        """Run all calls; `emit` gets every PartialOutput and, unless cancelled, one RowOutput.

        The first PromptOrTuneError of a call becomes the row's error; any other exception is raised.
        """
        calls = [self._call_with_retries(call, connection, emit) for call in self._calls]
        outputs = await asyncio.gather(*calls, return_exceptions=True)
        errors = [end for end in outputs if isinstance(end, Exception)]
        expected = [error for error in errors if isinstance(error, PromptOrTuneError)]
        if errors and not expected:
            raise errors[0]
        emit(self.row_output(error=expected[0] if expected else None))

    async def _call_with_retries(
        self, call: CompletionCall, connection: Connection, emit: Callable[[PartialOutput], None]
    ) -> None:
        """Run one call; retry while the server is busy, within the limit of `timeouts.busy`.

        A connection that breaks before the response is retried once: servers close idle connections.
        """
        left, is_first = connection.timeouts.busy, True
        while True:
            try:
                async with connection.stream_slots:
                    return await self._call(call, connection, emit)
            except BusyError as busy:
                left -= busy.seconds
                if left < 0:
                    raise
                await asyncio.sleep(busy.seconds)
            except httpx.HTTPError as error:
                if not is_first:
                    raise connection.server_client.connection_error(error) from error
                is_first = False

    async def _call(self, call: CompletionCall, connection: Connection, emit: Callable[[PartialOutput], None]) -> None:
        client = connection.server_client
        limit = _BYTES_PER_STREAM + _BYTES_PER_STREAM_TOKEN * self._decoding.max_new_tokens * call.count
        events = SSEDecoder(client.host, limit, client.sanitize)
        clock = asyncio.get_running_loop().time
        if self._started_at is None:  # the time spent waiting for a stream slot is not the server's
            self._started_at = time.perf_counter()
        has_begun = False
        try:
            async with (
                asyncio.timeout(connection.timeouts.first_token) as deadline,
                connection.http_client.stream("POST", f"{client.url}/completions", json=call.body) as response,
            ):
                has_begun = True
                await _require_stream(response, client, str(call.body["model"]))
                async for chunk in response.aiter_raw():
                    has_new = [self._on_event(event, call, client, emit) for event in events.feed(chunk)]
                    if any(has_new):
                        seconds = _USAGE_SECONDS if self._is_finished(call) else connection.timeouts.between_tokens
                        deadline.reschedule(clock() + seconds)
                    if events.done or self._is_cut_off(call):
                        break
            if not self._is_finished(call):
                raise EngineError(f"The server at {client.host} ended the stream in the middle of the answer.")
        except (httpx.HTTPError, TimeoutError) as error:
            if not has_begun and isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
                raise
            if not self._is_finished(call):
                raise client.connection_error(error) from error

    def _on_event(
        self,
        event: Mapping[str, Any],
        call: CompletionCall,
        client: ServerClient,
        emit: Callable[[PartialOutput], None],
    ) -> bool:
        """Process one event; return whether it added to a candidate.

        Only such events extend the deadline: comments and empty chunks do not count as progress.
        """
        if "error" in event:
            raise client.status_error(200, {}, event)
        choices, usage = event.get("choices"), event.get("usage")
        open_before = [
            sample for sample in self._candidates_of(call) if sample.ended_by_server or not sample.is_finished
        ]
        has_new = False
        for choice in choices if isinstance(choices, list) else []:
            index = choice.get("index", 0) if isinstance(choice, dict) else None
            if (
                type(index) is not int
                or not 0 <= index < call.count
                or self._candidates[call.first_index + index].is_finished
            ):
                continue
            candidate = self._candidates[call.first_index + index]
            if choice.get("finish_reason") in _FAILED_REASONS:
                raise EngineError(
                    f"The server at {client.host} gave up an answer (finish_reason '{choice['finish_reason']}'): "
                    "look at its log."
                )
            candidate.feed(choice)
            has_new = True
            emit(PartialOutput(self.key, candidate.stable_text, candidate.tokens, call.first_index + index))
        if call.count == 1 and open_before and isinstance(usage, dict):
            open_before[0].set_token_count(usage.get("completion_tokens"))
        return has_new

    def _candidates_of(self, call: CompletionCall) -> list[StreamedCandidate]:
        return self._candidates[call.first_index : call.first_index + call.count]

    def _is_finished(self, call: CompletionCall) -> bool:
        return all(candidate.is_finished for candidate in self._candidates_of(call))

    def _is_cut_off(self, call: CompletionCall) -> bool:
        """Return whether to close the stream: all candidates have ended, and at least one by our own rule.

        A stream whose candidates were all ended by the server is read to its end because the usage comes last.
        """
        return self._is_finished(call) and not all(candidate.ended_by_server for candidate in self._candidates_of(call))

    def _error_message(self, error: PromptOrTuneError) -> str:
        """Return the error's message, with a note that the received text is kept if there is any."""
        if isinstance(error, BusyError) or not any(candidate.text for candidate in self._candidates):
            return str(error)
        return f"{str(error).rstrip('.')}; the text received before is kept as a partial answer."


async def _require_stream(response: httpx.Response, client: ServerClient, model: str) -> None:
    """Raise PromptOrTuneError unless the response is a stream of events."""
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code == 200 and content_type == "text/event-stream":
        return
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            break
    if response.status_code != 200:
        raise client.status_error(response.status_code, response.headers, decode_json(bytes(content))[0], model)
    raise PromptOrTuneError(
        f"The server at {client.host} does not stream (it sent {client.sanitize(content_type) or 'nothing'})."
    )
