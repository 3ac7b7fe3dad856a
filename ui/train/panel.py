"""The jobs' half of the Train page: all jobs, the chosen one live, and what a person may do with it.

The browser asks how things are while somebody looks (js/job_pulse.js), and says what it shows already: an answer
carries what changed since. Everything comes from the disk, so that a refresh or a second browser shows the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from errors import PeftArenaError
from jobs.board import JobBoard
from ui import widgets
from ui.context import Context
from ui.method_form import MethodForm, opened_with
from ui.train import panel_parts as parts
from ui.train.panel_actions import Desk
from ui.train.panel_look import Look, look, no_look
from ui.train.publish import build_publish

DEFECT = "Something went wrong on our side, and the log says what. The jobs go on."
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)
_Act = Callable[[gr.Request, str | None], Mapping[Any, Any]]


@dataclass(frozen=True)
class Panel:
    """The components that events read and change."""

    chosen: gr.State
    pulse: gr.HTML
    note: gr.HTML
    empty: gr.HTML
    room: gr.Row
    jobs: gr.HTML
    parts: Mapping[str, gr.HTML]
    buttons: Mapping[str, gr.Button]
    actions: gr.Row
    question: gr.Column
    asked: gr.HTML
    answers: Mapping[str, gr.Button]
    press_note: gr.HTML
    saved: gr.DownloadButton
    publish: gr.Column


def build_panel(context: Context, tab: gr.Tab, form: MethodForm, chosen: gr.State) -> None:  # noqa: ARG001
    """Draws the jobs inside the current Blocks and wires them.

    `chosen` holds the id of the shown job, '' for none: whoever starts a job sets it, and the panel follows.
    """
    desk = Desk(context, JobBoard(context.home))
    panel = _draw(context, chosen)
    _wire_look(panel, desk)
    _wire_buttons(panel, desk)
    _wire_adapter(panel, desk, form)


def _draw(context: Context, chosen: gr.State) -> Panel:
    with gr.Column(elem_id="train-jobs"):
        gr.HTML("<h2>Training jobs</h2>", apply_default_css=False, js_on_load=None, elem_id="train-jobs-title")
        note = widgets.live("", elem_id="train-jobs-note", role="alert")
        empty = parts.html('<p class="quiet">Looking for jobs ...</p>', "train-jobs-empty")
        with gr.Row(elem_id="train-jobs-room", visible=False) as room:
            jobs = parts.job_list()
            with gr.Column(elem_id="train-job", min_width=0):
                shown = {"head": parts.card("train-job-head"), "line": widgets.live("", elem_id="train-job-line")}
                with gr.Row(elem_id="train-job-actions") as actions:
                    buttons, saved = parts.buttons()
                press_note = widgets.live("", elem_id="train-job-note", role="alert")
                question, asked, answers = parts.question()
                shown |= {
                    "message": parts.html("", "train-job-message"),
                    "failed": parts.html("", "train-job-failed"),
                    "verdict": parts.card("train-job-verdict"),
                }
                shown |= {"curve": parts.curve(), "log": parts.log()}
                with gr.Column(visible=False, elem_id="train-job-publish") as publish:
                    build_publish(context, chosen)
    pulse = parts.pulse()
    return Panel(
        chosen, pulse, note, empty, room, jobs, shown, buttons, actions, question, asked, answers, press_note, saved,
        publish,
    )  # fmt: skip


def _wire_look(panel: Panel, desk: Desk) -> None:
    """One event paints everything, whoever asks for it; so two paintings can never cross."""

    def show(chosen: str | None, request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        asked = event._data if isinstance(event._data, dict) else {}
        try:
            return _painted(panel, look(desk, desk.context.visitors.of(request), chosen, asked), chosen)
        except PeftArenaError as fault:
            return {panel.note: _sentence(str(fault)), panel.pulse: no_look(asked)}
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("The jobs could not be shown.")
            return {panel.note: _sentence(DEFECT), panel.pulse: no_look(asked)}

    outputs = [
        panel.chosen, panel.pulse, panel.note, panel.empty, panel.room, panel.jobs, *panel.parts.values(),
        *panel.buttons.values(), panel.actions, panel.publish, panel.question,
    ]  # fmt: skip
    gr.on(
        [panel.pulse.tick, panel.chosen.change],
        show,
        panel.chosen,
        outputs,
        trigger_mode="always_last",
        **_QUIET,
    )

    def choose(event: gr.EventData) -> tuple[Any, str]:
        return str(event._data.get("id") or "") if isinstance(event._data, dict) else gr.skip(), ""

    # In the queue: only there does Gradio notice that a State changed, which others wait for too.
    panel.jobs.select(choose, None, [panel.chosen, panel.press_note], show_progress="hidden", api_visibility="private")


def _painted(panel: Panel, seen: Look, chosen: str | None) -> dict[Any, Any]:
    """The updates that bring the browser to what was seen."""
    changed = seen.changed
    updates: dict[Any, Any] = {panel.pulse: seen.pulse}
    if "note" in changed:
        updates[panel.note] = _sentence(changed["note"]) if changed["note"] else ""
    if seen.job != (chosen or ""):
        updates[panel.chosen] = seen.job
    if "empty" in changed:
        updates |= {panel.empty: changed["empty"], panel.room: gr.Row(visible=not changed["empty"])}
    if "list" in changed:
        updates[panel.jobs] = changed["list"]
    for name, component in panel.parts.items():
        if name in changed:
            updates[component] = changed[name]
    if "doing" in changed:
        updates |= {
            panel.buttons[name]: gr.Button(value=label, visible=bool(label)) for name, label in changed["doing"].items()
        }
        updates |= {panel.actions: gr.Row(visible=any(changed["doing"].values())), panel.question: _hidden()}
        updates[panel.publish] = gr.Column(visible=bool(changed["doing"]["download"]))
    return updates


def _wire_buttons(panel: Panel, desk: Desk) -> None:
    """Every button acts on the server first and then asks the browser to look again."""

    def acting(act: _Act) -> Callable[..., dict[Any, Any]]:
        def press(chosen: str | None, request: gr.Request) -> dict[Any, Any]:
            try:
                return {panel.press_note: "", **act(request, chosen)}
            except PeftArenaError as fault:
                return {panel.press_note: _sentence(str(fault))}
            except Exception:  # noqa: BLE001 - as above
                _log.exception("A job's button failed.")
                return {panel.press_note: _sentence(DEFECT)}

        return press

    def simply(act: Callable[[gr.Request, str | None], None]) -> _Act:
        def done(request: gr.Request, chosen: str | None) -> Mapping[Any, Any]:
            act(request, chosen)
            return {}

        return done

    def ask(request: gr.Request, chosen: str | None) -> Mapping[Any, Any]:
        job = desk.job(request, chosen)
        adapter = desk.board.adapter_folder(job.id) is not None
        return {
            panel.question: gr.Column(visible=True),
            panel.asked: parts.question_html(job, adapter=adapter),
            panel.answers["both"]: gr.Button(visible=adapter),
        }

    def delete(*, adapter: bool) -> _Act:
        def done(request: gr.Request, chosen: str | None) -> Mapping[Any, Any]:
            desk.delete(request, chosen, adapter=adapter)
            return {panel.question: _hidden(), panel.chosen: ""}

        return done

    presses: list[tuple[gr.Button, _Act, list[Any]]] = [
        (panel.buttons["cancel"], simply(desk.cancel), []),
        (panel.buttons["again"], simply(desk.again), []),
        (panel.buttons["finish"], simply(desk.finish), []),
        (panel.buttons["delete"], ask, [panel.question, panel.asked, panel.answers["both"]]),
        (panel.answers["job"], delete(adapter=False), [panel.question, panel.chosen]),
        (panel.answers["both"], delete(adapter=True), [panel.question, panel.chosen]),
        (panel.answers["keep"], lambda _request, _chosen: {panel.question: _hidden()}, [panel.question]),
    ]
    for button, act, outputs in presses:
        done = button.click(acting(act), panel.chosen, [panel.press_note, *outputs], **_QUIET)
        done.then(None, None, None, js="() => window.peftArenaLook?.()", **_QUIET)


def _wire_adapter(panel: Panel, desk: Desk, form: MethodForm) -> None:
    """What can be done with a finished adapter: open it in Compare, download it."""

    def opened(chosen: str | None, chips: Any) -> list[Any]:
        try:
            job = desk.board.get(chosen or "")
            if desk.context.source.state().phase != "ready":
                raise PeftArenaError("The model is not ready yet: the line at the top says how far it is.")
            updates = opened_with(desk.context.source.engine(), chips, job.adapter)
            if job.adapter in updates[2]:
                raise PeftArenaError(f"'{job.adapter}' cannot be used here: {updates[2][job.adapter]}")
        except PeftArenaError as fault:
            return [gr.skip(), gr.skip(), gr.skip(), _sentence(str(fault))]
        return [*updates, ""]

    def packed(chosen: str | None, request: gr.Request) -> list[Any]:
        try:
            return [gr.DownloadButton(value=desk.packed(request, chosen)), ""]
        except PeftArenaError as fault:
            return [gr.skip(), _sentence(str(fault))]

    going = panel.buttons["open"].click(
        opened, [panel.chosen, form.chips], [form.chips, form.adapter, form.reasons, panel.press_note], **_QUIET
    )
    going.then(None, panel.press_note, None, js=parts.GO_UNLESS_REFUSED, **_QUIET)
    packing = panel.buttons["download"].click(
        packed, panel.chosen, [panel.saved, panel.press_note], show_progress="hidden", api_visibility="private"
    )
    packing.then(None, [panel.press_note, panel.saved], None, js=parts.SAVE_UNLESS_REFUSED, **_QUIET)


def _hidden() -> Any:
    return gr.Column(visible=False)


def _sentence(text: str) -> str:
    return f'<p class="sentence">{escape(text)}</p>'
