"""The API's routes with random values, bodies, headers and paths: an error object with a message, never status 500."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from serve.api.app import ApiSettings
from serve.api.auth import ApiKey, ApiKeys
from serve.api.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    LoadLoRAAdapterRequest,
    TokenizeRequest,
    UnloadLoRAAdapterRequest,
)
from tests.serve.api.conftest import Served, serving
from ui.access.policy import API_ACTIONS

pytestmark = pytest.mark.slow

EXAMPLES, KEY = 200, "admin-key-0123456789"
fuzz = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
CHAT = {"model": "zero-shot", "max_tokens": 4, "messages": [{"role": "user", "content": "add two numbers"}]}
# A valid body for each route with one, and the model whose fields are changed.
BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, CHAT),
    "/v1/completions": (CompletionRequest, {"model": "zero-shot", "max_tokens": 4, "prompt": "add two numbers"}),
    "/tokenize": (TokenizeRequest, {"model": "zero-shot", "prompt": "add two numbers"}),
    "/v1/load_lora_adapter": (LoadLoRAAdapterRequest, {"lora_name": "x", "lora_path": "/no/such/folder"}),
    "/v1/unload_lora_adapter": (UnloadLoRAAdapterRequest, {"lora_name": "x"}),
}
NAMES = ["zero-shot", "icl-8", "rag-4", "lora-a", "rag-" + "9" * 5000, "../../etc/passwd", "lora-a/../lora-b", "-1"]
# By name: Hypothesis prints the values of a strategy.
LARGE: dict[str, Any] = {"number": -(10**400), "word": "x" * 300_000, "words": "a " * 100_000}
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.sampled_from(NAMES),
    st.sampled_from([10**30, 1e308, "\udc80", "\x00\x1b[2J"]),
    st.sampled_from(sorted(LARGE)).map(lambda name: LARGE[name]),
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "", 7]),
        "content": st.one_of(LEAVES, st.lists(st.fixed_dictionaries({"type": LEAVES, "text": LEAVES}), max_size=3)),
        "tool_calls": LEAVES,
    },
)
VALUES = st.recursive(
    st.one_of(LEAVES, st.lists(MESSAGE, max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
DEEP = {"brackets": b"[" * 200_000, "braces": b'{"a":' * 50_000, "digits": b"1" * 20_000}
STRANGE_BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(sorted(DEEP)).map(lambda name: DEEP[name]),
    st.sampled_from([b'{"model":NaN}', b'"\\ud800"', b"", b"null"]),
)
HEADERS = st.dictionaries(
    st.sampled_from(["authorization", "origin", "x-forwarded-for", "content-type", "expect", "accept-encoding"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
    max_size=3,
)


def admin_key() -> ApiKey:
    return ApiKey("admin", hashlib.sha256(KEY.encode()).digest(), admin=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings, keys = ApiSettings(request_timeout_s=10.0), ApiKeys((admin_key(),))
    with serving(tmp_path_factory.mktemp("api"), settings=settings, keys=keys) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.http(headers={"authorization": f"Bearer {KEY}"}) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def check(response: httpx.Response) -> None:
    """Assert that the response is an answer, or an error object with a message for the caller."""
    assert response.status_code < 500, response.text[:500]
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"]
        assert "Traceback" not in response.text
        assert len(response.text) < 2_000


def test_every_route_with_a_body_is_tried() -> None:
    assert set(BODIES) | {"/v1/models", "/v1/models/{name:path}", "/health", "/metrics", "/version"} == set(API_ACTIONS)


@pytest.mark.parametrize("route", BODIES)
def test_changed_fields_give_an_answer_or_a_sentence(client: httpx.Client, route: str) -> None:
    model, valid = BODIES[route]
    names = st.one_of(st.sampled_from(sorted(model.model_fields)), st.text(max_size=8))
    statuses = set()

    @fuzz
    @given(st.dictionaries(names, VALUES, min_size=1, max_size=3), st.booleans())
    def send(changes: dict[str, Any], keep: bool) -> None:
        content = json.dumps({**(valid if keep else {}), **changes})
        response = client.post(route, content=content, headers={"content-type": "application/json"})
        check(response)
        statuses.add(response.status_code)

    send()
    assert 400 in statuses


@pytest.mark.parametrize("route", BODIES)
def test_strange_bodies_and_headers_give_a_sentence(client: httpx.Client, route: str) -> None:
    @fuzz
    @given(STRANGE_BODIES, HEADERS)
    def send(body: bytes, headers: dict[str, str]) -> None:
        response = client.post(route, content=body, headers=headers)
        check(response)
        assert response.status_code >= 400

    send()


@fuzz
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"]),
    path=st.one_of(st.sampled_from(sorted(API_ACTIONS)), st.text(st.characters(codec="utf-8"), max_size=30)),
    name=st.sampled_from(NAMES),
    query=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.text(max_size=5), max_size=2),
)
def test_strange_paths_and_methods(client: httpx.Client, method: str, path: str, name: str, query: Any) -> None:
    try:
        url = httpx.URL(f"/v1/models/{name}" if path.endswith("}") else f"/{path.lstrip('/')}", params=query)
    except (httpx.InvalidURL, UnicodeEncodeError):
        return  # no client can send it
    response = client.request(method, url)
    if method == "HEAD":
        assert response.status_code < 500
    elif response.status_code != 204:
        check(response)


def test_loading_a_path_reaches_no_folder_outside(client: httpx.Client, served: Served, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (str(outside), "/etc", "~", ".", "../..", str(served.adapters / "root" / ".." / ".." / "..")):
        response = client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path})
        check(response)
        assert response.status_code >= 400
        assert client.post("/v1/completions", json={"model": "x", "prompt": "a"}).status_code == 404
