"""A tiny base for all tests of jobs, and a home of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.board import QuietBoard
from tests.serve.tiny import make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("jobs-base") / "tiny")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home that the environment names, as in the processes of jobs."""
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def board(own_home: Path) -> QuietBoard:
    return QuietBoard(own_home)
