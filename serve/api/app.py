"""API application: ASGI app with OpenAI's endpoints, and bodies within limits of size and time."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from errors import PromptOrTuneError
from serve.api.auth import (
    SAFE_METHODS,
    ApiKey,
    ApiKeys,
    RateLimiter,
    WebAccess,
    client_address,
    client_network,
    is_https,
)
from serve.api.errors import ApiError, internal_error, invalid_request, to_api_error
from serve.api.protocol import (
    MAX_NAME_LENGTH,
    ChatCompletionRequest,
    CompletionRequest,
    Conversation,
    LoadLoRAAdapterRequest,
    OpenAIRequest,
    RequestT,
    TokenizeRequest,
    UnloadLoRAAdapterRequest,
    parse_request,
)
from serve.api.responses import ResponseBuilder, SSEStream, encode_stream, log_unexpected_error, raise_failed
from serve.api.serving import ClientGoneError, InFlightRequests, OpenAIServing
from serve.types import PartialOutput, RequestOutput

if TYPE_CHECKING:
    from serve.engine.llm_engine import EngineLoader

# Limits on what is read of a body that is refused, before the connection is closed.
_DRAIN_BYTES = 16_000_000
_DRAIN_SECONDS = 2.0
_CLOSE_HEADERS = {"connection": "close"}
VERSION = "0.1.0"
PATHS = ("/v1/{rest:path}", "/tokenize", "/health", "/metrics", "/version")
_PUBLIC_PATHS = frozenset({"/health", "/metrics", "/version"})


async def read_body(scope: Scope, receive: Receive, max_bytes: int, seconds: float) -> bytes:
    """Return the body of a request; raises ApiError 413, 415 or 408, or ClientGoneError.

    The content type must be JSON. A web page of another origin can send this type only after a preflight request,
    which is refused; so a page cannot use the API in the name of a person who visits it.
    """
    headers = Headers(scope=scope)
    content_type = headers.get("content-type", "").partition(";")[0].strip().casefold()
    declared = headers.get("content-length", "0")
    if (declared.isdigit() and int(declared) > max_bytes) or headers.get("content-encoding", "identity") != "identity":
        await _drain(receive)
        raise _too_large(max_bytes)
    if content_type != "application/json":
        await _drain(receive)
        raise ApiError(
            415, "The body must be JSON: send it with 'Content-Type: application/json'.", headers=_CLOSE_HEADERS
        )
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in _body_chunks(receive):
                body += chunk
                if len(body) > max_bytes:
                    await _drain(receive)
                    raise _too_large(max_bytes)
    except TimeoutError as error:
        message = f"The body did not arrive within {seconds:g} s: send it at once."
        raise ApiError(408, message, code="timeout", headers=_CLOSE_HEADERS) from error
    return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    message = f"The body is larger than {max_bytes} bytes, or compressed: send less, as plain JSON."
    return ApiError(413, message, code="request_too_large", headers=_CLOSE_HEADERS)


async def _body_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; raises ClientGoneError."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _drain(receive: Receive) -> None:
    """Read on for a moment: a client that is still sending reads no response from a connection that is closed."""
    remaining = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in _body_chunks(receive):
                remaining -= len(chunk)
                if remaining < 0:
                    return
    except TimeoutError:
        return


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; raises ApiError 400 if it is not one."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _invalid_json("it is not UTF-8") from error
    except RecursionError as error:
        raise _invalid_json("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _invalid_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # a number of thousands of digits
        raise _invalid_json("a number in it has too many digits or is no number") from error
    if not isinstance(value, dict):
        raise _invalid_json("it must be an object with named fields")
    return value


def _invalid_json(reason: str) -> ApiError:
    return invalid_request(f"The body is not valid JSON for this request: {reason}.", code="invalid_json")


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


class ApiResponse(JSONResponse):
    """A JSON response. Lone surrogates, which a model may generate, are replaced instead of failing."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


