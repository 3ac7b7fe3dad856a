"""Commands of evaluate and of the prompt style search, from their arguments to their files, without a model."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate import __main__ as command
from evaluate import prompt_style_search
from evaluate.generate import ProgressBar
from serve.types import Candidate, RequestOutput
from tests.evaluate.fakes import FakeEngine, write_conala
from tests.tasks.sets import HUMANEVALPLUS_ROW, write_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_conala(tmp_path / "data")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Return the list of engines for the next commands, in order."""
    queue: list[FakeEngine] = []

    def make(_: argparse.Namespace) -> FakeEngine:
        return queue.pop(0)

    monkeypatch.setattr(command, "build_engine_from_options", make)
    monkeypatch.setattr(prompt_style_search, "build_engine_from_options", make)
    return queue


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    return ["--data", "conala", "--data-dir", str(data), "--output", str(output), "--batch", "2", *more]


def test_run_prints_its_table_and_writes_json_and_markdown(
    data: Path, tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    engines.append(FakeEngine())
    output, page = tmp_path / "out" / "run.jsonl", tmp_path / "out" / "run.md"
    methods = ["--methods", "zero-shot,icl-8,lora-tiny", "--limit", "4", "--markdown", str(page)]
    assert command.main(arguments(data, output, *methods)) == 0
    printed = capsys.readouterr()
    assert "lora-tiny" in printed.out
    assert "12/12 lora-tiny" in printed.err
    assert sum(json.loads(line)["kind"] == "result" for line in output.read_text().splitlines()) == 12
    assert "--methods zero-shot,icl-8,lora-tiny --limit 4" in page.read_text()

    assert command.main(["report", str(output)]) == 0
    assert capsys.readouterr().out == printed.out


def test_interrupted_run_prints_the_command_to_continue_and_continues(
    data: Path, tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run.jsonl"
    options = arguments(data, output, "--methods", "zero-shot,icl-8", "--overwrite")
    engines += [FakeEngine(interrupt_at=2), FakeEngine()]
    assert command.main(options) == 130
    stderr = capsys.readouterr().err
    assert "4 answers are in" in stderr
    assert "to go on: python -m evaluate --data conala" in stderr
    assert "--overwrite" not in stderr
    engine = engines[0]
    assert command.main(options[:-1]) == 0
    assert len(engine.calls) == 4
    assert "p (Holm)" in capsys.readouterr().out


def test_interrupt_before_the_first_batch_reports_that_nothing_was_saved(
    data: Path, tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    engines.append(FakeEngine(interrupt_at=0))
    assert command.main(arguments(data, tmp_path / "run.jsonl", "--methods", "zero-shot")) == 130
    assert "before anything new was saved" in capsys.readouterr().err
    assert not (tmp_path / "run.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "zero-shto"], "did you mean 'zero-shot'"),
        (["--methods", ","], "No method"),
        (["--methods", "zero-shot", "--beams", "11"], "11 candidates"),
        (["--methods", "zero-shot", "--batch", "0"], "batch of 0"),
        (["--methods", "zero-shot", "--limit", "0"], "limit of 0"),
        (["--methods", "zero-shot", "--data", "conalla"], "did you mean 'conala'"),
        (["--methods", "zero-shot", "--data-dir", "/nowhere"], "/nowhere"),
        (["--methods", "zero-shot", "--output", "/proc/run.jsonl"], "Cannot write"),
        (["--methods", "zero-shot", "--output", "run.json"], "no .jsonl file"),
        (["--methods", "zero-shot", "--samples", "5", "--beams", "5"], "--beams belongs to --mode beam"),
        (["--methods", "zero-shot", "--temperature", "0.2"], "--temperature belongs to --mode sample"),
        (["--methods", "zero-shot", "--mode", "sample", "--temperature", "0"], "temperature above 0"),
        (["--methods", "zero-shot", "--output", "/tmp"], "no .jsonl file"),
    ],
)
def test_bad_arguments_print_one_message_and_exit_with_two(
    data: Path, tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str], options: list[str],
    message: str,
) -> None:  # fmt: skip
    engines.append(FakeEngine())
    assert command.main(arguments(data, tmp_path / "run.jsonl", *options)) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_tests_run_after_the_answers_and_all_files_are_written(
    tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    engines.append(FakeEngine())
    names = {"--csv": "a.csv", "--csv-problems": "p.csv", "--json": "a.json", "--png": "a.png", "--markdown": "a.md"}
    files = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    options = ["--data", "starter", "--limit", "4", "--samples", "2", "--methods", "zero-shot,lora-tiny"]
    assert command.main([*options, "--output", str(tmp_path / "run.jsonl"), *files]) == 0
    printed = capsys.readouterr()
    assert "Pass@1" in printed.out
    assert "Tests: sandbox layer" in printed.out
    assert "8/8 lora-tiny" in printed.err
    assert "8/8 scores of lora-tiny" in printed.err
    assert "8/8 tests of lora-tiny" in printed.err
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    passed = {row["method"]: float(row["value"]) for row in rows if row["metric"] == "pass@2"}
    assert passed == {"zero-shot": 0, "lora-tiny": 1}, "one of its two samples is the reference"
    assert all((tmp_path / name).stat().st_size > 100 for name in names.values())
    assert command.main(["score", str(tmp_path / "run.jsonl"), "--compare", "zero-shot:lora-tiny"]) == 0
    again = capsys.readouterr()
    assert "zero-shot  lora-tiny" in again.out
    assert "tests of" not in again.err, "nothing was left to score"


def test_interrupt_ends_running_programs(
    tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    class Endless(FakeEngine):
        def answer(self, *args: object, **kwargs: object) -> list[RequestOutput]:
            candidates = (Candidate("while True: pass", "while True: pass", -1.0, 3),)
            return [replace(answer, candidates=candidates) for answer in super().answer(*args, **kwargs)]  # type: ignore[arg-type]

    def interrupt_when_tests_run() -> None:
        scores = tmp_path / "run.scores.jsonl"
        while not (scores.exists() and scores.read_text().count('"kind": "scores"') == 2):
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    engines.append(Endless())
    options = ["--data", "starter", "--limit", "2", "--mode", "greedy", "--methods", "zero-shot"]
    waiting = threading.Thread(target=interrupt_when_tests_run, daemon=True)
    waiting.start()
    begun = time.monotonic()
    assert command.main([*options, "--output", str(tmp_path / "run.jsonl")]) == 130
    assert time.monotonic() - begun < 9, "the programs would have run for 10 s"
    assert "Stopped while scoring; to go on: python -m evaluate --data starter" in capsys.readouterr().err


def test_run_without_a_sandbox_is_refused_unless_tests_are_skipped(
    tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    engines.append(FakeEngine())
    options = ["--data", "starter", "--limit", "2", "--methods", "zero-shot", "--output", str(tmp_path / "run.jsonl")]
    assert command.main([*options, "--sandbox", "rlimits"]) == 2
    stderr = capsys.readouterr().err
    assert "--no-tests goes without" in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert engines, "an engine was built"
    assert list(tmp_path.iterdir()) == []
    assert command.main([*options, "--no-tests"]) == 0
    assert "Tests: have not run" in capsys.readouterr().out


def test_invalid_pair_of_methods_to_compare_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["report", str(tmp_path / "run.jsonl"), "--compare", "zero-shot"])
    assert "write them as A:B" in capsys.readouterr().err


def test_report_of_a_missing_file_prints_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", str(tmp_path / "missing.jsonl")]) == 2
    assert "missing.jsonl" in capsys.readouterr().err


def test_styles_are_ranked_on_validation_problems(
    data: Path, tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine()
    engines.append(engine)
    output = tmp_path / "styles.json"
    assert prompt_style_search.main(arguments(data, output, "--styles", "chat,plain")) == 0
    values = json.loads(output.read_text())
    # The fake engine gives the same answers for every style, so the first one in STYLES is the best.
    assert values["best"] == {"zero-shot": "plain", "few-shot": "plain"}
    assert [(each["style"], each["shots"], each["n"]) for each in values["scores"]] == [
        ("plain", "zero-shot", 6),
        ("plain", "few-shot", 6),
        ("chat", "zero-shot", 6),
        ("chat", "few-shot", 6),
    ]
    asked = [request for call in engine.calls for request in call]
    assert all(request.problem.id.startswith("validation-") for request in asked)
    assert {request.style.name for request in asked if request.style} == {"plain", "chat"}
    assert "Best few-shot: plain" in capsys.readouterr().out


def test_a_failing_engine_makes_no_style_worse(
    data: Path, tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Failing(FakeEngine):
        def answer(self, *args: object, **kwargs: object) -> list[RequestOutput]:
            outputs = super().answer(*args, **kwargs)  # type: ignore[arg-type]
            failed = len(self.calls) > 4
            return [replace(output, error="It broke.", candidates=()) if failed else output for output in outputs]

    waits: list[float] = []
    monkeypatch.setattr("evaluate.failures.time", argparse.Namespace(sleep=waits.append))
    engines.append(Failing())
    output = tmp_path / "styles.json"
    assert prompt_style_search.main(arguments(data, output, "--styles", "chat,plain")) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == "It broke."
    assert waits == [1.0, 5.0, 20.0]
    assert not output.exists(), "no style was finished"


def test_chat_styles_are_skipped_for_a_base_without_a_chat_template() -> None:
    assert {style.format for style in prompt_style_search.supported_styles([], has_chat_template=False)} == {"plain"}


def test_progress_is_redrawn_on_a_terminal_and_prints_few_lines_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = [0.0]
    for stream, expected in ((Terminal(), 4), (io.StringIO(), 2)):
        now[0] = 0.0
        progress = ProgressBar(4, stream, lambda: now[0])
        for _ in range(4):
            now[0] += 20.0
            progress.update(1, "zero-shot")
        progress.close()
        lines = [line for line in stream.getvalue().replace("\r", "\n").splitlines() if line.strip()]
        assert len(lines) == expected
        assert "2/4 zero-shot, 40 s gone, 40 s left" in stream.getvalue()


def test_file_of_humanevalplus_is_run_and_scored(
    tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    rows = [{**HUMANEVALPLUS_ROW, "task_id": f"HumanEval/{at}"} for at in range(3)]
    file = write_rows(tmp_path / "HumanEvalPlus-v0.1.10.jsonl", *rows)
    output = tmp_path / "run.jsonl"
    options = ["--data", "humanevalplus", "--data-dir", str(file), "--output", str(output), "--limit", "2"]
    engines.append(FakeEngine())
    assert command.main([*options, "--methods", "zero-shot,lora-tiny", "--beams", "1", "--min-time-limit", "2"]) == 0
    printed = capsys.readouterr()
    assert "expected values" in printed.err
    assert "4 times the reference's processor time a call, at least 2 s, and 4 GB" in printed.out
    assert "values compared by the rules of evalplus" in printed.out
    found = json.loads((tmp_path / "run.scores.jsonl").read_text().splitlines()[-1])
    assert found["scores"]["pass@1"] == 1.0

    assert command.main(["score", str(output), "--time-limit-factor", "0"]) == 2
    assert "The limit factor out of the reference is 0" in capsys.readouterr().err
    engines.append(FakeEngine())
    assert command.main([*options, "--overwrite", "--methods", "icl-2"]) == 2
    assert "HumanEval+ has no split train, it has test" in capsys.readouterr().err


def test_reference_that_fails_ends_the_command_before_anything_is_asked(
    tmp_path: Path, engines: list[FakeEngine], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    broken = {**HUMANEVALPLUS_ROW, "canonical_solution": "    return numbers / 2\n"}
    file = write_rows(tmp_path / "HumanEvalPlus.jsonl", broken)
    options = ["--data", "humanevalplus", "--data-dir", str(file), "--methods", "zero-shot"]
    assert command.main([*options, "--output", str(tmp_path / "run.jsonl")]) == 2
    assert "HumanEval/7 base: the reference solution fails (total([1, 2]) raised TypeError" in capsys.readouterr().err
    assert not (tmp_path / "run.jsonl").exists()
