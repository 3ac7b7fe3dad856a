"""Fixtures for the tests of adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.folders import write_adapter


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "good")
