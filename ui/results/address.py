"""The Results page in the address: its runs, filters and open problem. It can be kept, sent, and come back to.

js/page.js reads and writes it. It comes from outside: a name that is none of ours is left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.results.view import SHOW, View

PARAMETERS = ("run", "method", "show", "words", "problem")
MOST_RUNS = 50
_LONGEST = 500
# The open problem is the one that the list of problems marks. Before there is a list nothing was shown yet, and what
# the address asks for stands.
WRITE = (
    "(runs, method, show, words, problems) => { if (problems) window.peftArenaWriteAddress("
    f'{json.dumps(PARAMETERS)}, [runs, method, show === "all" ? "" : show, words, problems.shown]); }}'
)
READ = f"(runs) => [runs, window.peftArenaReadAddress({json.dumps(PARAMETERS)})]"


@dataclass(frozen=True)
class Asked:
    """What an address asks for. `method` is a side's key; '' stands for all methods, no words, no problem."""

    runs: tuple[str, ...] = ()
    method: str = ""
    show: str = "all"
    words: str = ""
    problem: str = ""

    def fitting(self, view: View) -> Asked:
        """The same without a method and a problem that these runs do not have."""
        method = self.method if self.method in {side.key for side in view.sides} else ""
        return Asked(self.runs, method, self.show, self.words, self.problem if self.problem in view.by_id else "")


def read_asked(value: Any, known: Collection[str]) -> Asked:
    """From the browser's {parameter: values}; the filters count only together with runs that are there."""
    given = value if isinstance(value, dict) else {}

    def texts(name: str) -> Sequence[str]:
        values = given.get(name)
        return [text for text in values if isinstance(text, str)] if isinstance(values, list) else []

    def text(name: str) -> str:
        return next(iter(texts(name)), "")[:_LONGEST]

    runs = tuple(run for run in dict.fromkeys(texts("run")[:MOST_RUNS]) if run in known)
    if not runs:
        return Asked()
    show = text("show") if text("show") in SHOW else "all"
    return Asked(runs, text("method"), show, text("words"), text("problem"))


def carrier() -> gr.HTML:
    """Brings what the address says to the server: its value is what READ makes."""
    return gr.HTML(None, html_template="", js_on_load=None, visible="hidden")
