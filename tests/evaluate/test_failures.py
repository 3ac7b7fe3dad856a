"""Failures of the engine, its server or the network: tried again, never scored, and asked again by the next run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from errors import (
    AdapterError,
    BusyError,
    EngineError,
    PromptError,
    PromptOrTuneError,
    PromptTooLongError,
    is_prompt_error,
    says_context_exceeded,
)
from evaluate.failures import RetryPolicy, call_with_retries, engine_failures_note, missing_counts, missing_note
from evaluate.generate import generate_results, parse_methods
from evaluate.journal import read_records
from evaluate.report import json_report, metrics_csv, plot_report_png, text_report
from evaluate.results import read_run, scores_path
from evaluate.table import compare_methods, compare_runs, method_rows
from serve.types import Request, RequestOutput, SamplingParams
from tests import messages
from tests.evaluate.fakes import FakeEngine
from tests.evaluate.test_run import NAMES, execute, open_file, plan, read_results

RowFailure = Callable[[RequestOutput], RequestOutput]


class FailingEngine(FakeEngine):
    """A FakeEngine whose calls fail by turns: number n raises or spoils its rows as `failures[n]` says."""

    def __init__(self, failures: Mapping[int, Exception | RowFailure], *, independent: bool = False) -> None:
        super().__init__()
        self.has_independent_rows = independent
        self.tries = 0
        self._failures = failures

    def answer(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None
    ) -> list[RequestOutput]:
        self.tries += 1
        failure = self._failures.get(self.tries - 1)
        if isinstance(failure, Exception):
            raise failure
        outputs = super().answer(requests, sampling_params, cancel)
        return outputs if failure is None else [failure(output) for output in outputs]


def failed(error: PromptOrTuneError | str, *problems: str) -> RowFailure:
    """Return a function that replaces the answers to these problems (all without any) by an error."""

    def spoil(output: RequestOutput) -> RequestOutput:
        if problems and output.request.problem.id not in problems:
            return output
        exception = None if isinstance(error, str) else error
        return RequestOutput(output.index, output.request, error=str(error), exception=exception)

    return spoil


def generate(path: Path, engine: FakeEngine, names: Sequence[str] = NAMES, batch: int = 2) -> list[float]:
    """Generate into the file and return the waits between tries."""
    waits: list[float] = []
    wanted = plan(batch=batch)
    with open_file(path, wanted) as run:
        methods = parse_methods(names, engine.adapters())
        generate_results(engine, wanted, methods, run, lambda *_: None, RetryPolicy(sleep=waits.append))
    return waits


TRANSIENT: list[Exception] = [
    EngineError("No server answers at http://127.0.0.1:1/v1: start it, or check --url."),
    BusyError("The server at host is busy, about 3 s.", 3.0),
    RuntimeError("CUDA error: out of memory\nsecond line"),
    MemoryError(),
    OSError(24, "Too many open files"),
    ConnectionResetError("reset"),
    TimeoutError(),
    ZeroDivisionError("a defect"),
    KeyError("x"),
]
PERMANENT: list[PromptOrTuneError] = [
    AdapterError("Adapter 'lora-tiny' has NaN or infinite values in q: train it again."),
    PromptOrTuneError("The server at host refuses the key: name its variable with --api-key-env."),
    PromptOrTuneError("The engine was closed: start it again."),
]


def kind(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", TRANSIENT, ids=kind)
def test_a_failure_that_passes_changes_nothing(tmp_path: Path, error: Exception) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "run.jsonl"
    generate(whole, FakeEngine())
    waits = generate(path, FailingEngine({1: error, 2: error, 5: error}))
    first = 3.0 if isinstance(error, BusyError) else 1.0
    assert waits == [first, 5.0, first]
    assert read_results(path) == read_results(whole)


@pytest.mark.parametrize("error", [*TRANSIENT, *PERMANENT], ids=kind)
def test_a_failure_that_stays_stops_with_one_sentence_and_keeps_the_answers(tmp_path: Path, error: Exception) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "run.jsonl"
    generate(whole, FakeEngine())
    engine = FailingEngine(dict.fromkeys(range(2, 99), error))
    with pytest.raises(EngineError, match=messages.ANSWERS_SO_FAR_ARE_SAVED) as caught:
        generate(path, engine)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(". ") == 0
    assert engine.tries == (3 if error in PERMANENT else 6)
    assert ("(tried 4 times)" in str(caught.value)) == (error not in PERMANENT)
    assert [len(read_run(path).results(name)) for name in NAMES] == [4, 0, 0]
    second = FakeEngine()
    generate(path, second)
    assert len(second.calls) == 10, "no batch is asked twice"
    assert read_results(path) == read_results(whole)


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (PromptTooLongError("The prompt has 9999 tokens and 2048 fit (context 2048, 64 kept): shorten it."), True),
        (PromptError("The intent is empty: describe in a sentence what the Python should do."), True),
        (PromptTooLongError("The server at h answered with status 400 (some words)."), True),
        ("The prompt has 9999 tokens and 2048 fit.", True),
        (EngineError("The prompt has 9999 tokens and 2048 fit."), False),
        ("The server at host was silent for too long: try again, or look at its log.", False),
        ("The connection to host broke off (ReadError): try again, or look at its log.", False),
        ("The server at host answered with status 500 (maximum context length).", False),
        ("The server at host answered with status 502.", False),
        ("The server at host answered with status 400 (temperature must be above 0).", False),
        ("The GPU time ended before this answer was complete: try again.", False),
        ("Too long.", False),
        (AdapterError("Adapter 'x' is not in memory any more: try again."), False),
        (BusyError("The memory for adapters is all in use: try again in about 1 s.", 1.0), False),
    ],
    ids=str,
)
def test_only_what_the_prompt_makes_impossible_is_a_result(
    tmp_path: Path, error: PromptOrTuneError | str, own: bool
) -> None:
    path = tmp_path / "run.jsonl"
    engine = FailingEngine(dict.fromkeys(range(99), failed(error, "p3")))
    if own:
        generate(path, engine, ["zero-shot"])
        [row] = [result for result in read_run(path).results("zero-shot") if result.error]
        assert (row.problem, row.error) == ("p3", str(error))
        return
    with pytest.raises(EngineError):
        generate(path, engine, ["zero-shot"])
    assert {result.problem for result in read_run(path).results("zero-shot")} == {"p0", "p1", "p2"}
    generate(path, FakeEngine(), ["zero-shot"])
    assert not any(result.error for result in read_run(path).results("zero-shot"))


def test_a_row_without_an_output_is_asked_again(tmp_path: Path) -> None:
    class Forgetful(FailingEngine):
        def answer(self, *args: object, **kwargs: object) -> list[RequestOutput]:
            return super().answer(*args, **kwargs)[: 1 if self.tries < 3 else None]  # type: ignore[arg-type]

    path = tmp_path / "run.jsonl"
    assert generate(path, Forgetful({}), ["zero-shot"]) == [1.0, 5.0]
    assert len(read_run(path).results("zero-shot")) == 7


@pytest.mark.parametrize("independent", [True, False])
def test_rows_that_were_answered_are_asked_again_only_for_their_padding(tmp_path: Path, independent: bool) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "run.jsonl"
    generate(whole, FakeEngine(), ["zero-shot"], batch=4)
    engine = FailingEngine({0: failed(EngineError("It broke."), "p1", "p2")}, independent=independent)
    assert generate(path, engine, ["zero-shot"], batch=4) == [1.0]
    asked = [[request.problem.id for request in call] for call in engine.calls]
    assert asked[1] == (["p1", "p2"] if independent else ["p0", "p1", "p2", "p3"])
    results = [read_run(file).results("zero-shot") for file in (path, whole)]
    assert [result.candidates for result in results[0]] == [result.candidates for result in results[1]]


def test_progress_resets_the_number_of_tries(tmp_path: Path) -> None:
    """A server that answers one row a minute must not end a run that goes on."""
    spoil = [failed(EngineError("Busy."), *(f"p{other}" for other in range(7) if other != at)) for at in range(7)]
    engine = FailingEngine(dict(enumerate(spoil)), independent=True)
    assert generate(tmp_path / "run.jsonl", engine, ["zero-shot"], batch=7) == [1.0] * 6


def test_a_server_that_asks_for_a_long_wait_is_not_tried_again(tmp_path: Path) -> None:
    engine = FailingEngine(dict.fromkeys(range(9), BusyError("Busy, about 3600 s.", 3600.0)))
    with pytest.raises(EngineError, match=messages.BUSY_ABOUT_3600):
        generate(tmp_path / "run.jsonl", engine)
    assert engine.tries == 1


def test_a_method_that_cannot_be_served_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    reason = "This engine serves LoRA adapters only; 'lora-tiny' is IA3."
    engine = FakeEngine(refused={"lora-tiny+rag-4": reason})
    path = tmp_path / "run.jsonl"
    with pytest.raises(AdapterError, match=messages.SERVES_LORA_ONLY):
        generate(path, engine)
    assert engine.calls == []
    assert not path.exists()


def test_answers_that_leave_no_context_for_a_prompt_are_refused(tmp_path: Path) -> None:
    wanted = plan()
    wanted = replace(wanted, sampling_params=replace(wanted.sampling_params, max_new_tokens=2048))
    engine = FakeEngine()
    with (
        pytest.raises(PromptOrTuneError, match=messages.LEAVE_NO_PROMPT_ANY_ROOM),
        open_file(tmp_path / "run.jsonl", wanted) as run,
    ):
        generate_results(engine, wanted, parse_methods(["zero-shot"], []), run, lambda *_: None)
    assert engine.calls == []


def test_a_call_is_repeated_only_after_errors_that_may_pass() -> None:
    waits: list[float] = []
    policy = RetryPolicy((1.0, 2.0), sleep=waits.append)
    errors: list[Exception] = [EngineError("a."), BusyError("b.", 7.0)]

    def work() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    assert (call_with_retries(work, policy), waits) == ("done", [1.0, 7.0])
    errors = [AdapterError("c.")]
    with pytest.raises(AdapterError):
        call_with_retries(work, policy)
    assert waits == [1.0, 7.0]


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4097 tokens. However, your messages resulted in 5000 tokens.",
        "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens (2000 in the messages",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "the request exceeds the available context size. try increasing the context size or enable context shift",
        "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "Requested tokens (600) exceed context window of 512",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 2000 `inputs` tokens",
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "the model is loaded with context length of only 4096 tokens",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "context too long",
    ],
)
def test_messages_about_the_context_of_all_servers_are_known(message: str) -> None:
    assert says_context_exceeded(message)
    assert is_prompt_error(f"The server at 127.0.0.1:8000 answered with status 400 ({message.rstrip('.')}).")


@pytest.mark.parametrize(
    "message",
    [
        "out of memory", "the model is loading", "Internal server error", "temperature must be positive",
        "logprobs is not supported", "The model `x` does not exist", "queue is full", "request timed out", "",
    ],
)  # fmt: skip
def test_other_messages_are_not_about_the_context(message: str) -> None:
    assert not says_context_exceeded(message)
    assert not is_prompt_error(f"The server at 127.0.0.1:8000 answered with status 400 ({message}).")


# Runs that an earlier version wrote: failures of the engine stand there as results with an error, scored 0.
OLD_ERRORS = [
    "The engine gave no answer.",
    "No server answers at http://127.0.0.1:8000/v1: start it, or check --url.",
    "The server at 127.0.0.1:8000 was silent for too long: try again, or look at its log.",
    "The connection to 127.0.0.1:8000 broke off (RemoteProtocolError): try again, or look at its log.",
    "The server at 127.0.0.1:8000 answered with status 500 (boom).",
    "This engine serves LoRA adapters only; 'lora-tiny' is IA3: answer with the local engine.",
]


def old_run(path: Path, *errors: str) -> Path:
    """Write a scored run in which the first results of every method are errors."""
    execute(path, FakeEngine())
    records, _ = read_records(path)
    for name in NAMES:
        rows = [record for record in records if record["kind"] == "result" and record["method"] == name]
        for record, error in zip(rows, errors, strict=False):
            record.update(candidates=[], examples=[], seconds=0.0, prompt_tokens=0, tokens=0, error=error)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_stored_failures_of_the_engine_are_not_counted_and_asked_again(tmp_path: Path) -> None:
    path = old_run(tmp_path / "run.jsonl", *OLD_ERRORS)
    run = read_run(path)
    assert missing_counts(run) == dict.fromkeys(NAMES, len(OLD_ERRORS))
    note = engine_failures_note(run)
    assert note.startswith("18 stored results are failures of the engine, which an earlier version scored 0: not count")
    text = text_report([run])
    assert note in text
    assert "Not finished, of 7 problems: zero-shot 1, icl-8 1, lora-tiny+rag-4 1. 18 answers are missing" in text
    assert "p (Holm)" not in text
    assert method_rows(run) == []
    for write in (metrics_csv, plot_report_png):
        with pytest.raises(PromptOrTuneError, match=messages.HAS_1_OF_7_ANSWERS):
            write([run])
    assert json.loads(json_report([run], ""))["runs"][0]["missing"] == dict.fromkeys(NAMES, 6)
    execute(path, FakeEngine())
    mended, whole = read_run(path), tmp_path / "whole.jsonl"
    execute(whole, FakeEngine())
    assert (missing_note(mended), engine_failures_note(mended)) == ("", "")
    for name in NAMES:
        expected = {result.problem: result.scores for result in read_run(whole).results(name)}
        assert {result.problem: result.scores for result in mended.results(name)} == expected
    assert "p (Holm)" in text_report([mended])


def test_stored_prompts_that_are_too_long_still_score_zero(tmp_path: Path) -> None:
    error = "The prompt has 2100 tokens and 1984 fit (context 2048, 64 kept for the answer): shorten the intent."
    path = old_run(tmp_path / "run.jsonl", error)
    scores_path(path).unlink()
    run = read_run(path)
    assert (missing_counts(run), run.engine_failures) == ({}, {})
    engine = FakeEngine()
    execute(path, engine)
    assert engine.calls == []
    text = text_report([read_run(path)])
    assert "3 failed, scored 0 and counted. The first: zero-shot, problem p" in text
    assert error in text
    assert "p (Holm)" in text


def test_methods_that_lack_the_same_answers_are_not_compared(tmp_path: Path) -> None:
    """A server that dies at the same problem leaves equal sets of problems, over which a comparison would be silent."""
    paths = [old_run(tmp_path / f"{name}.jsonl", OLD_ERRORS[1]) for name in "ab"]
    runs = [read_run(path) for path in paths]
    with pytest.raises(PromptOrTuneError, match=r"'icl-8' has 6 of 7 answers in .*a\.jsonl.* asks for the 1 that are"):
        compare_methods(runs[0], [("icl-8", "zero-shot")])
    with pytest.raises(PromptOrTuneError, match=messages.HAS_6_OF_7_ANSWERS):
        compare_runs(runs)
    assert compare_methods(runs[0]) == []
    assert "Across files" not in text_report(runs)


def test_the_note_names_the_command_that_made_the_run(tmp_path: Path) -> None:
    run = read_run(old_run(tmp_path / "run.jsonl", OLD_ERRORS[0]))
    assert missing_note(run).endswith("the command that made the file asks for the rest.")
    run.provenance["command"] = "python -m evaluate --data conala --overwrite --output run.jsonl"
    assert "`python -m evaluate --data conala --output run.jsonl` asks for the rest." in missing_note(run)
