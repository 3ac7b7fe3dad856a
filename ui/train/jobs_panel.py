"""Jobs panel.

The jobs' half of the Train page: all jobs, the chosen one live, and what a person may do with it.

The browser asks how things are while somebody looks (js/job_poll.js), and says what it shows already: an answer
carries what changed since. Everything comes from the disk, so that a refresh or a second browser shows the same.

The panel's pieces: what draws the list, the curve and the log, the buttons, and the question before deleting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job
from ui import components
from ui.components import load_script
from ui.context import Context
from ui.method_form import MethodForm, add_adapter_updates
from ui.train.jobs_events import JobActions, PanelUpdate, failed_poll_state, panel_update
from ui.train.publish import build_publish

# What follows a press whose sentence stayed empty.
OPEN_COMPARE_JS = '(note) => { if (!note) window.promptOrTune.openTab("compare"); }'
SAVE_ZIP_JS = "(note, file) => { if (!note && file) window.promptOrTune.downloadFile(file); }"


def static_html(value: str, elem_id: str) -> gr.HTML:
    """HTML that was escaped where it was made."""
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id)


def job_card_component(elem_id: str) -> gr.HTML:
    """HTML whose times are told in the visitor's own time zone."""
    return gr.HTML(
        "", html_template="<div></div>", js_on_load=load_script("job_card"), apply_default_css=False, elem_id=elem_id
    )


def job_list_component() -> gr.HTML:
    """All jobs; a click triggers `select` with {"id"}."""
    template = '<nav aria-label="Training jobs"><ol class="jobs"></ol></nav>'
    return gr.HTML(
        {"jobs": []},
        html_template=template,
        js_on_load=load_script("job_list"),
        apply_default_css=False,
        elem_id="train-job-list",
    )


def loss_curve_component() -> gr.HTML:
    """The losses by step; its value is ui.train.jobs_view.Curve with the job's id."""
    return gr.HTML(
        None,
        html_template='<div class="loss-curve" role="group" aria-label="Loss by step" hidden></div>',
        js_on_load=load_script("loss_curve"),
        apply_default_css=False,
        elem_id="train-job-curve",
    )


def log_component() -> gr.HTML:
    """The log, folded. Its lines are asked for when it is opened; its value is {"job", "lines" or None}."""
    template = (
        '<details class="job-log"><summary>Log</summary><div><button type="button" class="copy">Copy</button>'
        '<pre tabindex="0" aria-label="Log of the job"></pre></div></details>'
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=load_script("job_log"),
        apply_default_css=False,
        elem_id="train-job-log",
    )


def poll_component() -> gr.HTML:
    """Triggers `tick` while somebody looks at the panel.

    Not a gr.Timer: that one ticks on in tabs and windows that nobody sees.
    """
    return gr.HTML(
        None,
        html_template="",
        js_on_load=load_script("job_poll"),
        visible="hidden",
        apply_default_css=False,
        elem_id="train-poller",
    )


def build_action_buttons() -> tuple[dict[str, gr.Button], gr.DownloadButton]:
    """What can be done with a job, in reading order; `panel_look.doing` says which of them stand."""
    made = {
        name: gr.Button(
            label,
            size="md",
            scale=0,
            min_width=96,
            variant="primary" if name in ("open", "again") else "secondary",
            visible=False,
            elem_id=f"train-job-{name}",
        )
        for name, label in (
            ("open", "Open in Compare"),
            ("again", "Resume"),
            ("finish", "Make the adapter of the best checkpoint"),
            ("cancel", "Cancel"),
            ("download", "Download as zip"),
            ("delete", "Delete"),
        )
    }
    return made, gr.DownloadButton("Save the zip", visible="hidden", elem_id="train-job-zip")


def build_delete_confirmation() -> tuple[gr.Column, gr.HTML, dict[str, gr.Button]]:
    """Asked before anything is deleted."""
    with gr.Column(visible=False, elem_id="train-delete-confirm") as column:
        asked = static_html("", "train-delete-text")
        with gr.Row(elem_id="train-job-answers"):
            answers = {
                name: gr.Button(
                    label, size="md", scale=0, min_width=120, variant=variant, elem_id=f"train-delete-{name}"
                )
                for name, label, variant in (
                    ("job", "Delete the job", "stop"),
                    ("both", "Delete the job and the adapter", "stop"),
                    ("keep", "Keep it", "secondary"),
                )
            }
    return column, asked, answers


def delete_confirmation_html(job: Job, *, adapter: bool) -> str:
    """What will be gone, and what stays."""
    gone = "Its log, its scores" if adapter else "Its log, its checkpoints"
    kept = f" The adapter '{job.adapter}' stays, unless you delete it too." if adapter else ""
    text = f"Delete the job of '{job.adapter}'? {gone} and its copy of the data go with it.{kept}"
    return f'<p role="alert">{escape(text)}</p>'


