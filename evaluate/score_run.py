"""Scores a run's candidates, apart from their generation: what is scored already is not scored again."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from errors import PromptOrTuneError
from evaluate.results import Result, Run, tests_of
from evaluate.score_file import ScoreFile, ScoreKind
from evaluate.score_tests import score_tests, test_metrics_key
from evaluate.scoring import METRICS_VERSION, score_candidates

if TYPE_CHECKING:
    from evaluate.sandbox import Sandbox

_SAVE_INTERVAL_SECONDS = 2.0  # seconds: what a kill can cost of the scoring
_METRIC_PACKAGES = ("codebleu", "tree-sitter", "tree-sitter-python")

ScoredResult = tuple[Result, Mapping[str, float | None], Sequence[Any]]


class ProgressProtocol(Protocol):
    """Hears how far the scoring is (evaluate.progress.Progress)."""

    def update(self, count: int, label: str) -> None: ...

    def close(self) -> None: ...


def score_run(
    run: Run,
    make_progress: Callable[[int], ProgressProtocol],
    sandbox: Sandbox | None = None,
    workers: int | None = None,
) -> None:
    """Gives every result of the run its scores and keeps them in X.scores.jsonl beside its file.

    `begin` gets the number of results whose texts are to be scored, and then of those whose tests are to run, where
    there are any: the two go at speeds of their own. Tests run in `sandbox`, `workers` at a time (one a core by
    default); without a sandbox no code runs, and scores of tests that are in the file already stay. Stopped or killed
    at any moment, what was scored up to two seconds before is kept.
    """
    keys: dict[ScoreKind, Mapping[str, Any]] = {"text": text_metrics_key()}
    if sandbox is not None and has_tests(run.problems):
        keys["tests"] = test_metrics_key(sandbox.layer)
    file = ScoreFile.open(run, keys)
    try:
        results = [result for method in run.methods for result in run.results(method)]
        tested = {problem["id"] for problem in run.problems if problem.get("tests")} if "tests" in keys else set()
        texts = [result for result in results if "parses" not in result.scores]
        tests = [result for result in results if result.problem in tested and "tests" not in result.scores]
        if texts:
            _save_scores(file, run, "text", _score_texts(run, texts), make_progress(len(texts)))
        if tests and sandbox is not None:
            _save_scores(file, run, "tests", _score_tests(run, tests, sandbox, workers), make_progress(len(tests)))
    finally:
        file.close()


def count_unscored(run: Run) -> int:
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


def require_scored(runs: Iterable[Run]) -> None:
    """PromptOrTuneError where a run is not scored to its end: its numbers are not shown."""
    for run in runs:
        if count := count_unscored(run):
            raise PromptOrTuneError(
                f"{run.path} holds {count} answers without scores: run `python -m evaluate score {run.path}` first."
            )


def has_tests(problems: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any of these problems of a run has tests."""
    return any(problem.get("tests") for problem in problems)


def text_metrics_key() -> dict[str, Any]:
    """What the scores of candidates' texts depend on: our metrics, Python's grammar, and the packages behind them."""
    found: dict[str, Any] = {"metrics": METRICS_VERSION, "python": ".".join(platform.python_version_tuple()[:2])}
    for name in _METRIC_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _score_texts(run: Run, results: Iterable[Result]) -> Iterator[ScoredResult]:
    asked = int(run.settings["decoding"]["candidates"])
    references = {problem["id"]: problem.get("reference") for problem in run.problems}
    for result in results:
        codes = [candidate["code"] for candidate in result.candidates]
        yield result, score_candidates(codes, references[result.problem], asked), ()


def _score_tests(run: Run, results: Iterable[Result], sandbox: Sandbox, workers: int | None) -> Iterator[ScoredResult]:
    tests = {problem["id"]: tests_of(problem) for problem in run.problems}
    wanted = ((result, tests[result.problem]) for result in results)
    yield from score_tests(wanted, run.settings["decoding"], sandbox, workers)


def _save_scores(
    file: ScoreFile, run: Run, kind: ScoreKind, scored: Iterable[ScoredResult], progress: ProgressProtocol
) -> None:
    """Appends what is scored every two seconds, and whatever there is when it ends or is stopped."""
    waiting: list[ScoredResult] = []
    saved = time.monotonic()
    try:
        for each in scored:
            waiting.append(each)
            progress.update(1, f"{'tests' if kind == 'tests' else 'scores'} of {each[0].method}")
            if time.monotonic() - saved >= _SAVE_INTERVAL_SECONDS:
                file.append(run, kind, waiting)
                waiting, saved = [], time.monotonic()
    finally:
        progress.close()
        if waiting:
            file.append(run, kind, waiting)
