"""What the API asks of the engine: a model's name as a method, requests, the list of models, tokens, adapters."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from errors import AdapterError, BusyError, PeftArenaError, UnknownNameError
from serve.api.asks import Ask
from serve.api.errors import ApiError, closing, from_ours, invalid, no_model, not_ready
from serve.api.messages import Conversation
from serve.method import Method, Nothing, parse_method
from serve.rows import Answer, Decoding, Request
from tasks.extract import extract_code
from tasks.problem import Example, Problem
from tasks.prompt import STYLES

if TYPE_CHECKING:
    from serve.engine import Engine
    from serve.engine_source import EngineSource
    from serve.scheduling.mailbox import Stream

OWNER = "peft-arena"
_METHODS = ("zero-shot", "icl", "rag")
_MAX_HINTS = 500
_PROBE = Decoding(max_new_tokens=1)
# How a turn's answer is read back: code from its fence where it has one, else as it is.
_ANSWERED = STYLES["chat"]


class Service:
    """The engine in the API's words. `pool` names the data set whose examples `icl` and `rag` show.

    Methods may take time (disk, a lock) and are called in threads; each raises ApiError, or PeftArenaError.
    """

    def __init__(self, source: EngineSource, pool: str) -> None:
        self._source = source
        self._pool = pool
        self._began = int(time.time())
        self._changing = Lock()

    def engine(self) -> Engine:
        """The engine; ApiError 503 while it loads, and when loading has failed."""
        try:
            engine = self._source.poll(0)
        except PeftArenaError as fault:
            raise not_ready(str(fault), "model_failed") from fault
        if engine is None:
            raise not_ready(f"The model is loading ({self._source.state().message}): ask again soon.", "model_loading")
        return engine

    def fingerprint(self) -> str:
        """What answers depend on beside the request: the base's revision and its quantization."""
        base = self.engine().base
        return f"fp_{base.revision.removeprefix('sha256:')[:12]}_{base.quantization}"

    def method(self, model: str) -> Method:
        """The method that `model` names; ApiError 404 where it names none."""
        engine = self.engine()
        if model == engine.base.id:
            return parse_method("zero-shot", ())
        parts = {part.strip().partition("*")[0] for part in model.split("+")}
        names = engine.adapters()
        try:
            method = parse_method(model, parts.intersection(names))
        except UnknownNameError as fault:
            raise no_model(_unknown(model, names)) from fault
        except PeftArenaError as fault:
            raise invalid(str(fault), "model") from fault
        reason = engine.unavailable(method)
        if reason:
            raise ApiError(400, reason, param="model", code="model_unavailable")
        return method

    def start(self, ask: Ask, owner: str, ring: Callable[[], None]) -> Stream:
        """Hands the request to the engine; `ring` is called whenever there is news."""
        method = self.method(ask.model)
        if ask.conversation is not None:
            requests = [self._request(ask.conversation, method)]
        elif method.examples.k:
            raise invalid(
                f"'{ask.model}' shows examples and this prompt is read as it is: use /v1/chat/completions.", "model"
            )
        else:
            requests = [Request(Problem("api", prompt), method, self._pool, raw=prompt) for prompt in ask.prompts]
        try:
            return self.engine().submit(requests, ask.decoding, owner=owner, notify=ring)
        except PeftArenaError as fault:
            raise from_ours(fault) from fault

    def _request(self, conversation: Conversation, method: Method) -> Request:
        turns = [Example("", asked, extract_code(said, _ANSWERED)) for asked, said in conversation.turns]
        return Request(Problem("api", conversation.intent), method, self._pool, turns=tuple(turns))

    def models(self) -> list[dict[str, Any]]:
        """Every model: the base, the methods, and the adapters that this base can wear."""
        engine = self.engine()
        found = [self._base(), *(self._entry(name) for name in _METHODS if self._can(parse_method(name, ())))]
        for status in engine.store.status(engine.base):
            if status.usable and self._can(Method(status.name, Nothing(), status.name)):
                created = status.manifest.created if status.manifest else ""
                found.append(self._entry(status.name, _seconds(created) or self._began))
        return found

    def model(self, name: str) -> dict[str, Any]:
        """One model, also of those that the list does not name, as `icl-4` or `lora-x*0.5`."""
        if name == self.engine().base.id:
            return self._base()
        try:
            self.method(name)
        except ApiError as fault:
            raise no_model(fault.message) from fault
        return self._entry(name)

    def count(self, model: str, text: str | Conversation) -> dict[str, Any]:
        """How many tokens a text has, or a chat's whole prompt with its examples."""
        engine = self.engine()
        if isinstance(text, str):
            count = engine.count_tokens(text)
        else:
            (count,) = engine.prompt_tokens([self._request(text, self.method(model))], _PROBE)
            if not count:
                raise invalid("These messages cannot be answered, so they have no prompt: shorten them.", "messages")
        return {"count": count, "max_model_len": engine.base.context_length, "tokens": None, "token_strs": None}

    def load(self, name: str, path: str) -> str:
        """Registers the adapter folder `path` as `name` and loads it; nothing is registered when that fails."""
        engine = self.engine()
        with self._changing:
            known = name in engine.adapters()
            try:
                engine.store.register(name, Path(path), engine.base)
                try:
                    engine.residents.acquire(name).release()
                except BaseException:
                    if not known:
                        engine.store.unregister(name)
                    raise
            except BusyError as fault:
                raise from_ours(fault) from fault
            except PeftArenaError as fault:
                raise invalid(str(fault), "lora_path") from fault
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> str:
        """Frees the adapter's memory and forgets a registered one; 404 where there is none of that name."""
        engine = self.engine()
        with self._changing:
            if name not in engine.adapters():
                raise ApiError(404, _unknown(name, engine.adapters()), param="lora_name", code="model_not_found")
            try:
                # First, so that nobody loads it again in between.
                engine.store.unregister(name)
            except AdapterError:  # it lies in the store itself, where whoever asks for it finds it again
                return f"Success: LoRA adapter '{name}' left memory; it stays in the store."
            finally:
                engine.residents.unload(name)
        return f"Success: LoRA adapter '{name}' removed successfully."

    def health(self) -> tuple[int, Mapping[str, str]]:
        """200 when requests are answered, and 503 with the reason when not."""
        state = self._source.state()
        if state.phase == "ready":
            return 200, {"status": "ok"}
        return 503, {"status": state.phase, "message": state.message}

    def _can(self, method: Method) -> bool:
        return self.engine().unavailable(method) is None

    def _base(self) -> dict[str, Any]:
        base = self.engine().base
        # The last two are ours: they tell a client which adapters belong to this base.
        known = {"max_model_len": base.context_length, "revision": base.revision, "quantization": base.quantization}
        return {**self._entry(base.id), "parent": None, **known}

    def _entry(self, name: str, created: int | None = None) -> dict[str, Any]:
        base = self.engine().base
        when = self._began if created is None else created
        return {"id": name, "object": "model", "created": when, "owned_by": OWNER, "root": base.id, "parent": base.id}


def failure(answer: Answer) -> ApiError | None:
    """What to say of an answer that failed, None of one that did not."""
    if answer.error is None:
        return closing() if answer.cancelled else None
    return from_ours(answer.fault or PeftArenaError(answer.error))


def _unknown(model: str, names: list[str]) -> str:
    """A sentence with the nearest name; of thousands none is sought and none is listed."""
    near = difflib.get_close_matches(model, [*_METHODS, *names[:_MAX_HINTS]], n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"The model '{model}' does not exist: {hint}GET /v1/models lists what is served."


def _seconds(created: str) -> int | None:
    """A manifest's date as seconds since 1970."""
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return None
