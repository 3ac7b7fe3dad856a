"""API keys, rate limits, and clients that disconnect, stall, or send too much or too slowly."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serve.api import server
from serve.api.app import ApiSettings
from serve.api.auth import ApiKeys, read_keys
from serve.api.server import listen
from serve.engine.config import EngineConfig
from tests import messages as expected
from tests.serve.api import conftest
from tests.serve.api.conftest import Served, serving, wait_for
from tests.serve.api.scripted_backend import ScriptedBackend
from tests.serve.api.test_errors import CHAT, REQUEST, error_of

pytestmark = pytest.mark.slow

ANNA, BERT, ROOT = "anna-key-0123456789", "bert-key-0123456789", "root-key-0123456789"


def keys(tmp_path: Path, text: str) -> ApiKeys:
    file = tmp_path / "keys.txt"
    file.write_text(text)
    return read_keys(file)


def counting(words: int, **more: Any) -> dict[str, Any]:
    return {"model": "zero-shot", "messages": [{"role": "user", "content": f"count {words}"}], **more}


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("with_keys")
    found = keys(folder, f"# API keys\nanna:{ANNA}:6\n\nbert:{BERT}\nroot:{ROOT}::admin\n")
    with serving(folder, keys=found) as served:
        yield served


def test_requests_without_a_valid_key_are_refused(with_keys: Served) -> None:
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": ANNA}, {"authorization": f"Basic {BERT}"}):
        for path in (CHAT, "/v1/completions", "/tokenize", "/v1/load_lora_adapter"):
            answer = httpx.post(with_keys.url + path, json=REQUEST, headers=header)
            assert error_of(answer, 401)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{with_keys.url}/v1/models", headers=header).status_code == 401
    with with_keys.client("wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with with_keys.client(BERT) as client:
        assert client.models.list().data


def test_health_metrics_and_version_need_no_key(with_keys: Served) -> None:
    assert all(httpx.get(with_keys.url + path).status_code == 200 for path in ("/health", "/metrics", "/version"))


def test_rows_per_minute_are_limited_per_key(with_keys: Served) -> None:
    with with_keys.client(ANNA) as anna, with_keys.client(BERT) as bert:
        messages: Any = REQUEST["messages"]
        anna.chat.completions.create(model="zero-shot", messages=messages, n=5, temperature=1)
        with pytest.raises(openai.RateLimitError) as caught:
            anna.chat.completions.create(model="zero-shot", messages=messages, n=3, temperature=1)
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 20
        with pytest.raises(openai.BadRequestError, match=expected.ROWS_PER_MINUTE):
            anna.completions.create(model="zero-shot", prompt=["x"] * 7)
        assert bert.chat.completions.create(model="zero-shot", messages=messages, n=5, temperature=1)


def test_quota_is_refilled_over_time(tmp_path: Path) -> None:
    from serve.api.auth import RateLimiter
    from serve.api.errors import ApiError

    now = [0.0]
    limiter = RateLimiter(6, 100, lambda: now[0])

    def allowed(rows: int) -> bool:
        try:
            with limiter.acquire("x", None, rows):
                return True
        except ApiError:
            return False

    assert [allowed(4), allowed(2), allowed(1)] == [True, True, False]
    now[0] = 20.0
    assert [allowed(2), allowed(1)] == [True, False]
    now[0] = 10_000.0
    assert [allowed(6), allowed(1)] == [True, False]


def test_concurrent_rows_are_limited_per_caller(tmp_path: Path) -> None:
    settings = ApiSettings(max_concurrent_rows=2)
    with serving(tmp_path, ScriptedBackend(delay=0.01), settings) as served, ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(served.post, CHAT, counting(60)) for _ in range(2)]
        wait_for(lambda: served.backend.steps > 0)
        wait_for(lambda: len(served.backend.prompts) == 2)
        answer = served.post(CHAT, REQUEST)
        assert error_of(answer, 429)["code"] == "concurrency_limit_exceeded"
        assert all(job.result().status_code == 200 for job in jobs)
        assert served.post(CHAT, REQUEST).status_code == 200
        assert error_of(served.post(CHAT, {**REQUEST, "n": 3, "temperature": 1}), 400)["code"] == "too_many_rows"


def test_full_queue_gives_a_busy_error_with_a_retry_time(tmp_path: Path) -> None:
    config = EngineConfig(max_num_seqs=1, max_queued=2)
    with serving(tmp_path, ScriptedBackend(delay=0.01), config=config) as served, ThreadPoolExecutor(8) as pool:
        answers = [job.result() for job in [pool.submit(served.post, CHAT, counting(30)) for _ in range(8)]]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 0 < len(refused) < 8
        for answer in refused:
            error = error_of(answer, 429)
            assert (error["code"], error["type"]) == ("server_busy", "rate_limit_error")
            assert "busy" in error["message"]
            assert int(answer.headers["retry-after"]) >= 1
        with served.client(max_retries=3) as retrying_client:
            assert retrying_client.chat.completions.create(**REQUEST).choices[0].message.content


def test_too_many_concurrent_requests_give_a_busy_error(tmp_path: Path) -> None:
    with serving(tmp_path, ScriptedBackend(delay=0.01), ApiSettings(max_requests=1)) as served:
        with served.client().chat.completions.create(**counting(100), stream=True) as stream:
            next(iter(stream))
            assert error_of(served.post(CHAT, REQUEST), 429)["code"] == "server_busy"
        wait_for(lambda: served.post(CHAT, REQUEST).status_code == 200)


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_cancels_the_rows(tmp_path: Path, stream: bool) -> None:
    with serving(tmp_path, ScriptedBackend(delay=0.01)) as served:
        body = json.dumps(counting(5000, stream=stream, max_tokens=1900)).encode()
        fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        head = f"POST {CHAT} HTTP/1.1\r\n{fields}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as client:
            client.sendall(head.encode() + body)
            wait_for(lambda: served.backend.steps > 3)
        wait_for(lambda: served.backend.cancelled == 1, 2)
        steps = served.backend.steps
        time.sleep(0.1)
        assert served.backend.steps <= steps + 1
        assert served.post(CHAT, REQUEST).status_code == 200


def test_request_has_a_timeout(tmp_path: Path) -> None:
    settings = ApiSettings(request_timeout_s=0.3)
    with serving(tmp_path, ScriptedBackend(delay=0.01), settings) as served:
        answer = served.post(CHAT, counting(5000, max_tokens=1900))
        assert error_of(answer, 504)["code"] == "timeout"
        assert answer.headers["x-should-retry"] == "false"
        with served.client() as client, pytest.raises(openai.APIError, match=expected.ANSWER_TIMED_OUT):
            list(client.chat.completions.create(**counting(5000, max_tokens=1900), stream=True))
        wait_for(lambda: served.backend.cancelled == 2)


@pytest.mark.parametrize("chunked", [False, True])
def test_large_body_is_refused(served: Served, chunked: bool) -> None:
    body = json.dumps({**REQUEST, "user": "x" * 1_200_000}).encode()
    chunks = (body[start : start + 65_536] for start in range(0, len(body), 65_536))
    with served.http() as client:
        content: Any = chunks if chunked else body
        answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert error_of(answer, 413)["code"] == "request_too_large"


def test_reading_the_body_has_a_timeout(tmp_path: Path) -> None:
    with serving(tmp_path, settings=ApiSettings(body_timeout_s=0.2)) as served:
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=5) as client:
            client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode())
            client.sendall(b"Content-Length: 100\r\n\r\n{")
            assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_reading_the_head_has_a_timeout(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.3)
    for partial_head in (b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\r\n"):
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=5) as client:
            client.sendall(partial_head)
            assert client.recv(100) == b""
    assert served.post(CHAT, REQUEST).status_code == 200


def test_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def listen_with_small_buffer(host: str, port: int) -> socket.socket:
        listener = listen(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return listener

    monkeypatch.setattr(server, "WRITE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(conftest, "listen", listen_with_small_buffer)
    request = {"model": "zero-shot", "prompt": ["count 200"] * 10, "max_tokens": 200, "logprobs": 20}
    with serving(tmp_path, ScriptedBackend(delay=0)) as served, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
        body = json.dumps(request)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        response = client.recv(1000)
        length = int(re.findall(rb"content-length: (\d+)", response)[0])
        time.sleep(0.5)
        with suppress(ConnectionError):
            while chunk := client.recv(1 << 16):
                response += chunk
        assert len(response) < length


def test_host_header_must_name_this_server(tmp_path: Path) -> None:
    with serving(tmp_path) as served, served.http() as client:
        for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200
        answer = client.get("/v1/models", headers={"host": "evil.example"})
        assert error_of(answer, 421)["code"] == "misdirected_request"


def test_requests_in_flight_get_an_error_at_shutdown(tmp_path: Path) -> None:
    with serving(tmp_path, ScriptedBackend(delay=0.01)) as served, ThreadPoolExecutor(2) as pool:
        pending = pool.submit(served.post, CHAT, counting(5000, max_tokens=1900))
        with served.client().chat.completions.create(**counting(5000, max_tokens=1900), stream=True) as stream:
            chunks = iter(stream)
            next(chunks)
            served.stop()
            with pytest.raises(openai.APIError, match=expected.SERVER_ENDS):
                list(chunks)
        assert error_of(pending.result(), 503)["code"] == "shutting_down"
        wait_for(lambda: served.backend.cancelled == 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("anna", "write name:key"),
        ("an na:0123456789abcdef", "write name:key"),
        ("anna:short", "too weak"),
        ("anna:0123456789abcdef:many", "rows per minute of 'anna'"),
        ("anna:0123456789abcdef:5:king", "only one is 'admin'"),
        (f"anna:{ANNA}\nanna:{BERT}", "there twice"),
        (f"anna:{ANNA}\nbert:{ANNA}", "there twice"),
        ("# no entry", "There is no key in"),
    ],
)
def test_invalid_key_file_is_refused_without_revealing_the_key(tmp_path: Path, line: str, words: str) -> None:
    from errors import PromptOrTuneError

    with pytest.raises(PromptOrTuneError, match=words) as caught:
        keys(tmp_path, line)
    assert not any(key in str(caught.value) for key in (ANNA, BERT, "0123456789abcdef"))


def test_keys_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_API_KEYS", f"anna:{ANNA}, root:{ROOT}:9:admin")
    found = read_keys(None)
    key = found.find(f"Bearer {ROOT}")
    assert (len(found), key.name, key.rows_per_minute, key.admin) == (2, "root", 9, True)
    assert ROOT not in repr(key)
