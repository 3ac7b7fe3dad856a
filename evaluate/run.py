"""Generate candidates, resumable.

From problems and methods to a file of results: method by method, several problems a batch, resumable.

One line about what runs long: how far it is and how long it still takes.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from threading import Event
from typing import Any, Protocol, TextIO

from errors import PromptOrTuneError, unknown_name_error
from evaluate.results import Result, Run
from models.identity import BaseIdentity
from models.memory import PeakMemory
from serve.types import Request, RequestOutput, SamplingParams
from tasks.methods import Method, parse_method
from tasks.problem import Problem
from tasks.prompt import PROMPT_VERSION

DECODING_MODES = ("beam", "sample", "greedy")
VERSIONED_PACKAGES = ("torch", "transformers", "bitsandbytes", "peft", "codebleu", "tree-sitter-python")


class EngineProtocol(Protocol):
    """What a run needs of serve.engine.llm_engine.Engine, so that tests can stand in for it."""

    @property
    def base(self) -> BaseIdentity: ...

    def adapters(self) -> list[str]: ...

    def adapter_digest(self, name: str) -> str: ...

    def count_prompt_tokens(self, requests: Sequence[Request], sampling_params: SamplingParams) -> list[int]: ...

    def answer(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None
    ) -> list[RequestOutput]: ...


@dataclass(frozen=True)
class EvaluationPlan:
    """What to run. `pool_digest` tells the training split that examples come from; it is asked for when needed."""

    data: str
    split: str
    problems: Sequence[Problem]
    data_digest: str
    pool_digest: Callable[[], str]
    sampling_params: SamplingParams
    batch: int = 4
    seed: int = 42

    def settings(self, base: BaseIdentity) -> dict[str, Any]:
        """Everything that results depend on whatever the method; a file with other settings is not gone on with.

        The batch and the order in which problems fill it are among them: with others the padding differs, and with it
        the last bits of the arithmetic.
        """
        return {
            "base_id": base.id,
            "base_revision": base.revision,
            "quantization": base.quantization,
            "device": base.device,
            "data": self.data,
            "split": self.split,
            "n": len(self.problems),
            "data_digest": self.data_digest,
            "decoding": _sampling_settings(self.sampling_params),
            "batch": self.batch,
            "order": "prompt tokens",
            "seed": self.seed,
            "prompt_version": PROMPT_VERSION,
        }


def make_sampling_params(
    mode: str,
    num_candidates: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 0.6,
    top_p: float = 0.95,
) -> SamplingParams:
    """Beam search that returns all its beams, samples, or the greedy answer (also for one beam).

    Temperature and top-p matter for samples alone; elsewhere they stay as they are, so that they make no two runs
    different that are the same.
    """
    if mode == "sample":
        return SamplingParams("sample", max_new_tokens, num_candidates, temperature, top_p, seed)
    if mode == "greedy" or (mode == "beam" and num_candidates == 1):
        return SamplingParams("greedy", max_new_tokens, seed=seed)
    if mode != "beam":
        raise unknown_name_error("decoding", mode, DECODING_MODES)
    return SamplingParams("beam", max_new_tokens, candidates=num_candidates, seed=seed)


def parse_methods(names: Iterable[str], adapters: Sequence[str]) -> list[Method]:
    """The methods in order, each once; PromptOrTuneError for none, UnknownNameError for one that does not exist."""
    methods = [parse_method(name, adapters) for name in names if name.strip()]
    if not methods:
        raise PromptOrTuneError("No method is named: give --methods, for example zero-shot,icl-8,rag-8.")
    return list(dict.fromkeys(methods))


def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on, read without importing any of it."""
    found = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def register_methods(engine: EngineProtocol, plan: EvaluationPlan, methods: Sequence[Method], run: Run) -> None:
    """Notes adapters and examples of all methods before any of them runs.

    A broken adapter or one that has changed since is refused here, in one sentence, not after an hour.
    """
    for method in methods:
        run.set_method(
            method.name,
            {
                "adapter": method.adapter,
                "adapter_digest": engine.adapter_digest(method.adapter) if method.adapter else None,
                "examples": asdict(method.examples) if method.examples.k else None,
                "pool_digest": plan.pool_digest() if method.examples.k else None,
            },
        )


