"""Benchmark of evaluation: sandbox throughput, CodeBLEU against its package, and beam search against `generate`.

    python -m benchmarks.scoring [--data-dir DIR] [--runs 5] [--skip-generation]

Prints one JSON line:

- `sandbox_programs_per_second_per_core` by layer: MBPP's reference solutions, each with a printed call, on all cores at
  once, divided by the number of cores; null for a layer that does not work on this machine.
- `codebleu_ratio`: our pairs per second of CPU time divided by the `codebleu` package's. The pairs are CoNaLa's test
  references, each with `ANSWERS_PER_REFERENCE` answers (the reference with a changed name, and other references), as in
  a run of several methods. `codebleu_ratio_cold` is the same with the cache cleared before each pair.
- `generation_ratio` and the other keys of `python -m benchmarks.generation`.

Runs of both sides alternate, so that a change in the machine's speed affects both equally; medians are compared.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.command import configure_environment
from errors import PromptOrTuneError
from evaluate.metrics import codebleu as ours
from evaluate.sandbox.sandbox import SandboxUnavailableError, open_sandbox
from evaluate.sandbox.spec import Program
from evaluate.test_runner.asserts import plan_assert
from tasks.datasets.registry import load_problems
from tasks.problem import AssertTest, Problem

SANDBOX_LAYERS = ("bubblewrap", "landlock")
ANSWERS_PER_REFERENCE = 8
ReferenceAnswer = tuple[str, str]


def main() -> int:
    """Run the benchmark and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder with CoNaLa and MBPP; by default the Hub is read")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--references", type=int, default=60, help="number of CoNaLa's references; each is in several pairs"
    )
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--skip-generation", action="store_true", help="leave out the part that needs a model")
    arguments = parser.parse_args()
    configure_environment()
    try:
        print(json.dumps(measure(arguments)))
    except PromptOrTuneError as error:
        print(f"benchmarks.scoring: {error}", file=sys.stderr)
        return 2
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all parts and return the contents of the JSON line."""
    programs = _reference_programs(load_problems("mbpp", "test", arguments.data_dir), arguments.programs)
    references = [problem.reference or "" for problem in load_problems("conala", "test", arguments.data_dir)]
    pairs = _pairs(references, arguments.references, random.Random(42))
    return {
        "sandbox_programs_per_second_per_core": _bench_sandbox(programs, arguments.runs),
        "programs": len(programs),
        **_bench_codebleu(pairs, arguments.runs),
        **({} if arguments.skip_generation else _bench_generation()),
        "runs": arguments.runs,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "codebleu": version("codebleu"),
    }


def _reference_programs(problems: list[Problem], number: int) -> list[Program]:
    """Return up to `number` reference solutions, each printing the result of the call in its first test."""
    programs = []
    for problem in problems:
        test = problem.tests[0]
        plan = plan_assert(test) if isinstance(test, AssertTest) else None
        if plan is not None and plan.child_expressions and not plan.setup:
            programs.append(Program(f"{problem.reference}\nprint({plan.child_expressions[0]})\n"))
    return programs[:number]


def _bench_sandbox(programs: list[Program], runs: int) -> dict[str, float | None]:
    cores = len(os.sched_getaffinity(0))
    times: dict[str, list[float]] = {}
    sandboxes = {}
    for layer in SANDBOX_LAYERS:
        try:
            sandboxes[layer] = open_sandbox(layer)
        except SandboxUnavailableError as error:
            _print_progress(str(error))
    for _ in range(runs):
        for layer, sandbox in sandboxes.items():
            begin = time.perf_counter()
            outcomes = [outcome for _, outcome in sandbox.run_many(programs, cores)]
            times.setdefault(layer, []).append(time.perf_counter() - begin)
            failed = next((outcome for outcome in outcomes if outcome.status != "ok"), None)
            if failed is not None:
                raise PromptOrTuneError(
                    f"A program of MBPP ended with {failed.status} under {layer}: {failed.stderr[-200:]}"
                )
            _print_progress(f"{layer}: {len(programs) / times[layer][-1] / cores:.1f} programs/s per core")
    for sandbox in sandboxes.values():
        sandbox.close()
    return {
        layer: round(len(programs) / statistics.median(times[layer]) / cores, 1) if layer in times else None
        for layer in SANDBOX_LAYERS
    }


def _pairs(references: list[str], number: int, rng: random.Random) -> list[ReferenceAnswer]:
    """Return (reference, answer) pairs for the first `number` references, ANSWERS_PER_REFERENCE for each.

    Half of the answers are other references, half are the reference with a changed name.
    """
    selected = [reference for reference in references if reference.strip()][:number]
    return [
        (reference, _mutate_name(reference, rng) if answer % 2 else rng.choice(references))
        for answer in range(ANSWERS_PER_REFERENCE)
        for reference in selected
    ]


def _mutate_name(code: str, rng: random.Random) -> str:
    """Return `code` with one name changed, or with a space appended if it contains no name."""
    try:
        names = sorted({node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)})
    except SyntaxError:
        names = []
    return code.replace(rng.choice(names), "other") if names else f"{code} "


def _bench_codebleu(pairs: list[ReferenceAnswer], runs: int) -> dict[str, Any]:
    package = ours._codebleu_package()

    def warm() -> None:
        ours._code_features.cache_clear()
        for reference, candidate in pairs:
            ours.codebleu(reference, candidate)

    def cold() -> None:
        for reference, candidate in pairs:
            ours._code_features.cache_clear()
            ours.codebleu(reference, candidate)

    def peer() -> None:
        for reference, candidate in pairs:
            package.calc_codebleu([reference], [candidate], "python")

    sides: dict[str, Callable[[], None]] = {"ours": warm, "cold": cold, "package": peer}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name, call in sides.items():
            begin = time.process_time()
            call()
            if run:  # run 0 is a warm-up
                times[name].append(time.process_time() - begin)
    rates = {name: len(pairs) / statistics.median(values) for name, values in times.items()}
    _print_progress("; ".join(f"{name}: {rate:.0f} pairs/s" for name, rate in rates.items()))
    return {
        "codebleu_ratio": round(rates["ours"] / rates["package"], 2),
        "codebleu_ratio_cold": round(rates["cold"] / rates["package"], 2),
        "codebleu_pairs_per_second": {name: round(rate) for name, rate in rates.items()},
        "pairs": len(pairs),
        "answers_per_reference": ANSWERS_PER_REFERENCE,
    }


def _bench_generation() -> dict[str, Any]:
    from benchmarks.generation import generation_ratio

    return generation_ratio()


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
