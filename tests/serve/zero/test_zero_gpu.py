"""ZeroGPU engine and backend: the forked process gives the same answers, and every failure gives one message."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.store import Store
from errors import BusyError, PromptOrTuneError
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.engine import zero_gpu as zero
from serve.engine.llm_engine import LLMEngine
from serve.engine.zero_gpu import (
    MAX_GPU_SECONDS,
    GpuTask,
    GpuTaskFailure,
    ZeroGpuEngine,
    gpu_function,
    gpu_seconds,
    import_spaces,
    load_base_for_gpu,
)
from serve.types import PartialOutput, Request, RequestOutput, Row, RowOutput, SamplingParams
from tasks.methods import ExamplePools, parse_method
from tasks.problem import Example, Problem
from tasks.prompt import STYLES
from tests import messages
from tests.serve.tiny import make_base, make_lora
from tests.serve.zero.standin import CALLER, Spaces, WorkerError

PLAIN = STYLES["plain"]
FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}
POOL = [Example(f"e{index}", f"intent {index}", f"f({index})") for index in range(4)]
DECODING = SamplingParams(max_new_tokens=16)


class Nearest:
    def nearest(self, intent: str, k: int, exclude: Any = ()) -> list[Example]:
        return POOL[:k]


def quiet(_: str) -> None:
    return


def pools() -> ExamplePools:
    return ExamplePools(load=lambda name: POOL, index=lambda name, examples: Nearest())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny base, and a store with two adapters for it."""
    made = tmp_path_factory.mktemp("zero")
    make_base("llama", made / "base")
    for name, seed in (("one", 1), ("two", 2)):
        loaded = load_base(str(made / "base"), "none", "cpu", quiet)
        make_lora(made / "store" / name, loaded.identity, loaded.model, 4, ["q_proj", "v_proj"], seed)
    return made


@pytest.fixture
def local_backend(folder: Path) -> LocalBackend:
    """Return a new local backend for each test, because its prefix cache affects rounding."""
    backend = LocalBackend(load_base(str(folder / "base"), "none", "cpu", quiet))
    for name in ("one", "two"):
        backend.load_adapter(Store((folder / "store",), fingerprints=FINGERPRINTS).open(name, backend.base))
    return backend


@pytest.fixture
def local_engine(local_backend: LocalBackend, folder: Path) -> Iterator[LLMEngine]:
    """Open a local engine on the same base."""
    engine = LLMEngine(local_backend, Store((folder / "store",), fingerprints=FINGERPRINTS), pools())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def gpu_backend(folder: Path) -> LocalBackend:
    """Return the base as loaded for the forked processes; it is on the CPU because there is no GPU."""
    return LocalBackend(load_base_for_gpu(str(folder / "base"), "none", quiet, device="cpu"))


@pytest.fixture
def spaces() -> Iterator[Spaces]:
    made = Spaces()
    yield made
    made.close()


@pytest.fixture
def engine(gpu_backend: LocalBackend, folder: Path, spaces: Spaces) -> Iterator[ZeroGpuEngine]:
    store = Store((folder / "store",), fingerprints=FINGERPRINTS)
    made = ZeroGpuEngine(gpu_backend, store, pools(), gpu_function(gpu_backend, spaces))
    yield made
    made.close()


def request(method: str, intent: str = "sort the list `a`") -> Request:
    return Request(Problem("p", intent), parse_method(method, ["one", "two"]), style=None if "+" in method else PLAIN)


METHODS = ["zero-shot", "icl-2", "one", "two", "one"]


@pytest.mark.parametrize(
    "decoding",
    [DECODING, SamplingParams("sample", 12, 2, 1.2, seed=3), SamplingParams("beam", 8, 3)],
    ids=["greedy", "sample", "beam"],
)
def test_forked_process_gives_the_same_answers(
    decoding: SamplingParams, engine: ZeroGpuEngine, local_backend: LocalBackend, spaces: Spaces
) -> None:
    requests = [request(method) for method in METHODS]
    outputs = engine.answer(requests, decoding)
    rows = [
        Row(answer.prompt, answer.style, asked.method.adapter) for answer, asked in zip(outputs, requests, strict=True)
    ]
    expected = {
        event.index: event
        for event in local_backend.generate(rows, decoding, threading.Event())
        if isinstance(event, RowOutput)
    }
    for index, answer in enumerate(outputs):
        assert answer.error is None
        assert answer.candidates == expected[index].candidates
        assert answer.samples == expected[index].samples
    assert len({answer.text for answer in outputs}) >= 3, (
        "the adapters change nothing, so this test would prove nothing"
    )
    (worker,) = spaces.workers
    assert worker.process.pid != os.getpid()


