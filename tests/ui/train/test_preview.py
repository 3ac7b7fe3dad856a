"""Preview process and its client: previews with and without a base, cancelled requests, killed processes."""

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

pytestmark = pytest.mark.slow

GOOD = "intent,code\n" + "".join(f"make {n} zeros,[0] * {n}\n" for n in range(30))
WITH_ERRORS = f"{GOOD}no code,\n,print(1)\na,b,c,d\n"
SETTINGS = {"adapter_name": "mine", "technique": "qlora-4bit"}


def rows(path: Path, text: str = GOOD, **more: Any) -> dict[str, Any]:
    """Write the file; return the values of a request without a base."""
    path.write_text(text, encoding="utf-8")
    return {**SETTINGS, "dataset_name": str(path), "model_name_or_path": "", **more}


def events(request: dict[str, Any]) -> list[dict[str, Any]]:
    return list(preview(request, lambda line: None))


@pytest.fixture
def client(home: Path) -> Iterator[PreviewClient]:
    made = PreviewClient(home)
    yield made
    made.close()


def test_rows_without_a_base_give_table_and_facts(tmp_path: Path) -> None:
    table, facts = events(rows(tmp_path / "a.csv", WITH_ERRORS))
    assert table == {"table": {"columns": ["intent", "code"], "recognised": ["intent", "code"], "chosen": [None, None]}}
    values = facts["facts"]
    assert (values["rows"], values["usable"], values["mapping"]) == (33, 30, "intent -> code")
    assert values["row_errors"]["count"] == 3
    assert [message.split(":")[0] for message in values["row_errors"]["examples"]] == ["line 32", "line 33", "line 34"]


def test_unknown_columns_cause_a_question_and_can_be_mapped(tmp_path: Path) -> None:
    text = GOOD.replace("intent,code", "task,<b>gold</b>")
    table, question = events(rows(tmp_path / "a.csv", text))
    assert table["table"]["recognised"] == []
    assert "a.csv has the columns 'task', '<b>gold</b>': choose which one" in question["question"]
    mapped = events(rows(tmp_path / "a.csv", text, intent_column="task", code_column="<b>gold</b>"))
    assert mapped[-1]["facts"]["usable"] == 30


def test_chat_column_is_mapped_as_both_columns(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": "a + b"}]}
    path = tmp_path / "a.jsonl"
    table, facts = events(rows(path, "\n".join(json.dumps(chat) for _ in range(3))))
    assert table["table"]["recognised"] == ["messages", "messages"]
    assert facts["facts"]["usable"] == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty: it has neither columns nor rows."),
        (
            "a.csv",
            bytes(range(256)),
            "a.csv is not a text file, it has NUL bytes: check the ending of its name.",
        ),
        ("a.csv", "intent,code\nä,b\n".encode("utf-16"), "a.csv is UTF-16: save it as UTF-8 (in Excel: 'CSV UTF-8')."),
        ("a.exe", b"MZ", "a.exe is of no known format: give a file that ends in .jsonl, .json, .csv, .tsv, .parquet."),
        ("a.parquet", b"PAR1 no", None),
    ],
)
def test_error_of_an_unreadable_file_contains_no_path(
    tmp_path: Path, name: str, content: bytes, message: str | None
) -> None:
    request = rows(tmp_path / name)
    (tmp_path / name).write_bytes(content)
    (event,) = events(request)
    assert str(tmp_path) not in event["error"]
    assert event["error"].startswith(name)
    assert message in (None, event["error"])


def test_preview_with_a_base_has_preflight_and_estimate(tmp_path: Path, client: PreviewClient) -> None:
    values = rows(tmp_path / "a.csv", WITH_ERRORS) | {"model_name_or_path": "embedded"}
    events_seen = list(client.preview(client.new_request("a"), values))
    kinds = [next(iter(event)) for event in events_seen if "progress" not in event]
    assert kinds == ["table", "facts", "preflight"]
    preflight = events_seen[-1]["preflight"]
    assert preflight["rows"] == {"read": 33, "left out": 3, "train": 27, "validation": 3}
    assert len(preflight["examples"]) == 3
    assert all(any(is_label for _, is_label in example["spans"]) for example in preflight["examples"])
    assert "".join(text for text, is_label in preflight["examples"][0]["spans"] if is_label).endswith("<|im_end|>")
    estimate = preflight["estimate"]
    assert estimate["memory_bytes"] > 1e8
    assert estimate["seconds"] > 0
    assert estimate["free_bytes"] is None or estimate["free_bytes"] > 0
    began = time.monotonic()
    assert [event for event in events_seen if "progress" not in event] == list(
        client.preview(client.new_request("a"), values)
    )
    assert time.monotonic() - began < 0.1


