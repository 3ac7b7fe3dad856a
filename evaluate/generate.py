"""Generation of answers for an evaluation run: method by method, in batches, resumable.

A failure of the engine, its server or the network is no answer: it is tried again, and then ends the generation. The
next run asks for what is missing. Also the progress line with its estimate of the time left.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from threading import Event
from typing import Any, Protocol, TextIO

from common.format import format_duration
from errors import EngineError, PromptOrTuneError, unknown_name_error
from evaluate.failures import DEFAULT_RETRIES, Retries, RetryPolicy, call_with_retries
from evaluate.results import Result, Run
from models.resources import PeakMemory
from models.source import BaseIdentity
from serve.types import Request, RequestOutput, SamplingParams
from tasks.extract import EXTRACTION_VERSION
from tasks.methods import Method, parse_method
from tasks.problem import Problem
from tasks.prompt import PROMPT_VERSION, PromptStyle

DECODING_MODES = ("beam", "sample", "greedy")
_MIN_NEW_TOKENS, _MAX_NEW_TOKENS, _EXTRA_TOKENS = 64, 256, 16  # of `max_new_tokens_for`
_MAX_ERROR_LENGTH = 300  # characters of an exception in a message
_log = logging.getLogger(__name__)
VERSIONED_PACKAGES = ("torch", "transformers", "bitsandbytes", "peft", "codebleu", "tree-sitter-python")


class EngineProtocol(Protocol):
    """The part of serve.engine.llm_engine.LLMEngine that a run uses; tests pass a fake."""

    @property
    def base(self) -> BaseIdentity: ...

    @property
    def has_independent_rows(self) -> bool: ...

    def adapters(self) -> list[str]: ...

    def require_method(self, method: Method) -> None: ...

    def adapter_digest(self, name: str) -> str: ...

    def count_prompt_tokens(self, requests: Sequence[Request], sampling_params: SamplingParams) -> list[int]: ...

    def answer(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None
    ) -> list[RequestOutput]: ...


@dataclass(frozen=True)
class EvaluationPlan:
    """Problems and settings of a run. `pool_digest` computes the digest of the split that examples come from."""

    data: str
    split: str
    problems: Sequence[Problem]
    data_digest: str
    pool_digest: Callable[[], str]
    sampling_params: SamplingParams
    batch: int = 4
    seed: int = 42

    def settings(self, base: BaseIdentity) -> dict[str, Any]:
        """Return everything that results of any method depend on; a file with other settings is not continued.

        Batch size and problem order are among them: they change the padding, and with it the last bits of the
        arithmetic.
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
    """Build SamplingParams for beam search that returns all its beams, for samples, or for greedy (also one beam).

    Temperature and top-p are set for samples only; otherwise they keep their defaults, so that equal runs have equal
    settings. Raises UnknownNameError for another mode.
    """
    if mode == "sample":
        return SamplingParams("sample", max_new_tokens, num_candidates, temperature, top_p, seed)
    if mode == "greedy" or (mode == "beam" and num_candidates == 1):
        return SamplingParams("greedy", max_new_tokens, seed=seed)
    if mode != "beam":
        raise unknown_name_error("decoding", mode, DECODING_MODES)
    return SamplingParams("beam", max_new_tokens, candidates=num_candidates, seed=seed)


def max_new_tokens_for(count_tokens: Callable[[str], int], problems: Sequence[Problem]) -> int:
    """Return a limit of new tokens for answers as long as the references: the longest one's length plus some."""
    longest = max((count_tokens(problem.reference or "") for problem in problems), default=0)
    return min(_MAX_NEW_TOKENS, max(_MIN_NEW_TOKENS, longest + _EXTRA_TOKENS))


