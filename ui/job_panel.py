"""Panel of jobs that the Train and the Advise page share: list, selected job, its buttons and the poll of the browser.

The browser polls while the panel is visible (js/job_poll.js) and sends digests of what it has; the answer carries the
parts that changed since. All state comes from the disk, so a refresh or another browser gets the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr
from markupsafe import Markup

from errors import PromptOrTuneError
from jobs.job import Job
from ui.access.guard import guard
from ui.access.policy import Visitor
from ui.components import error_html, load_script
from ui.train.jobs_events import JobActions, PanelUpdate, failed_poll_state

# A script that runs after an action; a note means that the action failed.
OPEN_COMPARE_JS = '(note) => { if (!note) window.promptOrTune.openTab("compare"); }'
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. The jobs go on."
EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_POLL_JS = "() => window.promptOrTune.pollJobs?.()"
_log = logging.getLogger(__name__)
_ActionFn = Callable[[gr.Request, str | None], Mapping[Any, Any]]
# Returns the state of the panel for a visitor with this selected job, after a poll of the browser.
PanelUpdateFn = Callable[[Visitor, str | None, Mapping[str, Any]], PanelUpdate]
# Returns the question before a job is deleted, which has an adapter or has none.
DeleteTextFn = Callable[[Job, bool], Markup]


class Confirmation(NamedTuple):
    """The question before a job is deleted: its column, its text, and the buttons `job`, `both` and `keep`."""

    column: gr.Column
    text: gr.HTML
    buttons: Mapping[str, gr.Button]


@dataclass(frozen=True)
class JobPanel:
    """Components that events read and change. `selected` has the id of the selected job, '' for none."""

    selected: gr.State
    poller: gr.HTML
    note: gr.HTML
    empty: gr.HTML
    layout: gr.Row
    jobs: gr.HTML
    parts: Mapping[str, gr.HTML]
    buttons: Mapping[str, gr.Button]
    actions: gr.Row
    action_note: gr.HTML
    confirmation: Confirmation


def static_html(value: str, elem_id: str) -> gr.HTML:
    """Return a component for HTML without a script; texts in `value` must be escaped."""
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id)


def job_card_component(elem_id: str) -> gr.HTML:
    """Return a component for HTML whose times are shown in the visitor's time zone."""
    return gr.HTML(
        "", html_template="<div></div>", js_on_load=load_script("job_card"), apply_default_css=False, elem_id=elem_id
    )


