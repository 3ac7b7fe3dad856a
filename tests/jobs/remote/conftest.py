"""What the tests of jobs elsewhere share: a Hub, a job that was submitted on this machine, and someone who follows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import log_in, use_hub
from tests.hub_standin import Hub, hub_standin
from tests.jobs.remote.sent import Sent


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path / "client")
        log_in(monkeypatch)
        yield standin


@pytest.fixture
def sent(hub: Hub, tmp_path: Path) -> Sent:
    return Sent(tmp_path / "home")
