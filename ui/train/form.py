"""Form components, training target.

The upper half of the Train page as components: rows, their report, technique, settings, place, start.

Where a job trains: on the machine that serves the page, on Hugging Face Jobs, or by a command to copy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from jobs.hf_jobs.hardware import (
    DEFAULT_HARDWARE,
    MAX_HOURS,
    RemoteHardware,
    check_hardware,
    list_hardware,
    list_hardware_with_prices,
)
from jobs.hf_jobs.submit import manual_commands
from jobs.job import ServingOptions
from ui import components
from ui.context import Context
from ui.train import settings
from ui.visitors import Visitor

__all__ = ["TrainingTarget", "build_training_target", "command_updates", "denied_reason", "manual_commands"]

LOCATION_CHOICES = [("This machine", "here"), ("Hugging Face Jobs", "hub")]
_CACHE_SECONDS = 3600.0
_EVENT_OPTIONS = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class TrainingTarget:
    """The components. `place` is a jobs.job.Where, `flavor` a machine of Hugging Face Jobs (used with "hub" alone).

    `commands` are what `shown` gives updates for.
    """

    location: gr.Radio
    flavor: gr.Dropdown
    commands: tuple[gr.Textbox, gr.Textbox]


class HardwarePrices:
    """The machines as the Hub lists them, asked for once an hour. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fetched_at = float("-inf")
        self._hardware: list[RemoteHardware] = []

    def get(self) -> list[RemoteHardware]:
        """All machines with prices; PromptOrTuneError in one sentence where the Hub does not answer."""
        from huggingface_hub import get_token

        with self._lock:
            if time.monotonic() - self._fetched_at >= _CACHE_SECONDS:
                self._hardware = list_hardware_with_prices(get_token() or "")
                self._fetched_at = time.monotonic()
            return self._hardware

    def cached(self) -> list[RemoteHardware]:
        """Those that are known already; asks nobody."""
        return self._hardware or list_hardware()


def build_training_target(context: Context) -> TrainingTarget:
    """Draws the choice inside the current Blocks and wires it."""
    prices = HardwarePrices()
    place = gr.Radio(LOCATION_CHOICES, value="here", label="Where it trains", elem_id="train-location")
    flavor = gr.Dropdown(
        _hardware_choices(list_hardware()),
        value=DEFAULT_HARDWARE,
        label="Machine",
        visible=False,
        elem_id="train-flavor",
    )
    note = components.live_region("", elem_id="train-location-note")
    with gr.Accordion("The same as a command to copy", open=False, elem_id="train-commands"):
        boxes = [
            gr.Textbox(
                label=label,
                lines=2,
                max_lines=14,
                interactive=False,
                buttons=["copy"],
                placeholder="The command stands here as soon as there are rows and settings that can train.",
                elem_id=f"train-command-{name}",
                elem_classes="command",
            )
            for name, label in (("here", "On a machine of your own"), ("hub", "On Hugging Face Jobs"))
        ]

    def choose(chosen: str, machine: str, request: gr.Request) -> Iterator[list[Any]]:
        refused = denied_reason(context, context.visitors.identify(request), chosen) if chosen != "here" else None
        if chosen == "here" or refused:
            yield [gr.Dropdown(visible=False), _error_html(refused)]
            return
        yield [
            gr.Dropdown(visible=True),
            hardware_html(machine, prices.cached()) + '<p class="muted">Asking what the machines cost ...</p>',
        ]
        try:
            found = prices.get()
        except PromptOrTuneError as error:
            unknown = _error_html(f"Prices are not known: {error}")
            yield [gr.Dropdown(visible=True), hardware_html(machine, prices.cached()) + unknown]
            return
        value = machine if machine in [each.name for each in found] else None
        # Of updates that follow one another quickly a browser may see the last alone, so each is whole.
        yield [gr.Dropdown(_hardware_choices(found), value=value, visible=True), hardware_html(machine, found)]

    place.change(choose, [place, flavor], [flavor, note], **_EVENT_OPTIONS)
    flavor.input(lambda machine: hardware_html(machine, prices.cached()), flavor, note, queue=False, **_EVENT_OPTIONS)
    return TrainingTarget(place, flavor, (boxes[0], boxes[1]))


