"""OpenAIServing: maps API requests to the engine (models, chats, tokens, adapters); tracking of requests in flight.

No thread waits for an answer: the engine notifies the event loop, which then reads the outputs.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from starlette.types import Receive

from errors import AdapterError, BusyError, PromptOrTuneError, UnknownNameError
from serve.api.errors import (
    ApiError,
    invalid_request,
    model_not_found,
    not_ready,
    rate_limited,
    shutting_down,
    timed_out,
    to_api_error,
)
from serve.api.protocol import Conversation, OpenAIRequest
from serve.types import PartialOutput, Request, RequestOutput, SamplingParams
from tasks.extract import extract_code
from tasks.methods import Method, NoExamples, parse_method
from tasks.problem import Example, Problem
from tasks.prompt import STYLES

if TYPE_CHECKING:
    from serve.engine.llm_engine import EngineLoader, LLMEngine
    from serve.engine.output_stream import OutputStream


OWNER = "prompt-or-tune"
_METHOD_NAMES = ("zero-shot", "icl", "rag")
_MAX_HINT_CANDIDATES = 500
_PROBE_PARAMS = SamplingParams(max_new_tokens=1)
# For the answers of earlier turns: code inside a fence if there is one, else the whole text.
_HISTORY_STYLE = STYLES["chat"]


class OpenAIServing:
    """Interface of the API to the engine. `pool` names the data set with the examples of `icl` and `rag`.

    Methods may block (disk, a lock), so they are called in threads; they raise ApiError or PromptOrTuneError.
    """

    def __init__(self, loader: EngineLoader, pool: str) -> None:
        self._loader = loader
        self._pool = pool
        self._started_at = int(time.time())
        self._adapter_lock = Lock()

    def engine(self) -> LLMEngine:
        """Return the engine; raises ApiError 503 while it is loading and if loading failed."""
        try:
            engine = self._loader.wait(0)
        except PromptOrTuneError as error:
            raise not_ready(str(error), "model_failed") from error
        if engine is None:
            raise not_ready(f"The model is loading ({self._loader.state().message}): ask again soon.", "model_loading")
        return engine

    def fingerprint(self) -> str:
        """Return an identifier of what answers depend on beside the request: revision and quantization of the base."""
        base = self.engine().base
        return f"fp_{base.revision.removeprefix('sha256:')[:12]}_{base.quantization}"

    def resolve_method(self, model: str) -> Method:
        """Return the method that `model` names; raises ApiError 404 if it names none."""
        engine = self.engine()
        if model == engine.base.id:
            return parse_method("zero-shot", ())
        parts = {part.strip().partition("*")[0] for part in model.split("+")}
        names = engine.adapters()
        try:
            method = parse_method(model, parts.intersection(names))
        except UnknownNameError as error:
            raise model_not_found(_unknown_model_message(model, names)) from error
        except PromptOrTuneError as error:
            raise invalid_request(str(error), "model") from error
        reason = engine.unsupported_reason(method)
        if reason:
            raise ApiError(400, reason, param="model", code="model_unavailable")
        return method

    def start(self, request: OpenAIRequest, owner: str, notify: Callable[[], None]) -> OutputStream:
        """Submit the request to the engine, which calls `notify` whenever there are new outputs."""
        method = self.resolve_method(request.model)
        conversation = request.conversation
        if conversation is not None:
            requests = [self._chat_request(conversation, method)]
        elif method.examples.k:
            raise invalid_request(
                f"'{request.model}' shows examples and this prompt is used as it is: use /v1/chat/completions.", "model"
            )
        else:
            requests = [Request(Problem("api", prompt), method, self._pool, raw=prompt) for prompt in request.prompts]
        try:
            return self.engine().submit(requests, request.sampling_params, owner=owner, notify=notify)
        except PromptOrTuneError as error:
            raise to_api_error(error) from error

    def _chat_request(self, conversation: Conversation, method: Method) -> Request:
        turns = [Example("", question, extract_code(answer, _HISTORY_STYLE)) for question, answer in conversation.turns]
        return Request(Problem("api", conversation.intent), method, self._pool, turns=tuple(turns))

    def list_models(self) -> list[dict[str, Any]]:
        """Return all models: the base, the methods, and the adapters that fit the base."""
        engine = self.engine()
        cards = [
            self._base_model_card(),
            *(self._model_card(name) for name in _METHOD_NAMES if self._is_supported(parse_method(name, ()))),
        ]
        for status in engine.store.status(engine.base):
            if status.usable and self._is_supported(Method(status.name, NoExamples(), status.name)):
                created = status.manifest.created if status.manifest else ""
                cards.append(self._model_card(status.name, _to_timestamp(created) or self._started_at))
        return cards

    def get_model(self, name: str) -> dict[str, Any]:
        """Return one model, also one that is not listed, such as `icl-4` or `lora-x*0.5`."""
        if name == self.engine().base.id:
            return self._base_model_card()
        try:
            self.resolve_method(name)
        except ApiError as error:
            raise model_not_found(error.message) from error
        return self._model_card(name)

    def count_tokens(self, model: str, text: str | Conversation) -> dict[str, Any]:
        """Return the number of tokens of a text, or of the whole prompt of a chat with its examples."""
        engine = self.engine()
        if isinstance(text, str):
            count = engine.count_tokens(text)
        else:
            (count,) = engine.count_prompt_tokens([self._chat_request(text, self.resolve_method(model))], _PROBE_PARAMS)
            if not count:
                raise invalid_request(
                    "These messages cannot be answered, so they have no prompt: shorten them.", "messages"
                )
        return {"count": count, "max_model_len": engine.base.context_length, "tokens": None, "token_strs": None}

    def load_lora_adapter(self, name: str, path: str) -> str:
        """Register the adapter folder `path` as `name` and load it; undoes the registration if the load fails."""
        engine = self.engine()
        with self._adapter_lock:
            was_registered = name in engine.adapters()
            try:
                engine.store.register(name, Path(path), engine.base)
                try:
                    engine.adapter_cache.acquire(name).release()
                except BaseException:
                    if not was_registered:
                        engine.store.unregister(name)
                    raise
            except BusyError as error:
                raise to_api_error(error) from error
            except PromptOrTuneError as error:
                raise invalid_request(str(error), "lora_path") from error
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload_lora_adapter(self, name: str) -> str:
        """Unload the adapter and remove its registration; raises ApiError 404 for an unknown name."""
        engine = self.engine()
        with self._adapter_lock:
            if name not in engine.adapters():
                raise ApiError(
                    404, _unknown_model_message(name, engine.adapters()), param="lora_name", code="model_not_found"
                )
            try:
                # Before the unload, so that no request loads it again in between.
                engine.store.unregister(name)
            except AdapterError:  # it is in the store itself and was not registered: later requests load it again
                return f"Success: LoRA adapter '{name}' left memory; it stays in the store."
            finally:
                engine.adapter_cache.unload(name)
        return f"Success: LoRA adapter '{name}' removed successfully."

    def health(self) -> tuple[int, Mapping[str, str]]:
        """Return 200 if requests are answered, else 503 with the reason."""
        state = self._loader.state()
        if state.phase == "ready":
            return 200, {"status": "ok"}
        return 503, {"status": state.phase, "message": state.message}

    def _is_supported(self, method: Method) -> bool:
        return self.engine().unsupported_reason(method) is None

    def _base_model_card(self) -> dict[str, Any]:
        base = self.engine().base
        # Revision and quantization are not vLLM's: they tell a client which adapters belong to this base.
        details = {"max_model_len": base.context_length, "revision": base.revision, "quantization": base.quantization}
        return {**self._model_card(base.id), "parent": None, **details}

    def _model_card(self, name: str, created: int | None = None) -> dict[str, Any]:
        base = self.engine().base
        when = self._started_at if created is None else created
        return {"id": name, "object": "model", "created": when, "owned_by": OWNER, "root": base.id, "parent": base.id}


def output_error(output: RequestOutput) -> ApiError | None:
    """Return the error of a failed output; None for one that did not fail."""
    if output.error is None:
        return shutting_down() if output.cancelled else None
    return to_api_error(output.exception or PromptOrTuneError(output.error))


def _unknown_model_message(model: str, names: list[str]) -> str:
    """Return a message with the most similar name, among a limited number of adapters: the search is slow."""
    near = difflib.get_close_matches(model, [*_METHOD_NAMES, *names[:_MAX_HINT_CANDIDATES]], n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"The model '{model}' does not exist: {hint}GET /v1/models lists what is served."


def _to_timestamp(created: str) -> int | None:
    """Return a manifest's date as seconds since 1970; None if it is no date."""
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return None


