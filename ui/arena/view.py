"""Form of the Arena, and view of a match: two answers without method names, with names and scores after the vote.

The templates escape every text of a person, a data set or a model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from ui.access.guard import Choices, action, data_choices
from ui.arena.matches import Match, MatchRequest, usable_methods
from ui.compare.view import (
    ColumnView,
    ComparisonView,
    finished_column,
    format_count_of_tests,
    reference_details,
    results_panel_html,
    running_tests_html,
)
from ui.components import code_html, decoding_label, method_label, model_label, render
from ui.context import Context
from ui.form_fields import DEFAULT_DATA, METHODS_WITHOUT_ADAPTER
from ui.test_bench import Record

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

# With very many adapters only some take part by default, as each pair needs its own votes.
MAX_DEFAULT_METHODS = 8
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SIDE_NAMES = ("A", "B")
MAX_INTENT = 4_000
_LONG_INTENT = 280
INTRO_HTML = Markup(
    "<h2>Two answers, no names</h2>"
    "<p>Two methods of the same model answer one question. You read both and say which you would rather use.</p>"
    "<p>Only then you see who they were, what the tests and the reference say, and how others chose.</p>"
    "<p>Enough votes make a rating with an interval. Press n, or Start, for your first duel.</p>"
)


@dataclass(frozen=True)
class ArenaForm:
    """Components of the form. `browser_state` stores their values in the browser over a refresh."""

    question: gr.Textbox
    data: gr.Dropdown
    methods: gr.Dropdown
    accordion: gr.Accordion
    browser_state: gr.BrowserState

    @property
    def fields(self) -> list[Any]:
        return [self.question, self.data, self.methods]


def make_match_request(question: str | None, data: str | None, methods: list[str] | None) -> MatchRequest:
    """Make the request of the fields' values, each method once."""
    return MatchRequest(question or "", data or DEFAULT_DATA, tuple(dict.fromkeys(methods or ())))


def build_form(context: Context) -> ArenaForm:
    """Build the fields and store their values in the browser."""
    with gr.Row(elem_id="arena-form"):
        question = gr.Textbox(
            label="Your own question, or nothing for a test problem", lines=1, max_lines=6, scale=3, min_width=260,
            info="It is stored with your vote, and everyone who comes here can download the votes.",
            placeholder="reverse the words of a sentence", elem_id="arena-question",
        )  # fmt: skip
        data = gr.Dropdown(
            data_choices(context.data_dir), value=DEFAULT_DATA, label="Test problems from", scale=1, min_width=180,
            elem_id="arena-problems",
        )  # fmt: skip
    with gr.Accordion(_accordion_title(list(METHODS_WITHOUT_ADAPTER)), open=False, elem_id="arena-fold") as accordion:
        methods = gr.Dropdown(
            _method_choices(list(METHODS_WITHOUT_ADAPTER)), value=list(METHODS_WITHOUT_ADAPTER), multiselect=True,
            label="Methods that may be drawn", elem_id="arena-methods",
        )  # fmt: skip
    # Stored unencrypted: nothing in it is a secret.
    browser_state = gr.BrowserState(
        ["", DEFAULT_DATA, None],
        storage_key="prompt-or-tune-duel",
        secret="peft-arena",  # noqa: S106
    )
    form = ArenaForm(question, data, methods, accordion, browser_state)

    @action("view pages")
    def collect(*values: Any) -> list[Any]:
        return list(values)

    @action("view pages")
    def retitle(names: list[str] | None) -> Any:
        return gr.Accordion(label=_accordion_title(names))

    gr.on(
        [question.change, data.input, methods.input],
        collect,
        form.fields,
        browser_state,
        **_EVENT_OPTIONS,
    )
    methods.change(retitle, methods, accordion, **_EVENT_OPTIONS)
    return form


def form_updates(engine: LLMEngine | None, stored: Any, data_sets: Choices) -> list[Any]:
    """Return updates of `ArenaForm.fields`: the stored values, without methods that cannot be used any more.

    `data_sets` are the choices of this visitor.
    """
    question, data, methods = stored if isinstance(stored, list) and len(stored) == 3 else ("", DEFAULT_DATA, None)
    usable = usable_methods(engine) if engine is not None else list(METHODS_WITHOUT_ADAPTER)
    names = [name for name in methods if name in usable] if isinstance(methods, list) and engine is not None else []
    names = names or usable[:MAX_DEFAULT_METHODS]
    return [
        str(question or ""),
        gr.Dropdown(choices=data_sets, value=data if data in {name for _, name in data_sets} else DEFAULT_DATA),
        gr.Dropdown(choices=_method_choices(usable), value=names),
    ]


