"""Every event of the pages with values and event data of any kind: an answer or one sentence, and no traceback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from serve.engine.llm_engine import EngineLoader
from tests.fakes import FakeEngine
from ui.access.guard import INTERNAL_ERROR
from ui.app import build_pages
from ui.context import Context

VALUES: list[Any] = [None, "x", 5, [], {}]
EVENT_DATA: list[Any] = [
    None, 7, "x", [], {}, {"do": "load", "name": None}, {"do": "delete", "name": "x" * 100_000},
    {"do": "open", "name": {}}, {"do": "save", "name": "../x"}, {"do": []}, {"from": -5}, {"from": 10**30},
    {"index": True}, {"index": -1}, {"id": {}}, {"id": "../.."}, {"method": []}, {"job": {}, "seen": [], "number": "x"},
]  # fmt: skip
# They wait for further changes of a field; their values are parsed as those of the others are.
WAITING_HANDLERS = ("change_setting", "change_technique")


class Stranger:
    """What handlers read of a request."""

    session_hash = "s"
    username = None
    client = None

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.cookies: dict[str, str] = {}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    engine = FakeEngine({"zero-shot": "1"})
    loader = EngineLoader(lambda report: engine).start()
    built = build_pages(loader, context=Context(loader, home=tmp_path_factory.mktemp("home")))
    yield built
    built.close()


def _send(pages: Any, function: Any, value: Any, data: Any, state: SessionState) -> gr.Error | None:
    """Send an event; return the error that the page shows."""
    inputs = [None if component.stateful else value for component in function.inputs]
    event = gr.EventData(None, data)
    call = pages.process_api(
        function, inputs, state=state, request=Stranger(), session_hash="s", event_data=event, in_event_listener=True
    )
    try:
        asyncio.run(call)
    except gr.Error as error:
        return error
    return None


def test_every_event_answers_or_refuses(pages: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    calls, state = 0, SessionState(pages)
    for function in pages.fns.values():
        if function.fn is None or getattr(function.fn, "__name__", "") in WAITING_HANDLERS:
            continue
        selects = any(trigger == "select" for _, trigger in function.targets)
        cases = [(value, None) for value in VALUES] + [(None, data) for data in EVENT_DATA if selects]
        for value, data in cases:
            error = _send(pages, function, value, data, state)
            assert error is None or (error.message != INTERNAL_ERROR and len(error.message) < 400)
            assert error is None or not error.print_exception
            calls += 1
    assert calls > 300
    traces = [(record.getMessage(), record.exc_info) for record in caplog.records if record.exc_info]
    assert not traces, traces[:3]


def test_a_folder_is_no_file(pages: Any, tmp_path: Path) -> None:
    uploads = [
        function
        for function in pages.fns.values()
        if function.fn is not None and any(isinstance(component, gr.File) for component in function.inputs)
    ]
    assert uploads
    for function in uploads:
        for path in (pages.GRADIO_CACHE, str(Path(pages.GRADIO_CACHE) / "missing"), "/"):
            value = {"path": path, "meta": {"_type": "gradio.FileData"}}
            inputs = [value if isinstance(component, gr.File) else None for component in function.inputs]
            with pytest.raises(gr.Error) as refused:
                asyncio.run(pages.preprocess_data(function, inputs, SessionState(pages)))
            assert not refused.value.print_exception
