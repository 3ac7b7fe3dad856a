"""What a problem's tests say about its candidates: the share of tests passed, and Pass@k.

The metrics are those of evaluate.pass_at_k. A code that several samples said counts as often as it was said. Beams are
no independent draws: of them only the first answer is run, and Pass@k stays undefined. A failure (no answer) passes no
test.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evaluate.pass_at_k import pass_at_k, test_pass_rate
from tasks.problem import Test

if TYPE_CHECKING:
    from evaluate.checking import TestResult
    from evaluate.results import Result
    from evaluate.sandbox import Sandbox

# Goes up when the same code can come out otherwise: tests that ran before are then run again.
CHECKS_VERSION = 1
_MAX_STORED_CHARACTERS = (
    300  # characters of what a test gave and got: enough to read, and a run of many tests stays small
)
_TEXT_FIELDS = ("given", "expected", "got")

TestRecords = list[dict[str, Any]]


def test_metrics_key(layer: str) -> dict[str, Any]:
    """What the scores of tests depend on: how code is checked, the sandbox's layer and its limits."""
    from evaluate.checking import DEFAULT_LIMITS

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
    from evaluate.checking import run_tests_many

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
    from evaluate.checking.result import shorten

    values = asdict(result)
    return values | {name: shorten(values[name], _MAX_STORED_CHARACTERS) for name in _TEXT_FIELDS}
