"""The API and the pages in one server, with the same engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import app
from errors import PromptOrTuneError
from serve.api.app import Api, ApiSettings
from serve.api.auth import ApiKeys
from serve.engine.llm_engine import EngineLoader
from tests import messages
from tests.serve.api.conftest import Served, make_engine, wait_for
from tests.serve.api.scripted_backend import ScriptedBackend
from tests.serve.api.test_errors import CHAT, error_of
from ui.app import build_pages, launch


@pytest.fixture(scope="module")
def api_with_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("both")
    backend = ScriptedBackend(delay=0.01)
    engine = make_engine(folder, backend)
    loader = EngineLoader(lambda report: engine).start()
    api = Api(loader, ApiKeys(), ApiSettings(max_body_bytes=5000))
    pages = build_pages(loader)
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True, routes=api.routes())
    yield Served(address.rstrip("/"), backend, engine, api.stop, folder)
    pages.close()
    engine.close()


def test_pages_and_api_are_served(api_with_pages: Served) -> None:
    with api_with_pages.http() as http, api_with_pages.client() as client:
        assert "<html" in http.get("/").text
        assert http.get("/gradio_api/info").status_code == 200
        assert http.get("/health").json() == {"status": "ok"}
        assert "prompt_or_tune_num_seqs_running" in http.get("/metrics").text
        assert [model.id for model in client.models.list()][1:4] == ["zero-shot", "icl", "rag"]
        error_of(http.get("/v1/nothing"), 404)
        error_of(api_with_pages.post(CHAT, {"model": "x" * 6000}), 413)


def test_stream_is_not_buffered(api_with_pages: Served) -> None:
    with api_with_pages.client() as client:
        begin = time.monotonic()
        times = [
            time.monotonic() - begin
            for _ in client.completions.create(model="lora-a", prompt="count 40", max_tokens=40, stream=True)
        ]
    assert len(times) > 20
    assert times[2] < times[-1] / 2


def test_disconnect_cancels_the_rows(api_with_pages: Served) -> None:
    before = api_with_pages.backend.cancelled
    with api_with_pages.client() as client:
        request: Any = {"model": "zero-shot", "prompt": "count 1500", "max_tokens": 1500}
        with client.completions.create(**request, stream=True) as stream:
            next(iter(stream))
        wait_for(lambda: api_with_pages.backend.cancelled == before + 1)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).completions.create(**request)
    wait_for(lambda: api_with_pages.backend.cancelled == before + 2)


def test_options_of_the_api_are_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert app.parse_options([]).api is None
    (tmp_path / "keys").write_text("anna:anna-key-0123456789")
    api_options = app.parse_options(["--api", "--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys")]).api
    assert api_options is not None
    assert len(api_options.keys) == 1
    with pytest.raises(PromptOrTuneError, match=messages.KEYS_REQUIRED):
        app.parse_options(["--api", "--host", "0.0.0.0"])
    assert app.parse_options(["--host", "0.0.0.0"]).api is None


def test_requests_in_flight_get_an_error_at_shutdown(api_with_pages: Served) -> None:
    with api_with_pages.client() as client:
        stream = client.completions.create(model="zero-shot", prompt="count 1500", max_tokens=1500, stream=True)
        chunks = iter(stream)
        next(chunks)
        api_with_pages.stop()
        with pytest.raises(openai.APIError, match=messages.SERVER_ENDS):
            list(chunks)
    assert (
        httpx.post(f"{api_with_pages.url}/v1/completions", json={"model": "zero-shot", "prompt": "x"}).status_code
        == 503
    )
