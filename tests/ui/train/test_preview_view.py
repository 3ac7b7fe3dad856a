"""HTML of the row preview: counts, collapsed messages, marked examples, cost, and escaping."""

from __future__ import annotations

from typing import Any

from ui.train import drafts
from ui.train.drafts import Draft

EVIL = "<script>alert(1)</script>${alert(1)}"


def issue(*messages: str, count: int | None = None) -> dict[str, Any]:
    return {"count": len(messages) if count is None else count, "examples": list(messages)}


PREFLIGHT: dict[str, Any] = {
    "source": "mine.csv, validated on 41 of its rows.",
    "mapping": "intent -> snippet",
    "columns": ["intent", "snippet"],
    "rows": {"read": 415, "left out": 3, "train": 371, "validation": 41},
    "changes": {"a code fence taken off": 2},
    "row_errors": issue("mine.csv, line 2: x"),
    "duplicates": issue(),
    "conflicts": issue("mine.csv, line 9 has the intent of mine.csv, line 3"),
    "unparsable": issue(),
    "special_tokens": issue(),
    "leak": {"rows": 0, "intents": 0, "codes": 0, "examples": []},
    "too_long": {"limit": 512, "train": issue("line 8: 900 tokens"), "validation": issue()},
    "response_tokens": {"total": 12345},
    "examples": [
        {
            "location": EVIL,
            "num_tokens": 9,
            "num_label_tokens": 4,
            "spans": [[f"### {EVIL}\n", False], [f"{EVIL}\tx \n<|end|>", True]],
        }
    ],
    "steps": 94,
    "steps_per_epoch": 47,
    "estimate": {
        "memory_bytes": 3_600_000_000, "seconds": 800.0, "eval_seconds": 40.0, "adapter_bytes": 3_700_000,
        "free_bytes": 5_000_000_000,
    },
}  # fmt: skip


def test_report_has_counts_and_collapsed_messages() -> None:
    errors = issue(*(f"line {n}: column 'x' is empty." for n in range(2, 9)), count=9)
    html = drafts.report_html(Draft("mine.csv", "d"), {"row_errors": errors}, PREFLIGHT)
    assert '<h3 class="mapped">mine.csv: 415 rows, 370 to learn, 41 held out</h3>' in html
    assert "<strong>9 rows left out</strong>" in html
    assert "<summary>6 more</summary>" in html
    assert "and 2 more" in html
    assert "1 row contradicting" in html
    assert "2 rows had a code fence taken off" in html
    assert "Looked for and not found: repeated, not Python, with special tokens, on both sides." in html


def test_texts_are_escaped() -> None:
    errors = issue(f"line 2: column '{EVIL}' is empty.")
    preflight = {**PREFLIGHT, "row_errors": errors, "mapping": EVIL, "source": EVIL, "changes": {EVIL: 1}}
    facts = {"rows": 1, "usable": 0, "row_errors": errors}
    draft = Draft(EVIL, "d")
    for html in (
        drafts.report_html(draft, None, preflight),
        drafts.facts_html(draft, facts),
        drafts.examples_html(preflight),
        drafts.title_html(draft),
        drafts.progress_html(EVIL),
        drafts.cost_html({"estimate": {"reason": EVIL}}),
    ):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_labels_are_marked_and_invisible_characters_displayed() -> None:
    html = drafts.examples_html(PREFLIGHT)
    assert html.count("<mark>") == 2  # one in the legend and one in the example
    assert '<mark><span class="visually-hidden">learned: </span>' in html
    assert '<span class="unseen">⇥\t</span>x<span class="unseen">·</span>' in html
    assert drafts.escape_visible("a\u202eb\x1b") == (
        'a<span class="unseen">\\u202e</span>b<span class="unseen">\\u001b</span>'
    )


def test_cost_warns_about_memory() -> None:
    html = drafts.cost_html(PREFLIGHT)
    assert "about 14 min" in html
    assert "3.6 GB" in html
    assert "3.7 MB" in html
    assert "sentence" not in html
    short = {**PREFLIGHT, "estimate": {**PREFLIGHT["estimate"], "free_bytes": 1_000_000_000}}
    assert "more memory than is free now" in drafts.cost_html(short)
