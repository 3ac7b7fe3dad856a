"""Run, Result, score file.

A run: what was asked, of which base, and every candidate that came back.

On disk it is X.jsonl: a line that says what results depend on (`run`), one a problem, one a method (again where more
becomes known of it), one a problem and method (`result`). The file only grows (see evaluate.journal), so a run that is
killed loses at most the batch in flight, and the same command goes on from it. Scores are computed from it, apart from
generation, and lie beside it in X.scores.jsonl (see evaluate.results).

The scores of a run, in X.scores.jsonl beside its X.jsonl. They can be computed again from it at any time.

Two kinds of score are kept apart, because they depend on different things: `text` (exact match, CodeBLEU, parse rate)
and `tests` (what running the problem's tests said). A `key` line says what the scores of a kind that follow were made
with; each `scores` line names its key and the digest of what was scored. A reader takes, of each kind, those under the
last key whose candidates, reference and tests are still those of the run; all else counts as not yet scored.

What a run depends on: the same in the file and here, or a sentence that says what differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from errors import PromptOrTuneError
from evaluate.journal import Journal, read_records
from tasks.problem import AssertTest, Problem, StdioTest, Test

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
    except OSError as error:
        raise PromptOrTuneError(
            f"Cannot read {path} ({error.strerror or error}): the run's scores belong there."
        ) from error
    except (ValueError, TypeError) as error:
        sentence = f"{path} holds no scores that `python -m evaluate` wrote: move it away, they are computed again."
        raise PromptOrTuneError(sentence) from error
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
    except (KeyError, TypeError, AttributeError) as error:
        path = scores_path(run.path)
        sentence = f"{path} holds no scores that `python -m evaluate` wrote: move it away, they are computed again."
        raise PromptOrTuneError(sentence) from error
    return [*(dict(key) for kind, key in keys.items() if kind in used or kind in wanted), *kept.values()]


def to_json_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from the file: tuples become lists."""
    return dict(json.loads(json.dumps(values)))


