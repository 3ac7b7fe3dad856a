"""Commands `extract` and `check`: the code of one answer and the test results of one program, as JSON; code read again.

Both call what scoring calls (tasks.extract, evaluate.test_runner), load no model and print one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.command import ArgumentParser
from common.files import read_utf8
from errors import PromptOrTuneError
from evaluate.results import Run
from evaluate.test_runner.result import EXACT, RULES
from tasks.extract import EXTRACTION_VERSION, extract_code, extract_code_with_reason, is_valid_python
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest, ScriptTest, Test, format_test
from tasks.prompt import STYLES, get_style

_DEFAULT_STYLE = "chat"


def extract_command(arguments: Sequence[str]) -> int:
    """Print the code that scoring takes from an answer, and why; return exit status 0.

    The object has `code`, `reason`, `parses` (whether the code is a Python program) and `prompt_style`. Raises
    PromptOrTuneError for bad arguments and for a file that cannot be read.
    """
    parser = ArgumentParser(
        "python -m evaluate extract",
        description="Prints the code that would be scored of an answer, and which rule chose it, as one JSON object.",
    )
    parser.add_argument("file", nargs="?", type=Path, help="the answer as UTF-8 text; stdin without it, or for -")
    parser.add_argument(
        "--prompt-style",
        default=_DEFAULT_STYLE,
        metavar="NAME",
        help="the style of the prompt that was answered (%(default)s); the answers to styles that end in -open begin "
        "inside of a code block",
    )
    options = parser.parse_args(arguments)
    style = get_style(options.prompt_style)
    code, reason = extract_code_with_reason(read_utf8(options.file), style)
    _print_json({"code": code, "reason": reason, "parses": is_valid_python(code), "prompt_style": style.name})
    return 0


def check_command(arguments: Sequence[str]) -> int:
    """Run pasted tests on a program in the sandbox and print their results; return exit status 0.

    The object has `layer`, `comparison`, `passed` (whether all did) and `tests`: for each test its text (`test`, and
    `setup` for the lines before it) and the fields of evaluate.test_runner.result.TestResult. Raises PromptOrTuneError
    for bad arguments, files or tests, and where no sandbox layer works.
    """
    parser = ArgumentParser(
        "python -m evaluate check",
        description="Runs tests on a program in the sandbox and prints each test's result, as one JSON object.",
    )
    parser.add_argument("code", type=Path, help="a file with the program (UTF-8); - is stdin")
    parser.add_argument(
        "tests",
        type=Path,
        help="a file with tests in any form of docs/pasted-tests.md, such as asserts or test functions; - is stdin",
    )
    parser.add_argument("--layer", metavar="NAME", help="bubblewrap or landlock; without it the best that works")
    parser.add_argument(
        "--comparison",
        choices=sorted(RULES),
        default=EXACT.name,
        help="rules by which asserts compare values (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if str(options.code) == str(options.tests) == "-":
        raise PromptOrTuneError(
            "Only one of CODE and TESTS can be read from standard input: name a file for the other."
        )
    code = read_utf8(options.code)
    tests = parse_pasted_tests(read_utf8(options.tests))
    from evaluate.sandbox.sandbox import open_sandbox
    from evaluate.test_runner.runner import run_tests

    with open_sandbox(options.layer) as sandbox:
        results = run_tests(code, tests, sandbox, rules=RULES[options.comparison])
        _print_json(
            {
                "layer": sandbox.layer,
                "comparison": options.comparison,
                "passed": all(result.passed for result in results),
                "tests": [
                    {**_describe_test(test), **asdict(result)} for test, result in zip(tests, results, strict=True)
                ],
            }
        )
    return 0


def _describe_test(test: Test) -> dict[str, Any]:
    setup = test.setup if isinstance(test, AssertTest) else ""
    if isinstance(test, ScriptTest):
        setup = "\n".join(step.source for step in test.steps)
        test = replace(test, steps=())
    return {"test": format_test(test), **({"setup": setup} if setup else {})}


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2))  # noqa: T201 - the command's output


def read_code_again(run: Run) -> int:
    """Read the code of answers that an earlier extraction read; return how many candidates have other code now.

    The new code and the version of the extraction are stored in the run's file, so that scores of the old code no
    longer apply. Methods without a stored prompt style are left as they are. Raises PromptOrTuneError if the file
    cannot be written; a packed file is refused only where code changes.
    """
    changed = 0
    old = [name for name, values in run.methods.items() if values.get("extraction") != EXTRACTION_VERSION]
    for method in old:
        style = STYLES.get(run.methods[method].get("style", ""))
        if style is None:
            continue
        for result in run.results(method):
            candidates = [{**each, "code": extract_code(each["text"], style)} for each in result.candidates]
            count = sum(new["code"] != each["code"] for new, each in zip(candidates, result.candidates, strict=True))
            if count:
                run.replace_candidates(method, result.problem, candidates)
                changed += count
        run.update_method(method, {"extraction": EXTRACTION_VERSION})
    if changed:
        run.rewrite()
    return changed
