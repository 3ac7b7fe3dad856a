"""From problems and methods to answers: all requests of a call in one batch, streamed row by row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event

from adapters.manifest import BaseIdentity
from adapters.store import AdapterFolder, Store
from errors import PeftArenaError, PromptTooLongError
from serve.examples import Pools
from serve.method import Fixed, Nearest, parse_method
from serve.rows import Answer, Backend, Decoding, Finished, Partial, Request, Row
from tasks.problem import Problem
from tasks.prompt import PromptStyle, render, style_named
from tasks.style_choice import choose_style

_PROBE = Problem("probe", "probe")
# Resident adapters of the embedded base are a few MB each; the engine issue bounds them in bytes too.
MAX_RESIDENT = 16


@dataclass(frozen=True)
class _Plan:
    """One request made ready: its row, and the answer so far (prompt, examples, notes)."""

    row: Row
    answer: Answer


class Engine:
    """Answers requests with one backend. Calls from several threads wait for one another, first come first served."""

    def __init__(self, backend: Backend, store: Store, pools: Pools) -> None:
        self._backend = backend
        self._store = store
        self._pools = pools
        self._resident: OrderedDict[str, str] = OrderedDict()
        # One thread runs the model: torch keeps a pool of threads for every thread that calls it.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")

    @property
    def base(self) -> BaseIdentity:
        """The base that answers."""
        return self._backend.base

    @property
    def store(self) -> Store:
        """Where adapters come from."""
        return self._store

    def adapters(self) -> list[str]:
        """Names of the adapters in the store; whether one fits this base shows when it is used."""
        return self._store.names()

    def methods(self) -> list[str]:
        """Suggested method names: zero-shot, ICL, RAG, then each adapter."""
        return ["zero-shot", "icl-8", "rag-8", *self.adapters()]

    def adapter_digest(self, name: str) -> str:
        """The digest of an adapter's weights; AdapterError where it may not be loaded."""
        return self._store.open(name, self.base).digest

    def stream(
        self, requests: Sequence[Request], decoding: Decoding, cancel: Event | None = None
    ) -> Iterator[Partial | Answer]:
        """All requests in one batch. Yields Partials as rows grow and exactly one Answer a request, by index.

        A request that cannot be answered gets an Answer with `error`; the others go on. Setting `cancel`, or
        closing this generator, stops within a step: rows in flight then answer with what they had said.
        """
        cancel = cancel or Event()
        events: SimpleQueue[Partial | Answer | None] = SimpleQueue()
        done = self._worker.submit(self._run, list(requests), decoding, cancel, events)
        done.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
            _raise(done)
        finally:
            cancel.set()

    def answer(self, requests: Sequence[Request], decoding: Decoding, cancel: Event | None = None) -> list[Answer]:
        """`stream` to its end: one Answer a request, in their order."""
        answers = [event for event in self.stream(requests, decoding, cancel) if isinstance(event, Answer)]
        return sorted(answers, key=lambda answer: answer.index)

    def prompt_tokens(self, requests: Sequence[Request], decoding: Decoding) -> list[int]:
        """How many tokens each request's prompt has, examples and all; 0 where it cannot be answered."""

        def measure() -> list[int]:
            return [self._prompt_tokens(request, decoding) for request in requests]

        return self._worker.submit(measure).result()

    def warm_up(self, pool: str) -> None:
        """Loads the pool and its index, so that the first person to use RAG does not wait for them."""
        self._worker.submit(self._pools.choose, parse_method("rag-1", ()), _PROBE, pool).result()

    def close(self) -> None:
        """Ends the worker once what it does is done."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _run(
        self,
        requests: list[Request],
        decoding: Decoding,
        cancel: Event,
        events: SimpleQueue[Partial | Answer | None],
    ) -> None:
        plans: list[_Plan] = []
        for index, request in enumerate(requests):
            try:
                plans.append(self._plan(index, request, decoding))
            except PeftArenaError as fault:
                events.put(Answer(index, request, error=str(fault)))
        if not plans:
            return
        self._make_room({plan.row.adapter for plan in plans})
        for event in self._backend.generate([plan.row for plan in plans], decoding, cancel):
            plan = plans[event.index]
            if isinstance(event, Finished):
                events.put(
                    replace(
                        plan.answer,
                        candidates=event.candidates,
                        seconds=event.seconds,
                        cancelled=event.cancelled,
                    )
                )
            else:
                events.put(Partial(plan.answer.index, event.text, event.tokens))

    def _prompt_tokens(self, request: Request, decoding: Decoding) -> int:
        try:
            return self._plan(0, request, decoding).answer.prompt_tokens
        except PeftArenaError:
            return 0

    def _plan(self, index: int, request: Request, decoding: Decoding) -> _Plan:
        method = request.method
        if not request.problem.intent.strip():
            raise PeftArenaError("The intent is empty: say in a sentence what the Python should do.")
        style = request.style or self._style(request)
        worn = None if method.adapter is None else self._wear(method.adapter)
        ahead = worn.virtual_tokens if worn else 0
        examples = list(self._pools.choose(method, request.problem, request.pool))
        wanted = len(examples)
        room = self.base.context_length - (0 if self.base.is_encoder_decoder else decoding.max_new_tokens) - ahead
        chat = self._backend.chat if style.format == "chat" else None
        while True:
            prompt = render(request.problem.intent, examples, style, chat)
            tokens = self._backend.count_tokens(prompt)
            if tokens <= room:
                break
            if not examples:
                raise PromptTooLongError(
                    f"The prompt has {tokens} tokens and {max(room, 0)} fit (context {self.base.context_length}, "
                    f"{decoding.max_new_tokens} kept for the answer): shorten the intent."
                )
            # The farthest example goes first; of a fixed sample, the last one.
            examples.pop()
        notes = (*_notes(method.examples, wanted, len(examples)), *_base_notes(worn, self.base))
        answer = Answer(
            index, request, prompt=prompt, style=style, examples=tuple(examples), prompt_tokens=tokens, notes=notes
        )
        return _Plan(Row(prompt, style, method.adapter), answer)

    def _style(self, request: Request) -> PromptStyle:
        if request.method.adapter is not None:
            return style_named(self._store.open(request.method.adapter, self.base).manifest.prompt_style)
        if self.base.prompt_style:
            return style_named(self.base.prompt_style)
        with_examples = request.method.examples.k > 0
        return choose_style(self.base.id, self.base.has_chat_template, request.pool, with_examples)

    def _wear(self, name: str) -> AdapterFolder:
        """Makes the adapter resident, anew when its folder has changed."""
        folder = self._store.open(name, self.base)
        if self._resident.get(name) != folder.digest:
            self._backend.load_adapter(folder)
            self._resident[name] = folder.digest
        self._resident.move_to_end(name)
        return folder

    def _make_room(self, needed: set[str | None]) -> None:
        """Unloads what was used longest ago while there are too many, but nothing this batch wears."""
        for name in list(self._resident):
            if len(self._resident) <= MAX_RESIDENT:
                return
            if name not in needed:
                del self._resident[name]
                self._backend.unload_adapter(name)


def _notes(selection: object, wanted: int, shown: int) -> tuple[str, ...]:
    if not isinstance(selection, Fixed | Nearest):
        return ()
    notes = []
    if wanted < selection.k:
        notes.append(f"The pool has only {wanted} of the {selection.k} examples asked for.")
    if shown < wanted:
        notes.append(f"{wanted - shown} of {wanted} examples were left out: the prompt would not fit the context.")
    return tuple(notes)


def _base_notes(worn: AdapterFolder | None, base: BaseIdentity) -> tuple[str, ...]:
    """An adapter answers best on the very weights that it was trained on."""
    if worn is None or worn.manifest.trained_quantization == base.quantization:
        return ()
    names = {"none": "unquantized", "nf4": "NF4", "int8": "INT8"}
    trained, here = (names.get(name, name) for name in (worn.manifest.trained_quantization, base.quantization))
    return (
        f"'{worn.name}' was trained on the {trained} base and answers on the {here} one here: it may lose by that.",
    )


def _raise(done: Future[None]) -> None:
    fault = done.exception()
    if fault is not None:
        raise fault