class ErrorResponse(ApiResponse):
    """OpenAI's error object with its status and headers."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.body(), error.status, error.headers)


class EventStreamResponse(StreamingResponse):
    """A stream of server-sent events: `first`, then those of a generator, which is closed however the response ends.

    Unlike its base class it does not watch for the client's disconnect: InFlightRequests does, and ends the generator.
    """

    def __init__(self, first: bytes, events: AsyncGenerator[bytes]) -> None:
        # x-accel-buffering keeps a proxy from collecting the events before it forwards them.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_prepend(first, events), headers=headers, media_type="text/event-stream")
        self._events = events
        # Without the charset that Starlette would append.
        self.headers["content-type"] = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await self.stream_response(send)
        finally:
            await self._events.aclose()


async def _prepend(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in events:
        yield event


class ResponseSender:
    """The `send` of one response: adds the common headers and `headers`; a client that does not read counts as gone.

    `started` tells whether the status has been sent. Raises ClientGoneError if one message takes longer than
    `write_timeout_s`.
    """

    def __init__(self, send: Send, write_timeout_s: float, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        self._write_timeout_s = write_timeout_s
        self._request_id = secrets.token_hex(12)
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = f"req_{self._request_id}"
            headers["x-content-type-options"] = "nosniff"
            headers.update(self._headers)
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._send(message)
        except TimeoutError as error:
            raise ClientGoneError from error


@dataclass(frozen=True)
class ApiSettings:
    """Limits of the API. Beyond `max_requests`, or `max_concurrent_rows` answers per caller, it answers 429.

    `write_timeout_s` is how long a client may leave a response unread. `rows_per_minute` applies to callers whose key
    has no limit of its own. `pool` names the data set with the examples of `icl` and `rag`. `web` has the names under
    which the server answers and the origins of web pages that may use it.
    """

    pool: str = "starter"
    max_body_bytes: int = 1_000_000
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    write_timeout_s: float = 60.0
    max_requests: int = 512
    max_concurrent_rows: int = 128
    rows_per_minute: int | None = None
    web: WebAccess = field(default_factory=WebAccess)


@dataclass(frozen=True)
class Caller:
    """Sender of a request: the owner of a key, or an address if there are no keys. `name` is the engine's owner."""

    name: str
    key: ApiKey | None = None


