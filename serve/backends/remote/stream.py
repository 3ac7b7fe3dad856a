"""One row = one or more streamed completions.

One row's conversation with the server: its calls, what they say as they say it, and how they end.

One growing answer as it comes from a server: its text, its tokens as far as they are told, and its end.

Rows in flight at another server: each is a stream of its own, so they join and leave when they like.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal

import httpx

from errors import BusyError, PromptOrTuneError
from serve.backends.remote.client import MAX_BODY_BYTES, ServerClient, SSEDecoder, read_json
from serve.generated_text import dedupe_candidates, find_stop, stable_prefix
from serve.types import Candidate, PartialOutput, Row, RowOutput, SamplingParams, TokenLogprob
from tasks.extract import answer_end, extract_code
from tasks.prompt import PromptStyle

# A chunk is a token or more, seldom none; a server that goes on for longer than this was not told, or does not listen.
_EXTRA_CHUNKS = 16
# Longer than the text of any token that is no attack.
_MAX_TOKEN_CHARACTERS = 256


class StreamedCandidate:
    """One candidate. Its end is our own rule's (tasks.extract.answer_end), a stop string's, or the server's."""

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
        self.ended_by_server = False  # by the server, and not by us

    @property
    def is_finished(self) -> bool:
        """Whether nothing that comes now belongs to the answer."""
        return self.finish_reason is not None

    @property
    def has_logprobs(self) -> bool:
        """Whether the server tells log-probabilities with this answer."""
        return bool(self._tokens)

    @property
    def text(self) -> str:
        """What has been said so far, up to the end."""
        return self._text if self._end is None else self._text[: self._end]

    @property
    def stable_text(self) -> str:
        """As much of it as will stay, whatever comes."""
        return stable_prefix(self.text, self._decoding.stop, raw=self._style is None) if self._end is None else self.text

    @property
    def tokens(self) -> int:
        """Tokens said: the server's count, else that of its log-probabilities, else one a chunk."""
        if self._server_token_count is not None:
            return self._server_token_count
        return min(len(self._tokens) or self._chunks, self._decoding.max_new_tokens)

    def feed(self, choice: Mapping[str, Any]) -> None:
        """Takes in one chunk of a `choices` list."""
        if self.is_finished:
            return
        text = choice.get("text")
        if isinstance(text, str) and text:
            self._text += text
            self._chunks += 1
        for token in parse_logprobs(choice.get("logprobs")):
            self._tokens.append(token)
            self._logprob += token.logprob
        self._end = self._find_end()
        reason = choice.get("finish_reason")
        self.ended_by_server = reason is not None
        if self._end is not None or reason is not None:
            self.finish_reason = "length" if self._end is None and reason == "length" else "stop"
        elif self._exceeds_limits():
            self.finish_reason = "length"

    def set_token_count(self, tokens: object) -> None:
        """The server's own count so far."""
        if type(tokens) is int and 0 <= tokens <= self._decoding.max_new_tokens:
            self._server_token_count = tokens

    def candidate(self) -> Candidate:
        """The answer as far as it has come, with its code."""
        return Candidate(
            text=self.text,
            code=self.text if self._style is None else extract_code(self.text, self._style),
            logprob=self._logprob,
            tokens=self.tokens,
            finish=self.finish_reason or "cancelled",
            token_logprobs=tuple(self._tokens) if self._decoding.top_logprobs is not None else (),
        )

    def _find_end(self) -> int | None:
        text = self._text[: find_stop(self._text, self._decoding.stop)]
        end = None if self._style is None else answer_end(text, self._style)
        return end if end is not None or len(text) == len(self._text) else len(text)

    def _exceeds_limits(self) -> bool:
        most = self._decoding.max_new_tokens
        return (
            len(self._tokens) >= most
            or self._chunks >= 2 * most + _EXTRA_CHUNKS
            or len(self._text) > _MAX_TOKEN_CHARACTERS * (most + _EXTRA_CHUNKS)
        )


