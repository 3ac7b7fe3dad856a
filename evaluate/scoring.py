"""Scores of a run's candidates: text metrics, and metrics from running the problem's tests.

The metrics are defined in evaluate/metrics. Results that have scores already are not scored again. A code that several
samples share counts once for each of them. Beams are not independent samples: only the first beam is run, and Pass@k is
undefined. A prompt that could not be answered passes no test. A failure of the sandbox is no test result: it is tried
again, and then ends the scoring, with the answers left unscored.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from errors import SandboxError
from evaluate.failures import DEFAULT_RETRIES, Retries, RetryPolicy, count_unscored, require_scored
from evaluate.metrics.basic import (
    exact_match,
    exact_match_at_k,
    parses_score,
    pass_at_k,
    syntax_tree_match,
    test_pass_rate,
)
from evaluate.metrics.codebleu import codebleu, codebleu_package_score
from evaluate.results import Result, Run, ScoreFile, ScoreKind, tests_of
from tasks.problem import Test, complete_program

if TYPE_CHECKING:
    from evaluate.sandbox.sandbox import Sandbox
    from evaluate.test_runner.reference import ReferenceLimits
    from evaluate.test_runner.result import TestResult


__all__ = [
    "compute_expected_values",
    "count_unscored",
    "require_scored",
    "score_candidates",
    "score_code",
    "score_run",
    "score_tests",
]

T = TypeVar("T")

# Increase when scores of the same candidates can change: earlier runs are then scored again.
METRICS_VERSION = 2
NO_REFERENCE = "there is no reference to compare with"
NO_DATA_FLOW = "the reference has no data flow"
CODEBLEU_PARTS = ("ngram", "weighted_ngram", "syntax", "dataflow")


@dataclass(frozen=True)
class Score:
    """A metric's name and value; for the value None, `reason` says why it is undefined."""

    metric: str
    value: float | None
    reason: str = ""


def score_code(code: str, reference: str | None) -> list[Score]:
    """Compute all text scores of one answer, in display order.

    `em` and `em_tree` (0 or 1), `codebleu` and its parts `codebleu.ngram`, `codebleu.weighted_ngram`,
    `codebleu.syntax`, `codebleu.dataflow`, and `parses` (0 or 1). All are in [0, 1]. A blank reference counts as none.
    Never raises.
    """
    valid = Score("parses", parses_score(code))
    if reference is None or not reference.strip():
        names = ["em", "em_tree", "codebleu", *(f"codebleu.{part}" for part in CODEBLEU_PARTS)]
        return [*(Score(name, None, NO_REFERENCE) for name in names), valid]
    bleu = codebleu(reference, code)
    return [
        Score("em", float(exact_match(reference, code))),
        Score("em_tree", float(syntax_tree_match(reference, code))),
        Score("codebleu", bleu.score),
        Score("codebleu.ngram", bleu.ngram),
        Score("codebleu.weighted_ngram", bleu.weighted_ngram),
        Score("codebleu.syntax", bleu.syntax),
        Score("codebleu.dataflow", bleu.dataflow, NO_DATA_FLOW if bleu.dataflow is None else ""),
        valid,
    ]


def score_candidates(codes: Sequence[str], reference: str | None, num_candidates: int) -> dict[str, float | None]:
    """Compute all text scores of one problem from its candidates' `codes`, best first.

    `em@k` and `em_tree@k` for k from 1 to `num_candidates`, the number requested; the others as in `score_code`, of the
    first candidate, and `codebleu-pypi`, which is None where the package fails. Without any candidate (a failure) every
    score that has a reference is 0.
    """
    single = {score.metric: score.value for score in score_code(codes[0] if codes else "", reference)}
    scores: dict[str, float | None] = {}
    for name, same in (("em", exact_match), ("em_tree", syntax_tree_match)):
        defined = single.pop(name) is not None and reference is not None
        for k in range(1, num_candidates + 1):
            hit = defined and exact_match_at_k(reference or "", codes, k, num_candidates, same)
            scores[f"{name}@{k}"] = float(hit) if defined else None
    return {**scores, **single, "codebleu-pypi": _package_codebleu(codes, reference)}


