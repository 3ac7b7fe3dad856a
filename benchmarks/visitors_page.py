"""The page that `python -m benchmarks.visitors --output` writes from its JSON line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.format import text_table

_METRIC_TITLES = (
    ("asked", "questions asked"),
    ("answered", "of them answered"),
    ("busy", "refused for now, with a sentence"),
    ("failed", "failed in any other way"),
    ("hung", "visitors whose last answer never came"),
    ("answers", "answers (a question has one or two methods)"),
    ("wrong", "wrong: of another question, adapter, prompt or example"),
    ("identical_share", "share that is letter by letter what the request gets alone"),
    ("first_token_p50_seconds", "seconds to the first token, half of the questions"),
    ("first_token_p95_seconds", "seconds to the first token, 95 of 100"),
    ("first_token_alone_p50_seconds", "the same for somebody alone, half of the questions"),
    ("whole_p50_seconds", "seconds to the end, half"),
    ("whole_p95_seconds", "seconds to the end, 95 of 100"),
    ("most_waiting_before", "longest line: runs before somebody's own"),
    ("memory_begin_mib", "memory of the program in the first ten seconds, MiB"),
    ("memory_middle_mib", "in the middle"),
    ("memory_end_mib", "in the last ten seconds"),
    ("memory_slope_mib_per_minute", "its slope over the last two thirds, MiB a minute"),
)


def render_page(results: Mapping[str, Any], command: str, file: str) -> str:
    """The page in Markdown; it says only what was measured. `file` is the JSON beside it."""
    rows = [[title, "–" if results[name] is None else f"{results[name]:g}"] for name, title in _METRIC_TITLES]
    crashed = (
        "The program ended by itself: see its log." if results["crashed"] else "The program was still up at the end."
    )
    return (
        f"# {results['visitors']} visitors at once\n\n"
        f"{results['visitors']} programs ask through `/stream` for {results['seconds']:g} seconds, each as a visitor of its "
        f"own, one question after the other with a short pause. {crashed}\n\n"
        f"{text_table(('', 'measured'), rows, markdown=True)}\n\n"
        "- The time to the first token has the wait in line in it: four runs have the engine at a time, first come, "
        "first served.\n"
        "- On a quantized base the rows beside a row move the last bits of its numbers, and a token of almost equal "
        "probability can change ([engine.md](../engine.md)): such an answer is its own, and not counted as wrong.\n"
        f"- {results['tokens']:,} tokens. {results['base']}, {results['quantization']}, on {results['device']}; {results['cores']} "
        f"cores with a load of {results['load_before']:g} before, on which the visitors ran too. Python {results['python']}."
        f"\n\nAll numbers: [{file}]({file}). What is measured how stands at the top of `benchmarks/visitors.py`.\n\n"
        f"```sh\n{command}\n```\n"
    )
