"""Regression check of the bundled adapters: writes their greedy answers to a JSON file and compares two such files.

    python -m benchmarks.answers --output before.json            in a checkout of one version
    python -m benchmarks.answers --output after.json --compare before.json

Generates an answer to each of the first `--prompts` problems of the starter data set (training split first) with every
adapter of the library, on the embedded base (NF4), in batches of one row. Prints one JSON line with the number of
answers and, with --compare, the number of those that differ in text or token count; exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.command import configure_environment, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    configure_environment()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options), "benchmarks.answers")


def _run(options: argparse.Namespace) -> int:
    answers = collect_answers(options.prompts, options.new_tokens)
    options.output.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    line: dict[str, int] = {"answers": len(answers)}
    if options.compare is not None:
        line["different"] = count_differences(json.loads(options.compare.read_text(encoding="utf-8")), answers)
    print(json.dumps(line))
    return 1 if line.get("different") else 0


def collect_answers(prompts: int, new_tokens: int) -> dict[str, list[object]]:
    """Return a dictionary of "method: intent" to [text, tokens] for every adapter of the library that fits the base."""
    from serve.engine.build import build_engine
    from serve.types import Request, SamplingParams
    from tasks.datasets.registry import load_problems
    from tasks.methods import parse_method

    problems = [problem for split in ("train", "validation", "test") for problem in load_problems("starter", split)]
    engine = build_engine()
    try:
        names = engine.adapters()
        answers: dict[str, list[object]] = {}
        for name in sorted(names):
            method = parse_method(name, names)
            for problem in problems[:prompts]:
                (output,) = engine.answer([Request(problem, method)], SamplingParams(max_new_tokens=new_tokens))
                best = output.candidates[0]
                answers[f"{name}: {problem.intent}"] = [best.text, best.tokens]
        return answers
    finally:
        engine.close()


def count_differences(before: dict[str, list[object]], after: dict[str, list[object]]) -> int:
    """Return the number of answers that differ or are in only one of the two dictionaries."""
    return sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())


if __name__ == "__main__":
    sys.exit(main())