def parse_methods(names: Iterable[str], adapters: Sequence[str]) -> list[Method]:
    """Parse method names in order, without repeats.

    Raises PromptOrTuneError for no name and UnknownNameError for a method that does not exist.
    """
    methods = [parse_method(name, adapters) for name in names if name.strip()]
    if not methods:
        raise PromptOrTuneError("No method is named: give --methods, for example zero-shot,icl-8,rag-8.")
    return list(dict.fromkeys(methods))


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that scores depend on, without importing the packages."""
    found = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def register_methods(
    engine: EngineProtocol,
    plan: EvaluationPlan,
    methods: Sequence[Method],
    run: Run,
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> None:
    """Record adapters and examples of all methods in `run` before the first one is generated.

    Raises an error for a method that the engine cannot answer with, and for an adapter that has changed since the run
    began, before any time is spent.
    """
    new_tokens, context = plan.sampling_params.max_new_tokens, engine.base.context_length
    if new_tokens >= context and not engine.base.is_encoder_decoder:
        raise PromptOrTuneError(
            f"{new_tokens} new tokens leave no prompt any room in the context of {context} tokens of {engine.base.id}: "
            "choose a smaller --max-new-tokens."
        )
    for method in methods:
        call_with_retries(partial(engine.require_method, method), retries)
        run.set_method(
            method.name,
            {
                "adapter": method.adapter,
                "adapter_digest": engine.adapter_digest(method.adapter) if method.adapter else None,
                "examples": asdict(method.examples) if method.examples.k else None,
                "pool_digest": plan.pool_digest() if method.examples.k else None,
            },
        )


def _style_values(style: PromptStyle) -> dict[str, Any]:
    return {"style": style.name, "fingerprint": style.fingerprint, "extraction": EXTRACTION_VERSION}


def generate_results(
    engine: EngineProtocol,
    plan: EvaluationPlan,
    methods: Sequence[Method],
    run: Run,
    on_progress: Callable[[int, str], None],
    retries: RetryPolicy = DEFAULT_RETRIES,
    resume_hint: str = "the same command asks for the rest",
) -> None:
    """Generate the answers that `run` lacks and save after every batch.

    `on_progress` is called with the number of problems done and the method's name. KeyboardInterrupt, also raised for a
    cancelled batch, leaves the file as the last complete batch wrote it. Raises EngineError if the engine still fails
    after `retries`: what was answered is saved, and `resume_hint` ends the message.
    """
    register_methods(engine, plan, methods, run, retries)
    for method in methods:
        if all(run.has_result(method.name, problem.id) for problem in plan.problems):
            continue
        memory = PeakMemory(engine.base.device)
        memory.start()
        requests = [Request(problem, method, plan.data) for problem in plan.problems]
        count = partial(engine.count_prompt_tokens, requests, plan.sampling_params)
        for batch in batch_problems(plan.problems, plan.batch, call_with_retries(count, retries)):
            attempts = Retries(retries)
            while missing := [problem for problem in batch if not run.has_result(method.name, problem.id)]:
                # Where padding depends on the other rows, the whole batch is generated again.
                asked = missing if engine.has_independent_rows else batch
                requests = [Request(problem, method, plan.data) for problem in asked]
                answers, failure = ask(engine, requests, plan.sampling_params)
                for style in {answer.style for answer in answers if answer.style is not None}:
                    run.set_method(method.name, _style_values(style))
                run.add(make_results(asked, answers, method.name))
                added = sum(run.has_result(method.name, problem.id) for problem in missing)
                if added:
                    if (peak := memory.bytes()) > run.methods[method.name].get("peak_memory_bytes", 0):
                        run.update_method(method.name, {"peak_memory_bytes": peak})
                    run.save()
                    on_progress(added, method.name)
                    attempts.reset()
                if failure is not None and added < len(missing) and not attempts.wait(failure):
                    saved = sum(len(run.results(name)) for name in run.methods)
                    raise EngineError(
                        f"{attempts.describe(failure)}; the answers so far ({saved}) are kept in {run.path}, "
                        f"and {resume_hint}."
                    ) from failure


def ask(
    engine: EngineProtocol, requests: Sequence[Request], sampling_params: SamplingParams
) -> tuple[list[RequestOutput], PromptOrTuneError | None]:
    """Return the outputs that count as answers of the method, and the first failure of the engine, if any.

    An output whose prompt can never be answered counts (serve.types.RequestOutput.failure). Any exception that the
    engine raises is its failure, except KeyboardInterrupt, which is also raised for a cancelled call.
    """
    try:
        outputs = engine.answer(requests, sampling_params)
    except PromptOrTuneError as error:
        return [], error
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is no answer; the log has the traceback
        _log.debug("The engine failed.", exc_info=error)
        detail = " ".join(str(error).split())[:_MAX_ERROR_LENGTH].rstrip(".")
        return [], EngineError(f"The engine failed ({type(error).__name__}{detail and f': {detail}'}).")
    if any(output.cancelled for output in outputs):
        raise KeyboardInterrupt
    failures = [failure for output in outputs if (failure := output.failure) is not None]
    if not failures and len({output.index for output in outputs}) < len(requests):
        failures.append(EngineError("The engine gave no answer."))
    return [output for output in outputs if output.failure is None], next(iter(failures), None)


def answer_all(
    engine: EngineProtocol,
    requests: Sequence[Request],
    sampling_params: SamplingParams,
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> list[RequestOutput]:
    """Return the outputs of all requests, as `ask` does; raises its failure if the engine still fails after retries."""

    def answer() -> list[RequestOutput]:
        outputs, failure = ask(engine, requests, sampling_params)
        if failure is not None:
            raise failure
        return outputs

    return call_with_retries(answer, retries)


def _sampling_settings(sampling_params: SamplingParams) -> dict[str, Any]:
    """Return the sampling parameters that a result depends on.

    `stop` and `top_logprobs`, which no run sets, are left out because files of older versions lack them.
    """
    return {name: value for name, value in asdict(sampling_params).items() if name not in ("stop", "top_logprobs")}


def batch_problems(problems: Sequence[Problem], size: int, lengths: Sequence[int] = ()) -> Iterator[list[Problem]]:
    """Yield batches of problems of similar length, which keeps padding small; the same batches on every call.

    `lengths` are the prompt lengths in tokens; without them the lengths of the intents are used.
    """
    measured = lengths or [0] * len(problems)
    keys = {problem.id: (tokens, len(problem.intent)) for problem, tokens in zip(problems, measured, strict=True)}
    ordered = sorted(problems, key=lambda problem: (*keys[problem.id], problem.id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def make_results(batch: Sequence[Problem], answers: Sequence[RequestOutput], method: str) -> Iterator[Result]:
    """Yield one result per answer, with an error if its prompt could not be answered (see `ask`)."""
    # The engine may start the rows of a batch one after another: the last one to finish gives the batch's time.
    seconds = max((answer.queued_seconds + answer.seconds for answer in answers), default=0.0) / len(batch)
    for answer in sorted(answers, key=lambda answer: answer.index):
        problem = batch[answer.index]
        if answer.error is not None:
            yield Result(method, problem.id, error=answer.error, error_kind="prompt")
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


LINE_INTERVAL_SECONDS = 30.0  # between lines on a stream that is no terminal


class ProgressBar:
    """Progress on stderr: one line that is redrawn on a terminal, else a new line every 30 seconds."""

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = clock()
        self._last_print = self._start
        self._done = 0
        self._width = 0

    def update(self, count: int, label: str) -> None:
        """Add `count` finished items and print the progress with `label`."""
        self._done += count
        now = self._clock()
        left = (now - self._start) / max(self._done, 1) * (self._total - self._done)
        line = f"{self._done}/{self._total} {label}, "
        line += f"{format_duration(now - self._start)} gone, {format_duration(left)} left"
        if self._stream.isatty():
            self._stream.write(f"\r{line:<{self._width}}")
            self._width = len(line)
        elif now - self._last_print >= LINE_INTERVAL_SECONDS or self._done == self._total:
            self._last_print = now
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the redrawn line, so that later output starts on a new line."""
        if self._width:
            self._width = 0
            self._stream.write("\n")
            self._stream.flush()