# Submits a request, given the function to call (from any thread) when there are new outputs.
StartFn = Callable[[Callable[[], None]], "OutputStream"]


class ClientGoneError(Exception):
    """The client has closed its connection, or does not read its response."""


class InFlightRequest:
    """One request being answered. It ends with its last output, or with the exception given to `end`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._has_output = asyncio.Event()
        self._exception: Exception | None = None

    async def events(self, start: StartFn) -> AsyncGenerator[PartialOutput | RequestOutput]:
        """Submit the request and yield its outputs; raises the exception given to `end`.

        Closing the generator stops the rows within one step.
        """
        stream = await asyncio.to_thread(start, self._notify)
        try:
            while not stream.finished:
                if self._exception is not None:
                    raise self._exception
                for event in stream.get_nowait():
                    yield event
                if not stream.finished:
                    await self._has_output.wait()
                    self._has_output.clear()
        finally:
            stream.close()

    def end(self, exception: Exception) -> None:
        """Raise `exception` in the reader of `events`; called in the event loop's thread."""
        if self._exception is None:
            self._exception = exception
        self._has_output.set()

    def _notify(self) -> None:
        self._loop.call_soon_threadsafe(self._has_output.set)


class InFlightRequests:
    """All requests of a server: limits their number and duration, and ends them with the server."""

    def __init__(self, max_requests: int, timeout_s: float) -> None:
        self._max_requests = max_requests
        self._timeout_s = timeout_s
        self._requests: set[InFlightRequest] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._requests)

    @asynccontextmanager
    async def track(self, receive: Receive) -> AsyncIterator[InFlightRequest]:
        """Track one request, which is ended when the client disconnects, at the timeout, or with the server.

        Raises ApiError if there are too many already, or the server is shutting down.
        """
        if self._closing:
            raise shutting_down()
        if len(self._requests) >= self._max_requests:
            message = f"{len(self._requests)} requests are being answered: ask again in a few seconds."
            raise rate_limited(message, 3, "server_busy")
        request = InFlightRequest()
        self._loop = asyncio.get_running_loop()
        self._requests.add(request)
        watcher = asyncio.create_task(_watch_disconnect(request, receive))
        limit = asyncio.get_running_loop().call_later(self._timeout_s, request.end, timed_out(self._timeout_s))
        try:
            yield request
        finally:
            limit.cancel()
            watcher.cancel()
            self._requests.discard(request)

    def close(self) -> None:
        """End all requests and refuse further ones; called in the event loop's thread."""
        self._closing = True
        for request in self._requests:
            request.end(shutting_down())

    def stop(self, seconds: float) -> None:
        """As `close`, from another thread; waits at most `seconds` for the requests to end."""
        if self._loop is None or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self.close)
        end = time.monotonic() + seconds
        while self._requests and time.monotonic() < end:
            time.sleep(0.02)


async def _watch_disconnect(request: InFlightRequest, receive: Receive) -> None:
    """End the request when its client disconnects. The body has been read, so no other message can come."""
    while (await receive())["type"] != "http.disconnect":
        pass
    request.end(ClientGoneError())
