"""Evaluation runs and their scores: Run, Result, and the two files that store them.

X.jsonl holds a run. Its records are: `run` (everything that results depend on), one `problem` per problem, `method`
(again when more becomes known), and one `result` per problem and method. The file only grows (evaluate/journal.py): a
killed run loses at most the current batch, and the same command continues it.

X.scores.jsonl beside it holds the scores, which can be computed again from X.jsonl. Two kinds are separate because
they depend on different things: `text` (exact match, CodeBLEU, parse rate) and `tests` (results of the problem's
tests). A `key` record holds what the scores of a kind were made with; each `scores` record names its key and the
digest of what was scored. Readers use, of each kind, the scores under the last key whose candidates, reference and
tests are still those of the run; all others count as not yet scored.

Earlier versions stored failures of the engine as results with an error, and failures of the sandbox as tests that did
not pass. Both are recognised when a file is read, and left out: the problem counts as not yet answered, the answer as
not yet scored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from errors import PromptOrTuneError, is_prompt_error
from evaluate.journal import Journal, diff_settings, read_records, settings_digest, settings_error, to_json_types
from tasks.problem import AssertTest, Problem, ReferenceTest, ScriptTest, StdioTest, Test, parse_test

ScoreKind = Literal["text", "tests"]
_RECORD_FIELDS = {
    "key": {"of", "key", "values"},
    "scores": {"of", "key", "method", "problem", "digest", "scores"},
}
_SCORES_SUFFIX = ".scores.jsonl"


def scores_path(path: Path) -> Path:
    """Return the path of the scores of the run in `path`; a .gz file only if there is no plain one."""
    prefix = path.name.removesuffix(".gz").removesuffix(".jsonl")
    plain = path.with_name(prefix + _SCORES_SUFFIX)
    packed = plain.with_name(plain.name + ".gz")
    return packed if packed.exists() and not plain.exists() else plain


def attach_scores(run: Run) -> None:
    """Set the scores of the run's results from the score file beside it, if there is one."""
    path = scores_path(run.path)
    if path.exists():
        _attach_records(run, _read_scores(path)[0])


class ScoreFile:
    """The single writer of a run's scores. Opening it drops scores that no longer apply."""

    def __init__(self, journal: Journal, keys: Mapping[ScoreKind, Mapping[str, Any]]) -> None:
        self._journal = journal
        self._values = {kind: dict(values) for kind, values in keys.items()}
        self._keys = {kind: settings_digest(values) for kind, values in keys.items()}

    @classmethod
    def open(cls, run: Run, keys: Mapping[ScoreKind, Mapping[str, Any]]) -> ScoreFile:
        """Lock the score file and set the scores of the run's results that were made under `keys`.

        Scores of these kinds under other keys are dropped; kinds that `keys` lacks stay as they are.
        """
        path = scores_path(run.path)
        if path.suffix == ".gz":
            path = path.with_suffix("")
        journal = Journal.open(path)
        try:
            records, complete_bytes = _read_scores(path) if path.stat().st_size else ([], 0)
            journal.truncate(complete_bytes)
            key_records: list[dict[str, Any]] = [
                {"kind": "key", "of": kind, "key": settings_digest(key), "values": key} for kind, key in keys.items()
            ]
            valid = _attach_records(run, [*records, *key_records], keys)
            if valid != records:
                journal.replace(valid)
        except BaseException:
            journal.close()
            raise
        return cls(journal, keys)

    def append(
        self, run: Run, kind: ScoreKind, scored: Iterable[tuple[Result, Mapping[str, Any], Sequence[Any]]]
    ) -> None:
        """Write scores and test records of these results to disk, and set them in the run."""
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
        """Release the file for other processes."""
        self._journal.close()


