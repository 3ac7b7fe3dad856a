"""Scores a run's candidates, apart from their generation: what is scored already is not scored again."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from evaluate.results import Result, Run
from evaluate.score_file import Kind, ScoreFile
from evaluate.scoring import METRICS_VERSION, score_candidates

_SAVED_EVERY = 2.0  # seconds: what a kill can cost of the scoring
_METRICS = ("codebleu", "tree-sitter", "tree-sitter-python")

Scored = tuple[Result, Mapping[str, float | None], Sequence[Any]]


class Meter(Protocol):
    """Hears how far the scoring is (evaluate.progress.Progress)."""

    def step(self, count: int, label: str) -> None: ...

    def end(self) -> None: ...


def score_run(run: Run, begin: Callable[[int], Meter]) -> None:
    """Gives every result of the run its scores and keeps them in X.scores.jsonl beside its file.

    `begin` gets the number of results that are to be scored. Stopped or killed at any moment, what was scored up to two
    seconds before is kept.
    """
    file = ScoreFile.open(run, {"text": text_key()})
    try:
        results = [result for method in run.methods for result in run.results(method)]
        unscored = [result for result in results if "parses" not in result.scores]
        meter = begin(len(unscored))
        try:
            _keep(file, run, "text", _score_texts(run, unscored), meter)
        finally:
            meter.end()
    finally:
        file.close()


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


def _keep(file: ScoreFile, run: Run, kind: Kind, scored: Iterable[Scored], meter: Meter) -> None:
    """Appends what is scored every two seconds, and whatever there is when it ends or is stopped."""
    waiting: list[Scored] = []
    saved = time.monotonic()
    try:
        for each in scored:
            waiting.append(each)
            meter.step(1, f"scores, {each[0].method}")
            if time.monotonic() - saved >= _SAVED_EVERY:
                file.append(run, kind, waiting)
                waiting, saved = [], time.monotonic()
    finally:
        if waiting:
            file.append(run, kind, waiting)