def _package_codebleu(codes: Sequence[str], reference: str | None) -> float | None:
    if reference is None or not reference.strip():
        return None
    return codebleu_package_score(reference, codes[0]) if codes else 0.0


# Increase when test results of the same code can change: earlier tests are then run again.
CHECKS_VERSION = 2
_MAX_STORED_CHARACTERS = 300  # of each text field of a test record, so that files of many tests stay small
_TEXT_FIELDS = ("given", "expected", "got")

EXACT_COMPARISON = "exact"

TestRecords = list[dict[str, Any]]


def test_metrics_key(
    layer: str, comparisons: Iterable[str], reference_limits: ReferenceLimits | None
) -> dict[str, Any]:
    """Return what test scores depend on: the test runner's version, the sandbox layer, its limits, and Python.

    `comparisons` are the rules of comparison that the problems use; the key names them where they are not exact.
    `reference_limits` are None where no test is compared with a reference.
    """
    from evaluate.test_runner.runner import DEFAULT_LIMITS

    python = ".".join(platform.python_version_tuple()[:2])
    names = sorted({*comparisons} - {EXACT_COMPARISON})
    rules: dict[str, Any] = {"comparison": "+".join(names)} if names else {}
    if reference_limits is not None:
        rules["reference_limits"] = asdict(reference_limits)
    return {"checks": CHECKS_VERSION, "layer": layer, "limits": asdict(DEFAULT_LIMITS), "python": python, **rules}


def score_tests(
    results_with_tests: Iterable[tuple[Result, Sequence[Test]]],
    decoding: Mapping[str, Any],
    sandbox: Sandbox,
    workers: int | None = None,
    comparison: str = EXACT_COMPARISON,
    reference_limits: ReferenceLimits | None = None,
    complete: Callable[[Result, str], str] = lambda _result, code: code,
) -> Iterator[tuple[Result, dict[str, float | None], list[TestRecords]]]:
    """Run the candidates of each result against its tests in parallel, with the rules named `comparison`.

    `complete` makes the program that a candidate's code stands for. Yields each result when it is done, with its scores
    and, for each candidate that ran, the list of test records. Raises SandboxError if a program could not be run;
    results that are not yielded yet are lost then.
    """
    from evaluate.test_runner.result import comparison_rules
    from evaluate.test_runner.runner import run_tests_many

    pending: dict[int, tuple[Result, int, list[TestRecords | None]]] = {}  # by the index of the first program
    first_of: dict[int, int] = {}
    unrun: list[tuple[Result, int]] = []

    def programs() -> Iterator[tuple[str, Sequence[Test]]]:
        number = 0
        for result, tests in results_with_tests:
            codes = [complete(result, candidate["code"]) for candidate in _candidates_to_run(result, decoding)]
            if not codes:
                unrun.append((result, len(tests)))
                continue
            pending[number] = result, len(tests), [None] * len(codes)
            for at, code in enumerate(codes):
                first_of[number + at] = number
                yield code, tests
            number += len(codes)

    rules = comparison_rules(comparison)
    for number, found in sandbox_errors(
        run_tests_many(programs(), sandbox, workers, rules=rules, reference_limits=reference_limits)
    ):
        first = first_of.pop(number)
        result, tests, checks = pending[first]
        checks[number - first] = [_test_record(test_result) for test_result in found]
        finished = [records for records in checks if records is not None]
        if len(finished) == len(checks):
            del pending[first]
            yield result, _test_scores(result, finished, tests, decoding), finished
    for result, tests in unrun:
        yield result, _test_scores(result, [], tests, decoding), []


def sandbox_errors(results: Iterator[T]) -> Iterator[T]:
    """Yield the results of tests; raise SandboxError where this machine has no descriptor, thread or memory left."""
    try:
        yield from results
    except (OSError, MemoryError) as error:
        raise SandboxError(f"The sandbox failed ({type(error).__name__}: {error}).") from error
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise SandboxError(f"The sandbox failed ({error}).") from error