def result_digest(run: Run, problem: Mapping[str, Any], result: Result) -> str:
    """Return a digest of what a score depends on: decoding, reference, tests, and the candidates' code and counts."""
    codes = [(candidate["code"], candidate.get("times", 1)) for candidate in result.candidates]
    decoding = run.settings["decoding"]
    parts = [decoding["mode"], decoding["candidates"], problem.get("reference"), problem.get("tests", []), codes]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read_scores(path: Path) -> tuple[list[dict[str, Any]], int]:
    try:
        records, complete_bytes = read_records(path)
        if not records or not all(
            _RECORD_FIELDS.get(record.get("kind", ""), {""}) <= record.keys() for record in records
        ):
            raise ValueError("no scores")
    except OSError as error:
        raise PromptOrTuneError(
            f"Cannot read {path} ({error.strerror or error}): the run's scores belong there."
        ) from error
    except (ValueError, TypeError) as error:
        raise _invalid_scores_error(path) from error
    return records, complete_bytes


def _invalid_scores_error(path: Path) -> PromptOrTuneError:
    return PromptOrTuneError(
        f"{path} holds no scores that `python -m evaluate` wrote: move it away, they are computed again."
    )


def _attach_records(run: Run, records: Sequence[dict[str, Any]], kinds: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Set the run's scores from the records that still apply.

    Returns those records, preceded by the `key` records of their kinds and of `kinds`.
    """
    keys = {record["of"]: record for record in records if record["kind"] == "key"}  # the last of each kind
    problems = {problem["id"]: problem for problem in run.problems}
    results = {(method, result.problem): result for method in run.methods for result in run.results(method)}
    valid: dict[tuple[str, str, str], dict[str, Any]] = {}
    run.clear_scores()
    run.sandbox_failures.clear()
    try:
        for record in records:
            if record["kind"] != "scores" or record["key"] != keys[record["of"]]["key"]:
                continue
            method, problem = record["method"], record["problem"]
            result = results.get((method, problem))
            if result is None or record["digest"] != result_digest(run, problems[problem], result):
                continue
            if any(is_sandbox_failure(check) for checks in record.get("checks", ()) for check in checks):
                run.sandbox_failures.add((method, problem))
                continue
            valid[record["of"], method, problem] = record
            run.set_scores(method, problem, record["scores"], record.get("checks", ()))
        used = {kind for kind, _, _ in valid}
        run.scored_with = {kind: dict(key["values"]) for kind, key in keys.items() if kind in used}
    except (KeyError, TypeError, AttributeError) as error:
        path = scores_path(run.path)
        raise _invalid_scores_error(path) from error
    return [*(dict(key) for kind, key in keys.items() if kind in used or kind in kinds), *valid.values()]


def is_sandbox_failure(check: Mapping[str, Any]) -> bool:
    """Return whether a test record says that the sandbox did not run the program; earlier versions stored these."""
    status, reason = check.get("status"), str(check.get("reason"))
    return (status == "refused" and reason.startswith("could not be run")) or (
        status == "killed" and "(stopped from outside)" in reason
    )


FORMAT_VERSION = 2
_RESULT_FIELDS = ("method", "problem", "candidates", "examples", "seconds", "prompt_tokens", "tokens", "notes", "error")
_TEST_KINDS: dict[type[Test], str] = {
    AssertTest: "assert",
    StdioTest: "stdio",
    ScriptTest: "script",
    ReferenceTest: "reference",
}


@dataclass(frozen=True)
class Result:
    """One method's answer to one problem. A prompt that no try can answer has `error`, no candidates, and scores of 0;
    its `error_kind` is "prompt", which results of earlier versions lack (errors.is_prompt_error).

    `scores` is empty until they are computed. `candidates` are records of text, code, logprob, tokens and times (how
    many samples or beams have this code), best first; `examples` the ids of the examples in the prompt; `seconds` the
    batch's time divided by its problems; `tokens` the length of the first candidate; `checks` one list per candidate
    that ran, with a record (the fields of evaluate.test_runner.result.TestResult) for each test of the problem.
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
    error_kind: Literal["", "prompt"] = ""
    checks: Sequence[Sequence[Mapping[str, Any]]] = ()


@dataclass
class Run:
    """A run with its results, and its file.

    `settings` is everything that results of any method depend on; `methods` the same for each method (adapter and
    digest, examples, prompt style and fingerprint) and its `peak_memory_bytes`; `provenance` is further information
    (command, versions); `scored_with` says for each kind of score (`text`, `tests`) what it was made with: metric
    versions, sandbox layer and limits, rules of comparison. `problems` are records of id, intent, reference, tests,
    entry_point, difficulty, comparison and prompt. `engine_failures` are the errors, by method and problem, that an
    earlier version stored in place of an answer, and `sandbox_failures` the methods and problems whose stored test
    results are no results.

    A run from `open_run` holds the lock of its file until `close`; use it in a `with` statement.
    """

    path: Path
    settings: dict[str, Any]
    problems: list[dict[str, Any]]
    provenance: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    scored_with: dict[str, dict[str, Any]] = field(default_factory=dict)
    engine_failures: dict[tuple[str, str], str] = field(default_factory=dict)
    sandbox_failures: set[tuple[str, str]] = field(default_factory=set)
    _results: dict[tuple[str, str], Result] = field(default_factory=dict)
    _journal: Journal | None = None
    _pending: list[dict[str, Any]] | None = None  # records not yet on disk; None while the file holds no run

    def add(self, results: Iterable[Result]) -> None:
        """Add results in memory, skipping those that are present already; `save` writes them to disk."""
        for result in results:
            key = (result.method, result.problem)
            if key not in self._results:
                self._results[key] = result
                self.engine_failures.pop(key, None)
                self._write_record(_result_record(result))

    def has_result(self, method: str, problem: str) -> bool:
        """Return whether the method has a result for that problem."""
        return (method, problem) in self._results

    def results(self, method: str) -> list[Result]:
        """Return the method's results, in the order of the problems."""
        keys = ((method, problem["id"]) for problem in self.problems)
        return [self._results[key] for key in keys if key in self._results]

    def set_method(self, method: str, values: Mapping[str, Any]) -> None:
        """Record what the method's results depend on.

        Raises PromptOrTuneError if the run has results of the method that were made with other values.
        """
        saved = self.methods.get(method, {})
        changed = {name: value for name, value in values.items() if name in saved and saved[name] != value}
        if changed and self.results(method):
            raise PromptOrTuneError(settings_error(self.path, f"'{method}'", saved, changed))
        self.update_method(method, values)

    def update_method(self, method: str, values: Mapping[str, Any]) -> None:
        """Record values of the method, replacing earlier ones."""
        saved = self.methods.setdefault(method, {})
        changed = {name: value for name, value in values.items() if name not in saved or saved[name] != value}
        if changed:
            saved.update(changed)
            self._write_record({"kind": "method", "method": method, "values": changed})

    def set_scores(
        self, method: str, problem: str, scores: Mapping[str, float | None], checks: Sequence[Any] = ()
    ) -> None:
        """Add scores and test records to a result of the run."""
        result = self._results[method, problem]
        merged = {**result.scores, **scores}
        if "tests" in scores:
            self.sandbox_failures.discard((method, problem))
        self._results[method, problem] = replace(result, scores=merged, checks=checks or result.checks)

    def replace_candidates(self, method: str, problem: str, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Replace a result's candidates and drop its scores; `rewrite` stores them."""
        self._results[method, problem] = replace(
            self._results[method, problem], candidates=candidates, scores={}, checks=()
        )

    def clear_scores(self) -> None:
        """Remove all scores and test records."""
        for key, result in self._results.items():
            if result.scores or result.checks:
                self._results[key] = replace(result, scores={}, checks=())
        self.scored_with = {}

    def save(self) -> None:
        """Write the records that the file lacks; the first save of a new run replaces the whole file."""
        journal = self._journal = self._journal or Journal.open(self.path)
        if self._pending is None:
            journal.replace(self._records())
        elif self._pending:
            journal.append(self._pending)
        self._pending = []

    def rewrite(self) -> None:
        """Replace the run's file by one with all its records; leave the file locked only if it was before."""
        was_open = self._journal is not None
        self._journal = self._journal or Journal.open(self.path)
        self._journal.replace(self._records())
        self._pending = []
        if not was_open:
            self.close()

    def close(self) -> None:
        """Release the file for other processes."""
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
    """Open the run in the file, or a new one, and lock the file until the run is closed.

    With `overwrite` the run is new, and the file stays as it is until the first `save` replaces it. Raises
    PromptOrTuneError for a file that is no run, has other settings, or is being written by another process.
    """
    journal = Journal.open(path)
    try:
        fresh = Run(path, to_json_types(settings), [to_json_types(problem) for problem in problems], dict(provenance))
        fresh._journal = journal
        if overwrite or not path.stat().st_size:
            return fresh
        run, complete_bytes = _load_run(path)
        different = diff_settings(run.settings, fresh.settings)
        if different:
            raise PromptOrTuneError(settings_error(path, "a run", *different))
        journal.truncate(complete_bytes)
        run._journal = journal
        if run.provenance.get("versions") != provenance.get("versions"):
            run.provenance.setdefault("resumed_with", []).append(dict(provenance))
            run._write_record({"kind": "resumed", "provenance": dict(provenance)})
        return run
    except BaseException:
        journal.close()
        raise


def read_run(path: Path) -> Run:
    """Read the run in a file, plain or .jsonl.gz, with its scores.

    Takes no lock: of a run that another process is writing it returns what is on disk. Raises PromptOrTuneError if the
    file is no run.
    """
    run, _ = _load_run(path)
    attach_scores(run)
    return run


def problem_record(problem: Problem) -> dict[str, Any]:
    """Return the record of a problem in a run's file; `tests_of` restores its tests.

    `comparison` is left out where it is exact, `prompt` where there is none, and a test's `tolerance` where it is 0, as
    in files of earlier versions.
    """
    return {
        "id": problem.id,
        "intent": problem.intent,
        "reference": problem.reference,
        "tests": [{"kind": _TEST_KINDS[type(test)], **_test_fields(test)} for test in problem.tests],
        "entry_point": problem.entry_point,
        "difficulty": problem.difficulty,
        **({} if problem.comparison == "exact" else {"comparison": problem.comparison}),
        **({"prompt": problem.prompt} if problem.prompt else {}),
    }


def _test_fields(test: Test) -> dict[str, Any]:
    return {name: value for name, value in asdict(test).items() if name != "tolerance" or value}


def tests_of(record: Mapping[str, Any]) -> tuple[Test, ...]:
    """Return the tests in the record of a problem."""
    return tuple(
        parse_test({name: value for name, value in test.items() if name != "kind"}) for test in record.get("tests", ())
    )


def _load_run(path: Path) -> tuple[Run, int]:
    """Read the run without its scores, and the length in bytes of the file's complete lines."""
    try:
        records, complete_bytes = read_records(path)
        run = _run_from_records(path, records)
    except OSError as error:
        message = f"Cannot read {path} ({error.strerror or error}): name a file that `python -m evaluate` wrote."
        raise PromptOrTuneError(message) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise PromptOrTuneError(
            f"{path} is not a file that `python -m evaluate` wrote: choose another name."
        ) from error
    return run, complete_bytes


def _run_from_records(path: Path, records: Sequence[Mapping[str, Any]]) -> Run:
    head = records[0]
    if head["kind"] != "run":
        raise ValueError("the first record is no run")
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
            result = Result(**fields)
            if result.error is None or result.error_kind == "prompt" or is_prompt_error(result.error):
                run.add([result])
            elif not run.has_result(result.method, result.problem):
                run.engine_failures[result.method, result.problem] = result.error
        elif record["kind"] == "resumed":
            run.provenance.setdefault("resumed_with", []).append(fields["provenance"])
        else:
            raise ValueError(f"unknown line {record['kind']!r}")
    run._pending = []
    return run


def _result_record(result: Result) -> dict[str, Any]:
    kind = {"error_kind": result.error_kind} if result.error_kind else {}
    return {"kind": "result", **{name: getattr(result, name) for name in _RESULT_FIELDS}, **kind}
