"""Process with a slow run, which test_killed.py kills."""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from evaluate.generate import EvaluationPlan, ProgressBar, generate_results, make_sampling_params, parse_methods
from evaluate.results import open_run, problem_record
from evaluate.scoring import score_run
from serve.types import Request, RequestOutput, SamplingParams
from tests.evaluate.fakes import BASE, FakeEngine, problems

METHODS = ("zero-shot", "lora-tiny")
PROBLEMS = 30


class SlowEngine(FakeEngine):
    """Prints one line per batch before answering it."""

    def answer(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None
    ) -> list[RequestOutput]:
        time.sleep(0.01)
        print_event("asked", len(requests))
        return super().answer(requests, sampling_params, cancel)


class SlowProgress(ProgressBar):
    """Slow scoring that prints a line per score."""

    def update(self, count: int, label: str) -> None:
        time.sleep(0.002)
        print_event("scored", count)
        super().update(count, label)


def print_event(name: str, number: int) -> None:
    sys.stdout.write(f"{name} {number}\n")
    sys.stdout.flush()


def main(path: Path) -> None:
    # Shells ignore SIGINT in background processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan = EvaluationPlan(
        "conala", "test", problems(PROBLEMS), "d", lambda: "p", make_sampling_params("beam", 3, 64, 42), 2
    )
    described = [problem_record(each) for each in plan.problems]
    engine = SlowEngine()
    with open_run(path, plan.settings(BASE), described, {"started": "today"}) as run:
        generate_results(
            engine, plan, parse_methods(METHODS, engine.adapters()), run, lambda count, _: print_event("saved", count)
        )
        print_event("scoring", 0)
        score_run(run, lambda total: SlowProgress(total, io.StringIO()))
    print_event("done", 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
