"""The Results page in the address: its runs, filters and open problem. It can be kept, sent, and come back to.

js/page.js reads and writes it. It comes from outside: a name that is none of ours is left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.results.view import FILTERS, ProblemTable

URL_PARAMETERS = ("run", "method", "show", "words", "problem")
MAX_URL_RUNS = 50
_MAX_VALUE_LENGTH = 500
# The open problem is the one that the list of problems marks. Before there is a list nothing was shown yet, and what
# the address asks for stands.
WRITE_URL_JS = (
    "(runs, method, show, words, problems) => { if (problems) window.peftArenaWriteAddress("
    f'{json.dumps(URL_PARAMETERS)}, [runs, method, show === "all" ? "" : show, words, problems.shown]); }}'
)
READ_URL_JS = f"(runs) => [runs, window.peftArenaReadAddress({json.dumps(URL_PARAMETERS)})]"


@dataclass(frozen=True)
class UrlState:
    """What an address asks for. `method` is a side's key; '' stands for all methods, no words, no problem."""

    runs: tuple[str, ...] = ()
    method: str = ""
    show: str = "all"
    query: str = ""
    problem: str = ""

    def restrict_to(self, table: ProblemTable) -> UrlState:
        """The same without a method and a problem that these runs do not have."""
        method = self.method if self.method in {side.key for side in table.columns} else ""
        return UrlState(
            self.runs, method, self.show, self.query, self.problem if self.problem in table.row_index else ""
        )


def parse_url_state(value: Any, known: Collection[str]) -> UrlState:
    """From the browser's {parameter: values}; the filters count only together with runs that are there."""
    given = value if isinstance(value, dict) else {}

    def texts(name: str) -> Sequence[str]:
        values = given.get(name)
        return [text for text in values if isinstance(text, str)] if isinstance(values, list) else []

    def text(name: str) -> str:
        return next(iter(texts(name)), "")[:_MAX_VALUE_LENGTH]

    runs = tuple(run for run in dict.fromkeys(texts("run")[:MAX_URL_RUNS]) if run in known)
    if not runs:
        return UrlState()
    show = text("show") if text("show") in FILTERS else "all"
    return UrlState(runs, text("method"), show, text("words"), text("problem"))


def url_component() -> gr.HTML:
    """Brings what the address says to the server: its value is what READ_URL_JS makes."""
    return gr.HTML(None, html_template="", js_on_load=None, visible="hidden")
