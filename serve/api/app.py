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

from errors import PromptOrTuneError
from serve.api.auth import ApiKey, ApiKeys, RateLimiter, is_loopback
from serve.api.errors import ApiError, internal_error, to_api_error
from serve.api.http import ResponseWriter, read_body
from serve.api.protocol import (
    MAX_NAME_LENGTH,
    CompletionRequest,
    Conversation,
    Fields,
    ResponseBuilder,
    parse_chat_request,
    parse_completion_request,
    parse_json,
    parse_messages,
)
from serve.api.serving import ClientGoneError, InFlightRequests, OpenAIServing
from serve.api.streaming import SSEStream, log_unexpected_error, raise_failed, send_stream
from serve.types import RequestOutput

if TYPE_CHECKING:
    from serve.engine.llm_engine import EngineLoader

VERSION = "0.1.0"
PATHS = ("/v1/{rest:path}", "/tokenize", "/health", "/metrics", "/version")
_PUBLIC_PATHS = frozenset({"/health", "/metrics", "/version"})


@dataclass(frozen=True)
class ApiSettings:
    """Bounds of the API. Beyond `calls` requests at once, or `rows_at_once` answers a caller, it says busy.

    `stall_seconds` is how long a client may leave an answer unread, `rows_per_minute` holds for callers whose key
    says nothing else, `pool` names the data set whose examples `icl` and `rag` show, and `local` answers those alone
    who name this machine: a web page whose name was made to point here does not.
    """

    pool: str = "starter"
    max_body_bytes: int = 1_000_000
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    write_timeout_s: float = 60.0
    max_requests: int = 512
    max_concurrent_rows: int = 128
    rows_per_minute: int | None = None
    loopback_only: bool = False


@dataclass(frozen=True)
class Caller:
    """Who asks: a key's owner, or an address where there are no keys. Also who shares a place in the engine's line."""

    name: str
    key: ApiKey | None = None


@dataclass(frozen=True)
class _HttpRequest:
    """One HTTP request: where it goes, from whom, and how to answer it."""

    scope: Scope
    receive: Receive
    writer: ResponseWriter
    path: str
    caller: Caller


