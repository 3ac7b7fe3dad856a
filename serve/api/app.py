"""The API as one ASGI application: who may ask what, and how it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from errors import PeftArenaError
from serve.api.asks import Ask, read_chat, read_text
from serve.api.calls import Calls, ClientGoneError
from serve.api.chunks import Chunks
from serve.api.errors import ApiError, from_ours, internal
from serve.api.events import log_defect, send_stream, sound
from serve.api.fields import MAX_NAME, Fields, parse_json
from serve.api.keys import Key, Keys, Meter, is_loopback
from serve.api.messages import Conversation, read_messages
from serve.api.replies import Reply
from serve.api.service import Service
from serve.api.wire import Out, read_body
from serve.rows import Answer

if TYPE_CHECKING:
    from serve.engine_source import EngineSource

VERSION = "0.1.0"
PATHS = ("/v1/{rest:path}", "/tokenize", "/health", "/metrics", "/version")
_OPEN = frozenset({"/health", "/metrics", "/version"})


@dataclass(frozen=True)
class ApiSettings:
    """Bounds of the API. Beyond `calls` requests at once, or `rows_at_once` answers a caller, it says busy.

    `stall_seconds` is how long a client may leave an answer unread, `rows_per_minute` holds for callers whose key
    says nothing else, `pool` names the data set whose examples `icl` and `rag` show, and `local` answers those alone
    who name this machine: a web page whose name was made to point here does not.
    """

    pool: str = "starter"
    body_bytes: int = 1_000_000
    body_seconds: float = 30.0
    answer_seconds: float = 600.0
    stall_seconds: float = 60.0
    calls: int = 512
    rows_at_once: int = 128
    rows_per_minute: int | None = None
    local: bool = False


@dataclass(frozen=True)
class Caller:
    """Who asks: a key's owner, or an address where there are no keys. Also who shares a place in the engine's line."""

    name: str
    key: Key | None = None


@dataclass(frozen=True)
class _Asked:
    """One HTTP request: where it goes, from whom, and how to answer it."""

    scope: Scope
    receive: Receive
    out: Out
    path: str
    caller: Caller


class Api:
    """The ASGI application. `close` ends what is being answered; it is called in the loop that serves."""

    def __init__(self, source: EngineSource, keys: Keys, settings: ApiSettings = ApiSettings()) -> None:
        self._service = Service(source, settings.pool)
        self._keys = keys
        self._settings = settings
        self._calls = Calls(settings.calls, settings.answer_seconds)
        self._meter = Meter(settings.rows_per_minute, settings.rows_at_once)
        self._routes: dict[str, dict[str, Callable[[_Asked], Awaitable[None]]]] = {
            "/v1/chat/completions": {"POST": partial(self._complete, read=read_chat)},
            "/v1/completions": {"POST": partial(self._complete, read=read_text)},
            "/v1/models": {"GET": self._models},
            "/v1/load_lora_adapter": {"POST": self._load},
            "/v1/unload_lora_adapter": {"POST": self._unload},
            "/tokenize": {"POST": self._tokenize},
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/version": {"GET": self._version},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; whatever happens, the client gets OpenAI's error object and no more."""
        out = Out(send, self._settings.stall_seconds)
        try:
            try:
                await self._answer(scope, receive, out)
            except PeftArenaError as fault:
                await out.error(from_ours(fault))
            except ClientGoneError:
                raise
            except Exception as fault:  # noqa: BLE001 - a defect of ours must not show, nor end the server
                log_defect(fault)
                await out.error(internal())
        except ClientGoneError:
            return

    def close(self) -> None:
        """Ends all answers on their way with an error that says so, and takes no more."""
        self._calls.close()

    def stop(self, seconds: float = 2.0) -> None:
        """As `close`, from another thread than the loop's; gives the answers so long to end."""
        self._calls.stop(seconds)

    def routes(self) -> list[Route]:
        """Routes that lead to this application, for one that stands around it."""
        return [Route(path, endpoint=self) for path in PATHS]

    async def _answer(self, scope: Scope, receive: Receive, out: Out) -> None:
        path, method = scope["path"], "GET" if scope["method"] == "HEAD" else scope["method"]
        caller = self._caller(scope, path)
        model = path.startswith("/v1/models/")
        methods = {"GET": self._model} if model else self._routes.get(path)
        if methods is None:
            message = f"There is nothing at {method[:20]} {path[:MAX_NAME]}: see docs/serving.md."
            raise ApiError(404, message, code="unknown_url")
        if method not in methods:
            allowed = ", ".join(methods)
            message = f"{path[:MAX_NAME]} answers {allowed} and not {method[:20]}: use {allowed}."
            raise ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})
        await methods[method](_Asked(scope, receive, out, path, caller))

    def _caller(self, scope: Scope, path: str) -> Caller:
        """Who asks; ApiError 401 where a key is needed and missing or wrong."""
        if len(self._keys) and path not in _OPEN:
            key = self._keys.find(Headers(scope=scope).get("authorization", ""))
            return Caller(f"key {key.name}", key)
        if self._settings.local and not is_loopback(_host(Headers(scope=scope).get("host", ""))):
            message = "Without API keys only 'localhost' is served: ask that, or start the server with keys or --open."
            raise ApiError(421, message, code="misdirected_request")
        client = scope.get("client")
        return Caller(f"address {client[0]}" if client else "address unknown")

    async def _body(self, asked: _Asked) -> dict[str, Any]:
        most, seconds = self._settings.body_bytes, self._settings.body_seconds
        return parse_json(await read_body(asked.scope, asked.receive, most, seconds))

    async def _complete(self, asked: _Asked, read: Callable[[dict[str, Any]], Ask]) -> None:
        ask = read(await self._body(asked))
        reply = Reply.to(ask, await asyncio.to_thread(self._service.fingerprint))
        with self._meter.rows(asked.caller.name, asked.caller.key, ask.lines):
            async with self._calls.open(asked.receive) as call:
                start = partial(self._service.start, ask, asked.caller.name)
                async with aclosing(call.events(start)) as events:
                    if ask.stream:
                        await send_stream(events, Chunks(reply), asked.out)
                    else:
                        answers = [event async for event in sound(events) if isinstance(event, Answer)]
                        answers.sort(key=lambda answer: answer.index)
                        await asked.out.json(200, reply.whole(answers))

    async def _models(self, asked: _Asked) -> None:
        data = await asyncio.to_thread(self._service.models)
        await asked.out.json(200, {"object": "list", "data": data})

    async def _model(self, asked: _Asked) -> None:
        name = unquote(asked.path.removeprefix("/v1/models/"))[:MAX_NAME]
        await asked.out.json(200, await asyncio.to_thread(self._service.model, name))

    async def _tokenize(self, asked: _Asked) -> None:
        fields = Fields(await self._body(asked))
        model = fields.text("model", MAX_NAME) or "zero-shot"
        messages = fields.take("messages")
        if messages is not None:
            text: str | Conversation = read_messages(messages)
        else:
            text = fields.required("prompt")
        fields.finish(frozenset({"add_special_tokens", "add_generation_prompt", "return_token_strs"}))
        await asked.out.json(200, await asyncio.to_thread(self._service.count, model, text))

    async def _load(self, asked: _Asked) -> None:
        self._require_admin(asked.caller)
        fields = Fields(await self._body(asked))
        name, path = fields.required("lora_name", MAX_NAME), fields.required("lora_path", 4096)
        fields.finish(frozenset({"load_inplace", "lora_int_id"}))
        await self._said(asked, await asyncio.to_thread(self._service.load, name, path))

    async def _unload(self, asked: _Asked) -> None:
        self._require_admin(asked.caller)
        fields = Fields(await self._body(asked))
        name = fields.required("lora_name", MAX_NAME)
        fields.finish(frozenset({"lora_int_id"}))
        await self._said(asked, await asyncio.to_thread(self._service.unload, name))

    async def _said(self, asked: _Asked, sentence: str) -> None:
        await asked.out.whole(200, sentence.encode(), "text/plain; charset=utf-8")

    def _require_admin(self, caller: Caller) -> None:
        if caller.key is None or not caller.key.admin:
            raise ApiError(
                403,
                "Only an admin's key loads and unloads adapters: give one the right 'admin' in the key file.",
                type="permission_error",
                code="admin_key_required",
            )

    async def _health(self, asked: _Asked) -> None:
        status, body = self._service.health()
        await asked.out.json(status, body, {} if status == 200 else {"retry-after": "5"})

    async def _metrics(self, asked: _Asked) -> None:
        text = await asyncio.to_thread(generate_latest, self._service.engine().metrics.registry)
        await asked.out.whole(200, text, CONTENT_TYPE_LATEST)

    async def _version(self, asked: _Asked) -> None:
        await asked.out.json(200, {"version": VERSION})


def _host(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    return header.removeprefix("[").partition("]")[0] if header.startswith("[") else header.partition(":")[0]