def parse_logprobs(logprobs: object) -> Iterator[TokenLogprob]:
    """The tokens of a chunk's `logprobs`, in either of OpenAI's forms; nothing where they are broken."""
    if not isinstance(logprobs, dict):
        return
    if "content" in logprobs:
        for entry in _items(logprobs["content"]):
            if isinstance(entry, dict):
                listed = [top for top in _items(entry.get("top_logprobs")) if isinstance(top, dict)]
                pairs = [(top.get("token"), top.get("logprob")) for top in listed]
                yield from _parse_token(entry.get("token"), entry.get("logprob"), pairs)
        return
    tokens, values, tops = (_items(logprobs.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    for place, (token, value) in enumerate(zip(tokens, values, strict=False)):
        at = tops[place] if place < len(tops) else None
        yield from _parse_token(token, value, list(at.items()) if isinstance(at, dict) else [])


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


MISSING_LOGPROBS_NOTE = "This engine did not tell all log-probabilities: those that are missing stand as 0."
# What a token may cost on the wire, its twenty likeliest neighbours included, and what a stream costs by itself.
_BYTES_PER_STREAM_TOKEN, _BYTES_PER_STREAM = 8 << 10, 256 << 10
# How long the usage may take behind an answer that is over.
_USAGE_SECONDS = 1.0


@dataclass(frozen=True)
class Timeouts:
    """Seconds: for a server that still loads its model, until a row's first token (a server has a queue of its own),
    from one token to the next, and for a row that finds the server busy.
    """

    startup: float = 600.0
    first_token: float = 300.0
    between_tokens: float = 60.0
    busy: float = 30.0


@dataclass(frozen=True)
class Connection:
    """How rows reach the server: `places` bounds how many streams are open at once."""

    server_client: ServerClient
    http_client: httpx.AsyncClient
    timeouts: Timeouts
    stream_slots: asyncio.Semaphore


@dataclass(frozen=True)
class CompletionCall:
    """One POST to /completions; its first choice is sample number `first`."""

    body: Mapping[str, Any]
    first_index: int
    count: int


class RemoteRow:
    """All calls of one row. `run` works on the loop's thread; `finished` may be asked from any other."""

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

    def row_output(self, *, cancelled: bool = False, error: str | None = None) -> RowOutput:
        """The row's end, with all that was said."""
        seconds = 0.0 if self._started_at is None else time.perf_counter() - self._started_at
        samples = tuple(said.candidate() for said in self._candidates if said.is_finished or said.text)
        return RowOutput(
            self.key,
            dedupe_candidates(samples, raw=self._raw),
            seconds,
            cancelled=cancelled,
            samples=samples if self._decoding.mode == "sample" else (),
            error=error,
            notes=(*self._notes, *self._logprobs_notes()),
        )

    def _logprobs_notes(self) -> tuple[str, ...]:
        """What to say where somebody reads log-probabilities and the server did not tell them, or not yet."""
        is_read = self._decoding.candidates > 1 or self._decoding.top_logprobs is not None
        return (
            (MISSING_LOGPROBS_NOTE,)
            if is_read and any(said.text and not said.has_logprobs for said in self._candidates)
            else ()
        )

    async def run(self, connection: Connection, emit: Callable[[PartialOutput | RowOutput], None]) -> None:
        """The whole conversation. `tell` hears of every growth, and of one end unless this is cancelled."""
        calls = [self._call_with_retries(call, connection, emit) for call in self._calls]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        errors = [end for end in ends if isinstance(end, Exception)]
        known = [str(fault) for fault in errors if isinstance(fault, PromptOrTuneError)]
        if errors and not known:
            raise errors[0]
        emit(self.row_output(error=known[0] if known else None))

    async def _call_with_retries(
        self, call: CompletionCall, connection: Connection, emit: Callable[[PartialOutput], None]
    ) -> None:
        """One call, asked again where the server says that it is busy and for not too long.

        Once it is also asked again where the connection was gone before it answered: servers close idle ones.
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
        wire = connection.server_client
        most = _BYTES_PER_STREAM + _BYTES_PER_STREAM_TOKEN * self._decoding.max_new_tokens * call.count
        events = SSEDecoder(wire.host, most, wire.sanitize)
        clock = asyncio.get_running_loop().time
        if self._started_at is None:  # what it waited for its place is not the server's time
            self._started_at = time.perf_counter()
        has_begun = False
        try:
            async with (
                asyncio.timeout(connection.timeouts.first_token) as alarm,
                connection.http_client.stream("POST", f"{wire.url}/completions", json=call.body) as response,
            ):
                has_begun = True
                await _require_stream(response, wire, str(call.body["model"]))
                async for chunk in response.aiter_raw():
                    news = [self._on_event(event, call, wire, emit) for event in events.feed(chunk)]
                    if any(news):
                        patience = _USAGE_SECONDS if self._is_finished(call) else connection.timeouts.between_tokens
                        alarm.reschedule(clock() + patience)
                    if events.done or self._is_cut_off(call):
                        break
            if not self._is_finished(call):
                raise PromptOrTuneError(f"The server at {wire.host} ended in the middle of the answer.")
        except (httpx.HTTPError, TimeoutError) as error:
            if not has_begun and isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
                raise
            if not self._is_finished(call):
                raise self._with_partial_note(call, wire.connection_error(error)) from error
        except PromptOrTuneError as error:
            raise self._with_partial_note(call, error) from error

    def _on_event(
        self,
        event: Mapping[str, Any],
        call: CompletionCall,
        client: ServerClient,
        emit: Callable[[PartialOutput], None],
    ) -> bool:
        """Takes one event in; whether it brought anything new."""
        if "error" in event:
            raise client.status_error(200, {}, event)
        choices, usage = event.get("choices"), event.get("usage")
        counted = [said for said in self._candidates_of(call) if said.ended_by_server or not said.is_finished]
        new = False
        for choice in choices if isinstance(choices, list) else []:
            place = choice.get("index", 0) if isinstance(choice, dict) else None
            if (
                type(place) is not int
                or not 0 <= place < call.count
                or self._candidates[call.first_index + place].is_finished
            ):
                continue
            said = self._candidates[call.first_index + place]
            said.feed(choice)
            new = True
            emit(PartialOutput(self.key, said.stable_text, said.tokens, call.first_index + place))
        if call.count == 1 and counted and isinstance(usage, dict):
            counted[0].set_token_count(usage.get("completion_tokens"))
        return new

    def _candidates_of(self, call: CompletionCall) -> list[StreamedCandidate]:
        return self._candidates[call.first_index : call.first_index + call.count]

    def _is_finished(self, call: CompletionCall) -> bool:
        return all(said.is_finished for said in self._candidates_of(call))

    def _is_cut_off(self, call: CompletionCall) -> bool:
        """Whether nothing that comes is wanted. What the server ended itself is read to its last word, the usage."""
        return self._is_finished(call) and not all(said.ended_by_server for said in self._candidates_of(call))

    def _with_partial_note(self, call: CompletionCall, error: PromptOrTuneError) -> PromptOrTuneError:
        """The same fault; where something was said before it, the sentence says that it is kept."""
        if isinstance(error, BusyError) or not any(said.text for said in self._candidates_of(call)):
            return error
        return PromptOrTuneError(f"{str(error).rstrip('.')}; what it had said before is kept, half an answer.")


async def _require_stream(response: httpx.Response, client: ServerClient, model: str) -> None:
    """PromptOrTuneError unless the server begins a stream of events."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code == 200 and kind == "text/event-stream":
        return
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            break
    if response.status_code != 200:
        raise client.status_error(response.status_code, response.headers, read_json(bytes(content))[0], model)
    raise PromptOrTuneError(
        f"The server at {client.host} does not stream (it sent {client.sanitize(kind) or 'nothing'})."
    )


# How long a step waits for the first event: a cancelled row, or a new one, waits as long at most.
_STEP_SECONDS = 0.05
_log = logging.getLogger(__name__)
RowEvent = PartialOutput | RowOutput


class EventLoopThread:
    """The thread on which all conversations with one server run, and its connections. Starts when first used."""

    def __init__(self, client: ServerClient, timeouts: Timeouts, max_streams: int) -> None:
        self._client = client
        self._timeouts = timeouts
        self._max_streams = max_streams
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, Connection] | None = None

    def submit(self, row: RemoteRow, emit: Callable[[RowEvent], None]) -> Future[None]:
        """Starts a conversation; cancelling the future closes its streams."""
        with self._lock:
            if self._running is None:
                loop = asyncio.new_event_loop()
                places = asyncio.Semaphore(self._max_streams)
                self._running = loop, Connection(self._client, self._client.streaming_client(), self._timeouts, places)
                threading.Thread(target=_run_loop, args=(loop,), name="remote-rows", daemon=True).start()
            loop, way = self._running
        return asyncio.run_coroutine_threadsafe(self._run_row(row, way, emit), loop)

    async def _run_row(self, row: RemoteRow, connection: Connection, emit: Callable[[RowEvent], None]) -> None:
        try:
            await row.run(connection, emit)
        except Exception as fault:  # noqa: BLE001 - one row's defect is that row's alone; it is logged whole
            _log.exception("A row's conversation with %s failed.", self._client.host)
            sentence = f"The answer of {self._client.host} could not be read ({type(fault).__name__}): see the log."
            emit(row.row_output(error=sentence))

    def close(self) -> None:
        """Ends all conversations and the thread."""
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        loop, way = running

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await way.http_client.aclose()
            await loop.shutdown_asyncgens()
            loop.stop()

        asyncio.run_coroutine_threadsafe(end(), loop)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


class RemoteBatch:
    """Implements Batch (serve.types) for one server. `make` turns a row into its conversation, or refuses it."""

    supports_continuous_batching = True

    def __init__(self, loop_thread: EventLoopThread, make_row: Callable[[int, Row, SamplingParams], RemoteRow]) -> None:
        self._loop_thread = loop_thread
        self._make_row = make_row
        self._events: SimpleQueue[tuple[RemoteRow, RowEvent]] = SimpleQueue()
        self._running: dict[int, tuple[RemoteRow, Future[None]]] = {}

    def __len__(self) -> int:
        return sum(talk.num_seqs for talk, _ in self._running.values())

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        """Sends the row off; PromptOrTuneError where this engine cannot answer it."""
        if sampling_params.mode == "beam":
            raise PromptOrTuneError("This engine has no beam search: choose sampling, which gives several answers too.")
        talk = self._make_row(key, row, sampling_params)
        self._running[key] = talk, self._loop_thread.submit(talk, lambda event: self._events.put((talk, event)))

    def step(self) -> list[RowEvent]:
        """What has come since the last step, after a short wait for it; of a growing answer the latest state."""
        if not self._running:
            return []
        ends: list[RowEvent] = []
        grown: dict[tuple[int, int], PartialOutput] = {}
        for talk, event in self._drain_events():
            if self._running.get(event.index, (None,))[0] is not talk:
                continue  # of a row that was cancelled, whatever its number means by now
            if isinstance(event, PartialOutput):
                grown[event.index, event.candidate] = event
            else:
                del self._running[event.index]
                ends.append(event)
        over = {event.index for event in ends}
        return [*(event for event in grown.values() if event.index not in over), *ends]

    def cancel(self, key: int) -> RowOutput:
        """Closes the row's streams; what it has said is its answer."""
        talk, future = self._running.pop(key)
        future.cancel()
        return talk.row_output(cancelled=True)

    def _drain_events(self) -> Iterable[tuple[RemoteRow, RowEvent]]:
        try:
            yield self._events.get(timeout=_STEP_SECONDS)
            while True:
                yield self._events.get_nowait()
        except Empty:
            return
