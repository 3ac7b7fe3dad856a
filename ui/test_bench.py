"""Tests of the answers of a comparison, beside the engine, and records of finished columns (JSON, CSV)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, NotRequired

from typing_extensions import TypedDict

from common.format import records_csv
from errors import PromptOrTuneError, SandboxError
from evaluate.failures import Retries, RetryPolicy
from evaluate.journal import to_json_types
from evaluate.sandbox.sandbox import Sandbox, open_sandbox
from evaluate.sandbox.spec import Limits
from evaluate.scoring import sandbox_errors
from evaluate.test_runner.result import TestResult, comparison_rules
from evaluate.test_runner.runner import run_tests_many
from models.source import BaseIdentity
from tasks.methods import FixedExamples, Method, NearestExamples
from tasks.problem import Problem, complete_program, parse_test
from ui.access.quota import AdmissionQueue
from ui.compare.comparison import Column, Comparison

_PROBLEM_FIELDS = ("entry_point", "comparison", "prompt")
# Shorter than the limits of `python -m evaluate`, because a visitor waits; still a thousand times what most tests need.
SANDBOX_LIMITS = Limits(wall_seconds=4, cpu_seconds=4)
_WAIT_SECONDS = 0.25
STOPPED_NOTE = "The tests were stopped before they had run on every answer."


class Record(TypedDict):
    """One method's answer to one problem, with everything needed to reproduce it.

    `asked_tests` are the tests of the problem, `problem_fields` what else they need of it (entry_point, comparison and
    prompt), and `tests_text` the text of their field. `tests` are their results
    (evaluate.test_runner.result.TestResult) in the same order, [] if none ran; `tests_note` is the reason why tests did
    not run, `sandbox` the layer in which they ran.
    """

    method: str
    text: str
    code: str
    prompt: str
    examples: list[dict[str, str]]
    tokens: int
    seconds: float
    tokens_per_second: float | None
    scores: dict[str, float | None]
    score_reasons: dict[str, str]
    error: str | None
    cancelled: bool
    notes: list[str]
    candidates: list[dict[str, Any]]
    prompt_tokens: int
    adapter: str | None
    examples_kind: str
    examples_k: int
    pool: str
    prompt_style: str | None
    prompt_fingerprint: str | None
    decoding: dict[str, Any]
    problem_id: str
    intent: str
    reference: str | None
    asked_tests: list[dict[str, Any]]
    problem_fields: NotRequired[dict[str, str | None]]
    tests_text: str
    tests: list[dict[str, Any]]
    tests_note: str
    sandbox: str | None
    base_id: str
    base_revision: str
    architecture: str
    quantization: str
    device: str
    created: str


def make_record(column: Column, comparison: Comparison, base: BaseIdentity, created: str) -> Record:
    """Return the record of a finished column; `created` is the ISO time of the start of the comparison."""
    answer = column.answer
    method = answer.request.method if answer else None
    seconds = answer.seconds if answer else 0.0
    style = answer.style if answer else None
    kind, k = _example_selection(method)
    return Record(
        method=column.method,
        text=answer.text if answer else "",
        code=answer.code if answer else "",
        prompt=answer.prompt if answer else "",
        examples=[asdict(example) for example in answer.examples] if answer else [],
        tokens=answer.tokens if answer else 0,
        seconds=round(seconds, 4),
        tokens_per_second=round(answer.tokens / seconds, 2) if answer and seconds > 0 and answer.tokens else None,
        scores={score.metric: score.value for score in column.scores},
        score_reasons={score.metric: score.reason for score in column.scores if score.reason},
        error=column.error,
        cancelled=column.state == "stopped",
        notes=list(answer.notes) if answer else [],
        candidates=[to_json_types(candidate.to_json()) for candidate in answer.candidates] if answer else [],
        prompt_tokens=answer.prompt_tokens if answer else 0,
        adapter=method.adapter if method else None,
        examples_kind=kind,
        examples_k=k,
        pool=comparison.pool,
        prompt_style=style.name if style else None,
        prompt_fingerprint=style.fingerprint if style else None,
        decoding=to_json_types(asdict(comparison.decoding)),
        problem_id=comparison.problem.id,
        intent=comparison.problem.intent,
        reference=comparison.problem.reference,
        asked_tests=[asdict(test) for test in comparison.problem.tests],
        problem_fields={name: getattr(comparison.problem, name) for name in _PROBLEM_FIELDS},
        tests_text=comparison.tests_text,
        tests=[],
        tests_note="",
        sandbox=None,
        base_id=base.id,
        base_revision=base.revision,
        architecture=base.architecture,
        quantization=base.quantization,
        device=base.device,
        created=created,
    )


def add_test_results(record: Record, results: Sequence[Mapping[str, Any]], sandbox: str) -> Record:
    """Return the record with test results; its score `tests` is the share of passed tests."""
    tests = [dict(result) for result in results]
    share = sum(bool(test["passed"]) for test in tests) / len(tests)
    scores = {"tests": share, **record["scores"]}
    return {**record, "tests": tests, "tests_note": "", "sandbox": sandbox, "scores": scores}


def record_problem(record: Record) -> Problem:
    """Return the problem of a record, without its difficulty. Raises TypeError or KeyError if it has no valid one."""
    fields: dict[str, Any] = {name: value for name, value in record.get("problem_fields", {}).items() if value}
    tests = tuple(parse_test(test) for test in record["asked_tests"])
    return Problem(record["problem_id"], record["intent"], record["reference"], tests, **fields)


def _example_selection(method: Method | None) -> tuple[str, int]:
    if method is None:
        return "", 0
    if isinstance(method.examples, FixedExamples):
        return "icl", method.examples.k
    return ("rag", method.examples.k) if isinstance(method.examples, NearestExamples) else ("none", 0)


def to_json(records: Sequence[Record]) -> str:
    """Return all fields of all records as a JSON list."""
    return json.dumps(list(records), indent=1, ensure_ascii=False) + "\n"


def records_to_csv(records: Sequence[Record]) -> str:
    """Return CSV: a row per record, columns `score.<metric>` and `decoding.<option>`, nested fields as JSON."""
    return records_csv(map(_flatten, records), "\r\n")


def _flatten(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in record.items():
        if name in ("scores", "decoding") and isinstance(value, dict):
            row.update({f"{name.removesuffix('s')}.{key}": inner for key, inner in value.items()})
        else:
            row[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
    return row


@dataclass(frozen=True)
class TestBench:
    """Opens a sandbox for each comparison; `queue` admits one comparison at a time to the CPU cores.

    A sandbox that fails is tried again after the waits of `retries`.
    """

    __test__ = False  # not a test class of pytest

    open: Callable[[], Sandbox] = open_sandbox
    queue: AdmissionQueue = field(default_factory=AdmissionQueue)
    retries: RetryPolicy = field(default_factory=lambda: RetryPolicy((0.5, 2.0)))


@dataclass(frozen=True)
class TestProgress:
    """Progress of the tests. `pending` are the indices of records whose tests have not run yet."""

    __test__ = False

    status: str
    records: tuple[Record, ...]
    pending: frozenset[int]


def test_answers(
    bench: TestBench, records: Sequence[Record], problem: Problem, cancel: Event
) -> Iterator[TestProgress]:
    """Run the problem's tests of every complete answer; the last value has no pending records.

    Without a sandbox no code runs, and `tests_note` of every record gives the reason. Where the sandbox fails, or
    `cancel` is set, the records without results get a note.
    """
    indices = [i for i, record in enumerate(records) if record["error"] is None and not record["cancelled"]]
    if not indices:
        yield TestProgress("", tuple(records), frozenset())
        return
    try:
        sandbox = bench.open()
    except PromptOrTuneError as error:
        yield TestProgress("", add_tests_note(records, indices, str(error)), frozenset())
        return
    done, pending = list(records), set(indices)
    # Leaving the block kills programs that still run.
    with bench.queue.enqueue() as ticket, sandbox:
        while (ahead := ticket.wait(_WAIT_SECONDS)) and not cancel.is_set():
            yield TestProgress(f"Waiting to test: {ahead} before yours.", tuple(done), frozenset(pending))
        yield _progress_update(done, pending, len(indices))
        attempts, note = Retries(replace(bench.retries, sleep=bench.retries.sleep or cancel.wait)), STOPPED_NOTE
        while pending and not cancel.is_set():
            # Equal answers are run once.
            by_code: dict[str, list[int]] = {}
            for i in sorted(pending):
                by_code.setdefault(records[i]["code"], []).append(i)
            same_code = list(by_code.values())
            try:
                for number, results in _run_in_thread(list(by_code), problem, sandbox, cancel):
                    for i in same_code[number]:
                        done[i] = add_test_results(done[i], [asdict(result) for result in results], sandbox.layer)
                        pending.discard(i)
                    attempts.reset()
                    yield _progress_update(done, pending, len(indices))
            except SandboxError as error:
                if not attempts.wait(error):
                    note = f"{attempts.describe(error)}: the tests have not run on every answer, so try again."
                    break
    if pending:
        done = list(add_tests_note(done, sorted(pending), note))
    yield TestProgress("", tuple(done), frozenset())


def add_tests_note(records: Sequence[Record], indices: Sequence[int], message: str) -> tuple[Record, ...]:
    """Return the records; those at `indices` get `message`, the reason why their tests did not run."""
    return tuple({**record, "tests_note": message} if i in indices else record for i, record in enumerate(records))


def _progress_update(done: Sequence[Record], pending: set[int], total: int) -> TestProgress:
    count = total - len(pending)
    return TestProgress(f"Running the tests: {count} of {total} answers done.", tuple(done), frozenset(pending))


def _run_in_thread(
    codes: Sequence[str], problem: Problem, sandbox: Sandbox, cancel: Event
) -> Iterator[tuple[int, list[TestResult]]]:
    """Run `run_tests_many` in a thread, so that `cancel` takes effect while a program runs up to its limit."""
    events: SimpleQueue[tuple[int, list[TestResult]] | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            programs = [complete_program(code, problem.prompt, problem.entry_point) for code in codes]
            jobs = [(program, problem.tests) for program in programs]
            rules = comparison_rules(problem.comparison)
            for result in sandbox_errors(run_tests_many(jobs, sandbox, limits=SANDBOX_LIMITS, rules=rules)):
                events.put(result)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads the results
            events.put(error)
        finally:
            events.put(None)

    threading.Thread(target=work, name="tests", daemon=True).start()
    while not cancel.is_set():
        try:
            event = events.get(timeout=_WAIT_SECONDS)
        except Empty:
            continue
        if event is None:
            return
        if isinstance(event, BaseException):
            raise event
        yield event