INTERNAL_ERROR = "Something went wrong on our side, and the log says what. The jobs go on."
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)
_ActionFn = Callable[[gr.Request, str | None], Mapping[Any, Any]]


@dataclass(frozen=True)
class JobsPanel:
    """The components that events read and change."""

    selected_job: gr.State
    poller: gr.HTML
    note: gr.HTML
    empty: gr.HTML
    layout: gr.Row
    jobs: gr.HTML
    parts: Mapping[str, gr.HTML]
    buttons: Mapping[str, gr.Button]
    actions: gr.Row
    confirmation: gr.Column
    confirmation_text: gr.HTML
    confirmation_buttons: Mapping[str, gr.Button]
    action_note: gr.HTML
    download: gr.DownloadButton
    publish: gr.Column


def build_jobs_panel(context: Context, tab: gr.Tab, form: MethodForm, selected_job: gr.State) -> None:  # noqa: ARG001
    """Draws the jobs inside the current Blocks and wires them.

    `chosen` holds the id of the shown job, '' for none: whoever starts a job sets it, and the panel follows.
    """
    desk = JobActions(context, JobService(context.home))
    panel = _build_components(context, selected_job)
    _wire_poll(panel, desk)
    _wire_buttons(panel, desk)
    _wire_adapter(panel, desk, form)


def _build_components(context: Context, selected_job: gr.State) -> JobsPanel:
    with gr.Column(elem_id="train-jobs"):
        gr.HTML("<h2>Training jobs</h2>", apply_default_css=False, js_on_load=None, elem_id="train-jobs-title")
        note = components.live_region("", elem_id="train-jobs-note", role="alert")
        empty = static_html('<p class="muted">Looking for jobs ...</p>', "train-jobs-empty")
        with gr.Row(elem_id="train-jobs-columns", visible=False) as room:
            jobs = job_list_component()
            with gr.Column(elem_id="train-job", min_width=0):
                shown = {
                    "head": job_card_component("train-job-head"),
                    "line": components.live_region("", elem_id="train-job-line"),
                }
                with gr.Row(elem_id="train-job-actions") as actions:
                    buttons, saved = build_action_buttons()
                press_note = components.live_region("", elem_id="train-job-note", role="alert")
                question, asked, answers = build_delete_confirmation()
                shown |= {
                    "message": static_html("", "train-job-message"),
                    "failed": static_html("", "train-job-failed"),
                    "verdict": job_card_component("train-job-verdict"),
                }
                shown |= {"curve": loss_curve_component(), "log": log_component()}
                with gr.Column(visible=False, elem_id="train-job-publish") as publish:
                    build_publish(context, selected_job)
    pulse = poll_component()
    return JobsPanel(
        selected_job, pulse, note, empty, room, jobs, shown, buttons, actions, question, asked, answers, press_note, saved,
        publish,
    )  # fmt: skip


