"""Fixtures for tests of remote jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_standin import Hub
from tests.jobs.hf_jobs.remote_run import RemoteRun


@pytest.fixture
def remote_run(hub: Hub, tmp_path: Path) -> RemoteRun:
    return RemoteRun(tmp_path / "home")