def command_updates(
    config: Mapping[str, Any], serving: ServingOptions, upload_name: str = "", flavor: str = ""
) -> list[Any]:
    """Updates for `Where.commands`; settings that cannot train leave them empty."""
    try:
        check_hardware(flavor or DEFAULT_HARDWARE)
        found = manual_commands(config, serving, upload_name, flavor or DEFAULT_HARDWARE)
    except PromptOrTuneError:
        return [gr.Textbox(""), gr.Textbox("")]
    return [gr.Textbox(command, label=label) for label, command in found]


def denied_reason(context: Context, visitor: Visitor, location: str) -> str | None:
    """Why this visitor may not train there, in one sentence; None where they may. To be asked on the server."""
    refused = context.visitors.training_denied_reason(visitor)
    if refused or location == "here":
        return refused
    if location != "hub":
        return f"'{location[:40]}' is no place to train: choose this machine or Hugging Face Jobs."
    if not visitor.owner:
        return "Hugging Face Jobs costs the owner of this app money, so only the owner may use it: train here instead."
    return _remote_unavailable_reason(context.serving.base)


def hardware_html(machine: str, machines: Sequence[RemoteHardware]) -> str:
    """What choosing Hugging Face Jobs means and costs, as HTML."""
    found = next((each for each in machines if each.name == machine), None)
    price = found.price_per_hour if found else None
    cost = f"A job ends after {MAX_HOURS} hours at the latest."
    if price is not None:
        cost = (
            f"You pay the Hub for the time it takes, ${price:.2f} an hour, and a job ends after {MAX_HOURS} hours: "
            f"<strong>${price * MAX_HOURS:.2f} at most</strong>."
        )
    what = (
        "Your rows, the settings and the program go to a private data set of this machine's account on the Hub. The "
        "adapter comes back by itself and is scored here."
    )
    return f'<p class="muted">{what} {cost}</p>'


def _remote_unavailable_reason(base: str) -> str | None:
    """Why nothing can be sent from here, in one sentence."""
    from huggingface_hub import get_token

    if not base:
        return "Another engine answers here, so there is no base to train for: start the app with --base."
    if base.endswith(".gguf") or base.startswith((".", "/", "~")) or Path(base).is_dir():
        return "The base lies on this machine alone and is not sent: start the app with a base of the Hub."
    if not get_token():
        return "This machine is not logged in to the Hub: run `hf auth login` on it, or set HF_TOKEN, and choose again."
    return None


def _hardware_choices(machines: Sequence[RemoteHardware]) -> list[tuple[str, str]]:
    return [(each.label, each.name) for each in machines]


def _error_html(text: str | None) -> str:
    return f'<p class="error-message">{escape(text)}</p>' if text else ""


HEADER_HTML = (
    "<h1>Can it learn your kind of code?</h1>"
    '<ol class="lead"><li><strong>Show it pairs</strong> of what you ask and the code you want: some hundred rows, or '
    "sixty to try.</li><li><strong>It learns a small file</strong> (an adapter, a few MB) that bends the model towards "
    "your rows; the model itself stays as it is.</li><li><strong>It is scored on rows it never saw</strong>, so you "
    "know whether it was worth it.</li></ol>"
    '<p class="lead-link"><a href="#train-jobs">To the jobs that run or ended</a></p>'
)
FULL_FINE_TUNING_HTML = (
    "<details><summary>Full fine-tuning</summary><p>It changes every weight, and gives a whole model as large as the "
    "base instead of an adapter, so it is no job here. On a machine with memory for it: "
    "<code>python -m train --technique full</code>, then start Prompt or Tune with its folder as <code>--base</code>."
    "</p></details>"
)
NO_LOCAL_BASE = (
    "Another engine answers here, and training needs the base itself: start Prompt or Tune without --backend, or with "
    "--base, to train."
)


