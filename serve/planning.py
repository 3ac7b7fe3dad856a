"""From a request to a row: its adapter in memory, its examples, its prompt, and whether that fits the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.manifest import UNKNOWN
from adapters.store import AdapterFolder, Store
from errors import PeftArenaError, PromptTooLongError
from serve.examples import Pools
from serve.method import Fixed, Method, Nearest
from serve.residents import Lease, Residents
from serve.rows import Answer, Backend, Decoding, Request, Row
from tasks.problem import Example
from tasks.prompt import PromptStyle, render, style_named
from tasks.style_choice import choose_style


@dataclass(frozen=True, eq=False)
class Plan:
    """One request made ready: its row, the answer so far (prompt, examples, notes), and its hold on its adapter."""

    row: Row
    answer: Answer
    lease: Lease | None = None

    def release(self) -> None:
        """The row has ended, or never begins: its adapter may leave memory."""
        if self.lease is not None:
            self.lease.release()


class Planner:
    """Makes requests ready. One thread's work: it loads adapters and pools, which takes time."""

    def __init__(self, backend: Backend, store: Store, pools: Pools, residents: Residents) -> None:
        self._backend = backend
        self._store = store
        self._pools = pools
        self._residents = residents

    def plan(self, index: int, request: Request, decoding: Decoding) -> Plan:
        """The plan of request number `index`; PeftArenaError in one sentence where it cannot be answered.

        Raises BusyError where the adapter has no room in memory now.
        """
        _check(request)
        name = request.method.adapter
        if name is None:
            return Plan(*self._compose(index, request, decoding, None))
        lease = self._residents.acquire(name, timeout=0.0)
        try:
            return Plan(*self._compose(index, request, decoding, lease.folder), lease)
        except BaseException:
            lease.release()
            raise

    def prompt_tokens(self, request: Request, decoding: Decoding) -> int:
        """How many tokens the prompt has, examples and all; 0 where the request cannot be answered."""
        try:
            _check(request)
            name = request.method.adapter
            folder = None if name is None else self._store.open(name, self._backend.base)
            return self._compose(0, request, decoding, folder)[1].prompt_tokens
        except PeftArenaError:
            return 0

    def unavailable(self, method: Method) -> str | None:
        """Why the backend cannot do the method, in one sentence; None where it can."""
        refuses = getattr(self._backend, "refuses", None)
        try:
            name = method.adapter
            folder = None if name is None else self._store.open(name, self._backend.base)
        except PeftArenaError as fault:
            return str(fault)
        return None if refuses is None else refuses(folder, method.scale)

    def _compose(
        self, index: int, request: Request, decoding: Decoding, worn: AdapterFolder | None
    ) -> tuple[Row, Answer]:
        base, method = self._backend.base, request.method
        ahead = worn.virtual_tokens if worn else 0
        room = base.context_length - (0 if base.is_encoder_decoder else decoding.max_new_tokens) - ahead
        style = None if request.raw is not None else request.style or self._style(request, worn)
        examples, turns = list(self._pools.choose(method, request.problem, request.pool)), list(request.turns)
        wanted = len(examples)
        while True:
            prompt = self._prompt(request, [*examples, *turns], style)
            tokens = self._backend.count_tokens(prompt)
            if tokens <= room:
                break
            if turns:
                turns.pop(0)
            elif examples:
                # The farthest example goes first; of a fixed sample, the last one.
                examples.pop()
            else:
                what = "intent" if request.raw is None else "prompt"
                raise PromptTooLongError(
                    f"The prompt has {tokens} tokens and {max(room, 0)} fit (context {base.context_length}, "
                    f"{decoding.max_new_tokens} kept for the answer): shorten the {what}."
                )
        notes = (
            *_example_notes(method, wanted, len(examples)),
            *_left_out(len(request.turns), len(turns), "earlier turns"),
            *_base_notes(worn, base.quantization),
        )
        answer = Answer(
            index, request, prompt=prompt, style=style, examples=tuple(examples), prompt_tokens=tokens, notes=notes
        )
        return Row(prompt, style, method.adapter, method.scale), answer

    def _prompt(self, request: Request, examples: Sequence[Example], style: PromptStyle | None) -> str:
        if style is None:
            return request.raw or ""
        chat = self._backend.chat if style.format == "chat" else None
        return render(request.problem.intent, examples, style, chat)

    def _style(self, request: Request, worn: AdapterFolder | None) -> PromptStyle:
        base = self._backend.base
        if worn is not None:
            return style_named(worn.manifest.prompt_style)
        if base.prompt_style:
            return style_named(base.prompt_style)
        return choose_style(base.id, base.has_chat_template, request.pool, request.method.examples.k > 0)


def _check(request: Request) -> None:
    """What can be refused before anything is loaded."""
    if request.raw is None:
        if not request.problem.intent.strip():
            raise PeftArenaError("The intent is empty: say in a sentence what the Python should do.")
    elif not request.raw:
        raise PeftArenaError("The prompt is empty: give at least one character to go on from.")
    elif request.turns:
        raise PeftArenaError("A raw prompt is read as it is: write earlier turns into it, or give an intent instead.")
    elif request.method.examples.k:
        raise PeftArenaError(
            f"Method '{request.method.name}' shows examples, and a raw prompt is read as it is: "
            "choose a method without examples, or give an intent instead of a prompt."
        )


def _example_notes(method: Method, wanted: int, shown: int) -> tuple[str, ...]:
    if not isinstance(method.examples, Fixed | Nearest):
        return ()
    notes = []
    if wanted < method.examples.k:
        notes.append(f"The pool has only {wanted} of the {method.examples.k} examples asked for.")
    return (*notes, *_left_out(wanted, shown, "examples"))


def _left_out(wanted: int, shown: int, what: str) -> tuple[str, ...]:
    if shown == wanted:
        return ()
    return (f"{wanted - shown} of {wanted} {what} were left out: the prompt would not fit the context.",)


def _base_notes(worn: AdapterFolder | None, quantization: str) -> tuple[str, ...]:
    """An adapter answers best on the very weights that it was trained on; another engine may not tell its own."""
    if worn is None or quantization in (worn.manifest.trained_quantization, UNKNOWN):
        return ()
    names = {"none": "unquantized", "nf4": "NF4", "int8": "INT8"}
    trained, here = (names.get(name, name) for name in (worn.manifest.trained_quantization, quantization))
    return (
        f"'{worn.name}' was trained on the {trained} base and answers on the {here} one here: it may lose by that.",
    )
