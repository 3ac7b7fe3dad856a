"""Input processor: turns a request into a row, with its adapter loaded, examples selected and prompt rendered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapters.manifest import UNKNOWN
from adapters.store import AdapterFolder, Store
from errors import BusyError, EngineError, PromptError, PromptOrTuneError, PromptTooLongError
from serve.engine.adapter_cache import AdapterCache, Lease
from serve.types import Backend, Request, RequestOutput, Row, SamplingParams
from tasks.extract import prompt_opens_thinking
from tasks.methods import ExamplePools, FixedExamples, Method, NearestExamples
from tasks.problem import Example
from tasks.prompt import PromptStyle, choose_style, get_style, render_prompt


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """A request ready to run: its row, its output so far (prompt, examples, notes), and the lease on its adapter."""

    row: Row
    output: RequestOutput
    lease: Lease | None = None

    def release(self) -> None:
        """Release the lease on the adapter, once the row has ended or will not be run."""
        if self.lease is not None:
            self.lease.release()


class InputProcessor:
    """Prepares requests. Used by the input thread, because loading adapters and example pools takes time."""

    def __init__(self, backend: Backend, store: Store, pools: ExamplePools, adapter_cache: AdapterCache) -> None:
        self._backend = backend
        self._store = store
        self._pools = pools
        self._adapter_cache = adapter_cache

    def prepare(self, index: int, request: Request, sampling_params: SamplingParams) -> PreparedRequest:
        """Prepare the request with this index in its call.

        Raises PromptOrTuneError if it cannot be answered, BusyError if there is no memory for its adapter now.
        """
        _check_request(request)
        name = request.method.adapter
        if name is None:
            return PreparedRequest(*self.build_row(index, request, sampling_params, None))
        # No wait for memory here: it would delay the requests of all other owners. The engine defers this one instead.
        lease = self._adapter_cache.acquire(name, timeout=0.0)
        try:
            return PreparedRequest(*self.build_row(index, request, sampling_params, lease.folder), lease)
        except BaseException:
            lease.release()
            raise

    def count_prompt_tokens(self, request: Request, sampling_params: SamplingParams) -> int:
        """Return the number of prompt tokens, examples included; 0 if the request cannot be answered.

        Raises EngineError or BusyError if the server that counts them fails.
        """
        try:
            _check_request(request)
            name = request.method.adapter
            folder = None if name is None else self._store.open(name, self._backend.base)
            return self.build_row(0, request, sampling_params, folder)[1].prompt_tokens
        except (EngineError, BusyError):
            raise
        except PromptOrTuneError:
            return 0

    def unsupported_reason(self, method: Method) -> str | None:
        """Return a message why the backend cannot run the method; None if it can."""
        # Not part of the Backend protocol: only remote servers limit what adapters they can run.
        backend_reason = getattr(self._backend, "unsupported_reason", None)
        try:
            name = method.adapter
            folder = None if name is None else self._store.open(name, self._backend.base)
        except PromptOrTuneError as error:
            return str(error)
        return None if backend_reason is None else backend_reason(folder, method.scale)

    def build_row(
        self, index: int, request: Request, sampling_params: SamplingParams, adapter: AdapterFolder | None
    ) -> tuple[Row, RequestOutput]:
        """Select the examples, render the prompt and return the row with its output so far.

        Drops the oldest turns, then the least similar examples, until the prompt fits the context beside the virtual
        tokens of the adapter and (except for encoder-decoder models) `max_new_tokens`. Raises PromptTooLongError if
        it does not fit even without them, unless the backend only estimates lengths: then the server decides.
        """
        base, method = self._backend.base, request.method
        virtual_tokens = adapter.virtual_tokens if adapter else 0
        answer_tokens = 0 if base.is_encoder_decoder else sampling_params.max_new_tokens
        max_prompt_tokens = base.context_length - answer_tokens - virtual_tokens
        style = None if request.raw is not None else request.style or self._choose_style(request, adapter)
        examples, turns = list(self._pools.select(method, request.problem, request.pool)), list(request.turns)
        num_selected = len(examples)
        while True:
            prompt = self._render_prompt(request, [*examples, *turns], style)
            tokens = self._backend.count_tokens(prompt)
            if tokens <= max_prompt_tokens:
                break
            if turns:
                turns.pop(0)
            elif examples:
                # The last example is the least similar one, or the last of a fixed sample.
                examples.pop()
            elif not getattr(self._backend, "has_exact_limits", True):
                break
            else:
                what = "intent" if request.raw is None else "prompt"
                raise PromptTooLongError(
                    f"The prompt has {tokens} tokens and {max(max_prompt_tokens, 0)} fit "
                    f"(context {base.context_length}, {sampling_params.max_new_tokens} kept for the answer): "
                    f"shorten the {what}."
                )
        notes = (
            *_example_notes(method, num_selected, len(examples)),
            *_omission_note(len(request.turns), len(turns), "earlier turns"),
            *_quantization_notes(adapter, base.quantization),
        )
        if style is not None and prompt_opens_thinking(prompt):
            style = replace(style, opens_thinking=True)
        output = RequestOutput(
            index, request, prompt=prompt, style=style, examples=tuple(examples), prompt_tokens=tokens, notes=notes
        )
        return Row(prompt, style, method.adapter, method.scale), output

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
    """Raise PromptOrTuneError for what can be refused before anything is loaded."""
    if request.raw is None:
        if not request.problem.intent.strip():
            raise PromptError("The intent is empty: describe in a sentence what the Python should do.")
    elif not request.raw:
        raise PromptError("The prompt is empty: give at least one character to go on from.")
    elif request.turns:
        raise PromptOrTuneError(
            "A raw prompt is read as it is: write earlier turns into it, or give an intent instead."
        )
    elif request.method.examples.k:
        raise PromptOrTuneError(
            f"Method '{request.method.name}' shows examples, and a raw prompt is read as it is: "
            "choose a method without examples, or give an intent instead of a prompt."
        )


def _example_notes(method: Method, available: int, included: int) -> tuple[str, ...]:
    """Return the notes for examples that the pool did not have or the context did not hold."""
    if not isinstance(method.examples, FixedExamples | NearestExamples):
        return ()
    notes = []
    if available < method.examples.k:
        notes.append(f"The pool has only {available} of the {method.examples.k} examples asked for.")
    return (*notes, *_omission_note(available, included, "examples"))


def _omission_note(available: int, included: int, what: str) -> tuple[str, ...]:
    if included == available:
        return ()
    return (f"{available - included} of {available} {what} were left out: the prompt would not fit the context.",)


def _quantization_notes(adapter: AdapterFolder | None, quantization: str) -> tuple[str, ...]:
    """Return a note if the base is quantized otherwise than in training; remote servers may not report theirs."""
    if adapter is None or quantization in (adapter.manifest.trained_quantization, UNKNOWN):
        return ()
    names = {"none": "unquantized", "nf4": "NF4", "int8": "INT8"}
    trained, here = (names.get(name, name) for name in (adapter.manifest.trained_quantization, quantization))
    message = f"'{adapter.name}' was trained on the {trained} base and answers on the {here} one here"
    return (f"{message}: its answers may be worse.",)
