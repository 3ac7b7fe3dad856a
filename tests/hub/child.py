"""Environment for processes that a test starts, so that their client uses the local Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.state import Hub


def use_hub_in_children(hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make processes that are started from now on use `hub`, with caches under `folder`."""
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_DISABLE_XET": "1",
        "PROMPT_OR_TUNE_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }.items():
        monkeypatch.setenv(name, value)
