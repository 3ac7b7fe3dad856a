"""Recorder of what a first visit shows: a real run, with its model, revision, prompts and date, and what to try.

python -m ui.compare.record_example

The rows are chosen by a rule, not by hand: the first validation rows of house, in the order of the file, on which all
methods without an adapter fail a test and all adapters pass all of them. The first such row is the recorded run, and
the first three are the suggestions under the question. Validation rows also chose the settings of the adapter, and its
scores are measured on other rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import configure_environment
from errors import DataError, PromptOrTuneError
from serve.engine.llm_engine import EngineLoader, ProgressFn
from tasks.datasets.registry import HOUSE, load_problems
from tasks.problem import Problem
from ui.compare.comparison import format_tests, make_comparison
from ui.compare.steps import collect_records
from ui.compare.verdict import verdict_text
from ui.compare.view import FIRST_EXAMPLE_PATH
from ui.context import Context
from ui.form_fields import default_methods, list_adapter_choices
from ui.test_bench import Record

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

SUGGESTIONS = 3


def example_json(records: Sequence[Record], suggestions: Sequence[str] = ()) -> str:
    """Return the text of ui/compare/first_example.json: the records, and the ids of the suggested problems."""
    return json.dumps({"suggestions": list(suggestions), "records": list(records)}, indent=1, ensure_ascii=False) + "\n"


def only_adapters_pass(records: Sequence[Record]) -> bool:
    """Return whether every adapter passes all tests of the problem, and every other method fails one of them."""
    adapters = [_passes(record) for record in records if record["adapter"] is not None]
    others = [_passes(record) for record in records if record["adapter"] is None]
    return bool(adapters) and all(adapters) and bool(others) and not any(others)


def _passes(record: Record) -> bool:
    return bool(record["tests"]) and all(result["passed"] for result in record["tests"])


def find_examples(
    problems: Iterable[Problem], answer: Callable[[Problem], Sequence[Record]]
) -> Iterator[tuple[Problem, Sequence[Record]]]:
    """Yield, in their order, the problems that only the adapters solve, with the records of `answer`."""
    for problem in problems:
        records = answer(problem)
        if only_adapters_pass(records):
            yield problem, records


def main(arguments: Sequence[str] | None = None) -> int:
    """Find validation rows of house that only the adapters solve; write the first run and the ids of three of them."""
    configure_environment()
    parser = argparse.ArgumentParser(prog="python -m ui.compare.record_example", description=main.__doc__)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--methods", help="names separated by commas; those of a new page without it")
    parser.add_argument("--output", type=Path, default=FIRST_EXAMPLE_PATH)
    args = parser.parse_args(arguments)
    try:
        context = Context(EngineLoader(_engine_builder(args)), None)
        methods = (
            args.methods.split(",")
            if args.methods
            else default_methods(list_adapter_choices(context.engine_loader.engine()).usable)
        )

        def answer(problem: Problem) -> tuple[Record, ...]:
            comparison = make_comparison(problem, methods, pool=HOUSE, tests_text=format_tests(problem.tests))
            return collect_records(context, comparison)

        found = list(islice(find_examples(load_problems(HOUSE, "validation"), answer), SUGGESTIONS))
        if not found:
            raise DataError(f"No validation row of {HOUSE} is solved by the adapter alone.")
    except PromptOrTuneError as error:
        sys.stderr.write(f"record_example: {error}\n")
        return 2
    records = found[0][1]
    args.output.write_text(example_json(records, [problem.id for problem, _ in found]), encoding="utf-8")
    sys.stdout.write(f"{verdict_text(records)}\nWritten to {args.output}.\n")
    return 0


def _engine_builder(args: argparse.Namespace) -> Callable[[ProgressFn], LLMEngine]:
    from serve.engine.build import build_engine
    from serve.options import ModelOptions

    def build(report: ProgressFn) -> LLMEngine:
        return build_engine(ModelOptions(args.base, args.quantization, args.device, None), report)

    return build


if __name__ == "__main__":
    sys.exit(main())