def job_list_component(elem_id: str, label: str) -> gr.HTML:
    """Return the list of all jobs; a click triggers `select` with {"id"}. `label` is not escaped."""
    template = f'<nav aria-label="{label}"><ol class="jobs"></ol></nav>'
    return gr.HTML(
        {"jobs": []},
        html_template=template,
        js_on_load=load_script("job_list"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def log_component(elem_id: str) -> gr.HTML:
    """Return the folded log; its value is {"job", "lines"}, with None for lines until it is opened."""
    template = (
        '<details class="job-log"><summary>Log</summary><div><button type="button" class="copy">Copy</button>'
        '<pre tabindex="0" aria-label="Log of the job"></pre></div></details>'
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=load_script("job_log"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def poll_component(page: str, parameter: str) -> gr.HTML:
    """Return a component that triggers `tick` while the panel of this tab is visible.

    The id of the selected job is the `parameter` of the URL. The panel is #<page>-jobs, the log #<page>-job-log.
    A gr.Timer would also tick in hidden tabs and windows.
    """
    return gr.HTML(
        None,
        html_template="",
        js_on_load=load_script("job_poll"),
        visible="hidden",
        apply_default_css=False,
        elem_id=f"{page}-poller",
        page=page,
        parameter=parameter,
    )


def action_button(page: str, name: str, label: str) -> gr.Button:
    """Return a button of the selected job, which is hidden until a poll shows it."""
    return gr.Button(
        label,
        size="md",
        scale=0,
        min_width=96,
        variant="primary" if name in ("open", "again") else "secondary",
        visible=False,
        elem_id=f"{page}-job-{name}",
    )


def build_confirmation(page: str, what: str, row_id: str) -> Confirmation:
    """Build the question that is asked before a job is deleted; `what` is "job" or "advice"."""
    with gr.Column(visible=False, elem_id=f"{page}-delete-confirm") as column:
        text = static_html("", f"{page}-delete-text")
        with gr.Row(elem_id=row_id):
            buttons = {
                name: gr.Button(
                    label, size="md", scale=0, min_width=120, variant=variant, elem_id=f"{page}-delete-{name}"
                )
                for name, label, variant in (
                    ("job", f"Delete the {what}", "stop"),
                    ("both", f"Delete the {what} and the adapter", "stop"),
                    ("keep", "Keep it", "secondary"),
                )
            }
    return Confirmation(column, text, buttons)


def wire_poll(
    panel: JobPanel,
    actions: JobActions,
    update: PanelUpdateFn,
    more: Callable[[Mapping[str, Any]], dict[Any, Any]] = lambda _: {},
    more_outputs: Sequence[Any] = (),
) -> None:
    """Wire the one event that updates the whole panel: two updates can then never overtake each other.

    `more` returns updates of `more_outputs` from the labels of the buttons.
    """

    def show(selected: str | None, request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        poll = event._data if isinstance(event._data, dict) else {}
        try:
            visitor = actions.context.visitors.identify(request)
            found = update(visitor, selected, poll)
            labels = found.changed.get("doing")
            return _component_updates(panel, found, selected) | (more(labels) if labels is not None else {})
        except PromptOrTuneError as error:
            return {panel.note: error_html(str(error)), panel.poller: failed_poll_state(poll)}
        except Exception:  # noqa: BLE001 - the page must survive any bug, which is logged
            _log.exception("The jobs could not be shown.")
            return {panel.note: error_html(INTERNAL_ERROR), panel.poller: failed_poll_state(poll)}

    visitors = actions.context.visitors
    outputs = [
        panel.selected, panel.poller, panel.note, panel.empty, panel.layout, panel.jobs, *panel.parts.values(),
        *panel.buttons.values(), panel.actions, panel.confirmation.column, *more_outputs,
    ]  # fmt: skip
    gr.on(
        [panel.poller.tick, panel.selected.change],
        guard(visitors, "view pages", show),
        panel.selected,
        outputs,
        trigger_mode="always_last",
        **EVENT_OPTIONS,
    )

    def choose(event: gr.EventData) -> tuple[Any, str]:
        return str(event._data.get("id") or "") if isinstance(event._data, dict) else gr.skip(), ""

    # This event uses the queue: only there does Gradio notice that a State changed, which triggers other events.
    panel.jobs.select(
        guard(visitors, "view pages", choose),
        None,
        [panel.selected, panel.action_note],
        show_progress="hidden",
        api_visibility="private",
    )


def _component_updates(panel: JobPanel, update: PanelUpdate, selected: str | None) -> dict[Any, Any]:
    """Return the updates of the components whose values changed."""
    changed = update.changed
    updates: dict[Any, Any] = {panel.poller: update.poll_state}
    if "note" in changed:
        updates[panel.note] = error_html(changed["note"]) if changed["note"] else ""
    if update.job != (selected or ""):
        updates[panel.selected] = update.job
    if "empty" in changed:
        updates |= {panel.empty: changed["empty"], panel.layout: gr.Row(visible=not changed["empty"])}
    if "list" in changed:
        updates[panel.jobs] = changed["list"]
    for name, component in panel.parts.items():
        if name in changed:
            updates[component] = changed[name]
    if "doing" in changed:
        updates |= {
            panel.buttons[name]: gr.Button(value=label, visible=bool(label)) for name, label in changed["doing"].items()
        }
        updates |= {panel.actions: gr.Row(visible=any(changed["doing"].values())), panel.confirmation.column: _hidden()}
    return updates


def wire_buttons(panel: JobPanel, actions: JobActions, delete_text: DeleteTextFn) -> None:
    """Wire the buttons that change a job: each acts on the server, and then the browser polls."""

    def click_handler(act: _ActionFn) -> Callable[..., dict[Any, Any]]:
        def click(selected: str | None, request: gr.Request) -> dict[Any, Any]:
            try:
                return {panel.action_note: "", **act(request, selected)}
            except PromptOrTuneError as error:
                return {panel.action_note: error_html(str(error))}
            except Exception:  # noqa: BLE001 - as above
                _log.exception("An action on a job failed.")
                return {panel.action_note: error_html(INTERNAL_ERROR)}

        return click

    def without_updates(act: Callable[[gr.Request, str | None], None]) -> _ActionFn:
        def run(request: gr.Request, selected: str | None) -> Mapping[Any, Any]:
            act(request, selected)
            return {}

        return run

    column, text, answers = panel.confirmation

    def confirm(request: gr.Request, selected: str | None) -> Mapping[Any, Any]:
        job = actions.require_job(request, selected, "delete a job")
        adapter = actions.job_service.adapter_folder(job.id) is not None
        return {
            column: gr.Column(visible=True),
            text: delete_text(job, adapter),
            answers["both"]: gr.Button(visible=adapter),
        }

    def delete(*, adapter: bool) -> _ActionFn:
        def run(request: gr.Request, selected: str | None) -> Mapping[Any, Any]:
            actions.delete(request, selected, adapter=adapter)
            return {column: _hidden(), panel.selected: ""}

        return run

    def hide(_request: gr.Request, _selected: str | None) -> Mapping[Any, Any]:
        return {column: _hidden()}

    def refuse(reason: str, _: Sequence[Any]) -> dict[Any, Any]:
        return {panel.action_note: error_html(reason)}

    changes = {"cancel": actions.cancel, "again": actions.resume, "finish": actions.finish}
    clicks: list[tuple[gr.Button, str, _ActionFn, list[Any]]] = [
        *(
            (panel.buttons[name], "change a job", without_updates(act), [])
            for name, act in changes.items()
            if name in panel.buttons
        ),
        (panel.buttons["delete"], "delete a job", confirm, [column, text, answers["both"]]),
        (answers["job"], "delete a job", delete(adapter=False), [column, panel.selected]),
        (answers["both"], "delete a job", delete(adapter=True), [column, panel.selected]),
        (answers["keep"], "view pages", hide, [column]),
    ]
    for button, name, act, outputs in clicks:
        handler = guard(actions.context.visitors, name, click_handler(act), refuse)
        clicked = button.click(handler, panel.selected, [panel.action_note, *outputs], **EVENT_OPTIONS)
        clicked.then(None, None, None, js=_POLL_JS, **EVENT_OPTIONS)


def _hidden() -> Any:
    return gr.Column(visible=False)