class Api:
    """The ASGI application. `close` ends the requests in flight; it is called in the event loop that serves them."""

    def __init__(self, loader: EngineLoader, keys: ApiKeys, settings: ApiSettings = ApiSettings()) -> None:
        self._serving = OpenAIServing(loader, settings.pool)
        self._keys = keys
        self._settings = settings
        self._in_flight = InFlightRequests(settings.max_requests, settings.request_timeout_s)
        self._rate_limiter = RateLimiter(settings.rows_per_minute, settings.max_concurrent_rows)
        self._router = Router(
            [
                Route("/v1/chat/completions", self._create_chat_completion, methods=["POST"]),
                Route("/v1/completions", self._create_completion, methods=["POST"]),
                Route("/v1/models", self._list_models, methods=["GET"]),
                Route("/v1/models/{name:path}", self._get_model, methods=["GET"]),
                Route("/v1/load_lora_adapter", self._load_lora_adapter, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload_lora_adapter, methods=["POST"]),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/version", self._version, methods=["GET"]),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Every failure becomes OpenAI's error object; unexpected exceptions show no details."""
        cors = self._settings.web.cors_headers(Headers(scope=scope))
        sender = ResponseSender(send, self._settings.write_timeout_s, cors)
        try:
            error = await self._handle(scope, receive, sender)
            # An error after the status has been sent can only end the connection.
            if error is not None and not sender.started:
                await ErrorResponse(error)(scope, receive, sender)
        except ClientGoneError:
            return

    def close(self) -> None:
        """End all requests in flight with an error that says so, and refuse further ones."""
        self._in_flight.close()

    def stop(self, seconds: float = 2.0) -> None:
        """As `close`, from another thread; waits at most `seconds` for the requests to end."""
        self._in_flight.stop(seconds)

    def routes(self) -> list[Route]:
        """Return routes to this application, for an application that contains it."""
        return [Route(path, endpoint=self) for path in PATHS]

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> ApiError | None:
        """Check the caller and run the endpoint; return the error to send, if any."""
        try:
            if preflight := self._check_web(scope):
                await preflight(scope, receive, send)
                return None
            # "app" makes the router raise HTTPException instead of answering in plain text. The exception handlers
            # of an application around this one would do the same with HTML.
            scope = {**scope, "app": self, "user": self._identify_caller(scope)}
            scope.pop("starlette.exception_handlers", None)
            await self._router(scope, receive, send)
        except HTTPException as error:
            return _routing_error(scope, error)
        except PromptOrTuneError as error:
            return to_api_error(error)
        except ClientGoneError:
            raise
        except Exception as error:  # noqa: BLE001 - any exception becomes status 500 and must not end the server
            log_unexpected_error(error)
            return internal_error()
        return None

    def _check_web(self, scope: Scope) -> Response | None:
        """Raise ApiError for a Host or an Origin that is not answered; return the answer to a preflight request."""
        headers, web = Headers(scope=scope), self._settings.web
        if message := web.host_refusal(headers):
            raise ApiError(421, message, code="misdirected_request")
        if scope["method"] == "OPTIONS" and (granted := web.preflight_headers(headers)):
            return Response(status_code=204, headers=granted)
        if message := web.origin_refusal(headers, is_https(scope), navigable=scope["method"] in SAFE_METHODS):
            raise ApiError(403, message, type="permission_error", code="origin_not_allowed")
        return None

    def _identify_caller(self, scope: Scope) -> Caller:
        """Return the caller; raises ApiError 401 if a key is required and absent or wrong."""
        headers = Headers(scope=scope)
        if len(self._keys) and scope["path"] not in _PUBLIC_PATHS:
            key = self._keys.find(headers.get("authorization", ""))
            return Caller(f"key {key.name}", key)
        return Caller(f"address {client_network(client_address(scope, self._settings.web)) or 'unknown'}")

    async def _parse(self, model: type[RequestT], request: Request) -> RequestT:
        max_bytes, seconds = self._settings.max_body_bytes, self._settings.body_timeout_s
        body = await read_body(request.scope, request.receive, max_bytes, seconds)
        # In a thread: a large body takes tenths of a second, for which no stream would advance.
        return await asyncio.to_thread(lambda: parse_request(model, parse_body(body)))

    async def _create_chat_completion(self, request: Request) -> Response:
        return await self._complete(request, await self._parse(ChatCompletionRequest, request))

    async def _create_completion(self, request: Request) -> Response:
        return await self._complete(request, await self._parse(CompletionRequest, request))

    async def _complete(self, http_request: Request, request: OpenAIRequest) -> Response:
        builder = ResponseBuilder.create(request, await asyncio.to_thread(self._serving.fingerprint))
        outputs = self._generate(http_request, request)
        if request.stream:
            events = encode_stream(outputs, SSEStream(builder))
            # The status is sent only after the first event, so that a request that cannot be answered gets its own.
            return EventStreamResponse(await anext(events), events)
        async with aclosing(outputs):
            finished = [output async for output in raise_failed(outputs) if isinstance(output, RequestOutput)]
        return ApiResponse(builder.full_response(sorted(finished, key=lambda output: output.index)))

    async def _generate(
        self, http_request: Request, request: OpenAIRequest
    ) -> AsyncGenerator[PartialOutput | RequestOutput]:
        """Yield the outputs of a request, which counts towards the caller's limits until the generator is closed."""
        caller: Caller = http_request.user
        start = partial(self._serving.start, request, caller.name)
        with self._rate_limiter.acquire(caller.name, caller.key, request.num_seqs):
            async with (
                self._in_flight.track(http_request.receive) as in_flight,
                aclosing(in_flight.events(start)) as outputs,
            ):
                async for output in outputs:
                    yield output

    async def _list_models(self, request: Request) -> Response:  # noqa: ARG002
        return ApiResponse({"object": "list", "data": await asyncio.to_thread(self._serving.list_models)})

    async def _get_model(self, request: Request) -> Response:
        name = unquote(request.path_params["name"])[:MAX_NAME_LENGTH]
        return ApiResponse(await asyncio.to_thread(self._serving.get_model, name))

    async def _tokenize(self, request: Request) -> Response:
        body = await self._parse(TokenizeRequest, request)
        text = body.prompt if body.messages is None else Conversation.from_messages(body.messages)
        return ApiResponse(await asyncio.to_thread(self._serving.count_tokens, body.model or "zero-shot", text or ""))

    async def _load_lora_adapter(self, request: Request) -> Response:
        _require_admin(request.user)
        body = await self._parse(LoadLoRAAdapterRequest, request)
        message = await asyncio.to_thread(self._serving.load_lora_adapter, body.lora_name, body.lora_path)
        return PlainTextResponse(message)

    async def _unload_lora_adapter(self, request: Request) -> Response:
        _require_admin(request.user)
        body = await self._parse(UnloadLoRAAdapterRequest, request)
        return PlainTextResponse(await asyncio.to_thread(self._serving.unload_lora_adapter, body.lora_name))

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        status, body = self._serving.health()
        return ApiResponse(body, status, {} if status == 200 else {"retry-after": "5"})

    async def _metrics(self, request: Request) -> Response:  # noqa: ARG002
        text = await asyncio.to_thread(generate_latest, self._serving.engine().metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def _version(self, request: Request) -> Response:  # noqa: ARG002
        return ApiResponse({"version": VERSION})


def _require_admin(caller: Caller) -> None:
    if caller.key is None or not caller.key.admin:
        raise ApiError(
            403,
            "Only an admin's key loads and unloads adapters: give one the right 'admin' in the key file.",
            type="permission_error",
            code="admin_key_required",
        )


def _routing_error(scope: Scope, error: HTTPException) -> ApiError:
    """Return the error for an unknown path (404) or a method that a path does not have (405)."""
    method, path = scope["method"][:20], scope["path"][:MAX_NAME_LENGTH]
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {})["Allow"].split(", ")))
        message = f"{path} answers {allowed} and not {method}: use {allowed}."
        return ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})
    return ApiError(404, f"There is nothing at {method} {path}: see docs/serving.md.", code="unknown_url")
