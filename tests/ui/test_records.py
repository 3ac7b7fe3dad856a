"""Records of columns, their exports, and the history."""

from __future__ import annotations

import csv
import io
import json
from threading import Event
from typing import Any

from serve.types import SamplingParams
from tasks.problem import Problem
from tests.fakes import BASE, FakeEngine
from ui.compare.comparison import compare, make_comparison
from ui.compare.verdict import HISTORY_LENGTH, History, export_file
from ui.test_bench import make_record, records_to_csv, to_json

CREATED = "2025-11-22T05:48:00.123+00:00"
WILD = 'say "hi",\n<b>bold</b>; ünïcode \N{SNAKE} =1+1'


def records(
    methods: Any = ("zero-shot", "lora-starter+rag-8", "nonsense"),
    intent: Any = WILD,
    decoding: Any = None,
    created: Any = CREATED,
) -> Any:
    comparison = make_comparison(
        Problem("typed", intent, "s[::-1]"), methods, decoding or SamplingParams("sample", 64, 2, seed=7)
    )
    columns = list(compare(FakeEngine({"zero-shot": WILD}, delay=0.001), comparison, Event()))[-1]
    return tuple(make_record(column, comparison, BASE, created) for column in columns)


def test_record_contains_everything_to_reproduce_the_answer() -> None:
    first, second, failed = records()
    assert first["method"] == "zero-shot"
    assert first["text"] == WILD
    assert (first["base_id"], first["base_revision"]) == (BASE.id, BASE.revision)
    assert (first["quantization"], first["device"]) == ("nf4", "cpu")
    assert len(first["prompt_fingerprint"]) == 16
    assert WILD in first["prompt"]
    assert first["decoding"] == {
        "mode": "sample", "max_new_tokens": 64, "candidates": 2, "temperature": 0.6, "top_p": 0.95, "seed": 7,
        "stop": [], "top_logprobs": None,
    }  # fmt: skip
    assert len(first["candidates"]) == 2
    assert first["seconds"] > 0
    assert first["tokens_per_second"] > 0
    assert set(first["scores"]) >= {"em", "codebleu", "parses"}
    assert (second["adapter"], second["examples_kind"], second["examples_k"]) == ("lora-starter", "rag", 8)
    assert len(second["examples"]) == 8
    assert failed["error"].startswith("Unknown method 'nonsense'")
    assert (failed["text"], failed["tokens"], failed["scores"]) == ("", 0, {})


def test_json_export_contains_every_field() -> None:
    expected = records()
    assert json.loads(to_json(expected)) == [dict(record) for record in expected]


def test_csv_export_contains_every_field() -> None:
    expected = records()
    rows = list(csv.DictReader(io.StringIO(records_to_csv(expected), newline="")))
    assert len(rows) == 3
    for row, record in zip(rows, expected, strict=True):
        assert row["intent"] == WILD
        assert row["text"] == record["text"]
        assert json.loads(row["candidates"]) == record["candidates"]
        assert row["decoding.seed"] == "7"
        assert set(record) - {"scores", "decoding"} <= set(row)
    assert float(rows[0]["score.codebleu"]) == expected[0]["scores"]["codebleu"]


def test_history_contains_the_last_runs_newest_first() -> None:
    memory = History()
    for number in range(HISTORY_LENGTH + 5):
        memory = memory.with_run(records(("zero-shot",), f"intent {number}"))
    assert len(memory.runs) == HISTORY_LENGTH
    assert memory.items()[0]["intent"] == f"intent {HISTORY_LENGTH + 4}"
    assert [item["shown"] for item in memory.items()[:2]] == [True, False]
    assert memory.select(3).selected[0]["intent"] == f"intent {HISTORY_LENGTH + 1}"
    assert memory.select(99) == memory


def test_export_file_has_a_name() -> None:
    assert export_file((), "json", 1) is None
    file = export_file(records(), "csv", 3)
    assert file is not None
    assert (file["name"], file["type"], file["number"]) == ("prompt-or-tune-20251122054800.csv", "text/csv", 3)
