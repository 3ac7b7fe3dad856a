"""The remote backend: each row is a streamed completion of any server that speaks OpenAI's API."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any, Literal

from adapters.manifest import BaseIdentity
from adapters.store import AdapterFolder
from errors import BusyError, PeftArenaError
from serve.backends.openai.batch import Line, RemoteBatch
from serve.backends.openai.counting import ESTIMATED, Counter
from serve.backends.openai.facts import Facts, discover, gives_logprobs
from serve.backends.openai.identity import LocalTokenizer, identity, known_base
from serve.backends.openai.talk import Call, Patience, Talk
from serve.backends.openai.wardrobe import Wardrobe
from serve.backends.openai.wire import Wire
from serve.home import Report
from serve.rows import Decoding, Finished, Partial, Row
from tasks.prompt import Message


class OpenAIBackend:
    """Implements Backend (serve.rows) over HTTP. Rows are independent: one that fails leaves the others alone."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        base: str | None = None,
        report: Report = lambda _: None,
        patience: Patience | None = None,
    ) -> None:
        """Asks the server what it is. PeftArenaError in one sentence where it cannot be used.

        `model` is what the base is called there, by default the first one that the server lists; `base` says which
        base that is, as --base does, so that its adapters can be told and its chat template be found.
        """
        patience = patience or Patience()
        self._wire = Wire(url, api_key)
        report(f"Asking {self._wire.host} which model it serves ...")
        self._facts, self._logprobs = _meet(self._wire, model, patience.start, report)
        known = known_base(base, report) if base else None
        self._tokenizer = LocalTokenizer(known.folder) if known and known.folder else None
        self._name = f"{self._facts.kind.name} at {self._wire.host}"
        self._identity = identity(self._facts, known, self._tokenizer, self._name)
        self._counter = Counter(self._wire, self._facts.model, self._tokenizer.count if self._tokenizer else None)
        self._wardrobe = Wardrobe(self._wire, self._facts)
        self._line = Line(self._wire, patience, self._facts.kind.at_once)
        for sentence in self._remarks():
            report(sentence)

    def _remarks(self) -> Iterator[str]:
        """What somebody should know before they compare."""
        if not self._identity.has_chat_template:
            yield (
                "Prompts are plain ones: the base's chat template is not known here; name the base with --base and "
                "have its tokenizer in the Hub's cache (`hf download NAME --include 'token*' --include '*.json*'`)."
            )
        if self._counter.estimates:
            yield ESTIMATED
        if self._wire.is_open:
            yield f"The API key goes to {self._wire.host} unencrypted: use https where others share the network."

    @property
    def base(self) -> BaseIdentity:
        """What the server serves, as far as it says and --base knows."""
        return self._identity

    def refuses(self, folder: AdapterFolder | None, scale: float = 1.0) -> str | None:
        """Why this engine cannot answer with the adapter at that strength, in one sentence; None where it can."""
        return self._wardrobe.refuses(folder, scale)

    def open_batch(self, mode: Literal["step", "beam"]) -> RemoteBatch:  # noqa: ARG002 - beams are refused row by row
        """An empty batch; rows join it and leave it at any time."""
        return RemoteBatch(self._line, self._talk)

    def chat(self, messages: Sequence[Message]) -> str:
        """The base's own chat template around `messages`, open for the assistant's answer."""
        if self._tokenizer is None or not self._tokenizer.has_template:
            raise PeftArenaError(
                f"The chat template of '{self._identity.id}' is not known here: name the base with --base and have its "
                "tokenizer in the Hub's cache."
            )
        return self._tokenizer.chat(messages)

    def count_tokens(self, text: str) -> int:
        """How many tokens the server reads for `text`; an estimate on the safe side where nothing can count them."""
        return self._counter(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Makes the adapter's rows possible at the server; AdapterError in one sentence where it cannot."""
        self._wardrobe.load(folder)

    def unload_adapter(self, name: str) -> None:
        """Has the server forget an adapter that we had it load."""
        self._wardrobe.unload(name)

    def adapter_bytes(self, name: str) -> int:  # noqa: ARG002
        """None of this machine's memory."""
        return 0

    def generate(self, rows: Sequence[Row], decoding: Decoding, cancel: Event) -> Iterator[Partial | Finished]:
        """All rows at once, to the end; a row that cannot be answered ends with its sentence."""
        batch = self.open_batch("step")
        live = set()
        for index, row in enumerate(rows):
            try:
                batch.add(index, row, decoding)
                live.add(index)
            except PeftArenaError as fault:
                yield Finished(index, (), 0.0, error=str(fault))
        while live:
            if cancel.is_set():
                yield from (batch.cancel(index) for index in sorted(live))
                return
            for event in batch.step():
                if isinstance(event, Finished):
                    live.discard(event.index)
                yield event

    def close(self) -> None:
        """Ends all conversations."""
        self._line.close()
        self._wire.close()

    def _talk(self, key: int, row: Row, decoding: Decoding) -> Talk:
        if row.adapter is not None and row.scale != 1 and not self._facts.kind.scales:
            raise PeftArenaError(
                f"{self._name} wears an adapter at its full strength only: ask for '{row.adapter}' alone."
            )
        notes = (ESTIMATED,) if self._counter.estimates else ()
        return Talk(key, row, decoding, list(self._calls(row, decoding)), notes)

    def _calls(self, row: Row, decoding: Decoding) -> Iterator[Call]:
        """One call for all samples where the server gives several at once, else one a sample with a seed of its own."""
        together = decoding.candidates if self._facts.kind.takes_n else 1
        for first in range(0, decoding.candidates, together):
            yield Call(self._body(row, decoding, first, together), first, together)

    def _body(self, row: Row, decoding: Decoding, first: int, count: int) -> dict[str, Any]:
        kind = self._facts.kind
        body: dict[str, Any] = {
            **self._wardrobe.dress(row.adapter, row.scale),
            "prompt": row.prompt,
            "max_tokens": decoding.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True, **kind.counting},
            **kind.neutral,
        }
        if decoding.mode == "sample":
            body |= {"n": count, "temperature": decoding.temperature, "seed": decoding.seed + first}
            body |= {"top_p": decoding.top_p} if decoding.top_p < 1 else {}
        else:
            body |= kind.greedy
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if self._logprobs:
            body["logprobs"] = max(1, decoding.top_logprobs or 0)
        return body


def _meet(wire: Wire, model: str | None, seconds: float, report: Report) -> tuple[Facts, bool]:
    """What the server is, and whether it gives log-probabilities. One that still loads is waited for."""
    until = time.monotonic() + seconds
    while True:
        try:
            facts = discover(wire, model)
            return facts, gives_logprobs(wire, facts)
        except BusyError as busy:
            if time.monotonic() + busy.seconds > until:
                raise
            report(f"{busy} Waiting for it ...")
            time.sleep(busy.seconds)
