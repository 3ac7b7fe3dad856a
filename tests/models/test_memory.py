"""Peak memory of this process since the start of a measurement."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
import torch

from models import resources
from models.resources import PeakMemory

MEGABYTE = 2**20


def _fill(megabytes: int) -> bytearray:
    """Allocate memory and write to its pages, so that they are resident."""
    return bytearray(b"\1") * (megabytes * MEGABYTE)


@pytest.mark.skipif(sys.platform != "linux", reason="Elsewhere the peak cannot be forgotten.")
def test_peak_is_stored_until_it_is_reset() -> None:
    peak = PeakMemory("cpu")
    if not peak.start():
        pytest.skip("This system cannot reset the peak memory of a process.")
    before = peak.bytes()
    block = _fill(200)
    del block
    assert 190 * MEGABYTE < peak.bytes() - before < 260 * MEGABYTE
    assert peak.start()
    assert peak.bytes() - before < 60 * MEGABYTE


def test_peak_is_at_least_the_loaded_size() -> None:
    block = _fill(50)
    assert PeakMemory("cpu").bytes() >= psutil.Process().memory_info().rss - MEGABYTE
    assert len(block) == 50 * MEGABYTE


def test_peak_of_the_process_is_used_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resources, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(resources, "_CLEAR_REFS", tmp_path / "none" / "none")
    peak = PeakMemory("cpu")
    assert not peak.start()
    assert peak.bytes() >= psutil.Process().memory_info().rss - MEGABYTE


def test_torch_statistics_are_used_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only torch's two statistics functions are replaced."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 * len(device))
    peak = PeakMemory("cuda")
    assert peak.start()
    assert (asked, peak.bytes()) == (["cuda"], 28)
