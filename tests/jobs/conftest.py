"""Fixtures for tests of jobs: a tiny base, a home for each test, and a stand-in for the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import log_in, use_hub
from tests.hub_standin import Hub, hub_standin
from tests.jobs.service import ServiceWithoutWorker
from tests.serve.tiny import make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("jobs-base") / "tiny")


@pytest.fixture
def jobs_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a temporary home in the environment, where the processes of jobs find it."""
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def service(jobs_home: Path) -> ServiceWithoutWorker:
    return ServiceWithoutWorker(jobs_home)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path / "client")
        log_in(monkeypatch)
        yield standin