def diff_settings(
    saved: Mapping[str, Any], requested: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What differs, there and here, with the parts of a nested setting by name; None where nothing does."""
    there, here = _flatten_settings(saved), _flatten_settings(requested)
    changed = {name: value for name, value in here.items() if there.get(name) != value}
    return (there, changed) if changed else None


def _flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            flat[name] = value
    return flat


def settings_error(path: Path, what: str, saved: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """The sentence for a file whose results were made with other settings."""
    differences = ", ".join(f"{name} {saved.get(name)!r} there and {value!r} here" for name, value in changed.items())
    mend = "choose another --output, or --overwrite to start anew"
    return f"{path} holds {what} with other settings ({differences}): {mend}."


FORMAT_VERSION = 2
_RESULT_FIELDS = ("method", "problem", "candidates", "examples", "seconds", "prompt_tokens", "tokens", "notes", "error")
_TEST_TYPES: dict[str, type[AssertTest] | type[StdioTest]] = {"assert": AssertTest, "stdio": StdioTest}


@dataclass(frozen=True)
class Result:
    """One method's answer to one problem. A failure has `error`, no candidates, and scores of 0.

    `scores` are empty until they are computed. `candidates` are records of text, code, logprob, tokens and times (how
    many samples or beams said this code), best first; `examples` the ids of what the prompt showed; `seconds` the
    batch's time divided by its problems; `tokens` those of the first candidate; `checks` one list a candidate, with a
    record (the fields of evaluate.test_runner.runner.TestResult) for each of the problem's tests.
    """

    method: str
    problem: str
    scores: Mapping[str, float | None] = field(default_factory=dict)
    candidates: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[str] = ()
    seconds: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    notes: Sequence[str] = ()
    error: str | None = None
    checks: Sequence[Sequence[Mapping[str, Any]]] = ()


@dataclass
class Run:
    """A run as it stands in its file.

    `settings` is everything that a result depends on whatever the method; `methods` holds the same for each method
    (adapter and digest, examples, prompt style and fingerprint) and its `peak_memory_bytes`; `provenance` is what is
    worth knowing besides; `scored_with` says how scores were made: by kind (`text`, `tests`), metric versions, sandbox
    layer and limits. `problems` are records of id, intent, reference, tests, entry_point and difficulty.

    A run from `open_run` has its file to itself until `close`, best called by `with`.
    """

    path: Path
    settings: dict[str, Any]
    problems: list[dict[str, Any]]
    provenance: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    scored_with: dict[str, dict[str, Any]] = field(default_factory=dict)
    _results: dict[tuple[str, str], Result] = field(default_factory=dict)
    _journal: Journal | None = None
    _pending: list[dict[str, Any]] | None = None  # what the file lacks; None while there is no file of this run

    def add(self, results: Iterable[Result]) -> None:
        """Keeps the results in memory, the first one of a problem and method; `save` puts them on disk."""
        for result in results:
            key = (result.method, result.problem)
            if key not in self._results:
                self._results[key] = result
                self._write_record(_result_record(result))

    def has_result(self, method: str, problem: str) -> bool:
        """Whether that problem is done."""
        return (method, problem) in self._results

    def results(self, method: str) -> list[Result]:
        """The method's results that there are, in the order of the problems."""
        keys = ((method, problem["id"]) for problem in self.problems)
        return [self._results[key] for key in keys if key in self._results]

    def set_method(self, method: str, values: Mapping[str, Any]) -> None:
        """Notes what the method's results depend on; PromptOrTuneError where results made otherwise are here already."""
        known = self.methods.get(method, {})
        changed = {name: value for name, value in values.items() if name in known and known[name] != value}
        if changed and self.results(method):
            raise PromptOrTuneError(settings_error(self.path, f"'{method}'", known, changed))
        self.update_method(method, values)

    def update_method(self, method: str, values: Mapping[str, Any]) -> None:
        """Notes what is worth knowing of the method, in place of what was known before."""
        known = self.methods.setdefault(method, {})
        news = {name: value for name, value in values.items() if name not in known or known[name] != value}
        if news:
            known.update(news)
            self._write_record({"kind": "method", "method": method, "values": news})

    def set_scores(
        self, method: str, problem: str, scores: Mapping[str, float | None], checks: Sequence[Any] = ()
    ) -> None:
        """Adds scores, and what the tests said of each candidate, to a result that is here."""
        result = self._results[method, problem]
        merged = {**result.scores, **scores}
        self._results[method, problem] = replace(result, scores=merged, checks=checks or result.checks)

    def clear_scores(self) -> None:
        """Leaves the results as they were before anything was scored."""
        for key, result in self._results.items():
            if result.scores or result.checks:
                self._results[key] = replace(result, scores={}, checks=())
        self.scored_with = {}

    def save(self) -> None:
        """Puts on disk what the file lacks. The first time of a new run puts the whole in place of what was there."""
        journal = self._journal = self._journal or Journal.open(self.path)
        if self._pending is None:
            journal.replace(self._records())
        elif self._pending:
            journal.append(self._pending)
        self._pending = []

    def close(self) -> None:
        """Lets other processes write the file."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_record(self, record: dict[str, Any]) -> None:
        if self._pending is not None:
            self._pending.append(record)

    def _records(self) -> Iterator[dict[str, Any]]:
        yield {"kind": "run", "version": FORMAT_VERSION, "settings": self.settings, "provenance": self.provenance}
        for problem in self.problems:
            yield {"kind": "problem", **problem}
        for method, values in self.methods.items():
            yield {"kind": "method", "method": method, "values": values}
        for method in self.methods:
            yield from map(_result_record, self.results(method))


def open_run(
    path: Path,
    settings: Mapping[str, Any],
    problems: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> Run:
    """The run to go on with: the one in the file, or a new one. It has the file to itself until it is closed.

    Refuses, in one sentence, a file that is no run, that holds results made with other settings, or that another
    process is writing. With `overwrite` the file is left alone until the first batch replaces it.
    """
    journal = Journal.open(path)
    try:
        fresh = Run(path, to_json_types(settings), [to_json_types(problem) for problem in problems], dict(provenance))
        fresh._journal = journal
        if overwrite or not path.stat().st_size:
            return fresh
        run, whole = _load_run(path)
        different = diff_settings(run.settings, fresh.settings)
        if different:
            raise PromptOrTuneError(settings_error(path, "a run", *different))
        journal.truncate(whole)
        run._journal = journal
        if run.provenance.get("versions") != provenance.get("versions"):
            run.provenance.setdefault("resumed_with", []).append(dict(provenance))
            run._write_record({"kind": "resumed", "provenance": dict(provenance)})
        return run
    except BaseException:
        journal.close()
        raise


def read_run(path: Path) -> Run:
    """The run in a file, plain or packed (.jsonl.gz), with the scores beside it.

    PromptOrTuneError in one sentence when there is none. Reading asks for no lock: of a run that goes on elsewhere it
    gives what is finished.
    """
    run, _ = _load_run(path)
    attach_scores(run)
    return run


def problem_record(problem: Problem) -> dict[str, Any]:
    """What a run's file keeps of a problem; `tests_of` reads its tests again."""
    kinds = {made: kind for kind, made in _TEST_TYPES.items()}
    return {
        "id": problem.id,
        "intent": problem.intent,
        "reference": problem.reference,
        "tests": [{"kind": kinds[type(test)], **asdict(test)} for test in problem.tests],
        "entry_point": problem.entry_point,
        "difficulty": problem.difficulty,
    }


def tests_of(record: Mapping[str, Any]) -> tuple[Test, ...]:
    """The tests of a problem as a run's file keeps it; none where it was written without."""
    return tuple(
        _TEST_TYPES[test["kind"]](**{name: value for name, value in test.items() if name != "kind"})
        for test in record.get("tests", ())
    )


def _load_run(path: Path) -> tuple[Run, int]:
    """The run without its scores, and how many bytes of the file are whole lines."""
    try:
        records, whole = read_records(path)
        run = _run_from_records(path, records)
    except OSError as error:
        sentence = f"Cannot read {path} ({error.strerror or error}): name a file that `python -m evaluate` wrote."
        raise PromptOrTuneError(sentence) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise PromptOrTuneError(
            f"{path} is not a file that `python -m evaluate` wrote: choose another name."
        ) from error
    return run, whole


def _run_from_records(path: Path, records: Sequence[Mapping[str, Any]]) -> Run:
    head = records[0]
    if head["kind"] != "run":
        raise ValueError("no run")
    if head["version"] != FORMAT_VERSION:
        raise PromptOrTuneError(f"{path} has version {head['version']!r} and this program reads {FORMAT_VERSION}.")
    run = Run(path, dict(head["settings"]), [], dict(head["provenance"]))
    for record in records[1:]:
        fields = {name: value for name, value in record.items() if name != "kind"}
        if record["kind"] == "problem":
            run.problems.append({"id": fields["id"], **fields})
        elif record["kind"] == "method":
            run.update_method(fields["method"], fields["values"])
        elif record["kind"] == "result":
            run.add([Result(**fields)])
        elif record["kind"] == "resumed":
            run.provenance.setdefault("resumed_with", []).append(fields["provenance"])
        else:
            raise ValueError(f"unknown line {record['kind']!r}")
    run._pending = []
    return run


def _result_record(result: Result) -> dict[str, Any]:
    return {"kind": "result", **{name: getattr(result, name) for name in _RESULT_FIELDS}}