def _method_choices(names: list[str]) -> list[tuple[str, str]]:
    return [(method_label(name), name) for name in names]


def _accordion_title(names: list[str] | None) -> str:
    count = len(names or ())
    return f"Who takes part: {count} method{'' if count == 1 else 's'}"


def empty_match_view() -> ComparisonView:
    """Return the view before the first match: an introduction."""
    head = Markup('<div class="empty">{}</div>').format(INTRO_HTML)
    return ComparisonView(run="", head=head, cards=[], reference=None)


def match_view(match: Match, pending: Collection[int] = ()) -> ComparisonView:
    """Return the view of a match; the answers with an index in `pending` are being tested."""
    if not match.records:
        return ComparisonView(
            run=match.id,
            head=_match_header(match),
            cards=[_waiting_column(name) for name in SIDE_NAMES],
            reference=None,
        )
    make_column = _revealed_column if match.voted else _anonymous_column
    cards = [make_column(match, index, index in pending) for index in range(len(match.records))]
    reference = match.problem.reference if match.voted or match.reference_seen else None
    return ComparisonView(run=match.id, head=_match_header(match), cards=cards, reference=reference)


def _waiting_column(name: str) -> ColumnView:
    """Return a card without an answer; both sides get one until both have answered."""
    return ColumnView(
        label=f"Answer {name}", state="waiting", best=False, head=f"<h3>{name}</h3>",
        code='<p class="muted">answering<span class="caret" aria-hidden="true"></span></p>', numbers="", tests="",
        details="", raw="",
    )  # fmt: skip


def _anonymous_column(match: Match, index: int, tests_running: bool) -> ColumnView:
    """Return a card with code and test results, without any name or number that could reveal the method."""
    record = match.records[index]
    code = record["code"]
    head, body = f"<h3>{SIDE_NAMES[index]}</h3>", '<p class="muted">An empty answer.</p>'
    if code.strip():
        head += '<button type="button" class="copy" data-copy>Copy</button>'
        body = f'<pre class="code" tabindex="0"><code>{code_html(code)}</code></pre>'
    return ColumnView(
        label=f"Answer {SIDE_NAMES[index]}", state="done", best=False, head=head, code=body, numbers="",
        tests=_tests_html(record, tests_running), details="", raw=code,
    )  # fmt: skip


def _revealed_column(match: Match, index: int, tests_running: bool) -> ColumnView:
    record = match.records[index]
    label = f"{SIDE_NAMES[index]}: {method_label(record['method'])}"
    column = finished_column(record, is_best=False, label=label, tests_running=tests_running)
    if match.winner == ("left", "right")[index]:
        column["best"] = True
        badge = Markup('</h3><span class="badge">your pick</span>')
        column["head"] = column["head"].replace(Markup("</h3>"), badge, 1)
    return column


def _tests_html(record: Record, tests_running: bool) -> str:
    return running_tests_html(len(record["asked_tests"])) if tests_running else results_panel_html(record["tests"])


def _match_header(match: Match) -> Markup:
    intent = match.problem.intent
    reference = ""
    if match.problem.reference and (match.voted or match.reference_seen):
        reference = reference_details(match.problem.reference)
    if match.reference_seen:
        reference = reference.replace(Markup("<details>"), Markup("<details open>"), 1)
    codes = {record["code"].strip() for record in match.records}
    return render(
        "arena/match_header.html.jinja",
        intent=intent if len(intent) <= MAX_INTENT else f"{intent[:MAX_INTENT]} …",
        is_long=len(intent) > _LONG_INTENT or "\n" in intent.strip(),
        facts=_match_facts(match),
        reference=Markup(reference),  # noqa: S704 - reference_details() escapes
        notes=dict.fromkeys(record["tests_note"] for record in match.records if record["tests_note"]),
        is_same=len(match.records) == len(SIDE_NAMES) and len(codes) == 1,
    )


def _match_facts(match: Match) -> list[str]:
    facts = ["your own question" if not match.data else f"from '{match.data}'"]
    if match.problem.tests:
        facts.append(format_count_of_tests(len(match.problem.tests)))
    if match.records:
        first = match.records[0]
        facts.append(model_label(first["base_id"], first["quantization"], first["device"]))
        facts.append(decoding_label(first["decoding"]))
    sandbox = next((record["sandbox"] for record in match.records if record["sandbox"]), None)
    return [*facts, f"tested in the sandbox ({sandbox})"] if sandbox else facts