def test_rows_are_prepared_in_this_process(engine: ZeroGpuEngine, local_engine: LLMEngine) -> None:
    requests = [request(method) for method in METHODS]
    for ours, theirs in zip(engine.answer(requests, DECODING), local_engine.answer(requests, DECODING), strict=True):
        assert (ours.prompt, ours.style, ours.examples) == (theirs.prompt, theirs.style, theirs.examples)
        assert (ours.prompt_tokens, ours.notes) == (theirs.prompt_tokens, theirs.notes)


def test_only_the_gpu_process_loads_adapters(engine: ZeroGpuEngine, gpu_backend: LocalBackend, spaces: Spaces) -> None:
    first = engine.answer([request("one")], DECODING)
    with pytest.raises(KeyError):
        gpu_backend.adapter_bytes("one")
    again = engine.answer([request("one"), request("two")], DECODING)
    assert again[0].text == first[0].text
    assert len(spaces.workers) == 1, "the process is reused"


def test_partial_outputs_are_followed_by_one_output_per_request(engine: ZeroGpuEngine) -> None:
    events = list(engine.stream([request("zero-shot"), request("one")], SamplingParams(max_new_tokens=48)))
    answers = [event for event in events if isinstance(event, RequestOutput)]
    assert sorted(answer.index for answer in answers) == [0, 1]
    for answer in answers:
        partial_texts = [
            event.text for event in events if isinstance(event, PartialOutput) and event.index == answer.index
        ]
        assert partial_texts, "partial outputs precede the answer"
        assert all(answer.text.startswith(text.rstrip("\ufffd")) for text in partial_texts)


def test_caller_context_and_duration_are_passed_to_zero_gpu(engine: ZeroGpuEngine, spaces: Spaces) -> None:
    token = CALLER.set("ada")
    try:
        engine.answer([request("zero-shot")], DECODING)
    finally:
        CALLER.reset(token)
    assert spaces.calls == [("ada", 11)]


def test_refused_request_does_not_affect_others(engine: ZeroGpuEngine) -> None:
    outputs = engine.answer([request("zero-shot", " "), request("zero-shot")], DECODING)
    assert "The intent is empty" in str(outputs[0].error)
    assert outputs[1].error is None
    assert outputs[1].text


def test_exhausted_quota_gives_one_message_per_request(engine: ZeroGpuEngine, spaces: Spaces) -> None:
    spaces.error = WorkerError("You have exceeded your free ZeroGPU quota (11s left).", "ZeroGPU quota exceeded")
    outputs = engine.answer([request("zero-shot"), request("one")], DECODING)
    expected = (
        "ZeroGPU quota exceeded (You have exceeded your free ZeroGPU quota (11s left)): try again later, or log in "
        "with Hugging Face for more time on GPUs."
    )
    assert [answer.error for answer in outputs] == [expected, expected]
    spaces.error = None
    assert engine.answer([request("zero-shot")], DECODING)[0].error is None


def test_lost_gpu_process_returns_the_partial_text(engine: ZeroGpuEngine, spaces: Spaces) -> None:
    stream = engine.stream([request("zero-shot"), request("one")], SamplingParams(max_new_tokens=400))
    answers: list[RequestOutput] = []
    for event in stream:
        if isinstance(event, PartialOutput) and event.text and not answers:
            pid = spaces.workers[0].process.pid
            assert pid is not None
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                break
        elif isinstance(event, RequestOutput):
            answers.append(event)
    assert len(answers) == 2
    for answer in answers:
        assert "GPU task aborted" in str(answer.error)
    assert any(answer.text for answer in answers), "the text before the error is returned"
    assert engine.answer([request("zero-shot")], DECODING)[0].error is None, "the next call has another process"


def test_cancel_ends_the_gpu_process(engine: ZeroGpuEngine, spaces: Spaces) -> None:
    cancel = threading.Event()
    answers = []
    for event in engine.stream([request("zero-shot"), request("two")], SamplingParams(max_new_tokens=400), cancel):
        if isinstance(event, PartialOutput):
            cancel.set()
        else:
            answers.append(event)
    assert [answer.cancelled for answer in answers] == [True, True]
    assert [answer.error for answer in answers] == [None, None]
    assert any(answer.text for answer in answers)
    assert spaces.stops == 1
    assert engine.answer([request("zero-shot")], DECODING)[0].text


