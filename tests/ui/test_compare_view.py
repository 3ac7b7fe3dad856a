"""Comparison view: escaped HTML of columns, code, differences and the recorded example."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.ui.test_records import records
from ui.compare.comparison import Column
from ui.compare.record_example import example_json
from ui.compare.view import (
    empty_view,
    example_view,
    finished_column,
    finished_view,
    load_first_example,
    streaming_column,
)
from ui.components import code_html, diff_html, plain_html, streaming_html

ATTACKS = [
    "<script>alert(1)</script>",
    "</code></pre><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "<!-- <b> --> {{value}} ${alert(1)} `",
    "# <iframe src='javascript:alert(1)'>\nx = '</code><a href=javascript:alert(1)>'",
]
ALLOWED_TAGS = {
    "h2", "h3", "p", "div", "dl", "dt", "dd", "span", "pre", "code", "button", "details", "summary", "label", "select",
    "ol", "ul", "li", "table", "tbody", "tr", "th", "td", "header",
}  # fmt: skip
ALLOWED_ATTRIBUTES = {
    "class", "data-copy", "data-diff", "data-diff-body", "tabindex", "type", "aria-hidden", "aria-label", "scope",
    "role", "aria-live", "style",
}  # fmt: skip


SECTIONS: tuple[Any, ...] = ("head", "code", "numbers", "tests", "details")


class Reader(HTMLParser):
    """Collects the tags, attributes and text of HTML."""

    def __init__(self, html: Any) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(str(html))

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: Any) -> None:
        self.text += data


def assert_harmless(html: Any) -> Any:
    reader = Reader(html)
    assert reader.tags <= ALLOWED_TAGS
    assert reader.attributes <= ALLOWED_ATTRIBUTES
    return reader.text


def hostile_test(attack: Any) -> Any:
    return {
        "passed": False, "kind": "call", "given": attack, "expected": attack, "got": attack, "reason": attack,
        "status": "ok", "protected": False, "seconds": 0.1,
    }  # fmt: skip


def hostile(attack: Any) -> Any:
    (record, *_) = records(("zero-shot",), attack)
    candidate = {"text": attack, "code": attack, "logprob": -1.0, "tokens": 3}
    example = {"id": attack, "intent": attack, "code": attack}
    return record | {
        "code": attack, "text": attack, "prompt": attack, "reference": attack, "notes": [attack],
        "candidates": [candidate, candidate], "examples": [example], "score_reasons": {"em": attack},
        "base_id": attack, "prompt_style": attack, "tests": [hostile_test(attack)], "sandbox": attack,
        "tests_note": attack,
    }  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_texts_are_escaped(attack: Any) -> None:
    view = finished_view([hostile(attack), hostile(attack) | {"error": attack, "method": attack, "adapter": attack}])
    texts = [assert_harmless(view["head"])]
    for card in view["cards"]:
        sections: Any = dict(card)
        texts += [assert_harmless(sections[name]) for name in SECTIONS]
    assert attack in texts[2], "the code is not changed"
    assert attack in texts[4], "and so are the tests"
    assert sum(attack in text for text in texts) >= 6


@pytest.mark.parametrize("attack", ATTACKS)
def test_streaming_answer_and_difference_are_escaped(attack: Any) -> None:
    card = streaming_column(Column("zero-shot", "streaming", text=attack, tokens=4))
    assert attack in assert_harmless(card["code"])
    assert_harmless(diff_html(attack, attack + "\n<b>"))
    assert_harmless(diff_html(attack, ""))


def test_streaming_answer_has_no_fence() -> None:
    assert Reader(streaming_html("```python\nx = 1\n")).text == "x = 1\n"
    assert Reader(streaming_html("```python\nx = 1\n```\n")).text == "x = 1"
    assert [Reader(streaming_html(half)).text for half in ("`", "```", "```pyth", "```python\n")] == [""] * 4
    assert Reader(streaming_html("`x` is 1")).text == "`x` is 1"


def test_each_code_line_is_a_row_with_its_indent() -> None:
    html = code_html('def f():\n    """one\n    two"""\n\n    return 1\n')
    assert Reader(html).text == 'def f():\n    """one\n    two"""\n\n    return 1\n'
    assert html.count('class="row"') == 6
    assert html.count('style="--in:6ch"') == 3


def test_long_texts_are_truncated() -> None:
    assert len(code_html("x = 1\n" * 50_000)) < 1_000_000
    html = plain_html("a" * 500_000)
    assert len(html) < 250_000
    assert "300,000 characters not shown" in html
    assert "Too long to compare" in diff_html("a\n" * 3000, "b\n" * 3000)
    assert "line add" in diff_html("same\n" * 500 + "new\n", "same\n" * 500)


def test_difference_has_signs_and_text_for_screen_readers() -> None:
    text = Reader(diff_html("a\nb", "a\nc")).text
    assert "-removed: c" in text
    assert "+added: b" in text
    assert "No difference" in diff_html("a", "a")


def test_failed_column_shows_its_error() -> None:
    (record,) = records(("nonsense",))
    card = finished_column(record, is_best=False)
    assert card["state"] == "failed"
    assert "Unknown method" in Reader(card["code"]).text
    assert "no answer" in Reader(card["head"]).text


def test_best_column_has_a_badge() -> None:
    (record,) = records(("zero-shot",))
    for em, word in ((1.0, "matches"), (0.0, "closest")):
        card = finished_column(record | {"scores": {"em": em, "codebleu": 0.5, "parses": 1.0}}, is_best=True)
        assert card["best"]
        assert word in Reader(card["head"]).text


def test_recorded_example_names_model_and_date(tmp_path: Path) -> None:
    assert load_first_example(tmp_path / "missing.json") is None
    path = tmp_path / "example.json"
    path.write_text(example_json(records(), ["house-validation-0003"]), encoding="utf-8")
    example = load_first_example(path)
    assert example is not None
    head = assert_harmless(example_view(example)["head"])
    assert "example a validation row that only the adapter solves, recorded on 22 November 2025" in head
    assert "with SmolLM2-135M-Instruct · NF4 · CPU, sampling" in head
    assert example.suggestions == ("house-validation-0003",)


@pytest.mark.parametrize(
    "broken", ["", "[]", "{}", "null", '{"suggestions": [], "records": []}', '{"suggestions": 1, "records": [1]}']
)
def test_broken_example_is_ignored(tmp_path: Path, broken: Any) -> None:
    path = tmp_path / "example.json"
    path.write_text(broken, encoding="utf-8")
    assert load_first_example(path) is None


def test_empty_view_has_instructions() -> None:
    assert "No idea yet?" in Reader(empty_view()["head"]).text