def generate_results(
    engine: EngineProtocol,
    plan: EvaluationPlan,
    methods: Sequence[Method],
    run: Run,
    on_progress: Callable[[int, str], None],
) -> None:
    """Answers what `run` lacks, saving it after every batch; `step` hears how many problems were done.

    KeyboardInterrupt, and a batch that was cancelled, leave the file as the last whole batch made it.
    """
    register_methods(engine, plan, methods, run)
    for method in methods:
        if all(run.has_result(method.name, problem.id) for problem in plan.problems):
            continue
        memory = PeakMemory(engine.base.device)
        memory.start()
        lengths = engine.count_prompt_tokens(
            [Request(problem, method, plan.data) for problem in plan.problems], plan.sampling_params
        )
        for batch in batch_problems(plan.problems, plan.batch, lengths):
            missing = sum(not run.has_result(method.name, problem.id) for problem in batch)
            if not missing:
                continue
            # All of it again, also where a kill left a part: beside others a row is padded otherwise.
            answers = engine.answer([Request(problem, method, plan.data) for problem in batch], plan.sampling_params)
            if any(answer.cancelled for answer in answers):
                raise KeyboardInterrupt
            for style in {answer.style for answer in answers if answer.style is not None}:
                run.set_method(method.name, {"style": style.name, "fingerprint": style.fingerprint})
            run.add(make_results(batch, answers, method.name))
            if (peak := memory.bytes()) > run.methods[method.name].get("peak_memory_bytes", 0):
                run.update_method(method.name, {"peak_memory_bytes": peak})
            run.save()
            on_progress(missing, method.name)


def _sampling_settings(sampling_params: SamplingParams) -> dict[str, Any]:
    """What a result depends on; what no run here can ask for is left out, as it is in the files of older versions."""
    return {name: value for name, value in asdict(sampling_params).items() if name not in ("stop", "top_logprobs")}


def batch_problems(problems: Sequence[Problem], size: int, lengths: Sequence[int] = ()) -> Iterator[list[Problem]]:
    """Problems of similar length together, so that little of a batch is padding; the same on every call.

    `lengths` are the tokens of the problems' prompts; without them the intents' lengths stand in.
    """
    measured = lengths or [0] * len(problems)
    keys = {problem.id: (tokens, len(problem.intent)) for problem, tokens in zip(problems, measured, strict=True)}
    ordered = sorted(problems, key=lambda problem: (*keys[problem.id], problem.id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def make_results(batch: Sequence[Problem], answers: Sequence[RequestOutput], method: str) -> Iterator[Result]:
    """One result a problem; an answer that is missing is a failure like any other."""
    by_index: Mapping[int, RequestOutput] = {answer.index: answer for answer in answers}
    # Of a batch that the engine takes in piece by piece, the last row began last.
    seconds = max((answer.queued_seconds + answer.seconds for answer in answers), default=0.0) / len(batch)
    for index, problem in enumerate(batch):
        answer = by_index.get(index)
        if answer is None or answer.error is not None:
            error = "The engine gave no answer." if answer is None else answer.error
            yield Result(method, problem.id, error=error)
            continue
        yield Result(
            method,
            problem.id,
            candidates=tuple(candidate.to_json() for candidate in answer.candidates),
            examples=tuple(example.id for example in answer.examples),
            seconds=seconds,
            prompt_tokens=answer.prompt_tokens,
            tokens=answer.tokens,
            notes=answer.notes,
        )


LINE_INTERVAL_SECONDS = 30.0  # between lines where they cannot be redrawn


class ProgressBar:
    """Counts up to `total` on standard error: one redrawn line on a terminal, else a line every 30 seconds."""

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = clock()
        self._last_print = self._start
        self._done = 0
        self._width = 0

    def update(self, count: int, label: str) -> None:
        """`count` more are done; `label` says what they belong to."""
        self._done += count
        now = self._clock()
        left = (now - self._start) / max(self._done, 1) * (self._total - self._done)
        line = f"{self._done}/{self._total} {label}, {_format_duration(now - self._start)} gone, {_format_duration(left)} left"
        if self._stream.isatty():
            self._stream.write(f"\r{line:<{self._width}}")
            self._width = len(line)
        elif now - self._last_print >= LINE_INTERVAL_SECONDS or self._done == self._total:
            self._last_print = now
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the redrawn line, so that what follows begins on a line of its own."""
        if self._width:
            self._width = 0
            self._stream.write("\n")
            self._stream.flush()


def _format_duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"