def _wire_poll(panel: JobsPanel, job_actions: JobActions) -> None:
    """One event paints everything, whoever asks for it; so two paintings can never cross."""

    def show(chosen: str | None, request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        asked = event._data if isinstance(event._data, dict) else {}
        try:
            return _component_updates(
                panel, panel_update(job_actions, job_actions.context.visitors.identify(request), chosen, asked), chosen
            )
        except PromptOrTuneError as error:
            return {panel.note: _error_html(str(error)), panel.poller: failed_poll_state(asked)}
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("The jobs could not be shown.")
            return {panel.note: _error_html(INTERNAL_ERROR), panel.poller: failed_poll_state(asked)}

    outputs = [
        panel.selected_job, panel.poller, panel.note, panel.empty, panel.layout, panel.jobs, *panel.parts.values(),
        *panel.buttons.values(), panel.actions, panel.publish, panel.confirmation,
    ]  # fmt: skip
    gr.on(
        [panel.poller.tick, panel.selected_job.change],
        show,
        panel.selected_job,
        outputs,
        trigger_mode="always_last",
        **_EVENT_OPTIONS,
    )

    def choose(event: gr.EventData) -> tuple[Any, str]:
        return str(event._data.get("id") or "") if isinstance(event._data, dict) else gr.skip(), ""

    # In the queue: only there does Gradio notice that a State changed, which others wait for too.
    panel.jobs.select(
        choose, None, [panel.selected_job, panel.action_note], show_progress="hidden", api_visibility="private"
    )


def _component_updates(panel: JobsPanel, update: PanelUpdate, selected_job: str | None) -> dict[Any, Any]:
    """The updates that bring the browser to what was seen."""
    changed = update.changed
    updates: dict[Any, Any] = {panel.poller: update.poll_state}
    if "note" in changed:
        updates[panel.note] = _error_html(changed["note"]) if changed["note"] else ""
    if update.job != (selected_job or ""):
        updates[panel.selected_job] = update.job
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
        updates |= {panel.actions: gr.Row(visible=any(changed["doing"].values())), panel.confirmation: _hidden_column()}
        updates[panel.publish] = gr.Column(visible=bool(changed["doing"]["download"]))
    return updates


def _wire_buttons(panel: JobsPanel, job_actions: JobActions) -> None:
    """Every button acts on the server first and then asks the browser to look again."""

    def acting(act: _ActionFn) -> Callable[..., dict[Any, Any]]:
        def press(chosen: str | None, request: gr.Request) -> dict[Any, Any]:
            try:
                return {panel.action_note: "", **act(request, chosen)}
            except PromptOrTuneError as error:
                return {panel.action_note: _error_html(str(error))}
            except Exception:  # noqa: BLE001 - as above
                _log.exception("A job's button failed.")
                return {panel.action_note: _error_html(INTERNAL_ERROR)}

        return press

    def simply(act: Callable[[gr.Request, str | None], None]) -> _ActionFn:
        def done(request: gr.Request, chosen: str | None) -> Mapping[Any, Any]:
            act(request, chosen)
            return {}

        return done

    def ask(request: gr.Request, chosen: str | None) -> Mapping[Any, Any]:
        job = job_actions.require_job(request, chosen)
        adapter = job_actions.job_service.adapter_folder(job.id) is not None
        return {
            panel.confirmation: gr.Column(visible=True),
            panel.confirmation_text: delete_confirmation_html(job, adapter=adapter),
            panel.confirmation_buttons["both"]: gr.Button(visible=adapter),
        }

    def delete(*, adapter: bool) -> _ActionFn:
        def done(request: gr.Request, chosen: str | None) -> Mapping[Any, Any]:
            job_actions.delete(request, chosen, adapter=adapter)
            return {panel.confirmation: _hidden_column(), panel.selected_job: ""}

        return done

    presses: list[tuple[gr.Button, _ActionFn, list[Any]]] = [
        (panel.buttons["cancel"], simply(job_actions.cancel), []),
        (panel.buttons["again"], simply(job_actions.resume), []),
        (panel.buttons["finish"], simply(job_actions.finish), []),
        (
            panel.buttons["delete"],
            ask,
            [panel.confirmation, panel.confirmation_text, panel.confirmation_buttons["both"]],
        ),
        (panel.confirmation_buttons["job"], delete(adapter=False), [panel.confirmation, panel.selected_job]),
        (panel.confirmation_buttons["both"], delete(adapter=True), [panel.confirmation, panel.selected_job]),
        (
            panel.confirmation_buttons["keep"],
            lambda _request, _chosen: {panel.confirmation: _hidden_column()},
            [panel.confirmation],
        ),
    ]
    for button, act, outputs in presses:
        done = button.click(acting(act), panel.selected_job, [panel.action_note, *outputs], **_EVENT_OPTIONS)
        done.then(None, None, None, js="() => window.promptOrTune.pollJobs?.()", **_EVENT_OPTIONS)


def _wire_adapter(panel: JobsPanel, job_actions: JobActions, form: MethodForm) -> None:
    """What can be done with a finished adapter: open it in Compare, download it."""

    def opened(chosen: str | None, chips: Any) -> list[Any]:
        try:
            job = job_actions.job_service.get_job(chosen or "")
            if job_actions.context.engine_loader.state().phase != "ready":
                raise PromptOrTuneError("The model is not ready yet: the line at the top says how far it is.")
            updates = add_adapter_updates(job_actions.context.engine_loader.engine(), chips, job.adapter)
            if job.adapter in updates[2]:
                raise PromptOrTuneError(f"'{job.adapter}' cannot be used here: {updates[2][job.adapter]}")
        except PromptOrTuneError as error:
            return [gr.skip(), gr.skip(), gr.skip(), _error_html(str(error))]
        return [*updates, ""]

    def packed(chosen: str | None, request: gr.Request) -> list[Any]:
        try:
            return [gr.DownloadButton(value=job_actions.pack_zip(request, chosen)), ""]
        except PromptOrTuneError as error:
            return [gr.skip(), _error_html(str(error))]

    going = panel.buttons["open"].click(
        opened,
        [panel.selected_job, form.chips],
        [form.chips, form.adapter, form.reasons, panel.action_note],
        **_EVENT_OPTIONS,
    )
    going.then(None, panel.action_note, None, js=OPEN_COMPARE_JS, **_EVENT_OPTIONS)
    packing = panel.buttons["download"].click(
        packed,
        panel.selected_job,
        [panel.download, panel.action_note],
        show_progress="hidden",
        api_visibility="private",
    )
    packing.then(None, [panel.action_note, panel.download], None, js=SAVE_ZIP_JS, **_EVENT_OPTIONS)


def _hidden_column() -> Any:
    return gr.Column(visible=False)


def _error_html(text: str) -> str:
    return f'<p class="error-message">{escape(text)}</p>'
