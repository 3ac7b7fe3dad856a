"""Fixtures of the training tests: a short measurement of the speed; for publishing a base, a run and a local Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import log_in, use_hub
from tests.hub_standin import Hub, hub_standin
from tests.serve.tiny import make_base
from tests.train.hub_folders import identity_of, make_adapter
from train import estimate
from train.publish import AnswerFn, adapter_answer_fn


@pytest.fixture(scope="session", autouse=True)
def short_measurement() -> Iterator[None]:
    """Measure the speed before each training in one step instead of nine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "_MAX_ROUNDS", 1)
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("trained") / "lora-tiny", tiny_base, identity_of(str(tiny_base)))


@pytest.fixture(scope="session")
def answering(tiny_base: Path) -> AnswerFn:
    """Return the function that answers with adapters on the tiny base, which is loaded once."""
    return adapter_answer_fn(str(tiny_base), "none", lambda _: None, "cpu")


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "lora-tiny")
    return tmp_path / "lora-tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path / "client")
        log_in(monkeypatch)
        yield standin
