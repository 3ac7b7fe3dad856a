"""The API in one process with the pages, on the same engine: what the pages' own server does to it."""

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
from tests.serve.api.conftest import Served, engine_over, wait_for
from tests.serve.api.scripted_backend import ScriptedBackend
from tests.serve.api.test_errors import CHAT, error_of
from ui.app import build_pages, launch


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("beside")
    backend = ScriptedBackend(delay=0.01)
    engine = engine_over(folder, backend)
    source = EngineLoader(lambda report: engine).start()
    api = Api(source, ApiKeys(), ApiSettings(max_body_bytes=5000))
    pages = build_pages(source)
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True, routes=api.routes())
    yield Served(address.rstrip("/"), backend, engine, api.stop, folder)
    pages.close()
    engine.close()


def test_pages_and_api_stand_side_by_side(beside: Served) -> None:
    with beside.http() as http, beside.client() as client:
        assert "<html" in http.get("/").text
        assert http.get("/gradio_api/info").status_code == 200
        assert http.get("/health").json() == {"status": "ok"}
        assert "prompt_or_tune_num_seqs_running" in http.get("/metrics").text
        assert [model.id for model in client.models.list()][1:4] == ["zero-shot", "icl", "rag"]
        error_of(http.get("/v1/nothing"), 404)
        error_of(beside.post(CHAT, {"model": "x" * 6000}), 413)


def test_a_stream_comes_piece_by_piece_through_the_pages_server(beside: Served) -> None:
    with beside.client() as client:
        began = time.monotonic()
        times = [
            time.monotonic() - began
            for _ in client.completions.create(model="lora-a", prompt="count 40", max_tokens=40, stream=True)
        ]
    assert len(times) > 20
    assert times[2] < times[-1] / 2


def test_a_client_that_goes_frees_its_rows_here_too(beside: Served) -> None:
    before = beside.backend.cancelled
    with beside.client() as client:
        asked: Any = {"model": "zero-shot", "prompt": "count 1500", "max_tokens": 1500}
        with client.completions.create(**asked, stream=True) as stream:
            next(iter(stream))
        wait_for(lambda: beside.backend.cancelled == before + 1)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).completions.create(**asked)
    wait_for(lambda: beside.backend.cancelled == before + 2)


def test_the_api_may_be_asked_for_with_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert app.parse_options([]).api is None
    (tmp_path / "keys").write_text("anna:anna-key-0123456789")
    found = app.parse_options(["--api", "--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys")]).api
    assert found is not None
    assert len(found.keys) == 1
    with pytest.raises(PromptOrTuneError, match="Without keys anybody could ask"):
        app.parse_options(["--api", "--host", "0.0.0.0"])
    assert app.parse_options(["--host", "0.0.0.0"]).api is None


def test_the_end_of_the_program_is_an_error_for_who_waits(beside: Served) -> None:
    with beside.client() as client:
        stream = client.completions.create(model="zero-shot", prompt="count 1500", max_tokens=1500, stream=True)
        chunks = iter(stream)
        next(chunks)
        beside.stop()
        with pytest.raises(openai.APIError, match="about to end"):
            list(chunks)
    assert httpx.post(f"{beside.url}/v1/completions", json={"model": "zero-shot", "prompt": "x"}).status_code == 503
