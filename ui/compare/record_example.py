r"""Recorder of the example that a first visit shows: a real run, with its model, revision, prompts and date.

python -m ui.compare.record_example
python -m ui.compare.record_example --data conala --data-dir ../shared/data --problem 4906977-61 \
    --methods zero-shot,icl-8,rag-8,ia3-conala
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import configure_environment
from errors import DataError, PromptOrTuneError, UnknownNameError
from serve.engine.llm_engine import EngineLoader, ProgressFn
from tasks.datasets.registry import load_problems
from tasks.problem import Problem
from ui.compare.comparison import format_tests, make_comparison
from ui.compare.steps import collect_records
from ui.compare.verdict import verdict_text
from ui.compare.view import FIRST_EXAMPLE_PATH
from ui.context import Context
from ui.method_form import default_methods, list_adapter_choices
from ui.records import Record

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine


# Authors and licence of the problems and examples; those of starter and house are our own.
DATASET_CREDITS = {
    "conala": "CoNaLa (Yin et al., 2018), CC BY-SA 4.0",
    "codealpacapy": "CodeAlpacaPy, from Code Alpaca",
    "mbpp": "MBPP (Austin et al., 2021), CC BY 4.0",
    "apps": "APPS (Hendrycks et al., 2021), MIT",
    "humaneval": "HumanEval (Chen et al., 2021), MIT",
    "humanevalplus": "HumanEval+ (Liu et al., 2023), Apache-2.0",
    "mbppplus": "MBPP+ (Liu et al., 2023), Apache-2.0",
    "leetcode": "LeetCodeDataset (Xia et al., 2025), Apache-2.0",
}


def example_json(records: Sequence[Record], source: str) -> str:
    """Return the text of ui/compare/first_example.json: the records, and the credit of problem and examples."""
    return json.dumps({"source": source, "records": list(records)}, indent=1, ensure_ascii=False) + "\n"


def find_problem(data: str, problem_id: str | None, data_dir: Path | None) -> Problem:
    """Return the test problem with that id, or the first one of the test split."""
    problems = load_problems(data, "test", data_dir=data_dir)
    if not problems:
        raise DataError(f"'{data}' has no test problems.")
    if problem_id is None:
        return problems[0]
    for problem in problems:
        if problem.id == problem_id:
            return problem
    raise UnknownNameError(f"'{data}' has no test problem '{problem_id}': its first is '{problems[0].id}'.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one test problem, write the records to ui/compare/first_example.json and print the verdict."""
    configure_environment()
    parser = argparse.ArgumentParser(prog="python -m ui.compare.record_example", description=main.__doc__)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="starter", help="a data set (%(default)s)")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--problem", help="the id of a test problem; the first one without it")
    parser.add_argument("--methods", help="names separated by commas; those of a new page without it")
    args = parser.parse_args(arguments)
    try:
        problem = find_problem(args.data, args.problem, args.data_dir)
        context = Context(EngineLoader(_engine_builder(args)), args.data_dir)
        methods = (
            args.methods.split(",")
            if args.methods
            else default_methods(list_adapter_choices(context.engine_loader.engine())[1])
        )
        records = collect_records(
            context, make_comparison(problem, methods, pool=args.data, tests_text=format_tests(problem.tests))
        )
    except PromptOrTuneError as error:
        sys.stderr.write(f"record_example: {error}\n")
        return 2
    FIRST_EXAMPLE_PATH.write_text(example_json(records, DATASET_CREDITS.get(args.data, "")), encoding="utf-8")
    sys.stdout.write(f"{verdict_text(records)}\nWritten to {FIRST_EXAMPLE_PATH}.\n")
    return 0


def _engine_builder(args: argparse.Namespace) -> Callable[[ProgressFn], LLMEngine]:
    from serve.engine.build import build_engine
    from serve.options import ModelOptions

    def build(report: ProgressFn) -> LLMEngine:
        return build_engine(ModelOptions(args.base, args.quantization, args.device, args.data_dir), report)

    return build


if __name__ == "__main__":
    sys.exit(main())
