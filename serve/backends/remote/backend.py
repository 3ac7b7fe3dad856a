"""Backend over an OpenAI-compatible server, and the command-line options that choose it.

All streams run as asyncio tasks on one thread (`EventLoopThread`). `RemoteBatch` hands their events to the engine's
thread, so that rows join and leave the batch independently of each other.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, Literal

from adapters.store import AdapterFolder
from common.files import ProgressFn
from errors import BusyError, EngineError, PromptOrTuneError, unknown_name_error
from models.source import BaseIdentity
from serve.backends.remote.client import ServerClient
from serve.backends.remote.servers import RemoteAdapters, ServerInfo, discover, supports_logprobs
from serve.backends.remote.stream import CompletionCall, Connection, RemoteRow, RowEvent, Timeouts
from serve.backends.remote.tokenizer import (
    ESTIMATED_NOTE,
    LocalTokenizer,
    TokenCounter,
    base_identity,
    known_base,
    known_context_length,
)
from serve.types import PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import Message

# How long a step waits for an event; it delays a cancel or a new row by at most this.
_STEP_SECONDS = 0.05
_log = logging.getLogger(__name__)


class EventLoopThread:
    """The thread with the asyncio event loop for all streams of one server; it starts with the first row."""

    def __init__(self, client: ServerClient, timeouts: Timeouts, max_streams: int) -> None:
        self._client = client
        self._timeouts = timeouts
        self._max_streams = max_streams
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, Connection] | None = None

    def submit(self, row: RemoteRow, emit: Callable[[RowEvent], None]) -> Future[None]:
        """Start the row's streams; cancelling the future closes them."""
        with self._lock:
            if self._running is None:
                loop = asyncio.new_event_loop()
                stream_slots = asyncio.Semaphore(self._max_streams)
                http_client = self._client.streaming_client()
                self._running = loop, Connection(self._client, http_client, self._timeouts, stream_slots)
                threading.Thread(target=_run_loop, args=(loop,), name="remote-rows", daemon=True).start()
            loop, connection = self._running
        return asyncio.run_coroutine_threadsafe(self._run_row(row, connection, emit), loop)

    async def _run_row(self, row: RemoteRow, connection: Connection, emit: Callable[[RowEvent], None]) -> None:
        try:
            await row.run(connection, emit)
        except Exception as error:  # noqa: BLE001 - a defect must fail this row only; it is logged
            _log.exception("A row at %s failed.", self._client.host)
            message = f"The answer of {self._client.host} could not be read ({type(error).__name__}): see the log."
            emit(row.row_output(error=EngineError(message)))

    def close(self) -> None:
        """Close all streams and end the thread."""
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        loop, connection = running

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await connection.http_client.aclose()
            await loop.shutdown_asyncgens()
            loop.stop()

        asyncio.run_coroutine_threadsafe(end(), loop)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


class RemoteBatch:
    """Implements Batch (serve/types.py) for one server. `make_row` may refuse a row with a PromptOrTuneError."""

    supports_continuous_batching = True

    def __init__(self, loop_thread: EventLoopThread, make_row: Callable[[int, Row, SamplingParams], RemoteRow]) -> None:
        self._loop_thread = loop_thread
        self._make_row = make_row
        self._events: SimpleQueue[tuple[RemoteRow, RowEvent]] = SimpleQueue()
        self._running: dict[int, tuple[RemoteRow, Future[None]]] = {}

    def __len__(self) -> int:
        return sum(remote_row.num_seqs for remote_row, _ in self._running.values())

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        """Start the row; raises PromptOrTuneError if this engine cannot answer it."""
        if sampling_params.mode == "beam":
            raise PromptOrTuneError("This engine has no beam search: choose sampling for several answers.")
        remote_row = self._make_row(key, row, sampling_params)
        future = self._loop_thread.submit(remote_row, lambda event: self._events.put((remote_row, event)))
        self._running[key] = remote_row, future

    def step(self) -> list[RowEvent]:
        """Wait shortly for events and return those since the last step; of a running candidate only the latest."""
        if not self._running:
            return []
        outputs: list[RowEvent] = []
        latest_partials: dict[tuple[int, int], PartialOutput] = {}
        for remote_row, event in self._drain_events():
            if self._running.get(event.index, (None,))[0] is not remote_row:
                continue  # an event of a cancelled row, whose key may belong to another row by now
            if isinstance(event, PartialOutput):
                latest_partials[event.index, event.candidate] = event
            else:
                del self._running[event.index]
                outputs.append(event)
        finished_keys = {event.index for event in outputs}
        return [*(event for event in latest_partials.values() if event.index not in finished_keys), *outputs]

    def cancel(self, key: int) -> RowOutput:
        """Close the row's streams; the text received so far is its answer."""
        remote_row, future = self._running.pop(key)
        future.cancel()
        return remote_row.row_output(cancelled=True)

    def _drain_events(self) -> Iterable[tuple[RemoteRow, RowEvent]]:
        try:
            yield self._events.get(timeout=_STEP_SECONDS)
            while True:
                yield self._events.get_nowait()
        except Empty:
            return


