"""From a request to a row: its adapter in memory, its examples, its prompt, and whether that fits the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.manifest import UNKNOWN
from adapters.store import AdapterFolder, Store
from errors import PromptOrTuneError, PromptTooLongError
from serve.engine.adapter_cache import AdapterCache, Lease
from serve.types import Backend, Request, RequestOutput, Row, SamplingParams
from tasks.methods import FixedExamples, Method, NearestExamples
from tasks.problem import Example
from tasks.prompt import PromptStyle, choose_style, get_style, render_prompt
from tasks.retrieval import ExamplePools


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """One request made ready: its row, the answer so far (prompt, examples, notes), and its hold on its adapter."""

    row: Row
    output: RequestOutput
    lease: Lease | None = None

    def release(self) -> None:
        """The row has ended, or never begins: its adapter may leave memory."""
        if self.lease is not None:
            self.lease.release()


class InputProcessor:
    """Makes requests ready. One thread's work: it loads adapters and pools, which takes time."""

    def __init__(self, backend: Backend, store: Store, pools: ExamplePools, adapter_cache: AdapterCache) -> None:
        self._backend = backend
        self._store = store
        self._pools = pools
        self._adapter_cache = adapter_cache

    def prepare(self, index: int, request: Request, sampling_params: SamplingParams) -> PreparedRequest:
        """The plan of request number `index`; PromptOrTuneError in one sentence where it cannot be answered.

        Raises BusyError where the adapter has no room in memory now.
        """
        _check_request(request)
        name = request.method.adapter
        if name is None:
            return PreparedRequest(*self.build_row(index, request, sampling_params, None))
        lease = self._adapter_cache.acquire(name, timeout=0.0)
        try:
            return PreparedRequest(*self.build_row(index, request, sampling_params, lease.folder), lease)
        except BaseException:
            lease.release()
            raise

    def count_prompt_tokens(self, request: Request, sampling_params: SamplingParams) -> int:
        """How many tokens the prompt has, examples and all; 0 where the request cannot be answered."""
        try:
            _check_request(request)
            name = request.method.adapter
            folder = None if name is None else self._store.open(name, self._backend.base)
            return self.build_row(0, request, sampling_params, folder)[1].prompt_tokens
        except PromptOrTuneError:
            return 0

    def unsupported_reason(self, method: Method) -> str | None:
        """Why the backend cannot do the method, in one sentence; None where it can."""
        refuses = getattr(self._backend, "unsupported_reason", None)
        try:
            name = method.adapter
            folder = None if name is None else self._store.open(name, self._backend.base)
        except PromptOrTuneError as error:
            return str(error)
        return None if refuses is None else refuses(folder, method.scale)

    def build_row(
        self, index: int, request: Request, sampling_params: SamplingParams, adapter: AdapterFolder | None
    ) -> tuple[Row, RequestOutput]:
        base, method = self._backend.base, request.method
        ahead = adapter.virtual_tokens if adapter else 0
        room = base.context_length - (0 if base.is_encoder_decoder else sampling_params.max_new_tokens) - ahead
        style = None if request.raw is not None else request.style or self._choose_style(request, adapter)
        examples, turns = list(self._pools.select(method, request.problem, request.pool)), list(request.turns)
        wanted = len(examples)
        while True:
            prompt = self._render_prompt(request, [*examples, *turns], style)
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
                    f"{sampling_params.max_new_tokens} kept for the answer): shorten the {what}."
                )
        notes = (
            *_example_notes(method, wanted, len(examples)),
            *_omission_note(len(request.turns), len(turns), "earlier turns"),
            *_quantization_notes(adapter, base.quantization),
        )
        answer = RequestOutput(
            index, request, prompt=prompt, style=style, examples=tuple(examples), prompt_tokens=tokens, notes=notes
        )
        return Row(prompt, style, method.adapter, method.scale), answer

    def _render_prompt(self, request: Request, examples: Sequence[Example], style: PromptStyle | None) -> str:
        if style is None:
            return request.raw or ""
        chat = self._backend.apply_chat_template if style.format == "chat" else None
        return render_prompt(request.problem.intent, examples, style, chat)

    def _choose_style(self, request: Request, adapter: AdapterFolder | None) -> PromptStyle:
        base = self._backend.base
        if adapter is not None:
            return get_style(adapter.manifest.prompt_style)
        if base.prompt_style:
            return get_style(base.prompt_style)
        return choose_style(base.id, base.has_chat_template, request.pool, request.method.examples.k > 0)


def _check_request(request: Request) -> None:
    """What can be refused before anything is loaded."""
    if request.raw is None:
        if not request.problem.intent.strip():
            raise PromptOrTuneError("The intent is empty: say in a sentence what the Python should do.")
    elif not request.raw:
        raise PromptOrTuneError("The prompt is empty: give at least one character to go on from.")
    elif request.turns:
        raise PromptOrTuneError(
            "A raw prompt is read as it is: write earlier turns into it, or give an intent instead."
        )
    elif request.method.examples.k:
        raise PromptOrTuneError(
            f"Method '{request.method.name}' shows examples, and a raw prompt is read as it is: "
            "choose a method without examples, or give an intent instead of a prompt."
        )


def _example_notes(method: Method, requested: int, included: int) -> tuple[str, ...]:
    if not isinstance(method.examples, FixedExamples | NearestExamples):
        return ()
    notes = []
    if requested < method.examples.k:
        notes.append(f"The pool has only {requested} of the {method.examples.k} examples asked for.")
    return (*notes, *_omission_note(requested, included, "examples"))


def _omission_note(requested: int, included: int, what: str) -> tuple[str, ...]:
    if included == requested:
        return ()
    return (f"{requested - included} of {requested} {what} were left out: the prompt would not fit the context.",)


def _quantization_notes(adapter: AdapterFolder | None, quantization: str) -> tuple[str, ...]:
    """An adapter answers best on the very weights that it was trained on; another engine may not tell its own."""
    if adapter is None or quantization in (adapter.manifest.trained_quantization, UNKNOWN):
        return ()
    names = {"none": "unquantized", "nf4": "NF4", "int8": "INT8"}
    trained, here = (names.get(name, name) for name in (adapter.manifest.trained_quantization, quantization))
    return (
        f"'{adapter.name}' was trained on the {trained} base and answers on the {here} one here: it may lose by that.",
    )
