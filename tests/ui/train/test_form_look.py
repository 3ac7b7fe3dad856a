"""The look at rows, in its own process: facts at once, then what the base makes of them; superseded, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from ui.train import preview as module
from ui.train.preview import PROCESS_DIED, PreviewClient
from ui.train.preview_process import preview

GOOD = "intent,code\n" + "".join(f"make {n} zeros,[0] * {n}\n" for n in range(30))
FAULTY = f"{GOOD}no code,\n,print(1)\na,b,c,d\n"
SETTINGS = {"adapter_name": "mine", "technique": "qlora-4bit"}


def rows(path: Path, text: str = GOOD, **more: Any) -> dict[str, Any]:
    """A request about the file's rows alone, without a base."""
    path.write_text(text, encoding="utf-8")
    return {**SETTINGS, "dataset_name": str(path), "model_name_or_path": "", **more}


def events(request: dict[str, Any]) -> list[dict[str, Any]]:
    return list(preview(request, lambda line: None))


@pytest.fixture
def looker(home: Path) -> Iterator[PreviewClient]:
    made = PreviewClient(home)
    yield made
    made.close()


def test_the_rows_alone_tell_columns_counts_and_faults(tmp_path: Path) -> None:
    table, facts = events(rows(tmp_path / "a.csv", FAULTY))
    assert table == {"table": {"columns": ["intent", "code"], "recognised": ["intent", "code"], "chosen": [None, None]}}
    found = facts["facts"]
    assert (found["rows"], found["usable"], found["mapping"]) == (33, 30, "intent -> code")
    assert found["row_errors"]["count"] == 3
    assert [each.split(":")[0] for each in found["row_errors"]["examples"]] == ["line 32", "line 33", "line 34"]


def test_columns_that_nobody_knows_are_a_question_and_a_mapping_answers_it(tmp_path: Path) -> None:
    text = GOOD.replace("intent,code", "wish,<b>gold</b>")
    table, question = events(rows(tmp_path / "a.csv", text))
    assert table["table"]["recognised"] == []
    assert "a.csv has the columns 'wish', '<b>gold</b>': choose which one" in question["question"]
    mapped = events(rows(tmp_path / "a.csv", text, intent_column="wish", code_column="<b>gold</b>"))
    assert mapped[-1]["facts"]["usable"] == 30


def test_a_chat_is_one_column_twice(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": "a + b"}]}
    path = tmp_path / "a.jsonl"
    table, facts = events(rows(path, "\n".join(json.dumps(chat) for _ in range(3))))
    assert table["table"]["recognised"] == ["messages", "messages"]
    assert facts["facts"]["usable"] == 3


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"", "a.csv is empty: it has neither columns nor rows."),
        (
            "a.csv",
            bytes(range(256)),
            "a.csv is no text file, it has NUL bytes: check whether its name ends as it should.",
        ),
        ("a.csv", "intent,code\nä,b\n".encode("utf-16"), "a.csv is UTF-16: save it as UTF-8 (in Excel: 'CSV UTF-8')."),
        ("a.exe", b"MZ", "a.exe is of no known format: give a file that ends in .jsonl, .json, .csv, .tsv, .parquet."),
        ("a.parquet", b"PAR1 no", None),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence_without_a_path(
    tmp_path: Path, name: str, content: bytes, sentence: str | None
) -> None:
    request = rows(tmp_path / name)
    (tmp_path / name).write_bytes(content)
    (refused,) = events(request)
    assert str(tmp_path) not in refused["error"]
    assert refused["error"].startswith(name)
    assert sentence in (None, refused["error"])


def test_the_whole_look_counts_tokens_marks_examples_and_estimates(tmp_path: Path, looker: PreviewClient) -> None:
    request = rows(tmp_path / "a.csv", FAULTY) | {"model_name_or_path": "embedded"}
    said = list(looker.preview(looker.new_request("a"), request))
    kinds = [next(iter(event)) for event in said if "progress" not in event]
    assert kinds == ["table", "facts", "preflight"]
    found = said[-1]["preflight"]
    assert found["rows"] == {"read": 33, "left out": 3, "train": 27, "validation": 3}
    assert len(found["examples"]) == 3
    assert all(any(learned for _, learned in example["spans"]) for example in found["examples"])
    assert "".join(text for text, learned in found["examples"][0]["spans"] if learned).endswith("<|im_end|>")
    estimate = found["estimate"]
    assert estimate["memory_bytes"] > 1e8
    assert estimate["seconds"] > 0
    assert estimate["free_bytes"] is None or estimate["free_bytes"] > 0
    began = time.monotonic()
    assert [event for event in said if "progress" not in event] == list(
        looker.preview(looker.new_request("a"), request)
    )
    assert time.monotonic() - began < 0.1


def test_a_newer_look_of_the_same_visitor_ends_the_earlier_one(
    tmp_path: Path, looker: PreviewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANCEL_GRACE_SECONDS", 0.2)
    slow = rows(tmp_path / "slow.csv", "intent,code\n" + "make zeros,[0]\n" * 400_000)
    turn = looker.new_request("a")
    said: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: said.extend(looker.preview(turn, slow)))
    reader.start()
    time.sleep(0.5)
    newer = list(looker.preview(looker.new_request("a"), rows(tmp_path / "b.csv")))
    reader.join(10)
    assert not reader.is_alive()
    assert turn.cancelled
    assert not any("facts" in event for event in said)
    assert newer[-1]["facts"]["usable"] == 30


def test_other_visitors_wait_for_their_turn(tmp_path: Path, looker: PreviewClient) -> None:
    first, second = looker.new_request("a"), looker.new_request("b")
    going = looker.preview(first, rows(tmp_path / "a.csv"))
    next(going)
    waiting = looker.preview(second, rows(tmp_path / "b.csv"))
    assert next(waiting) == {"progress": "Waiting for another preview to end ..."}
    assert "facts" in list(going)[-1]
    assert "facts" in list(waiting)[-1]
    assert not first.cancelled


def test_a_process_that_dies_is_said_and_the_next_look_works(tmp_path: Path, looker: PreviewClient) -> None:
    list(looker.preview(looker.new_request("a"), rows(tmp_path / "a.csv")))
    going = looker.preview(
        looker.new_request("a"), rows(tmp_path / "b.csv", "intent,code\n" + "make zeros,[0]\n" * 200_000)
    )
    assert "table" in next(going)
    process = looker._process
    assert process is not None
    os.kill(process._child.pid, signal.SIGKILL)
    assert list(going)[-1] == PROCESS_DIED
    assert "facts" in list(looker.preview(looker.new_request("a"), rows(tmp_path / "c.csv")))[-1]
    looker.close()
    assert looker._process is None


def test_the_process_ends_with_the_program_that_asked(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "ui.train.preview_process"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = child.communicate(json.dumps(rows(tmp_path / "a.csv")) + "\n", timeout=60)
    assert json.loads(said.splitlines()[-1]) == {"done": True}
    assert child.returncode == 0


def test_looking_at_rows_loads_neither_gradio_nor_torch() -> None:
    code = "import ui.train.preview_process, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert not {"gradio", "torch", "transformers"} & set(done.stdout.split())
