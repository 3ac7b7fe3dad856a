"""The scores of a run, in X.scores.jsonl beside its X.jsonl. They can be computed again from it at any time.

Two kinds of score are kept apart, because they depend on different things: `text` (exact match, CodeBLEU, parse rate)
and `tests` (what running the problem's tests said). A `key` line says what the scores of a kind that follow were made
with; each `scores` line names its key and the digest of what was scored. A reader takes, of each kind, those under the
last key whose candidates, reference and tests are still those of the run; all else counts as not yet scored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from errors import PromptOrTuneError
from evaluate.journal import Journal, read_records

if TYPE_CHECKING:
    from evaluate.results import Result, Run

ScoreKind = Literal["text", "tests"]
_RECORD_FIELDS = {
    "key": {"of", "key", "values"},
    "scores": {"of", "key", "method", "problem", "digest", "scores"},
}
_SCORES_SUFFIX = ".scores.jsonl"


def scores_path(path: Path) -> Path:
    """Where the scores of a run's file lie; packed only where there is no plain file."""
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    plain = path.with_name(stem + _SCORES_SUFFIX)
    packed = plain.with_name(plain.name + ".gz")
    return packed if packed.exists() and not plain.exists() else plain


def attach_scores(run: Run) -> None:
    """Gives the run's results the scores that the file beside it holds for them; without a file they stay without."""
    path = scores_path(run.path)
    if path.exists():
        _attach_records(run, _read_scores(path)[0])


class ScoreFile:
    """The one writer of a run's scores. Opening it drops what no reader would take any more."""

    def __init__(self, journal: Journal, keys: Mapping[ScoreKind, Mapping[str, Any]]) -> None:
        self._journal = journal
        self._values = {kind: dict(values) for kind, values in keys.items()}
        self._keys = {kind: settings_digest(values) for kind, values in keys.items()}

    @classmethod
    def open(cls, run: Run, keys: Mapping[ScoreKind, Mapping[str, Any]]) -> ScoreFile:
        """Takes the file and gives the run's results the scores it has under these keys, and no other of these kinds.

        A kind that `keys` does not name is left as it is.
        """
        path = scores_path(run.path)
        if path.suffix == ".gz":
            path = path.with_suffix("")
        journal = Journal.open(path)
        try:
            found, whole = _read_scores(path) if path.stat().st_size else ([], 0)
            journal.truncate(whole)
            wanted: list[dict[str, Any]] = [
                {"kind": "key", "of": kind, "key": settings_digest(key), "values": key} for kind, key in keys.items()
            ]
            kept = _attach_records(run, [*found, *wanted], keys)
            if kept != found:
                journal.replace(kept)
        except BaseException:
            journal.close()
            raise
        return cls(journal, keys)

    def append(
        self, run: Run, kind: ScoreKind, scored: Iterable[tuple[Result, Mapping[str, Any], Sequence[Any]]]
    ) -> None:
        """Keeps the scores, and what tests said of each candidate, of these results; on disk when this returns."""
        problems = {problem["id"]: problem for problem in run.problems}
        records = []
        for result, scores, checks in scored:
            record = {
                "kind": "scores",
                "of": kind,
                "key": self._keys[kind],
                "method": result.method,
                "problem": result.problem,
                "digest": result_digest(run, problems[result.problem], result),
                "scores": dict(scores),
            }
            records.append({**record, "checks": checks} if checks else record)
            run.set_scores(result.method, result.problem, scores, checks)
        run.scored_with[kind] = self._values[kind]
        self._journal.append(records)

    def close(self) -> None:
        """Lets other processes write the file."""
        self._journal.close()


def settings_digest(values: Mapping[str, Any]) -> str:
    """A short name that changes with any of the values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def result_digest(run: Run, problem: Mapping[str, Any], result: Result) -> str:
    """Changes with whatever a score depends on: decoding, reference, tests, and the candidates' code and number."""
    said = [(candidate["code"], candidate.get("times", 1)) for candidate in result.candidates]
    asked = run.settings["decoding"]
    parts = [asked["mode"], asked["candidates"], problem.get("reference"), problem.get("tests", []), said]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read_scores(path: Path) -> tuple[list[dict[str, Any]], int]:
    try:
        records, whole = read_records(path)
        if not records or not all(
            _RECORD_FIELDS.get(record.get("kind", ""), {""}) <= record.keys() for record in records
        ):
            raise ValueError("no scores")
    except OSError as fault:
        raise PromptOrTuneError(
            f"Cannot read {path} ({fault.strerror or fault}): the run's scores belong there."
        ) from fault
    except (ValueError, TypeError) as fault:
        sentence = f"{path} holds no scores that `python -m evaluate` wrote: move it away, they are computed again."
        raise PromptOrTuneError(sentence) from fault
    return records, whole


def _attach_records(run: Run, records: Sequence[dict[str, Any]], wanted: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Gives the run what still holds of the records; these, after the keys of their kinds and of those `wanted`."""
    keys = {record["of"]: record for record in records if record["kind"] == "key"}  # the last one of each kind
    problems = {problem["id"]: problem for problem in run.problems}
    results = {(method, result.problem): result for method in run.methods for result in run.results(method)}
    kept: dict[tuple[str, str, str], dict[str, Any]] = {}
    run.clear_scores()
    try:
        for record in records:
            if record["kind"] != "scores" or record["key"] != keys[record["of"]]["key"]:
                continue
            method, problem = record["method"], record["problem"]
            result = results.get((method, problem))
            if result is None or record["digest"] != result_digest(run, problems[problem], result):
                continue
            kept[record["of"], method, problem] = record
            run.set_scores(method, problem, record["scores"], record.get("checks", ()))
        used = {kind for kind, _, _ in kept}
        run.scored_with = {kind: dict(key["values"]) for kind, key in keys.items() if kind in used}
    except (KeyError, TypeError, AttributeError) as fault:
        path = scores_path(run.path)
        sentence = f"{path} holds no scores that `python -m evaluate` wrote: move it away, they are computed again."
        raise PromptOrTuneError(sentence) from fault
    return [*(dict(key) for kind, key in keys.items() if kind in used or kind in wanted), *kept.values()]
