"""Which columns say the same, where no reference and no test tells them apart."""

from __future__ import annotations

from typing import Any

from tests.ui.test_columns import Reader
from tests.ui.test_records import records
from ui.compare.test_results import agreement_notes
from ui.compare.view import finished_view


def saying(*codes: str | None, **changes: Any) -> list[Any]:
    (record,) = records(("zero-shot",))
    names = ("zero-shot", "icl-8", "rag-8", "lora-x")
    return [
        record | {"method": name, "code": code or "", "error": None if code is not None else "Broken."} | changes
        for name, code in zip(names, codes, strict=False)
    ]


def test_same_code_comes_before_same_tree() -> None:
    said = agreement_notes(saying("x = 'a'", "x = 'a' ", 'x = "a"', "y"))
    assert said == [
        "Same code as ICL 8; same syntax tree as RAG 8",
        "Same code as zero-shot; same syntax tree as RAG 8",
        "Same syntax tree as zero-shot, ICL 8",
        "No other column says this",
    ]


def test_failed_and_empty_answers_agree_with_nobody() -> None:
    assert agreement_notes(saying("x", None, "", "x")) == ["Same code as lora-x", "", "", "Same code as zero-shot"]
    assert agreement_notes(saying("x", None)) == ["", ""]


def test_it_stands_in_the_columns_only_without_a_reference() -> None:
    alone = finished_view(saying("x", "x", reference=None))["cards"][0]["numbers"]
    assert "Same code as ICL 8." in Reader(alone).text
    assert "CodeBLEU" not in Reader(alone).text
    against = Reader(finished_view(saying("x", "x", reference="y"))["cards"][0]["numbers"]).text
    assert "Same code" not in against
    assert "data flow" in against
