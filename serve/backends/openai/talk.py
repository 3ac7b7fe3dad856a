"""One row's conversation with the server: its calls, what they say as they say it, and how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from errors import BusyError, PeftArenaError
from serve.backends.local.speech import merge
from serve.backends.openai.events import Events
from serve.backends.openai.said import Said
from serve.backends.openai.wire import MAX_BODY, Wire, read_json
from serve.rows import Decoding, Finished, Partial, Row

NO_LOGPROBS = "This engine did not tell all log-probabilities: those that are missing stand as 0."
# What a token may cost on the wire, its twenty likeliest neighbours included, and what a stream costs by itself.
_BYTES_A_TOKEN, _BYTES_A_STREAM = 8 << 10, 256 << 10
# How long the usage may take behind an answer that is over.
_LAST_WORD_SECONDS = 1.0


@dataclass(frozen=True)
class Patience:
    """Seconds: for a server that still loads its model, until a row's first token (a server has a queue of its own),
    from one token to the next, and for a row that finds the server busy.
    """

    start: float = 600.0
    first: float = 300.0
    between: float = 60.0
    busy: float = 30.0


@dataclass(frozen=True)
class Way:
    """How rows reach the server: `places` bounds how many streams are open at once."""

    wire: Wire
    client: httpx.AsyncClient
    patience: Patience
    places: asyncio.Semaphore


@dataclass(frozen=True)
class Call:
    """One POST to /completions; its first choice is sample number `first`."""

    body: Mapping[str, Any]
    first: int
    count: int


class Talk:
    """All calls of one row. `run` works on the loop's thread; `finished` may be asked from any other."""

    def __init__(self, key: int, row: Row, decoding: Decoding, calls: Sequence[Call], notes: tuple[str, ...]) -> None:
        self.key = key
        self.lines = decoding.candidates
        self._decoding = decoding
        self._calls = calls
        self._notes = notes
        self._raw = row.style is None
        self._said = [Said(row.style, decoding) for _ in range(decoding.candidates)]
        self._began: float | None = None

    def finished(self, *, cancelled: bool = False, error: str | None = None) -> Finished:
        """The row's end, with all that was said."""
        seconds = 0.0 if self._began is None else time.perf_counter() - self._began
        samples = tuple(said.candidate() for said in self._said if said.is_over or said.text)
        return Finished(
            self.key,
            merge(samples, raw=self._raw),
            seconds,
            cancelled=cancelled,
            samples=samples if self._decoding.mode == "sample" else (),
            error=error,
            notes=(*self._notes, *self._without_logprobs()),
        )

    def _without_logprobs(self) -> tuple[str, ...]:
        """What to say where somebody reads log-probabilities and the server did not tell them, or not yet."""
        is_read = self._decoding.candidates > 1 or self._decoding.top_logprobs is not None
        return (NO_LOGPROBS,) if is_read and any(said.text and not said.told for said in self._said) else ()

    async def run(self, way: Way, tell: Callable[[Partial | Finished], None]) -> None:
        """The whole conversation. `tell` hears of every growth, and of one end unless this is cancelled."""
        calls = [self._patient(call, way, tell) for call in self._calls]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        faults = [end for end in ends if isinstance(end, Exception)]
        known = [str(fault) for fault in faults if isinstance(fault, PeftArenaError)]
        if faults and not known:
            raise faults[0]
        tell(self.finished(error=known[0] if known else None))

    async def _patient(self, call: Call, way: Way, tell: Callable[[Partial], None]) -> None:
        """One call, asked again where the server says that it is busy and for not too long.

        Once it is also asked again where the connection was gone before it answered: servers close idle ones.
        """
        left, is_first = way.patience.busy, True
        while True:
            try:
                async with way.places:
                    return await self._call(call, way, tell)
            except BusyError as busy:
                left -= busy.seconds
                if left < 0:
                    raise
                await asyncio.sleep(busy.seconds)
            except httpx.HTTPError as fault:
                if not is_first:
                    raise way.wire.failure(fault) from fault
                is_first = False

    async def _call(self, call: Call, way: Way, tell: Callable[[Partial], None]) -> None:
        wire = way.wire
        most = _BYTES_A_STREAM + _BYTES_A_TOKEN * self._decoding.max_new_tokens * call.count
        events = Events(wire.host, most, wire.clean)
        clock = asyncio.get_running_loop().time
        if self._began is None:  # what it waited for its place is not the server's time
            self._began = time.perf_counter()
        has_begun = False
        try:
            async with (
                asyncio.timeout(way.patience.first) as alarm,
                way.client.stream("POST", f"{wire.url}/completions", json=call.body) as response,
            ):
                has_begun = True
                await _require_stream(response, wire, str(call.body["model"]))
                async for chunk in response.aiter_raw():
                    news = [self._hear(event, call, wire, tell) for event in events.feed(chunk)]
                    if any(news):
                        patience = _LAST_WORD_SECONDS if self._is_over(call) else way.patience.between
                        alarm.reschedule(clock() + patience)
                    if events.done or self._is_cut(call):
                        break
            if not self._is_over(call):
                raise PeftArenaError(f"The server at {wire.host} ended in the middle of the answer.")
        except (httpx.HTTPError, TimeoutError) as fault:
            if not has_begun and isinstance(fault, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
                raise
            if not self._is_over(call):
                raise self._kept(call, wire.failure(fault)) from fault
        except PeftArenaError as fault:
            raise self._kept(call, fault) from fault

    def _hear(self, event: Mapping[str, Any], call: Call, wire: Wire, tell: Callable[[Partial], None]) -> bool:
        """Takes one event in; whether it brought anything new."""
        if "error" in event:
            raise wire.refusal(200, {}, event)
        choices, usage = event.get("choices"), event.get("usage")
        counted = [said for said in self._of(call) if said.was_ended or not said.is_over]
        new = False
        for choice in choices if isinstance(choices, list) else []:
            place = choice.get("index", 0) if isinstance(choice, dict) else None
            if type(place) is not int or not 0 <= place < call.count or self._said[call.first + place].is_over:
                continue
            said = self._said[call.first + place]
            said.hear(choice)
            new = True
            tell(Partial(self.key, said.grown, said.tokens, call.first + place))
        if call.count == 1 and counted and isinstance(usage, dict):
            counted[0].count(usage.get("completion_tokens"))
        return new

    def _of(self, call: Call) -> list[Said]:
        return self._said[call.first : call.first + call.count]

    def _is_over(self, call: Call) -> bool:
        return all(said.is_over for said in self._of(call))

    def _is_cut(self, call: Call) -> bool:
        """Whether nothing that comes is wanted. What the server ended itself is read to its last word, the usage."""
        return self._is_over(call) and not all(said.was_ended for said in self._of(call))

    def _kept(self, call: Call, fault: PeftArenaError) -> PeftArenaError:
        """The same fault; where something was said before it, the sentence says that it is kept."""
        if isinstance(fault, BusyError) or not any(said.text for said in self._of(call)):
            return fault
        return PeftArenaError(f"{str(fault).rstrip('.')}; what it had said before is kept, half an answer.")


async def _require_stream(response: httpx.Response, wire: Wire, model: str) -> None:
    """PeftArenaError unless the server begins a stream of events."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code == 200 and kind == "text/event-stream":
        return
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_BODY:
            break
    if response.status_code != 200:
        raise wire.refusal(response.status_code, response.headers, read_json(bytes(content))[0], model)
    raise PeftArenaError(f"The server at {wire.host} does not stream (it sent {wire.clean(kind) or 'nothing'}).")