def test_closed_stream_cancels_its_rows(engine: ZeroGpuEngine, spaces: Spaces) -> None:
    stream = engine.submit([request("zero-shot")], SamplingParams(max_new_tokens=400))
    next(stream)
    stream.close()
    engine.answer([request("one")], DECODING)
    assert spaces.stops == 1


def test_gpu_process_error_gives_one_message(
    engine: ZeroGpuEngine, gpu_backend: LocalBackend, spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Iterator[Any]:
        raise ZeroDivisionError("in the other process")

    monkeypatch.setattr(gpu_backend, "generate", broken)
    (answer,) = engine.answer([request("zero-shot")], DECODING)
    assert answer.error is not None
    assert answer.error.startswith("ZeroGPU worker error (ZeroDivisionError)")


def test_many_rows_are_split_into_calls(engine: ZeroGpuEngine, spaces: Spaces) -> None:
    outputs = engine.answer(
        [request("zero-shot", f"do {index}") for index in range(33)], SamplingParams(max_new_tokens=2)
    )
    assert [answer.index for answer in outputs] == list(range(33))
    assert [answer.error for answer in outputs] == [None] * 33
    assert len(spaces.calls) == 2


def test_too_many_waiting_calls_raise_busy(engine: ZeroGpuEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "MAX_WAITING_CALLS", 1)
    stream = engine.stream([request("zero-shot")], SamplingParams(max_new_tokens=400))
    assert engine.status().phase == "generating"
    with pytest.raises(BusyError, match=messages.GPU_BUSY):
        engine.stream([request("zero-shot")], DECODING)
    list(stream)
    ends = time.monotonic() + 10
    while engine.status().phase != "idle":
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert engine.answer([request("zero-shot")], DECODING)[0].error is None


def test_closed_engine_refuses_requests(engine: ZeroGpuEngine) -> None:
    engine.close()
    assert engine.status().phase == "closed"
    with pytest.raises(PromptOrTuneError, match=messages.WAS_CLOSED):
        engine.stream([request("zero-shot")], DECODING)


def test_prompts_and_token_counts_use_no_gpu(engine: ZeroGpuEngine, local_engine: LLMEngine, spaces: Spaces) -> None:
    requests = [request("icl-2"), request("one")]
    assert engine.count_prompt_tokens(requests, DECODING) == local_engine.count_prompt_tokens(requests, DECODING)
    assert engine.count_tokens("abc") == local_engine.count_tokens("abc")
    assert engine.adapters() == ["one", "two"]
    assert engine.unsupported_reason(parse_method("one", ["one"])) is None
    assert spaces.calls == []


def test_adapter_changed_after_its_check_is_refused(
    gpu_backend: LocalBackend, folder: Path, local_engine: LLMEngine
) -> None:
    adapter_folder = Store((folder / "store",), fingerprints=FINGERPRINTS).open("one", local_engine.base)
    gone = replace(adapter_folder, name="gone", path=folder / "nowhere")

    class UndecoratedSpaces:
        """Return the function undecorated, as `spaces` does on other hardware."""

        def GPU(self, task: Any, duration: Any) -> Any:  # noqa: N802
            return task

    (news,) = list(gpu_function(gpu_backend, UndecoratedSpaces())(GpuTask((), (gone,), DECODING)))
    (refused,) = news
    assert isinstance(refused, GpuTaskFailure)
    assert "gone" in refused.message


def test_tasks_and_events_can_be_pickled(folder: Path, local_engine: LLMEngine) -> None:
    adapter_folder = Store((folder / "store",), fingerprints=FINGERPRINTS).open("one", local_engine.base)
    work = GpuTask((), (adapter_folder,), SamplingParams(top_logprobs=2, stop=("\n",)))
    assert pickle.loads(pickle.dumps(work)) == work


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        (SamplingParams(max_new_tokens=256), 23),
        (SamplingParams("beam", 256, 10), 36),
        (SamplingParams(max_new_tokens=9999), MAX_GPU_SECONDS),
    ],
)
def test_longer_answers_request_more_time(decoding: SamplingParams, expected: int) -> None:
    assert gpu_seconds(GpuTask((), (), decoding)) == expected


def test_missing_spaces_package_gives_one_message() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.SPACES_PACKAGE_MISSING):
        import_spaces()
