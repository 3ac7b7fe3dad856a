"""Text metrics and test metrics per result.

The scores of one answer, and of all candidates of one problem.

Scores a run's candidates, apart from their generation: what is scored already is not scored again.

What a problem's tests say about its candidates: the share of tests passed, and Pass@k.

The metrics are those of evaluate.metrics.basic. A code that several samples said counts as often as it was said. Beams are
no independent draws: of them only the first answer is run, and Pass@k stays undefined. A failure (no answer) passes no
test.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from errors import PromptOrTuneError
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
from tasks.problem import Test

if TYPE_CHECKING:
    from evaluate.results import Result
    from evaluate.sandbox.sandbox import Sandbox
    from evaluate.test_runner.result import TestResult


# Goes up when a score of the same candidates can come out otherwise: what was scored before is then scored again.
METRICS_VERSION = 2
NO_REFERENCE = "there is no reference to compare with"
NO_DATA_FLOW = "the reference has no data flow"
CODEBLEU_PARTS = ("ngram", "weighted_ngram", "syntax", "dataflow")


@dataclass(frozen=True)
class Score:
    """A metric's name and value, or None and the reason why it has none."""

    metric: str
    value: float | None
    reason: str = ""


def score_code(code: str, reference: str | None) -> list[Score]:
    """All scores of one answer, in the order in which they are shown.

    `em` and `em_tree` (0 or 1), `codebleu` and its parts `codebleu.ngram`, `codebleu.weighted_ngram`,
    `codebleu.syntax`, `codebleu.dataflow`, and `parses` (0 or 1). All lie in [0, 1]. A blank reference is none.
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
    """Everything that is measured of one problem: `codes` are its candidates, best first, `asked` how many were wanted.

    `em@k` and `em_tree@k` for k from 1 to `asked`; the rest as in `score_code`, of the first candidate, and
    `codebleu-pypi`, which is None where the package fails. No candidate at all (a failure) scores 0 wherever there is
    something to score against.
    """
    single = {score.metric: score.value for score in score_code(codes[0] if codes else "", reference)}
    scores: dict[str, float | None] = {}
    for name, same in (("em", exact_match), ("em_tree", syntax_tree_match)):
        known = single.pop(name) is not None and reference is not None
        for k in range(1, num_candidates + 1):
            hit = known and exact_match_at_k(reference or "", codes, k, num_candidates, same)
            scores[f"{name}@{k}"] = float(hit) if known else None
    return {**scores, **single, "codebleu-pypi": _package_codebleu(codes, reference)}


def _package_codebleu(codes: Sequence[str], reference: str | None) -> float | None:
    if reference is None or not reference.strip():
        return None
    return codebleu_package_score(reference, codes[0]) if codes else 0.0


# Goes up when the same code can come out otherwise: tests that ran before are then run again.
CHECKS_VERSION = 1
_MAX_STORED_CHARACTERS = (
    300  # characters of what a test gave and got: enough to read, and a run of many tests stays small
)
_TEXT_FIELDS = ("given", "expected", "got")

TestRecords = list[dict[str, Any]]


def test_metrics_key(layer: str) -> dict[str, Any]:
    """What the scores of tests depend on: how code is checked, the sandbox's layer and its limits."""
    from evaluate.test_runner.runner import DEFAULT_LIMITS

    python = ".".join(platform.python_version_tuple()[:2])
    return {"checks": CHECKS_VERSION, "layer": layer, "limits": asdict(DEFAULT_LIMITS), "python": python}


def score_tests(
    results_with_tests: Iterable[tuple[Result, Sequence[Test]]],
    decoding: Mapping[str, Any],
    sandbox: Sandbox,
    workers: int | None = None,
) -> Iterator[tuple[Result, dict[str, float | None], list[TestRecords]]]:
    """Runs the candidates of each result against its tests, several at a time; yields each as it is done.

    With its scores comes, for each candidate that ran, the list of what each test said.
    """
    from evaluate.test_runner.runner import run_tests_many

    pending: dict[int, tuple[Result, int, list[TestRecords | None]]] = {}  # by the number of its first program
    first_of: dict[int, int] = {}
    unrun: list[tuple[Result, int]] = []

    def programs() -> Iterator[tuple[str, Sequence[Test]]]:
        number = 0
        for result, tests in results_with_tests:
            codes = [candidate["code"] for candidate in _candidates_to_run(result, decoding)]
            if not codes:
                unrun.append((result, len(tests)))
                continue
            pending[number] = result, len(tests), [None] * len(codes)
            for at, code in enumerate(codes):
                first_of[number + at] = number
                yield code, tests
            number += len(codes)

    for number, found in run_tests_many(programs(), sandbox, workers):
        first = first_of.pop(number)
        result, tests, checks = pending[first]
        checks[number - first] = [_test_record(each) for each in found]
        complete = [each for each in checks if each is not None]
        if len(complete) == len(checks):
            del pending[first]
            yield result, _test_scores(result, complete, tests, decoding), complete
    for result, tests in unrun:
        yield result, _test_scores(result, [], tests, decoding), []


def _test_scores(
    result: Result, checks: Sequence[TestRecords], tests: int, decoding: Mapping[str, Any]
) -> dict[str, float | None]:
    asked = int(decoding["candidates"])
    samples: list[list[bool]] = [] if checks else [[False] * tests] * asked
    for candidate, found in zip(_candidates_to_run(result, decoding), checks, strict=True):
        samples += [[check["passed"] for check in found]] * int(candidate.get("times", 1))
    scores: dict[str, float | None] = {"tests": test_pass_rate(samples)}
    if decoding["mode"] != "beam":
        right = sum(all(sample) for sample in samples)
        scores |= {
            f"pass@{k}": pass_at_k(len(samples), right, k) if k <= len(samples) else None for k in range(1, asked + 1)
        }
    return scores


def _candidates_to_run(result: Result, decoding: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The candidates that are run; of beams the first, once."""
    if decoding["mode"] == "beam":
        return [{**candidate, "times": 1} for candidate in result.candidates[:1]]
    return result.candidates


def _test_record(result: TestResult) -> dict[str, Any]:
    from evaluate.test_runner.result import shorten

    values = asdict(result)
    return values | {name: shorten(values[name], _MAX_STORED_CHARACTERS) for name in _TEXT_FIELDS}


_SAVE_INTERVAL_SECONDS = 2.0  # seconds: what a kill can cost of the scoring
_METRIC_PACKAGES = ("codebleu", "tree-sitter", "tree-sitter-python")

ScoredResult = tuple[Result, Mapping[str, float | None], Sequence[Any]]


class ProgressProtocol(Protocol):
    """Hears how far the scoring is (evaluate.run.Progress)."""

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