def _test_scores(
    result: Result, checks: Sequence[TestRecords], tests: int, decoding: Mapping[str, Any]
) -> dict[str, float | None]:
    requested = int(decoding["candidates"])
    samples: list[list[bool]] = [] if checks else [[False] * tests] * requested
    for candidate, found in zip(_candidates_to_run(result, decoding), checks, strict=True):
        samples += [[check["passed"] for check in found]] * int(candidate.get("times", 1))
    scores: dict[str, float | None] = {"tests": test_pass_rate(samples)}
    if decoding["mode"] != "beam":
        correct = sum(all(sample) for sample in samples)
        scores |= {
            f"pass@{k}": pass_at_k(len(samples), correct, k) if k <= len(samples) else None
            for k in range(1, requested + 1)
        }
    return scores


def _candidates_to_run(result: Result, decoding: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the candidates to run; of beams only the first, once."""
    if decoding["mode"] == "beam":
        return [{**candidate, "times": 1} for candidate in result.candidates[:1]]
    return result.candidates


def _test_record(result: TestResult) -> dict[str, Any]:
    from evaluate.test_runner.result import shorten

    values = asdict(result)
    return values | {name: shorten(values[name], _MAX_STORED_CHARACTERS) for name in _TEXT_FIELDS}


_SAVE_INTERVAL_SECONDS = 2.0  # the most scoring time that a kill can lose
_METRIC_PACKAGES = ("codebleu", "tree-sitter", "tree-sitter-python")

ScoredResult = tuple[Result, Mapping[str, float | None], Sequence[Any]]


class ProgressProtocol(Protocol):
    """Progress display of the scoring (evaluate.generate.ProgressBar)."""

    def update(self, count: int, label: str) -> None: ...

    def close(self) -> None: ...


def score_run(
    run: Run,
    make_progress: Callable[[int], ProgressProtocol],
    sandbox: Sandbox | None = None,
    workers: int | None = None,
    retries: RetryPolicy = DEFAULT_RETRIES,
    comparison: str | None = None,
    reference_limits: ReferenceLimits | None = None,
) -> None:
    """Score every result of the run that lacks scores, and store them in X.scores.jsonl beside its file.

    `make_progress` is called with the number of results whose texts are scored, and then with the number whose tests
    run: the two have different speeds. Tests run in `sandbox`, `workers` at a time (default: one per core); without a
    sandbox no code runs, and stored test scores stay. `comparison` names the rules by which asserts compare values
    (None: those of each problem's data set), and `reference_limits` what calls may take that are compared with a
    reference (None: EvalPlus's). A kill loses at most the last two seconds of scoring. Raises SandboxError
    if the sandbox still fails after `retries`: the scores so far are stored.
    """
    keys: dict[ScoreKind, Mapping[str, Any]] = {"text": text_metrics_key()}
    if sandbox is not None and has_tests(run.problems):
        if any(test.get("kind") == "reference" for problem in run.problems for test in problem.get("tests", ())):
            reference_limits = reference_limits or default_reference_limits()
        else:
            reference_limits = None
        comparisons = {_comparison_of(problem, comparison) for problem in run.problems if problem.get("tests")}
        keys["tests"] = test_metrics_key(sandbox.layer, comparisons, reference_limits)
    file = ScoreFile.open(run, keys)
    try:
        texts = [result for result in _all_results(run) if "parses" not in result.scores]
        if texts:
            _save_scores(file, run, "text", _score_texts(run, texts), make_progress(len(texts)))
        if sandbox is not None and "tests" in keys:
            rules = _TestRules(comparison, reference_limits)
            _score_missing_tests(file, run, make_progress, sandbox, workers, Retries(retries), rules)
    finally:
        file.close()


@dataclass(frozen=True)
class _TestRules:
    """The rules of comparison that were chosen, None for those of the data sets, and the limits out of a reference."""

    comparison: str | None
    reference_limits: ReferenceLimits | None


def default_reference_limits() -> ReferenceLimits:
    """Return EvalPlus's limits for calls that are compared with a reference."""
    from evaluate.test_runner.reference import ReferenceLimits

    return ReferenceLimits()


def compute_expected_values(
    tests: Iterable[Test],
    sandbox: Sandbox,
    make_progress: Callable[[int], ProgressProtocol],
    workers: int | None = None,
) -> None:
    """Compute the expected values of tests with a reference that are not in the cache, with progress.

    Raises DataError for a reference that fails, and SandboxError.
    """
    from evaluate.test_runner.reference import compute_answers, missing_answers

    missing = missing_answers(tests)
    if not missing:
        return
    progress = make_progress(len(missing))
    try:
        for _ in sandbox_errors(compute_answers(missing, sandbox, workers)):
            progress.update(1, "expected values")
    finally:
        progress.close()


def _score_missing_tests(
    file: ScoreFile,
    run: Run,
    make_progress: Callable[[int], ProgressProtocol],
    sandbox: Sandbox,
    workers: int | None,
    attempts: Retries,
    rules: _TestRules,
) -> None:
    tested = {problem["id"] for problem in run.problems if problem.get("tests")}
    lacking = len(run.problems) * len(run.methods)
    while tests := [item for item in _all_results(run) if item.problem in tested and "tests" not in item.scores]:
        if len(tests) < lacking:
            lacking = len(tests)
            attempts.reset()
        try:
            needed = [test for problem in run.problems for test in tests_of(problem)]
            compute_expected_values(needed, sandbox, make_progress, workers)
            scored = _score_tests(run, tests, sandbox, workers, rules)
            _save_scores(file, run, "tests", scored, make_progress(len(tests)))
        except SandboxError as error:
            if attempts.wait(error):
                continue
            left = sum(item.problem in tested and "tests" not in item.scores for item in _all_results(run))
            raise SandboxError(
                f"{attempts.describe(error)}; answers without test results: {left}, and "
                f"`python -m evaluate score {run.path}` runs their tests."
            ) from error


def _all_results(run: Run) -> list[Result]:
    return [result for method in run.methods for result in run.results(method)]


def has_tests(problems: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether any of these problem records has tests."""
    return any(problem.get("tests") for problem in problems)


def text_metrics_key() -> dict[str, Any]:
    """Return what text scores depend on: our metrics, Python's grammar, and the packages that they use."""
    found: dict[str, Any] = {"metrics": METRICS_VERSION, "python": ".".join(platform.python_version_tuple()[:2])}
    for name in _METRIC_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _score_texts(run: Run, results: Iterable[Result]) -> Iterator[ScoredResult]:
    requested = int(run.settings["decoding"]["candidates"])
    references = {problem["id"]: problem.get("reference") for problem in run.problems}
    for result in results:
        codes = [candidate["code"] for candidate in result.candidates]
        yield result, score_candidates(codes, references[result.problem], requested), ()


def _score_tests(
    run: Run, results: Iterable[Result], sandbox: Sandbox, workers: int | None, rules: _TestRules
) -> Iterator[ScoredResult]:
    problems = {problem["id"]: problem for problem in run.problems}
    tests = {name: tests_of(problem) for name, problem in problems.items()}

    def complete(result: Result, code: str) -> str:
        problem = problems[result.problem]
        return complete_program(code, problem.get("prompt", ""), problem.get("entry_point"))

    by_comparison: dict[str, list[tuple[Result, Sequence[Test]]]] = {}
    for result in results:
        name = _comparison_of(problems[result.problem], rules.comparison)
        by_comparison.setdefault(name, []).append((result, tests[result.problem]))
    for name, with_tests in by_comparison.items():
        decoding = run.settings["decoding"]
        yield from score_tests(with_tests, decoding, sandbox, workers, name, rules.reference_limits, complete)


def _comparison_of(problem: Mapping[str, Any], chosen: str | None) -> str:
    """Return the name of the rules of comparison for a problem's record."""
    return str(chosen or problem.get("comparison", EXACT_COMPARISON))


def _save_scores(
    file: ScoreFile, run: Run, kind: ScoreKind, scored: Iterable[ScoredResult], progress: ProgressProtocol
) -> None:
    """Append new scores every two seconds, and the rest at the end or when interrupted."""
    unsaved: list[ScoredResult] = []
    last_save = time.monotonic()
    try:
        for item in scored:
            unsaved.append(item)
            progress.update(1, f"{'tests' if kind == 'tests' else 'scores'} of {item[0].method}")
            if time.monotonic() - last_save >= _SAVE_INTERVAL_SECONDS:
                file.append(run, kind, unsaved)
                unsaved, last_save = [], time.monotonic()
    finally:
        progress.close()
        if unsaved:
            file.append(run, kind, unsaved)
