"""`python -m evaluate.sandbox`: the probe's table, one JSON object per run, and messages for bad arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluate.sandbox import sandbox
from evaluate.sandbox.__main__ import main
from tests.conftest import ROOT

KEYS = {"status", "stdout", "stderr", "layer", "seconds", "limit"}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text("print(input().upper())")
    (tmp_path / "stdin").write_text("abc\n")
    return path


def test_command_runs_a_program_in_each_layer(program: Path, layer: str) -> None:
    command = [
        "-m",
        "evaluate.sandbox",
        "run",
        str(program),
        "--stdin",
        str(program.with_name("stdin")),
        "--layer",
        layer,
    ]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert set(printed) == KEYS
    assert (printed["status"], printed["stdout"], printed["layer"]) == ("ok", "ABC\n", layer)


def test_without_a_layer_the_best_one_is_used(program: Path, capsys: pytest.CaptureFixture[str], layer: str) -> None:
    assert main(["run", str(program)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["status"] == "error"
    assert printed["stderr"].endswith("EOFError: EOF when reading a line\n")
    assert printed["layer"] == ("bubblewrap" if sandbox.probe_layer("bubblewrap").works else "landlock")


def test_rlimits_need_the_unsafe_flag(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(program), "--layer", "rlimits"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["status"], printed["stdout"]) == ("refused", "")
    assert "unsafe" in printed["stderr"]
    arguments = ["run", str(program), "--layer", "rlimits", "--unsafe", "--stdin", str(program.with_name("stdin"))]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["status"], printed["layer"]) == ("ok", "unsafe-rlimits")


def test_layer_that_does_not_work_gives_status_refused(
    program: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = sandbox.ProbeResult("bubblewrap", False, {}, "there is no bwrap program")
    monkeypatch.setattr("evaluate.sandbox.sandbox.probe_layer", lambda layer: missing)
    assert main(["run", str(program), "--layer", "bubblewrap"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["status"], printed["layer"]) == ("refused", "bubblewrap")
    assert "there is no bwrap program" in printed["stderr"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.py"], "missing.py cannot be read"),
        (["{program}", "--stdin", "missing"], "missing cannot be read"),
        (["{program}", "--wall", "0"], "wall_seconds is 0.0"),
        (["{program}", "--layer", "landlok"], "did you mean 'landlock'"),
        (["{binary}"], "is not UTF-8"),
    ],
)
def test_bad_arguments_print_one_message(
    arguments: list[str], words: str, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = program.with_name("binary")
    binary.write_bytes(b"\xff\xfe")
    assert main(["run", *(each.format(program=program, binary=binary) for each in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_probe_prints_what_each_layer_prevents(capsys: pytest.CaptureFixture[str], layer: str) -> None:
    assert main(["probe", "--json"]) == 0
    found = {each["layer"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(found) == {"bubblewrap", "landlock", "unsafe-rlimits"}
    assert found[layer]["works"]
    assert set(found[layer]["stops"]) == {*sandbox.ATTACK_LABELS, *sandbox.LIMIT_LABELS}
    assert all(found[layer]["stops"].values())
    assert not found["unsafe-rlimits"]["works"]


def test_columns_of_the_probe_table_are_aligned() -> None:
    leaks = {name: name != "network" for name in (*sandbox.ATTACK_LABELS, *sandbox.LIMIT_LABELS)}
    table = sandbox.probe_table(
        [
            sandbox.ProbeResult("bubblewrap", True, dict.fromkeys(leaks, True)),
            sandbox.ProbeResult("landlock", False, {}, "there is none"),
            sandbox.ProbeResult("unsafe-rlimits", False, leaks, "it leaks"),
        ]
    )
    lines = table.splitlines()
    assert lines[1].split() == ["works", "here", "yes", "no", "no"]
    assert lines[2].split()[-3:] == ["stopped", "-", "LEAKS"]
    assert lines[-2:] == ["landlock: there is none.", "unsafe-rlimits: it leaks."]
