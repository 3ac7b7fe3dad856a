"""The page's engine: loaded behind it, with progress, a failure in one sentence, and no second load."""

from __future__ import annotations

import threading
import time

import pytest

from errors import BaseModelError, PromptOrTuneError
from serve.engine.llm_engine import EngineLoader, ProgressFn
from tests.fakes import FakeEngine


def test_engine_waits_until_the_model_is_loaded() -> None:
    go = threading.Event()
    built: list[FakeEngine] = []

    def build(report: ProgressFn) -> FakeEngine:
        report("Converting the base: 40%")
        go.wait(5)
        built.append(FakeEngine())
        return built[0]

    source = EngineLoader(build).start()
    source.start()
    deadline = time.monotonic() + 5
    while source.state().fraction is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (source.state().phase, source.state().message) == ("loading", "Converting the base: 40%")
    assert source.state().fraction == pytest.approx(0.4)
    assert source.wait(0.01) is None
    go.set()
    assert source.engine() is built[0]
    assert source.state().phase == "ready"
    assert len(built) == 1


def test_a_failure_is_its_one_sentence() -> None:
    def build(report: ProgressFn) -> FakeEngine:
        raise BaseModelError("No base 'x': check the name.")

    source = EngineLoader(build)
    with pytest.raises(PromptOrTuneError, match=r"^No base 'x': check the name\.$"):
        source.engine()
    assert source.state().phase == "failed"


def test_a_defect_does_not_leave_the_page_waiting(caplog: pytest.LogCaptureFixture) -> None:
    def build(report: ProgressFn) -> FakeEngine:
        raise ZeroDivisionError("oh")

    with pytest.raises(PromptOrTuneError, match="ZeroDivisionError: oh"):
        EngineLoader(build).engine()
    assert "Traceback" in caplog.text
