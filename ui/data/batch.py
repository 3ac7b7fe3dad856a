"""Batch runs: all held-out rows of a data set, answered by several methods in a thread, into a file of a run.

The file is that of `python -m evaluate`, so it appears on the Results page, and a run that was stopped is continued
from it. The rows are asked in small batches, each of which waits in the admission queue and counts as answers at once
like a comparison; the engine shares its batch between the run and all visitors. So comparisons go on beside it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from common.files import make_dir, make_private_dir
from common.format import format_duration
from errors import BusyError, PromptOrTuneError
from evaluate.failures import RetryPolicy
from evaluate.generate import (
    EvaluationPlan,
    generate_results,
    make_sampling_params,
    package_versions,
    parse_methods,
)
from evaluate.results import Run, open_run, problem_record, read_run
from evaluate.sandbox.sandbox import Sandbox, SandboxUnavailableError
from evaluate.scoring import has_tests, score_run
from models.source import BaseIdentity
from serve.types import Request, RequestOutput, SamplingParams
from tasks.datasets.registry import dataset_digest, dataset_version, load_examples, load_problems
from tasks.methods import Method
from ui.access.guard import check_dataset, may_use_own
from ui.access.policy import Visitor
from ui.compare.comparison import MAX_COLUMNS
from ui.compare.decoding_form import MAX_NEW_TOKENS
from ui.context import Context

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

SPLIT = "test"
BATCH_SIZE, SEED = 4, 42
COMMAND = "Data page"  # in the file, where other runs have their command
RESUME_HINT = "the run goes on from there: continue it"
ALREADY_RUNNING = "A run is under way: wait for its end, or stop it."
REPLACED = "The rows of '{}' were replaced or deleted while they were asked: start a new run."
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. The answers so far are in the run."
NO_PROBLEMS = "'{}' has no held-out rows to ask."
_WAIT_SECONDS = 0.25
_UNSAFE = re.compile(r"[^a-z0-9._-]+")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchRequest:
    """What a run asks: the first `limit` held-out rows of a data set (None: all), greedily, by these methods."""

    data: str
    methods: tuple[str, ...]
    max_new_tokens: int
    limit: int | None = None


@dataclass(frozen=True)
class BatchStatus:
    """State of the last run. `path` is its file, None before the first run.

    `message` is text for people. `done` and `total` count answers, then answers that are scored (`stage`).
    """

    phase: str = "none"  # none, running, stopping, stopped, done or failed
    path: Path | None = None
    request: BatchRequest | None = None
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    message: str = ""

    @property
    def is_running(self) -> bool:
        return self.phase in ("running", "stopping")

    def describe(self) -> str:
        """Return the state in a line, '' before the first run."""
        if not self.is_running or not self.total:
            return self.message
        left = "" if self.seconds_left is None else f", about {format_duration(self.seconds_left)} left"
        return f"{self.stage}: {self.done} of {self.total}{left}."


class BatchRunner:
    """Runs one batch at a time in a thread, for the owner of the app. Thread-safe; files are written to `folder`."""

    def __init__(self, context: Context, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._lock = threading.Lock()
        self._cancel = Event()
        self._status = BatchStatus()
        self._thread: threading.Thread | None = None

    def status(self) -> BatchStatus:
        """Return the state of the run under way, or of the last one since the program began."""
        with self._lock:
            return self._status

    def start(self, visitor: Visitor, request: BatchRequest) -> Path:
        """Begin a new run and return its file. Raises PromptOrTuneError for a request that cannot be run."""
        self._check(visitor, request)
        name = f"{_UNSAFE.sub('-', request.data)}-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
        return self._begin(visitor, request, self._folder / name)

    def resume(self, visitor: Visitor, path: Path) -> Path:
        """Continue the run in a file that `start` made. Raises PromptOrTuneError if it is another kind of run."""
        run = read_run(path)
        settings = run.settings
        if run.provenance.get("command") != COMMAND:
            raise PromptOrTuneError(
                "This run was made by a command: the same command continues it, on a machine with this file."
            )
        tokens, n = int(settings["decoding"]["max_new_tokens"]), int(settings["n"])
        request = BatchRequest(str(settings["data"]), tuple(run.provenance["methods"]), tokens, n)
        self._check(visitor, request)
        return self._begin(visitor, request, path)

    def stop(self) -> None:
        """Stop the run after the rows that are being answered; its answers so far are in its file."""
        with self._lock:
            self._cancel.set()
            if self._status.phase == "running":
                self._status = replace(self._status, phase="stopping", total=0, message="Stopping ...")

    def join(self, seconds: float) -> bool:
        """Wait for the end of the run, at most `seconds`; return whether none is under way."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def _check(self, visitor: Visitor, request: BatchRequest) -> None:
        self._context.visitors.policy.check(visitor, "use own data sets")
        check_dataset(request.data, own=may_use_own(self._context, visitor))
        if not request.methods:
            raise PromptOrTuneError("Add at least one method: each method answers every row.")
        if len(request.methods) > MAX_COLUMNS:
            raise PromptOrTuneError(f"{len(request.methods)} methods are too many: ask at most {MAX_COLUMNS}.")
        if not 1 <= request.max_new_tokens <= MAX_NEW_TOKENS:
            raise PromptOrTuneError(f"{request.max_new_tokens} tokens: choose 1 to {MAX_NEW_TOKENS}.")

    def _batch_size(self) -> int:
        limit = self._context.visitors.quota.limits.rows_at_once
        return min(BATCH_SIZE, limit) if limit > 0 else BATCH_SIZE

    def _begin(self, visitor: Visitor, request: BatchRequest, path: Path) -> Path:
        with self._lock:
            if self._status.is_running:
                raise PromptOrTuneError(ALREADY_RUNNING)
            self._cancel = Event()
            self._status = BatchStatus("running", path, request, message="The run begins ...")
            run = partial(self._run, visitor, request, path, self._cancel)
            self._thread = threading.Thread(target=run, name="batch-run", daemon=True)
            self._thread.start()
        return path

    def _run(self, visitor: Visitor, request: BatchRequest, path: Path, cancel: Event) -> None:
        try:
            message = self._answer_and_score(visitor, request, path, cancel)
            self._update(phase="done", total=0, message=message)
        except KeyboardInterrupt:
            self._update(phase="stopped", total=0, message="Stopped. Continue it whenever you like.")
        except PromptOrTuneError as error:
            self._update(phase="failed", total=0, message=str(error).replace(str(path), f"'{path.name}'"))
        except Exception:  # noqa: BLE001 - the page says so, and the log has the traceback
            _log.exception("A batch run failed.")
            self._update(phase="failed", total=0, message=INTERNAL_ERROR)

    def _update(self, **changes: Any) -> None:
        with self._lock:
            if self._status.phase == "stopping" and "phase" not in changes:
                return
            self._status = replace(self._status, **changes)

    def _answer_and_score(self, visitor: Visitor, request: BatchRequest, path: Path, cancel: Event) -> str:
        context, version = self._context, dataset_version(request.data)
        problems = load_problems(request.data, SPLIT, context.data_dir, request.limit)
        if not problems:
            raise PromptOrTuneError(NO_PROBLEMS.format(request.data))
        engine = _AdmittedEngine(self._wait_for_engine(cancel), context, visitor, cancel, (request.data, version))
        methods = parse_methods(request.methods, engine.adapters())
        plan = EvaluationPlan(
            request.data,
            SPLIT,
            problems,
            dataset_digest(problems),
            lambda: dataset_digest(load_examples(request.data, context.data_dir)),
            make_sampling_params("greedy", 1, request.max_new_tokens, SEED),
            self._batch_size(),
            SEED,
        )
        provenance = {
            "command": COMMAND,
            "methods": [method.name for method in methods],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "architecture": engine.base.architecture,
            "versions": package_versions(),
        }
        _make_folder(self._folder, context)
        described = [problem_record(problem) for problem in problems]
        retries = RetryPolicy(sleep=cancel.wait)
        with open_run(path, plan.settings(engine.base), described, provenance) as run:
            run.save()  # from here on it is found again
            missing = sum(not run.has_result(method.name, problem.id) for method in methods for problem in problems)
            progress = _Progress(self._update, cancel, "Answers", missing)
            generate_results(engine, plan, methods, run, progress.update, retries, RESUME_HINT)
            return self._score(run, cancel, retries)

    def _wait_for_engine(self, cancel: Event) -> LLMEngine:
        while (engine := self._context.engine_loader.wait(_WAIT_SECONDS)) is None:
            self._update(message="Waiting for the model. The run then starts by itself.")
            if cancel.is_set():
                raise KeyboardInterrupt
        return engine

    def _score(self, run: Run, cancel: Event, retries: RetryPolicy) -> str:
        """Score all answers, with their tests on one core where there is a sandbox; return the message at the end."""
        note = ""
        with ExitStack() as stack:
            sandbox: Sandbox | None = None
            if has_tests(run.problems):
                try:
                    sandbox = stack.enter_context(self._context.test_bench.open())
                except SandboxUnavailableError as error:
                    note = f" Without tests: {error}"
            make_progress = partial(_Progress, self._update, cancel, "Scores")
            score_run(run, make_progress, sandbox, workers=1, retries=retries)
        return f"Done: all rows are answered and scored.{note}"