def test_newer_request_of_a_session_cancels_the_earlier_one(
    tmp_path: Path, client: PreviewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANCEL_GRACE_SECONDS", 0.2)
    slow = rows(tmp_path / "slow.csv", "intent,code\n" + "make zeros,[0]\n" * 400_000)
    request = client.new_request("a")
    events_seen: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: events_seen.extend(client.preview(request, slow)))
    reader.start()
    time.sleep(0.5)
    newer = list(client.preview(client.new_request("a"), rows(tmp_path / "b.csv")))
    reader.join(10)
    assert not reader.is_alive()
    assert request.cancelled
    assert not any("facts" in event for event in events_seen)
    assert newer[-1]["facts"]["usable"] == 30


def test_requests_of_other_sessions_wait(tmp_path: Path, client: PreviewClient) -> None:
    first, second = client.new_request("a"), client.new_request("b")
    running = client.preview(first, rows(tmp_path / "a.csv"))
    next(running)
    waiting = client.preview(second, rows(tmp_path / "b.csv"))
    assert next(waiting) == {"progress": "Waiting for another preview to end ..."}
    assert "facts" in list(running)[-1]
    assert "facts" in list(waiting)[-1]
    assert not first.cancelled


def test_a_long_request_ends_when_a_visitor_of_another_address_waits(
    tmp_path: Path, client: PreviewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONTENDED_SECONDS", 0.0)
    slow = rows(tmp_path / "slow.csv", "intent,code\n" + "make zeros,[0]\n" * 400_000)
    started = client.preview(client.new_request("a", "mallory", "far"), slow)
    next(started)
    rest: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: rest.extend(started))
    reader.start()
    honest = list(client.preview(client.new_request("b", "ada", "near"), rows(tmp_path / "b.csv")))
    reader.join(10)
    assert rest[-1] == module.CONTENDED
    assert honest[-1]["facts"]["usable"] == 30


def test_a_visitor_and_an_address_have_few_requests(tmp_path: Path, client: PreviewClient) -> None:
    own = [client.new_request(f"session-{n}", "mallory", "far") for n in range(5)]
    assert [request.cancelled for request in own] == [True, True, False, False, False]
    assert [bool(request.refusal) for request in own] == [True, True, False, False, False]
    others = [client.new_request(f"other-{n}", f"cookie-{n}", "far") for n in range(20)]
    running = [request for request in own + others if not request.cancelled]
    assert running == others[-module.MAX_PER_ADDRESS :]
    assert not client.new_request("honest", "ada", "near").cancelled
    assert len([request for request in running if not request.cancelled]) == module.MAX_PER_ADDRESS


def test_killed_process_is_reported_and_restarted(tmp_path: Path, client: PreviewClient) -> None:
    list(client.preview(client.new_request("a"), rows(tmp_path / "a.csv")))
    running = client.preview(
        client.new_request("a"), rows(tmp_path / "b.csv", "intent,code\n" + "make zeros,[0]\n" * 200_000)
    )
    assert "table" in next(running)
    process = client._process
    assert process is not None
    os.kill(process._child.pid, signal.SIGKILL)
    assert list(running)[-1] == PROCESS_DIED
    assert "facts" in list(client.preview(client.new_request("a"), rows(tmp_path / "c.csv")))[-1]
    client.close()
    assert client._process is None


def test_process_exits_when_stdin_is_closed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "ui.train.preview_process"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    events_seen, _ = child.communicate(json.dumps(rows(tmp_path / "a.csv")) + "\n", timeout=60)
    assert json.loads(events_seen.splitlines()[-1]) == {"done": True}
    assert child.returncode == 0


def test_import_does_not_load_gradio_or_torch() -> None:
    code = "import ui.train.preview_process, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert not {"gradio", "torch", "transformers"} & set(done.stdout.split())
