"""`python -m evaluate extract` and `check`: one JSON object for one answer or one program, without a model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from evaluate.__main__ import main
from evaluate.sandbox.sandbox import probe_layer
from evaluate.sandbox.spec import SANDBOX_LAYERS
from tasks.extract import extract_code
from tasks.prompt import STYLES
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

needs_sandbox = pytest.mark.skipif(
    not any(probe_layer(layer).works for layer in SANDBOX_LAYERS), reason="no layer of the sandbox works here"
)


def evaluate(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run the command in this process; return its status, what it printed, and its messages."""
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            status = main(arguments)
        except SystemExit as stop:  # --help
            status = int(stop.code or 0)
    return status, out.getvalue(), errors.getvalue()


def succeed(*arguments: str, stdin: bytes = b"") -> dict[str, Any]:
    status, printed, errors = evaluate(*arguments, stdin=stdin)
    assert status == 0, errors
    return json.loads(printed)


def fail(*arguments: str, stdin: bytes = b"") -> str:
    status, printed, message = evaluate(*arguments, stdin=stdin)
    assert (status, printed) == (2, "")
    assert message.count("\n") == 1
    return message


def test_command_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evaluate", "extract"], cwd=ROOT, input=b"x = 1", capture_output=True, timeout=60
    )
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (0, "x = 1", b"")


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        ("Sure:\n```python\nx = 1\n```\n```\ny\n```\n", "x = 1", "the first Python code block of the answer"),
        ("```js\nlet x\n```\n", "let x", "the first 'js' code block of the answer"),
        ("```\nx = 1\n", "x = 1", "the first code block of the answer, which is not closed"),
        ("x = 1\n", "x = 1", "the whole answer: it has no code block"),
        ("I would write:\nx = 1\n", "x = 1", "the first run of lines that is Python (1 of 2 lines)"),
        ("No idea.\nReally none.", "No idea.\nReally none.", "and no run of lines that is Python"),
        ("```python\n```\n", "", "nothing: the first Python code block of the answer is empty"),
        ("", "", "nothing: the answer is empty"),
        ("x = 1\n\n### Instruction:\nmore", "x = 1", "a further example or turn, is left out"),
        ("### Instruction:\nadd\n### Response:\nx = 1", "x = 1", "the prompt, which the answer repeats, is left out"),
        ("print('ä😀')", "print('ä😀')", "the whole answer"),
    ],
)
def test_extract_prints_the_scored_code_and_the_reason(tmp_path: Path, answer: str, code: str, reason: str) -> None:
    path = tmp_path / "answer.txt"
    path.write_text(answer, encoding="utf-8")
    printed = succeed("extract", str(path))
    assert printed["code"] == code == extract_code(answer, STYLES["chat"])
    assert reason in printed["reason"]
    assert printed["parses"] == code.startswith(("x", "print"))


def test_extract_reads_stdin_and_a_prompt_style() -> None:
    answer = b"x = 1\n```\nThat is all."
    assert succeed("extract", stdin=answer) == succeed("extract", "-", stdin=answer)
    printed = succeed("extract", "--prompt-style", "chat-python-open", stdin=answer)
    assert (printed["code"], printed["reason"]) == ("x = 1", "the code block that the prompt opened")


def test_extract_refuses_invalid_input(tmp_path: Path) -> None:
    assert "missing.txt cannot be read" in fail("extract", str(tmp_path / "missing.txt"))
    assert "cannot be read" in fail("extract", str(tmp_path))
    assert "standard input is not UTF-8 text (byte 1)" in fail("extract", stdin=b"x\xff")
    assert "Unknown prompt style 'none'" in fail("extract", "--prompt-style", "none")
    assert "nrecognized arguments" in fail("extract", "a", "b")


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text("def double(x):\n    return 2 * x\n")
    return str(path)


def write(folder: Path, text: str) -> str:
    path = folder / "tests.txt"
    path.write_text(text)
    return str(path)


@needs_sandbox
def test_check_runs_asserts(tmp_path: Path, program: str) -> None:
    tests = write(tmp_path, "import math\nassert double(2) == 4\nassert double(2) == 5\nassert double(math.pi) > 6\n")
    printed = succeed("check", program, tests)
    assert printed["layer"] in SANDBOX_LAYERS
    assert printed["passed"] is False
    assert [test["passed"] for test in printed["tests"]] == [True, False, True]
    assert [test["test"] for test in printed["tests"]][:2] == ["assert double(2) == 4", "assert double(2) == 5"]
    assert [test.get("setup") for test in printed["tests"]] == ["import math", None, None]
    assert {test["status"] for test in printed["tests"]} == {"ok"}
    assert printed["tests"][0]["protected"] is True
    assert printed["tests"][0]["reason"] == ""
    assert "4" in printed["tests"][1]["reason"]


@needs_sandbox
def test_check_runs_sessions_and_program_runs(tmp_path: Path, program: str) -> None:
    printed = succeed("check", program, write(tmp_path, ">>> double(2)\n4\n"))
    assert [(test["test"], test["passed"]) for test in printed["tests"]] == [(">>> double(2)\n4\n", True)]
    Path(program).write_text("print(input()[::-1])")
    printed = succeed("check", program, write(tmp_path, "input:\nabc\noutput:\ncba\n"))
    assert [(test["test"], test["passed"]) for test in printed["tests"]] == [("input:\nabc\noutput:\ncba\n", True)]
    assert printed["passed"] is True


@needs_sandbox
def test_check_reports_a_program_that_is_not_python(tmp_path: Path) -> None:
    printed = succeed("check", "-", write(tmp_path, "assert f() == 1"), stdin=b"def f(:")
    assert printed["tests"][0]["passed"] is False
    assert "SyntaxError" in printed["tests"][0]["reason"]


def test_check_refuses_invalid_input(tmp_path: Path, program: str) -> None:
    tests = write(tmp_path, "assert double(2) == 4")
    assert "none.py cannot be read" in fail("check", str(tmp_path / "none.py"), tests)
    assert "none.txt cannot be read" in fail("check", program, str(tmp_path / "none.txt"))
    assert "not UTF-8" in fail("check", program, "-", stdin=b"\xff")
    assert "no test in this text" in fail("check", program, "-", stdin=b"")
    assert "Line 1" in fail("check", program, "-", stdin=b"assert (")
    assert "Unknown sandbox layer 'chroot'" in fail("check", program, tests, "--layer", "chroot")
    assert "Resource limits alone" in fail("check", program, tests, "--layer", "rlimits")
    assert "Only one of CODE and TESTS" in fail("check", "-", "-")
    assert "required" in fail("check", program)


@needs_sandbox
def test_help_lists_both_commands_and_they_load_no_model(tmp_path: Path, program: str) -> None:
    printed = evaluate("--help")[1]
    assert "python -m evaluate extract" in printed
    assert "python -m evaluate check" in printed
    for arguments in (["extract", program], ["check", program, write(tmp_path, "assert double(1) == 2")]):
        code = (
            f"import sys\nfrom evaluate.__main__ import main\nassert main({arguments!r}) == 0\n"
            "assert not {'torch', 'transformers', 'gradio'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True)
