"""Fixtures: the API on a real socket, with a real engine and a ScriptedBackend."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from adapters.store import Store
from serve.api.app import Api, ApiSettings
from serve.api.auth import ApiKeys
from serve.api.server import ApiServer, listen
from serve.engine.config import EngineConfig
from serve.engine.llm_engine import EngineLoader, LLMEngine
from tasks.datasets.registry import load_examples
from tasks.methods import ExamplePools
from tests.adapters.folders import FINGERPRINTS, write_adapter
from tests.serve.api.scripted_backend import ScriptedBackend


class FirstExamples:
    """A retriever that returns the first examples, without embeddings."""

    def __init__(self, examples: Any) -> None:
        self._examples = list(examples)

    def nearest(self, intent: str, k: int) -> list[Any]:
        return self._examples[:k]


@dataclass
class Served:
    """A running server: its address, backend and engine, and clients for it."""

    url: str
    backend: ScriptedBackend
    engine: LLMEngine
    stop: Callable[[], None]
    adapters: Path

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 20, **options})

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, **{"timeout": 20, **options})

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        with self.http() as client:
            return client.post(path, json=body, headers=headers)


@contextmanager
def running(api: Api) -> Iterator[tuple[str, Callable[[], None]]]:
    """Serve `api` on a free port in a thread; yields its address and a function that stops it."""
    listener = listen("127.0.0.1", 0)
    stop = threading.Event()
    server = ApiServer(api, stop.is_set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", stop.set
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive(), "the server did not end"


def make_engine(folder: Path, backend: ScriptedBackend, config: EngineConfig | None = None) -> LLMEngine:
    """Return an engine with the adapters `lora-a` and `lora-b`; those in `folder`/more may be registered."""
    root = folder / "root"
    for name in ("lora-a", "lora-b"):
        if not (root / name).exists():
            write_adapter(root / name)
    pools = ExamplePools(load=load_examples, index=lambda name, examples: FirstExamples(examples))
    store = Store((root,), fingerprints=FINGERPRINTS, allowed=(root, folder / "more"))
    return LLMEngine(backend, store, pools, config=config)


@contextmanager
def serving(
    folder: Path,
    backend: ScriptedBackend | None = None,
    settings: ApiSettings | None = None,
    keys: ApiKeys | None = None,
    config: EngineConfig | None = None,
) -> Iterator[Served]:
    """Serve the API with a ScriptedBackend."""
    backend = backend or ScriptedBackend()
    engine = make_engine(folder, backend, config)
    api = Api(EngineLoader(lambda report: engine).start(), keys or ApiKeys(), settings or ApiSettings())
    try:
        with running(api) as (url, stop):
            wait_for(lambda: httpx.get(f"{url}/health").status_code == 200)
            yield Served(url, backend, engine, stop, folder)
    finally:
        engine.close()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Return as soon as `condition` holds; fails the test if it does not within `seconds`."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("api")) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with served.client() as openai_client:
        yield openai_client
