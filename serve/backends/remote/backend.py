"""Backend over an OpenAI-compatible server.

The remote backend: each row is a streamed completion of any server that speaks OpenAI's API.

The options that choose another engine, the same for every program that has them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal

from adapters.store import AdapterFolder
from common.paths import ProgressFn
from errors import BusyError, PromptOrTuneError, unknown_name_error
from models.identity import BaseIdentity
from serve.backends.remote.client import ServerClient
from serve.backends.remote.servers import RemoteAdapters, ServerInfo, discover, supports_logprobs
from serve.backends.remote.stream import CompletionCall, EventLoopThread, RemoteBatch, RemoteRow, Timeouts
from serve.backends.remote.tokenizer import ESTIMATED_NOTE, LocalTokenizer, TokenCounter, base_identity, known_base
from serve.types import PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import Message


class OpenAIBackend:
    """Implements Backend (serve.types) over HTTP. Rows are independent: one that fails leaves the others alone."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        base: str | None = None,
        report: ProgressFn = lambda _: None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """Asks the server what it is. PromptOrTuneError in one sentence where it cannot be used.

        `model` is what the base is called there, by default the first one that the server lists; `base` says which
        base that is, as --base does, so that its adapters can be told and its chat template be found.
        """
        timeouts = timeouts or Timeouts()
        self._client = ServerClient(url, api_key)
        report(f"Asking {self._client.host} which model it serves ...")
        self._server, self._has_logprobs = _discover_when_ready(self._client, model, timeouts.startup, report)
        known = known_base(base, report) if base else None
        self._tokenizer = LocalTokenizer(known.folder) if known and known.folder else None
        self._name = f"{self._server.server_type.name} at {self._client.host}"
        self._identity = base_identity(self._server, known, self._tokenizer, self._name)
        self._token_counter = TokenCounter(
            self._client, self._server.model, self._tokenizer.count if self._tokenizer else None
        )
        self._adapters = RemoteAdapters(self._client, self._server)
        self._loop_thread = EventLoopThread(self._client, timeouts, self._server.server_type.max_streams)
        for sentence in self._warnings():
            report(sentence)

    def _warnings(self) -> Iterator[str]:
        """What somebody should know before they compare."""
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
        """What the server serves, as far as it says and --base knows."""
        return self._identity

    def unsupported_reason(self, folder: AdapterFolder | None, scale: float = 1.0) -> str | None:
        """Why this engine cannot answer with the adapter at that strength, in one sentence; None where it can."""
        return self._adapters.unsupported_reason(folder, scale)

    def open_batch(self, mode: Literal["step", "beam"]) -> RemoteBatch:  # noqa: ARG002 - beams are refused row by row
        """An empty batch; rows join it and leave it at any time."""
        return RemoteBatch(self._loop_thread, self._make_row)

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """The base's own chat template around `messages`, open for the assistant's answer."""
        if self._tokenizer is None or not self._tokenizer.has_template:
            raise PromptOrTuneError(
                f"The chat template of '{self._identity.id}' is not known here: name the base with --base and have its "
                "tokenizer in the Hub's cache."
            )
        return self._tokenizer.chat(messages)

    def count_tokens(self, text: str) -> int:
        """How many tokens the server reads for `text`; an estimate on the safe side where nothing can count them."""
        return self._token_counter(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Makes the adapter's rows possible at the server; AdapterError in one sentence where it cannot."""
        self._adapters.load(folder)

    def unload_adapter(self, name: str) -> None:
        """Has the server forget an adapter that we had it load."""
        self._adapters.unload(name)

    def adapter_bytes(self, name: str) -> int:  # noqa: ARG002
        """None of this machine's memory."""
        return 0

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """All rows at once, to the end; a row that cannot be answered ends with its sentence."""
        batch = self.open_batch("step")
        live = set()
        for index, row in enumerate(rows):
            try:
                batch.add(index, row, sampling_params)
                live.add(index)
            except PromptOrTuneError as fault:
                yield RowOutput(index, (), 0.0, error=str(fault))
        while live:
            if cancel.is_set():
                yield from (batch.cancel(index) for index in sorted(live))
                return
            for event in batch.step():
                if isinstance(event, RowOutput):
                    live.discard(event.index)
                yield event

    def close(self) -> None:
        """Ends all conversations."""
        self._loop_thread.close()
        self._client.close()

    def _make_row(self, key: int, row: Row, decoding: SamplingParams) -> RemoteRow:
        if row.adapter is not None and row.scale != 1 and not self._server.server_type.supports_scale:
            raise PromptOrTuneError(
                f"{self._name} wears an adapter at its full strength only: ask for '{row.adapter}' alone."
            )
        notes = (ESTIMATED_NOTE,) if self._token_counter.is_estimate else ()
        return RemoteRow(key, row, decoding, list(self._completion_calls(row, decoding)), notes)

    def _completion_calls(self, row: Row, decoding: SamplingParams) -> Iterator[CompletionCall]:
        """One call for all samples where the server gives several at once, else one a sample with a seed of its own."""
        together = decoding.candidates if self._server.server_type.supports_n else 1
        for first in range(0, decoding.candidates, together):
            yield CompletionCall(self._request_body(row, decoding, first, together), first, together)

    def _request_body(self, row: Row, decoding: SamplingParams, first_index: int, count: int) -> dict[str, Any]:
        kind = self._server.server_type
        body: dict[str, Any] = {
            **self._adapters.adapter_fields(row.adapter, row.scale),
            "prompt": row.prompt,
            "max_tokens": decoding.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True, **kind.usage_options},
            **kind.neutral,
        }
        if decoding.mode == "sample":
            body |= {"n": count, "temperature": decoding.temperature, "seed": decoding.seed + first_index}
            body |= {"top_p": decoding.top_p} if decoding.top_p < 1 else {}
        else:
            body |= kind.greedy
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if self._has_logprobs:
            body["logprobs"] = max(1, decoding.top_logprobs or 0)
        return body


def _discover_when_ready(
    client: ServerClient, model: str | None, seconds: float, report: ProgressFn
) -> tuple[ServerInfo, bool]:
    """What the server is, and whether it gives log-probabilities. One that still loads is waited for."""
    until = time.monotonic() + seconds
    while True:
        try:
            facts = discover(client, model)
            return facts, supports_logprobs(client, facts)
        except BusyError as busy:
            if time.monotonic() + busy.seconds > until:
                raise
            report(f"{busy} Waiting for it ...")
            time.sleep(busy.seconds)


BACKENDS = ("local", "openai")


@dataclass(frozen=True)
class RemoteOptions:
    """A server to ask instead of a base in this process. The key is in no representation."""

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
    """The server that the options name, None for the local engine; PromptOrTuneError where they contradict one another."""
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
