"""Scores a run's candidates, apart from their generation: what is scored already is not scored again."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from errors import PeftArenaError
from evaluate.results import Result, Run, tests_of
from evaluate.score_file import Kind, ScoreFile
from evaluate.score_tests import checks_key, score_tests
from evaluate.scoring import METRICS_VERSION, score_candidates

if TYPE_CHECKING:
    from evaluate.sandbox import Sandbox

_SAVED_EVERY = 2.0  # seconds: what a kill can cost of the scoring
_METRICS = ("codebleu", "tree-sitter", "tree-sitter-python")

Scored = tuple[Result, Mapping[str, float | None], Sequence[Any]]


class Meter(Protocol):
    """Hears how far the scoring is (evaluate.progress.Progress)."""

    def step(self, count: int, label: str) -> None: ...

    def end(self) -> None: ...


def score_run(
    run: Run, begin: Callable[[int], Meter], sandbox: Sandbox | None = None, workers: int | None = None
) -> None:
    """Gives every result of the run its scores and keeps them in X.scores.jsonl beside its file.

    `begin` gets the number of results whose texts are to be scored, and then of those whose tests are to run, where
    there are any: the two go at speeds of their own. Tests run in `sandbox`, `workers` at a time (one a core by
    default); without a sandbox no code runs, and scores of tests that are in the file already stay. Stopped or killed
    at any moment, what was scored up to two seconds before is kept.
    """
    keys: dict[Kind, Mapping[str, Any]] = {"text": text_key()}
    if sandbox is not None and has_tests(run.problems):
        keys["tests"] = checks_key(sandbox.layer)
    file = ScoreFile.open(run, keys)
    try:
        results = [result for method in run.methods for result in run.results(method)]
        tested = {problem["id"] for problem in run.problems if problem.get("tests")} if "tests" in keys else set()
        texts = [result for result in results if "parses" not in result.scores]
        tests = [result for result in results if result.problem in tested and "tests" not in result.scores]
        if texts:
            _keep(file, run, "text", _score_texts(run, texts), begin(len(texts)))
        if tests and sandbox is not None:
            _keep(file, run, "tests", _score_tests(run, tests, sandbox, workers), begin(len(tests)))
    finally:
        file.close()


def unscored(run: Run) -> int:
    """How many results lack scores: any at all, or those of tests where others of the method have them.

    A mean over the rest would not be the method's.
    """
    tested = {problem["id"] for problem in run.problems if problem.get("tests")}
    count = 0
    for results in map(run.results, run.methods):
        begun = any("tests" in each.scores for each in results)
        count += sum(not each.scores or (begun and each.problem in tested and "tests" not in each.scores)
                     for each in results)  # fmt: skip
    return count


def require_scores(runs: Iterable[Run]) -> None:
    """PeftArenaError where a run is not scored to its end: its numbers are not shown."""
    for run in runs:
        if count := unscored(run):
            raise PeftArenaError(
                f"{run.path} holds {count} answers without scores: run `python -m evaluate score {run.path}` first."
            )


def has_tests(problems: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any of these problems of a run has tests."""
    return any(problem.get("tests") for problem in problems)


def text_key() -> dict[str, Any]:
    """What the scores of candidates' texts depend on: our metrics, Python's grammar, and the packages behind them."""
    found: dict[str, Any] = {"metrics": METRICS_VERSION, "python": ".".join(platform.python_version_tuple()[:2])}
    for name in _METRICS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _score_texts(run: Run, results: Iterable[Result]) -> Iterator[Scored]:
    asked = int(run.settings["decoding"]["candidates"])
    references = {problem["id"]: problem.get("reference") for problem in run.problems}
    for result in results:
        codes = [candidate["code"] for candidate in result.candidates]
        yield result, score_candidates(codes, references[result.problem], asked), ()


def _score_tests(run: Run, results: Iterable[Result], sandbox: Sandbox, workers: int | None) -> Iterator[Scored]:
    tests = {problem["id"]: tests_of(problem) for problem in run.problems}
    wanted = ((result, tests[result.problem]) for result in results)
    yield from score_tests(wanted, run.settings["decoding"], sandbox, workers)


def _keep(file: ScoreFile, run: Run, kind: Kind, scored: Iterable[Scored], meter: Meter) -> None:
    """Appends what is scored every two seconds, and whatever there is when it ends or is stopped."""
    waiting: list[Scored] = []
    saved = time.monotonic()
    try:
        for each in scored:
            waiting.append(each)
            meter.step(1, f"{'tests' if kind == 'tests' else 'scores'} of {each[0].method}")
            if time.monotonic() - saved >= _SAVED_EVERY:
                file.append(run, kind, waiting)
                waiting, saved = [], time.monotonic()
    finally:
        meter.end()
        if waiting:
            file.append(run, kind, waiting)
