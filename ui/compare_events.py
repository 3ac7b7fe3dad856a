"""What happens on the Compare page: a run from the click to its end, going back to an earlier one, a refresh."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from errors import PeftArenaError
from tasks.problem import Problem
from ui import widgets
from ui.asked import TYPED_ID, Fields, problem_of
from ui.board import finished_board
from ui.compare_run import Ask, make_ask
from ui.context import Context
from ui.endpoints import MAX_WAITING
from ui.history import History
from ui.kept import DECODING, FIELDS, TEXTS, read_kept
from ui.live import Step, live_steps
from ui.method_form import MethodForm
from ui.options import Options, decoding, decoding_fields
from ui.problem_picker import Picker
from ui.records import Record, problem_tests
from ui.verdict import verdict

DEFECT = "Something went wrong on our side, and the log says what. Nothing you typed is lost."
NEW_WORDS = (
    "You changed the words of the test problem, so its reference and its tests are no longer used. "
    "To score the answers, give your own under 'Reference, tests and options'."
)
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """The components that events read and change.

    `keeper` hands runs and the test problem that is asked about to the browser's storage: see js/keep.js.
    """

    intent: gr.Textbox
    note: gr.HTML
    run: gr.Button
    stop: gr.Button
    picker: Picker
    form: MethodForm
    options: Options
    status: gr.HTML
    board: gr.HTML
    history: gr.HTML
    exports: Sequence[gr.Button]
    memory: gr.State
    chosen: gr.State
    keeper: gr.HTML

    @property
    def of_history(self) -> list[gr.components.Component]:
        """What a run that is shown again fills."""
        return [
            self.memory, self.history, self.board, self.status, self.chosen, self.intent, self.options.reference,
            self.options.tests, self.form.chips, self.options.pool, *self.options.of_decoding,
        ]  # fmt: skip

    @property
    def kept(self) -> dict[str, gr.components.Component]:
        """The fields that stay over a refresh, by the names of ui/kept.py."""
        options = self.options
        fields = (
            self.intent, options.reference, options.tests, self.form.chips, self.picker.data, self.picker.problem,
            options.pool, *options.of_decoding,
        )  # fmt: skip
        return dict(zip(FIELDS, fields, strict=True))


def wire_run(page: Page, context: Context, triggers: Sequence[Callable[..., Any]]) -> None:
    """Each of the triggers begins a run; Stop ends all runs of the window."""
    inputs = [
        page.intent, page.options.reference, page.options.tests, page.chosen, page.form.chips, page.memory,
        page.options.pool, *page.options.of_decoding,
    ]  # fmt: skip
    outputs = [
        page.note, page.run, page.stop, page.status, page.board, page.history, page.memory, *page.exports,
        page.chosen, page.options.reference, page.options.tests, page.keeper,
    ]  # fmt: skip
    runner = _runner(page, context)
    for trigger in triggers:
        running = trigger(
            runner,
            inputs,
            outputs,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=MAX_WAITING,
            concurrency_id="pages",
        )
        # Run comes back when Gradio holds the event as over: a click before that would be dropped without a word.
        running.then(_ended, None, [page.run, page.stop], **_QUIET)

    def stop(request: gr.Request) -> None:
        context.stops.stop(request.session_hash or "")

    page.stop.click(stop, None, None, **_QUIET)


def _runner(page: Page, context: Context) -> Any:
    """The generator behind Run: every yield repaints what changed."""

    def run(
        request: gr.Request,
        intent: str,
        reference: str,
        tests: str,
        chosen: Problem | None,
        chips: Any,
        memory: History,
        *values: Any,
    ) -> Iterator[dict[Any, Any]]:
        fields = Fields(intent, reference, tests, chosen)
        with ExitStack() as held:
            try:
                ask = replace(_ask(fields, chips, values), owner=context.visitors.of(request).id)
                held.enter_context(context.visitors.quota.rows(ask.owner, len(ask.methods)))
            except PeftArenaError as fault:
                yield {page.note: sentence(fault)}
                return
            yield _started(page, fields)
            try:
                cancel = held.enter_context(context.stops.running(request.session_hash or ""))
                for step in live_steps(context, ask, cancel):
                    changes, memory = _step(page, step, memory)
                    yield changes
            except PeftArenaError as fault:
                yield {page.status: sentence(fault)}
            except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
                _log.exception("A comparison failed.")
                yield {page.status: sentence(DEFECT)}

    return run


def _ended() -> list[Any]:
    return [gr.Button(visible=True), gr.Button(visible=False)]


def _ask(fields: Fields, chips: Any, values: Sequence[Any]) -> Ask:
    problem, note = problem_of(fields)
    pool, *choices = values
    return make_ask(
        problem, widgets.chip_names(chips), decoding(*choices), pool, tests_text=fields.tests or "", tests_note=note
    )


def _started(page: Page, fields: Fields) -> dict[Any, Any]:
    changes: dict[Any, Any] = {
        page.note: "",
        page.run: gr.Button(visible=False),
        page.stop: gr.Button(visible=True),
    }
    kept: dict[str, Any] = {"at": time.time_ns(), "begun": True}
    if fields.lost_reference or fields.lost_tests:
        changes |= {page.note: line(NEW_WORDS), page.chosen: None}
        kept["chosen"] = None
        changes |= {page.options.reference: ""} if fields.lost_reference else {}
        changes |= {page.options.tests: ""} if fields.lost_tests else {}
    return changes | {page.keeper: kept}


def _step(page: Page, step: Step, memory: History) -> tuple[dict[Any, Any], History]:
    changes: dict[Any, Any] = {page.status: line(step.status)}
    if step.board is not None:
        changes[page.board] = step.board()
    if step.records:
        memory = memory.with_run(step.records)
        changes |= {page.memory: memory, page.history: memory.items()}
        changes |= {button: gr.Button(visible=True) for button in page.exports}
        changes[page.keeper] = {"at": time.time_ns(), "run": list(step.records)}
    return changes, memory


def wire_history(page: Page) -> None:
    """A click on one of the runs brings it back, with all that it was asked with."""

    def restore(memory: History, event: gr.EventData) -> list[Any]:
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(memory.runs):
            return [gr.skip()] * (len(page.of_history) + 1)
        memory = memory.showing(index)
        first: Record = memory.shown[0]
        problem = Problem(first["problem_id"], first["intent"], first["reference"], problem_tests(first))
        chosen = None if problem.id == TYPED_ID else problem
        return [
            *_shown(memory), chosen, first["intent"],
            first["reference"] or "", first["tests_text"],
            widgets.chip_values([record["method"] for record in memory.shown]), first["pool"],
            *decoding_fields(first["decoding"]), _keep_chosen(chosen) | {"shown": first["created"]},
        ]  # fmt: skip

    page.history.select(restore, page.memory, [*page.of_history, page.keeper], **_QUIET)


def wire_kept(page: Page, context: Context, choosing: Sequence[Any]) -> Callable[[Any], None]:
    """What the fields say stays in the browser as it changes, and so does the problem after the events `choosing` it.

    Returns what brings all of it back, with the runs, after the event of a page that has come up.
    """
    fields = page.kept
    picker = page.picker
    keep = f"(...values) => window.peftArenaKeep({json.dumps(FIELDS)}, values)"
    gr.on([field.change for field in fields.values()], None, list(fields.values()), None, js=keep, **_QUIET)
    for event in choosing:
        event.then(_keep_chosen, page.chosen, page.keeper, **_QUIET)
    outputs = [*page.of_history, picker.data, picker.problem, picker.note, *page.exports]

    def restore(value: Any) -> dict[Any, Any]:
        kept = read_kept(value)
        changes: dict[Any, Any] = {page.memory: gr.skip()}
        if kept.chosen is not None:
            changes[page.chosen] = kept.chosen
        for name in (*TEXTS, "pool", *DECODING):
            if name in kept.fields:
                changes[fields[name]] = kept.fields[name]
        if "chips" in kept.fields:
            changes[page.form.chips] = widgets.chip_values(kept.fields["chips"])
        if "data" in kept.fields:
            shown = picker.opened(kept.fields["data"], kept.fields.get("problem", ""), context.data_dir)
            changes |= dict(zip((picker.data, picker.problem, picker.note), shown, strict=True))
        if kept.history.runs:
            changes |= dict(zip(page.of_history[:4], _shown(kept.history), strict=True))
            changes |= {button: gr.Button(visible=True) for button in page.exports}
        return changes

    def after(came_up: Any) -> None:
        filled = came_up.then(restore, page.keeper, outputs, js="() => [window.peftArenaKept()]", **_QUIET)
        # Only now: what the fields said before they were filled is nothing to keep.
        begin = keep.replace("peftArenaKeep(", "peftArenaKeeping(")
        filled.then(None, list(fields.values()), None, js=begin, **_QUIET)

    return after


def _keep_chosen(chosen: Problem | None) -> dict[str, Any]:
    return {"at": time.time_ns(), "chosen": asdict(chosen) if chosen else None}


def _shown(memory: History) -> list[Any]:
    """The run on the board: for memory, history, board and status."""
    return [memory, memory.items(), finished_board(memory.shown), line(verdict(memory.shown))]


def line(text: str) -> str:
    """A line of the page; escaped."""
    return f"<p>{escape(text)}</p>"


def sentence(fault: object) -> str:
    """What went wrong, as the page shows it; escaped."""
    return f'<p class="sentence">{escape(str(fault))}</p>'