def _make_folder(folder: Path, context: Context) -> None:
    """Make the folder of runs; the one in the home is for its owner's eyes alone."""
    (make_private_dir if folder.parent == context.home else make_dir)(folder)


class _Progress:
    """Counts what is done, estimates the time left, and ends the work when `cancel` is set."""

    def __init__(self, report: Callable[..., None], cancel: Event, stage: str, total: int) -> None:
        self._report, self._cancel, self._stage, self._total = report, cancel, stage, total
        self._done, self._began = 0, time.monotonic()
        self._report(stage=stage, done=0, total=total, seconds_left=None)

    def update(self, count: int, _label: str) -> None:
        """Add finished items. Raises KeyboardInterrupt after `cancel`."""
        self._done += count
        left = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        self._report(stage=self._stage, done=self._done, total=self._total, seconds_left=left)
        if self._cancel.is_set():
            raise KeyboardInterrupt

    def close(self) -> None:
        """Do nothing; needed by the protocol of progress bars."""


class _AdmittedEngine:
    """The engine for evaluate.generate: each call waits for its turn like a comparison, and ends with `cancel`.

    `rows` are the name and the version of the data set: a call fails once they are replaced.
    """

    def __init__(
        self, engine: LLMEngine, context: Context, visitor: Visitor, cancel: Event, rows: tuple[str, str]
    ) -> None:
        self._engine, self._context, self._visitor, self._cancel = engine, context, visitor, cancel
        self._data, self._version = rows
        # Another owner than the visitor: their own comparisons do not wait behind the run.
        self._owner = f"batch {visitor.id}"

    @property
    def base(self) -> BaseIdentity:
        return self._engine.base

    @property
    def has_independent_rows(self) -> bool:
        return self._engine.has_independent_rows

    def adapters(self) -> list[str]:
        return self._engine.adapters()

    def require_method(self, method: Method) -> None:
        self._engine.require_method(method)

    def adapter_digest(self, name: str) -> str:
        return self._engine.adapter_digest(name)

    def count_prompt_tokens(self, requests: Sequence[Request], sampling_params: SamplingParams) -> list[int]:
        """Count a few prompts at a time: others' prompts are prepared by the same thread."""
        counts: list[int] = []
        for start in range(0, len(requests), BATCH_SIZE):
            self._check()
            counts += self._engine.count_prompt_tokens(requests[start : start + BATCH_SIZE], sampling_params)
        return counts

    def answer(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None
    ) -> list[RequestOutput]:
        """Answer a small batch when it is its turn. Raises KeyboardInterrupt after `cancel`."""
        visitor, cancel = self._visitor, cancel or self._cancel
        while True:
            self._check()
            try:
                with (
                    self._context.visitors.quota.reserve(visitor.id, len(requests), visitor.address, hourly=False),
                    self._context.run_queue.enqueue(self._owner, visitor.address) as ticket,
                ):
                    while ticket.wait(_WAIT_SECONDS):
                        self._check()
                    return self._engine.answer(requests, sampling_params, cancel, self._owner)
            except BusyError as error:  # their comparisons have all answers at once, or the engine's queue is full
                cancel.wait(min(error.seconds, 2.0))

    def _check(self) -> None:
        if self._cancel.is_set():
            raise KeyboardInterrupt
        try:
            version = dataset_version(self._data)
        except PromptOrTuneError:
            version = "deleted"
        if version != self._version:
            raise PromptOrTuneError(REPLACED.format(self._data))
