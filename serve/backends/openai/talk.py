"""One row's conversation with the server: its calls, what they say as they say it, and how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from errors import BusyError, PromptOrTuneError
from serve.backends.local.speech import dedupe_candidates
from serve.backends.openai.events import SSEDecoder
from serve.backends.openai.said import StreamedCandidate
from serve.backends.openai.wire import MAX_BODY_BYTES, ServerClient, read_json
from serve.rows import PartialOutput, Row, RowOutput, SamplingParams

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
        faults = [end for end in ends if isinstance(end, Exception)]
        known = [str(fault) for fault in faults if isinstance(fault, PromptOrTuneError)]
        if faults and not known:
            raise faults[0]
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
            except httpx.HTTPError as fault:
                if not is_first:
                    raise connection.server_client.connection_error(fault) from fault
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
        except (httpx.HTTPError, TimeoutError) as fault:
            if not has_begun and isinstance(fault, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
                raise
            if not self._is_finished(call):
                raise self._with_partial_note(call, wire.connection_error(fault)) from fault
        except PromptOrTuneError as fault:
            raise self._with_partial_note(call, fault) from fault

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