class Api:
    """The ASGI application. `close` ends what is being answered; it is called in the loop that serves."""

    def __init__(self, loader: EngineLoader, keys: ApiKeys, settings: ApiSettings = ApiSettings()) -> None:
        self._serving = OpenAIServing(loader, settings.pool)
        self._keys = keys
        self._settings = settings
        self._in_flight = InFlightRequests(settings.max_requests, settings.request_timeout_s)
        self._rate_limiter = RateLimiter(settings.rows_per_minute, settings.max_concurrent_rows)
        self._routes: dict[str, dict[str, Callable[[_HttpRequest], Awaitable[None]]]] = {
            "/v1/chat/completions": {"POST": partial(self._create_completion, parse=parse_chat_request)},
            "/v1/completions": {"POST": partial(self._create_completion, parse=parse_completion_request)},
            "/v1/models": {"GET": self._list_models},
            "/v1/load_lora_adapter": {"POST": self._load_lora_adapter},
            "/v1/unload_lora_adapter": {"POST": self._unload_lora_adapter},
            "/tokenize": {"POST": self._tokenize},
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/version": {"GET": self._version},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; whatever happens, the client gets OpenAI's error object and no more."""
        out = ResponseWriter(send, self._settings.write_timeout_s)
        try:
            try:
                await self._dispatch(scope, receive, out)
            except PromptOrTuneError as error:
                await out.send_error(to_api_error(error))
            except ClientGoneError:
                raise
            except Exception as error:  # noqa: BLE001 - a defect of ours must not show, nor end the server
                log_unexpected_error(error)
                await out.send_error(internal_error())
        except ClientGoneError:
            return

    def close(self) -> None:
        """Ends all answers on their way with an error that says so, and takes no more."""
        self._in_flight.close()

    def stop(self, seconds: float = 2.0) -> None:
        """As `close`, from another thread than the loop's; gives the answers so long to end."""
        self._in_flight.stop(seconds)

    def routes(self) -> list[Route]:
        """Routes that lead to this application, for one that stands around it."""
        return [Route(path, endpoint=self) for path in PATHS]

    async def _dispatch(self, scope: Scope, receive: Receive, writer: ResponseWriter) -> None:
        path, method = scope["path"], "GET" if scope["method"] == "HEAD" else scope["method"]
        caller = self._identify_caller(scope, path)
        model = path.startswith("/v1/models/")
        methods = {"GET": self._get_model} if model else self._routes.get(path)
        if methods is None:
            message = f"There is nothing at {method[:20]} {path[:MAX_NAME_LENGTH]}: see docs/serving.md."
            raise ApiError(404, message, code="unknown_url")
        if method not in methods:
            allowed = ", ".join(methods)
            message = f"{path[:MAX_NAME_LENGTH]} answers {allowed} and not {method[:20]}: use {allowed}."
            raise ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})
        await methods[method](_HttpRequest(scope, receive, writer, path, caller))

    def _identify_caller(self, scope: Scope, path: str) -> Caller:
        """Who asks; ApiError 401 where a key is needed and missing or wrong."""
        if len(self._keys) and path not in _PUBLIC_PATHS:
            key = self._keys.find(Headers(scope=scope).get("authorization", ""))
            return Caller(f"key {key.name}", key)
        if self._settings.loopback_only and not is_loopback(_host_name(Headers(scope=scope).get("host", ""))):
            message = "Without API keys only 'localhost' is served: ask that, or start the server with keys or --open."
            raise ApiError(421, message, code="misdirected_request")
        client = scope.get("client")
        return Caller(f"address {client[0]}" if client else "address unknown")

    async def _read_json_body(self, request: _HttpRequest) -> dict[str, Any]:
        most, seconds = self._settings.max_body_bytes, self._settings.body_timeout_s
        return parse_json(await read_body(request.scope, request.receive, most, seconds))

    async def _create_completion(
        self, request: _HttpRequest, parse: Callable[[dict[str, Any]], CompletionRequest]
    ) -> None:
        ask = parse(await self._read_json_body(request))
        reply = ResponseBuilder.create(ask, await asyncio.to_thread(self._serving.fingerprint))
        with self._rate_limiter.acquire(request.caller.name, request.caller.key, ask.num_seqs):
            async with self._in_flight.track(request.receive) as call:
                start = partial(self._serving.start, ask, request.caller.name)
                async with aclosing(call.events(start)) as events:
                    if ask.stream:
                        await send_stream(events, SSEStream(reply), request.writer)
                    else:
                        answers = [event async for event in raise_failed(events) if isinstance(event, RequestOutput)]
                        answers.sort(key=lambda answer: answer.index)
                        await request.writer.send_json(200, reply.full_response(answers))

    async def _list_models(self, request: _HttpRequest) -> None:
        data = await asyncio.to_thread(self._serving.list_models)
        await request.writer.send_json(200, {"object": "list", "data": data})

    async def _get_model(self, request: _HttpRequest) -> None:
        name = unquote(request.path.removeprefix("/v1/models/"))[:MAX_NAME_LENGTH]
        await request.writer.send_json(200, await asyncio.to_thread(self._serving.get_model, name))

    async def _tokenize(self, request: _HttpRequest) -> None:
        fields = Fields(await self._read_json_body(request))
        model = fields.text("model", MAX_NAME_LENGTH) or "zero-shot"
        messages = fields.pop("messages")
        if messages is not None:
            text: str | Conversation = parse_messages(messages)
        else:
            text = fields.required("prompt")
        fields.reject_unknown(frozenset({"add_special_tokens", "add_generation_prompt", "return_token_strs"}))
        await request.writer.send_json(200, await asyncio.to_thread(self._serving.count_tokens, model, text))

    async def _load_lora_adapter(self, request: _HttpRequest) -> None:
        self._require_admin(request.caller)
        fields = Fields(await self._read_json_body(request))
        name, path = fields.required("lora_name", MAX_NAME_LENGTH), fields.required("lora_path", 4096)
        fields.reject_unknown(frozenset({"load_inplace", "lora_int_id"}))
        await self._send_text(request, await asyncio.to_thread(self._serving.load_lora_adapter, name, path))

    async def _unload_lora_adapter(self, request: _HttpRequest) -> None:
        self._require_admin(request.caller)
        fields = Fields(await self._read_json_body(request))
        name = fields.required("lora_name", MAX_NAME_LENGTH)
        fields.reject_unknown(frozenset({"lora_int_id"}))
        await self._send_text(request, await asyncio.to_thread(self._serving.unload_lora_adapter, name))

    async def _send_text(self, request: _HttpRequest, message: str) -> None:
        await request.writer.send(200, message.encode(), "text/plain; charset=utf-8")

    def _require_admin(self, caller: Caller) -> None:
        if caller.key is None or not caller.key.admin:
            raise ApiError(
                403,
                "Only an admin's key loads and unloads adapters: give one the right 'admin' in the key file.",
                type="permission_error",
                code="admin_key_required",
            )

    async def _health(self, request: _HttpRequest) -> None:
        status, body = self._serving.health()
        await request.writer.send_json(status, body, {} if status == 200 else {"retry-after": "5"})

    async def _metrics(self, request: _HttpRequest) -> None:
        text = await asyncio.to_thread(generate_latest, self._serving.engine().metrics.registry)
        await request.writer.send(200, text, CONTENT_TYPE_LATEST)

    async def _version(self, request: _HttpRequest) -> None:
        await request.writer.send_json(200, {"version": VERSION})


def _host_name(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    return header.removeprefix("[").partition("]")[0] if header.startswith("[") else header.partition(":")[0]