class OpenAIBackend:
    """Implements Backend (serve/types.py) over HTTP. Rows are independent: a failing row does not affect others."""

    has_independent_rows = True

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        base: str | None = None,
        report: ProgressFn = lambda _: None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """Discover the server; raises PromptOrTuneError if it cannot be used.

        `model` is the server's name of the base, by default its first model. `base` names that base as --base does, so
        that its adapters are recognized and its chat template is found.
        """
        timeouts = timeouts or Timeouts()
        self._client = ServerClient(url, api_key)
        report(f"Looking up the model of {self._client.host} ...")
        self._server, self._has_logprobs = _discover_when_ready(self._client, model, timeouts.startup, report)
        known = known_base(base, report) if base else None
        self._tokenizer = LocalTokenizer(known.folder) if known and known.folder else None
        self._name = f"{self._server.server_type.name} at {self._client.host}"
        self._identity = base_identity(self._server, known, self._tokenizer, self._name)
        self._token_counter = TokenCounter(
            self._client, self._server.model, self._tokenizer.count if self._tokenizer else None
        )
        self.has_exact_limits = bool(known_context_length(self._server, known)) and not self._token_counter.is_estimate
        """Whether a prompt that seems too long is: otherwise the server has to say so."""
        self._adapters = RemoteAdapters(self._client, self._server)
        self._loop_thread = EventLoopThread(self._client, timeouts, self._server.server_type.max_streams)
        for warning in self._warnings():
            report(warning)

    def _warnings(self) -> Iterator[str]:
        """Yield the limitations of this server that affect comparisons."""
        if not self._identity.has_chat_template:
            yield (
                "Prompts are plain ones: the base's chat template is not known here; name the base with --base and "
                "have its tokenizer in the Hub's cache (`hf download NAME --include 'token*' --include '*.json*'`)."
            )
        if self._token_counter.is_estimate:
            yield ESTIMATED_NOTE
        if self._client.sends_key_unencrypted:
            yield f"The API key goes to {self._client.host} unencrypted: use https where others share the network."

    @property
    def base(self) -> BaseIdentity:
        """The identity of the server's base, as far as the server and --base tell it."""
        return self._identity

    def unsupported_reason(self, folder: AdapterFolder | None, scale: float = 1.0) -> str | None:
        """Return why the server cannot answer with the adapter at that scale; None if it can."""
        return self._adapters.unsupported_reason(folder, scale)

    def open_batch(self, mode: Literal["step", "beam"]) -> RemoteBatch:  # noqa: ARG002 - beams are refused row by row
        """Return an empty batch; rows join and leave it at any time."""
        return RemoteBatch(self._loop_thread, self._make_row)

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """Render `messages` with the base's chat template, up to the beginning of the assistant's answer."""
        if self._tokenizer is None or not self._tokenizer.has_template:
            raise PromptOrTuneError(
                f"The chat template of '{self._identity.id}' is not known here: name the base with --base and have its "
                "tokenizer in the Hub's cache."
            )
        return self._tokenizer.chat(messages)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text` at the server; an upper estimate if it cannot be counted."""
        return self._token_counter(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Have the server load the adapter; raises AdapterError if it cannot."""
        self._adapters.load(folder)

    def unload_adapter(self, name: str) -> None:
        """Have the server unload an adapter that it loaded for this backend."""
        self._adapters.unload(name)

    def adapter_bytes(self, name: str) -> int:  # noqa: ARG002
        """Return 0: adapters take no memory of this machine."""
        return 0

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """Generate all rows at once; a row that cannot be answered ends with its error message."""
        batch = self.open_batch("step")
        unfinished = set()
        for index, row in enumerate(rows):
            try:
                batch.add(index, row, sampling_params)
                unfinished.add(index)
            except PromptOrTuneError as error:
                yield RowOutput(index, (), 0.0, error=str(error), exception=error)
        while unfinished:
            if cancel.is_set():
                yield from (batch.cancel(index) for index in sorted(unfinished))
                return
            for event in batch.step():
                if isinstance(event, RowOutput):
                    unfinished.discard(event.index)
                yield event

    def close(self) -> None:
        """Close all streams and connections."""
        self._loop_thread.close()
        self._client.close()

    def _make_row(self, key: int, row: Row, decoding: SamplingParams) -> RemoteRow:
        if row.adapter is not None and row.scale != 1 and not self._server.server_type.supports_scale:
            raise PromptOrTuneError(
                f"{self._name} cannot scale adapters: request '{row.adapter}' without a number after '*'."
            )
        notes = (ESTIMATED_NOTE,) if self._token_counter.is_estimate else ()
        return RemoteRow(key, row, decoding, list(self._completion_calls(row, decoding)), notes)

    def _completion_calls(self, row: Row, decoding: SamplingParams) -> Iterator[CompletionCall]:
        """Yield one call for all samples if the server supports `n`, else one call per sample with its own seed."""
        per_call = decoding.candidates if self._server.server_type.supports_n else 1
        for first in range(0, decoding.candidates, per_call):
            yield CompletionCall(self._request_body(row, decoding, first, per_call), first, per_call)

    def _request_body(self, row: Row, decoding: SamplingParams, first_index: int, count: int) -> dict[str, Any]:
        server_type = self._server.server_type
        body: dict[str, Any] = {
            **self._adapters.adapter_fields(row.adapter, row.scale),
            "prompt": row.prompt,
            "max_tokens": decoding.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True, **server_type.usage_options},
            **server_type.neutral,
        }
        if decoding.mode == "sample":
            body |= {"n": count, "temperature": decoding.temperature, "seed": decoding.seed + first_index}
            body |= {"top_p": decoding.top_p} if decoding.top_p < 1 else {}
        else:
            body |= server_type.greedy
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if self._has_logprobs:
            body["logprobs"] = max(1, decoding.top_logprobs or 0)
        return body


def _discover_when_ready(
    client: ServerClient, model: str | None, seconds: float, report: ProgressFn
) -> tuple[ServerInfo, bool]:
    """Return the server's description and whether it sends log-probabilities; waits for one that is loading."""
    until = time.monotonic() + seconds
    while True:
        try:
            server = discover(client, model)
            return server, supports_logprobs(client, server)
        except BusyError as busy:
            if time.monotonic() + busy.seconds > until:
                raise
            report(f"{busy} Waiting for it ...")
            time.sleep(busy.seconds)


BACKENDS = ("local", "openai")


@dataclass(frozen=True)
class RemoteOptions:
    """A server to use instead of a base in this process. The key is in no representation."""

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)


def add_remote_options(parser: argparse.ArgumentParser) -> None:
    """Adds --backend, --url, --model and --api-key-env."""
    parser.add_argument("--backend", default="local", help=f"{', '.join(BACKENDS)}: which engine answers (%(default)s)")
    parser.add_argument("--url", help="for --backend openai: the server's address, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="for --backend openai: what the server calls its base; else its first model")
    parser.add_argument(
        "--api-key-env", metavar="VARIABLE", help="for --backend openai: the variable that holds the server's API key"
    )


def parse_remote_options(args: argparse.Namespace) -> RemoteOptions | None:
    """Return the server that the options name, None for the local engine.

    Raises PromptOrTuneError for an unknown backend and for options that do not belong together.
    """
    if args.backend not in BACKENDS:
        raise unknown_name_error("backend", args.backend, BACKENDS)
    if args.backend == "local":
        for name in ("url", "model", "api_key_env"):
            if getattr(args, name) is not None:
                raise PromptOrTuneError(
                    f"--{name.replace('_', '-')} belongs to --backend openai: add that, or leave it out."
                )
        return None
    if not args.url:
        raise PromptOrTuneError("--backend openai needs the server's address: add --url http://127.0.0.1:8000/v1.")
    return RemoteOptions(args.url, args.model, _read_api_key(args.api_key_env))


def _read_api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise PromptOrTuneError(
            "The variable that --api-key-env names is not set, or empty: set it to the server's key."
        )
    return key
