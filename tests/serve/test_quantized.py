"""The embedded base in NF4 and int8: adapters loaded after the first answer leave its weights unchanged."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from adapters.store import Store
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.types import Row, RowOutput, SamplingParams
from tasks.prompt import STYLES, render_prompt
from tests import messages

pytestmark = pytest.mark.model

PLAIN = STYLES["plain"]
ROWS = [Row(render_prompt(intent, (), PLAIN), PLAIN) for intent in ("reverse the list `x`", "read the file `a.txt`")]


@pytest.fixture(scope="module", params=["nf4", "int8"])
def backend(request: pytest.FixtureRequest, home: Path) -> LocalBackend:
    return LocalBackend(load_base("embedded", request.param, "cpu", lambda _: None))


def _answers(backend: LocalBackend, rows: list[Row]) -> list[tuple[str, float]]:
    events = list(backend.generate(rows, SamplingParams(max_new_tokens=16), Event()))
    finished = sorted((event for event in events if isinstance(event, RowOutput)), key=lambda event: event.index)
    return [(event.candidates[0].text, event.candidates[0].logprob) for event in finished]


def test_base_is_unchanged_bit_for_bit_after_an_adapter(backend: LocalBackend) -> None:
    first = _answers(backend, ROWS)
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
    folder = Store(fingerprints=fingerprints).open("lora-starter", backend.base)
    backend.load_adapter(folder)
    mixed = _answers(backend, [*ROWS, Row(ROWS[0].prompt, PLAIN, "lora-starter")])
    assert mixed[2][0] != mixed[0][0], "the adapter has no effect, so this test checks nothing"
    assert _answers(backend, ROWS) == first
    backend.load_adapter(folder)
    backend.unload_adapter("lora-starter")
    assert _answers(backend, ROWS) == first


def test_error_during_a_forward_leaves_the_base_unchanged(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _answers(backend, ROWS)
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
    backend.load_adapter(Store(fingerprints=fingerprints).open("lora-starter", backend.base))
    real: Any = torch.nn.functional.silu
    calls: list[int] = []

    def breaks(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 100:
            raise RuntimeError("out of memory")
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "silu", breaks)
        with pytest.raises(RuntimeError, match=messages.OUT_OF_MEMORY):
            _answers(backend, [Row(ROWS[0].prompt, PLAIN, "lora-starter"), *ROWS])
    assert _answers(backend, ROWS) == first


def test_state_dict_of_a_serving_base_raises(backend: LocalBackend) -> None:
    first = _answers(backend, ROWS)
    if backend.base.quantization == "nf4":
        with pytest.raises(RuntimeError, match=messages.STATE_DICT_UNAVAILABLE):
            backend._model.state_dict()
    else:
        backend._model.state_dict()  # no problem for int8, so it is not refused
    assert _answers(backend, ROWS) == first