@dataclass(frozen=True)
class TrainForm:
    """The components. `fields` are in the order of settings_form.ALL; `shown` knows which rows are reported."""

    file: gr.File
    dataset_name: gr.Textbox
    use_dataset: gr.Button
    example: gr.Button
    note: gr.HTML
    progress: gr.HTML
    report: gr.HTML
    intent: gr.Dropdown
    code: gr.Dropdown
    remove_rows: gr.Button
    examples: gr.HTML
    technique: gr.Radio
    fields: Sequence[Any]
    target: TrainingTarget
    cost: gr.HTML
    start: gr.Button
    start_note: gr.HTML
    draft_key: gr.State
    selected_job: gr.State

    @property
    def inputs(self) -> list[Any]:
        """What every event reads, in the order of `events.Filled`."""
        return [self.intent, self.code, self.technique, self.target.location, self.target.flavor, *self.fields]

    @property
    def outputs(self) -> list[Any]:
        """What every event may change."""
        return [
            self.file, self.dataset_name, self.note, self.progress, self.report, self.intent, self.code,
            self.examples, self.technique, *self.fields, *self.target.commands, self.cost, self.start, self.start_note,
            self.draft_key, self.selected_job,
        ]  # fmt: skip


def build_form(context: Context, selected_job: gr.State) -> TrainForm:
    """Draws it inside the current column."""
    gr.HTML(HEADER_HTML, apply_default_css=False, js_on_load=components.load_script("radios"), elem_id="train-head")
    with gr.Row(elem_id="train-rows", equal_height=True):
        file = gr.File(label="A file: JSONL, JSON, CSV or Parquet", height=150, scale=3, elem_id="train-file")
        with gr.Column(scale=2, min_width=280, elem_id="train-other-rows"):
            with gr.Row(elem_id="train-by-name"):
                named = gr.Textbox(
                    label="Or a data set by name", placeholder="user/name on the Hub, conala, mbpp …", max_lines=1,
                    min_width=180, elem_id="train-named",
                )  # fmt: skip
                use = gr.Button("Use it", size="md", scale=0, min_width=88, elem_id="train-use-named")
            example = gr.Button(
                "Try it with 60 example rows", size="md", variant="secondary", scale=0, elem_id="train-example"
            )
    note = components.live_region("", elem_id="train-note", role="alert")
    report = _static_html("", elem_id="train-report")
    with gr.Row(elem_id="train-mapping"):
        intent = gr.Dropdown(
            [], value=None, label="Column with what to do", min_width=170, elem_id="train-intent-column"
        )
        code = gr.Dropdown([], value=None, label="Column with the code", min_width=170, elem_id="train-code-column")
        forget = gr.Button("Remove these rows", size="md", scale=0, min_width=150, elem_id="train-remove-rows")
    busy = components.live_region("", elem_id="train-busy")
    examples = _static_html("", elem_id="train-examples")
    technique = _build_technique(context)
    with gr.Row(elem_id="train-main"):
        main = settings.build_main_fields(settings.recommended_technique(context.serving))
    with gr.Accordion("More settings", open=False, elem_id="train-more"):
        more = settings.build_more_fields(settings.recommended_technique(context.serving))
    with gr.Column(elem_id="train-target"):
        where = build_training_target(context)
    cost = _static_html("", elem_id="train-cost")
    with gr.Row(elem_id="train-begin"):
        start = gr.Button("Start training", variant="primary", size="lg", scale=0, min_width=200, elem_id="train-start")
        start_note = components.live_region("", elem_id="train-start-note", role="alert")
    return TrainForm(
        file, named, use, example, note, busy, report, intent, code, forget, examples, technique,
        [*main, *more], where, cost, start, start_note, gr.State(""), selected_job,
    )  # fmt: skip


def _build_technique(context: Context) -> gr.Radio:
    measured = settings.read_technique_score()
    technique = gr.Radio(
        settings.radio_choices(context.serving, measured),
        value=settings.recommended_technique(context.serving),
        label="How it learns",
        elem_id="train-technique",
    )
    about = settings.scores_note(context.serving, measured)
    _static_html(
        (f'<p class="muted">{escape(about)}</p>' if about else "") + FULL_FINE_TUNING_HTML,
        elem_id="train-technique-note",
    )
    return technique


def _static_html(value: str, *, elem_id: str) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id)
