"""Terminals: no name, message, log or answer from outside sends a control character through a command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.__main__ import main as adapters_main
from common.command import ProgressPrinter, run_command
from common.format import terminal_text
from errors import PromptOrTuneError
from evaluate.__main__ import main as evaluate_main
from jobs.__main__ import main as jobs_main
from tests.jobs.service import ServiceWithoutWorker, submit_named

EVIL = "a\x1b]0;pwn\x07\x1b[2Jb\x9b31m\x85\u202e\u2066\r\x08\x7f\x00c"
FORBIDDEN = [
    chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), 0x2066, 0x061C)
]


def _assert_plain(capsys: pytest.CaptureFixture[str], expected: str = "pwn") -> None:
    written = capsys.readouterr()
    text = written.out + written.err
    assert expected in text, "the text is there, without its control characters"
    assert not [character for character in FORBIDDEN if character in text]


def test_control_characters_become_escapes() -> None:
    for character in FORBIDDEN:
        assert character not in terminal_text(f"a{character}b")
    assert terminal_text("\x1b[2J\u202ea\ud800") == "\\x1b[2J\\u202ea\\ud800"
    assert terminal_text("a\tb\r\nc äöü 你好 🙂 |█▌") == "a\tb\nc äöü 你好 🙂 |█▌"


@pytest.fixture
def evil_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    home = tmp_path / "home"
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(home))
    service = ServiceWithoutWorker(home)
    job = submit_named(service, "lora-x")
    for path in (home / "jobs" / job.id).rglob("*.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"message": EVIL}))
    (home / "jobs" / job.id / "log.txt").write_text(f"first\n{EVIL}\n", encoding="utf-8")
    return job


@pytest.mark.parametrize("command", ["list", "show", "log"])
def test_jobs(command: str, evil_job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs_main([command, *([] if command == "list" else [evil_job.id])]) == 0
    _assert_plain(capsys)


@pytest.mark.parametrize("command", [["list"], ["show", "x"], ["verify", EVIL], ["delete", EVIL], ["pull", EVIL]])
def test_adapters(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"name": "x", "base_id": EVIL, "technique": EVIL}))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": EVIL, "base_model_name_or_path": EVIL}))
    (folder / "adapter_model.safetensors").write_bytes(b"0" * 100)
    adapters_main(["--root", str(tmp_path), *command])
    _assert_plain(capsys, expected="")


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "pwn\x1b[2J.jsonl"
    run.write_text(json.dumps({"kind": EVIL}) + "\n")
    evaluate_main(["report", str(run)])
    _assert_plain(capsys)


@pytest.mark.parametrize("stream", ["out", "err"])
def test_everything_that_a_command_writes(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> int:
        print(EVIL, file=sys.stdout if stream == "out" else sys.stderr)
        ProgressPrinter()(EVIL)
        raise PromptOrTuneError(EVIL)

    assert run_command(write, "name") == 2
    _assert_plain(capsys)


def test_progress_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    def write() -> None:
        progress = ProgressPrinter()
        for percent in (1, 2):
            progress(f"{EVIL} {percent} %")

    assert run_command(write) == 0
    text = capsys.readouterr().out.replace("\r\x1b[K", "")
    assert "pwn" in text
    assert not [character for character in FORBIDDEN if character in text]
