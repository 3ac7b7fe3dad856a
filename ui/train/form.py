"""Components of the Train form: rows, report, technique, settings, training target, start button.

The training target is the serving machine, Hugging Face Jobs, or a command to copy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from errors import PromptOrTuneError
from jobs.hf_jobs.follow import (
    DEFAULT_HARDWARE,
    MAX_HOURS,
    RemoteHardware,
    check_hardware,
    list_hardware,
    list_hardware_with_prices,
)
from jobs.hf_jobs.submit import manual_commands
from jobs.job import ServingOptions
from tasks.datasets.own import is_own_dataset
from ui import components
from ui.access.guard import action, declare
from ui.access.policy import Visitor
from ui.components import error_html
from ui.context import Context
from ui.train.settings import (
    build_main_fields,
    build_more_fields,
    radio_choices,
    read_technique_score,
    recommended_technique,
    scores_note,
)

LOCATION_CHOICES = [("This machine", "here"), ("Hugging Face Jobs", "hub")]
_CACHE_SECONDS = 3600.0
_EVENT_OPTIONS = {"show_progress": "hidden", "api_visibility": "private"}
HEADER_HTML = Markup(
    "<h1>Can it learn your kind of code?</h1>"
    '<ol class="lead"><li><strong>Show it pairs</strong> of what you ask and the code you want: some hundred rows, or '
    "sixty to try.</li><li><strong>It learns a small file</strong> (an adapter, a few MB) that adapts the model to "
    "your rows; the model itself stays as it is.</li><li><strong>It is scored on rows it never saw</strong>, so you "
    "know whether it was worth it.</li></ol>"
    '<p class="lead-link"><a href="#train-jobs">To the jobs that run or ended</a></p>'
)
FULL_FINE_TUNING_HTML = Markup(
    "<details><summary>Full fine-tuning</summary><p>It changes every weight, and gives a whole model as large as the "
    "base instead of an adapter, so it is no job here. On a machine with memory for it: "
    "<code>python -m train --technique full</code>, then start Prompt or Tune with its folder as <code>--base</code>."
    "</p></details>"
)
OWN_ROWS_ARE_HERE = "# The rows of {} are on this machine alone: start the job above, which sends them."
NO_LOCAL_BASE = (
    "Another engine answers here, and training needs the base itself: start Prompt or Tune without --backend, or with "
    "--base, to train."
)


@dataclass(frozen=True)
class TrainingTarget:
    """Components of the training target.

    `location` has a jobs.job.ComputeTarget, `flavor` the hardware of Hugging Face Jobs (used with "hub" only);
    `command_updates` returns the updates of `commands`.
    """

    location: gr.Radio
    flavor: gr.Dropdown
    commands: tuple[gr.Textbox, gr.Textbox]


class HardwarePrices:
    """Hardware of Hugging Face Jobs with prices, requested from the Hub at most once an hour. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fetched_at = float("-inf")
        self._hardware: list[RemoteHardware] = []

    def get(self) -> list[RemoteHardware]:
        """Return all machines with prices. Raises PromptOrTuneError if the Hub does not answer."""
        from huggingface_hub import get_token

        with self._lock:
            if time.monotonic() - self._fetched_at >= _CACHE_SECONDS:
                self._hardware = list_hardware_with_prices(get_token() or "")
                self._fetched_at = time.monotonic()
            return self._hardware

    def cached(self) -> list[RemoteHardware]:
        """Return the machines that are known already, without a request."""
        return self._hardware or list_hardware()


def build_training_target(context: Context) -> TrainingTarget:
    """Build the target's fields in the current Blocks and wire their events."""
    prices = HardwarePrices()
    location = gr.Radio(LOCATION_CHOICES, value="here", label="Where it trains", elem_id="train-location")
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
                placeholder="The command appears here when there are rows and settings that can train.",
                elem_id=f"train-command-{name}",
                elem_classes="command",
            )
            for name, label in (("here", "On a machine of your own"), ("hub", "On Hugging Face Jobs"))
        ]

    def choose(location: str | None, machine: str | None, request: gr.Request) -> Iterator[list[Any]]:
        location, machine = location or "here", machine or ""
        visitor = context.visitors.identify(request)
        denied = denied_reason(context, visitor, location) if location != "here" else None
        if location == "here" or denied:
            yield [gr.Dropdown(visible=False), error_html(denied) if denied else ""]
            return
        yield [
            gr.Dropdown(visible=True),
            hardware_html(machine, prices.cached()) + Markup('<p class="muted">Requesting the prices ...</p>'),
        ]
        try:
            hardware = prices.get()
        except PromptOrTuneError as error:
            unknown = error_html(f"Prices are not known: {error}")
            yield [gr.Dropdown(visible=True), hardware_html(machine, prices.cached()) + unknown]
            return
        value = machine if machine in [option.name for option in hardware] else None
        # A browser may get only the last of several quick updates, so each of them is complete.
        yield [gr.Dropdown(_hardware_choices(hardware), value=value, visible=True), hardware_html(machine, hardware)]

    @action("view pages")
    def show_price(machine: str) -> Markup:
        return hardware_html(machine, prices.cached())

    location.change(declare("view pages", choose), [location, flavor], [flavor, note], **_EVENT_OPTIONS)
    flavor.input(show_price, flavor, note, queue=False, **_EVENT_OPTIONS)
    return TrainingTarget(location, flavor, (boxes[0], boxes[1]))


def command_updates(
    config: Mapping[str, Any], serving: ServingOptions, upload_name: str = "", flavor: str = ""
) -> list[Any]:
    """Return updates of TrainingTarget.commands; settings that cannot train leave them empty."""
    try:
        check_hardware(flavor or DEFAULT_HARDWARE)
        commands = manual_commands(config, serving, upload_name, flavor or DEFAULT_HARDWARE)
    except PromptOrTuneError:
        return [gr.Textbox(""), gr.Textbox("")]
    name = str(config["dataset_name"])
    if not upload_name and is_own_dataset(name):
        commands[1] = commands[1][0], OWN_ROWS_ARE_HERE.format(name)
    return [gr.Textbox(command, label=label) for label, command in commands]


def denied_reason(context: Context, visitor: Visitor, location: str) -> str | None:
    """Return why this visitor may not train there; None if they may."""
    policy = context.visitors.policy
    denied = policy.denied_reason(visitor, "train")
    if denied or location == "here":
        return denied
    if location != "hub":
        return f"'{location[:40]}' is not a training target: choose this machine or Hugging Face Jobs."
    if not policy.may(visitor, "train on Hugging Face Jobs"):
        return "Hugging Face Jobs costs the owner of this app money, so only the owner may use it: train here instead."
    return _remote_unavailable_reason(context.serving.base)


def hardware_html(machine: str, machines: Sequence[RemoteHardware]) -> Markup:
    """Return what training on Hugging Face Jobs means and costs."""
    hardware = next((option for option in machines if option.name == machine), None)
    price = hardware.price_per_hour if hardware else None
    cost = Markup("A job ends after {} hours at the latest.").format(MAX_HOURS)
    if price is not None:
        cost = Markup(
            "You pay the Hub for the time it takes, ${:.2f} an hour, and a job ends after {} hours: "
            "<strong>${:.2f} at most</strong>."
        ).format(price, MAX_HOURS, price * MAX_HOURS)
    what = (
        "Your rows, the settings and the program go to a private data set of this machine's account on the Hub. The "
        "adapter comes back by itself and is scored here."
    )
    return Markup('<p class="muted">{} {}</p>').format(what, cost)


def _remote_unavailable_reason(base: str) -> str | None:
    """Return why no job can be sent to Hugging Face Jobs; None if it can."""
    from huggingface_hub import get_token

    if not base:
        return "Another engine answers here, so there is no base to train for: start the app with --base."
    if base.endswith(".gguf") or base.startswith((".", "/", "~")) or Path(base).is_dir():
        return "The base is on this machine only and is not sent: start the app with a base of the Hub."
    if not get_token():
        return "This machine is not logged in to the Hub: run `hf auth login` on it, or set HF_TOKEN, and choose again."
    return None


def _hardware_choices(machines: Sequence[RemoteHardware]) -> list[tuple[str, str]]:
    return [(option.label, option.name) for option in machines]


@dataclass(frozen=True)
class TrainForm:
    """Components of the form. `fields` have the order of ALL_SETTINGS; `draft_key` identifies the reported rows."""

    file: gr.File
    own_data: gr.Dropdown
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
        """The inputs of every event, in the order of `events.FormValues`."""
        return [self.intent, self.code, self.technique, self.target.location, self.target.flavor, *self.fields]

    @property
    def outputs(self) -> list[Any]:
        """The outputs of every event."""
        return [
            self.file, self.own_data, self.dataset_name, self.note, self.progress, self.report, self.intent, self.code,
            self.examples, self.technique, *self.fields, *self.target.commands, self.cost, self.start, self.start_note,
            self.draft_key, self.selected_job,
        ]  # fmt: skip


def build_form(context: Context, selected_job: gr.State) -> TrainForm:
    """Build the form in the current column."""
    gr.HTML(HEADER_HTML, apply_default_css=False, js_on_load=components.load_script("radios"), elem_id="train-head")
    with gr.Row(elem_id="train-rows", equal_height=True):
        file = gr.File(label="A file: JSONL, JSON, CSV or Parquet", height=150, scale=3, elem_id="train-file")
        with gr.Column(scale=2, min_width=280, elem_id="train-other-rows"):
            own_data = gr.Dropdown(
                [], value=None, label="Or a data set of yours", visible=False, min_width=180, elem_id="train-own"
            )
            with gr.Row(elem_id="train-by-name"):
                dataset_name = gr.Textbox(
                    label="Or a data set by name", placeholder="user/name on the Hub, conala, mbpp …", max_lines=1,
                    min_width=180, elem_id="train-named",
                )  # fmt: skip
                use_dataset = gr.Button("Use it", size="md", scale=0, min_width=88, elem_id="train-use-named")
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
        remove_rows = gr.Button("Remove these rows", size="md", scale=0, min_width=150, elem_id="train-remove-rows")
    progress = components.live_region("", elem_id="train-busy")
    examples = _static_html("", elem_id="train-examples")
    technique = _build_technique(context)
    with gr.Row(elem_id="train-main"):
        main_fields = build_main_fields(recommended_technique(context.serving))
    with gr.Accordion("More settings", open=False, elem_id="train-more"):
        more_fields = build_more_fields(recommended_technique(context.serving))
    with gr.Column(elem_id="train-target"):
        target = build_training_target(context)
    cost = _static_html("", elem_id="train-cost")
    with gr.Row(elem_id="train-begin"):
        start = gr.Button("Start training", variant="primary", size="lg", scale=0, min_width=200, elem_id="train-start")
        start_note = components.live_region("", elem_id="train-start-note", role="alert")
    return TrainForm(
        file, own_data, dataset_name, use_dataset, example, note, progress, report, intent, code, remove_rows, examples,
        technique, [*main_fields, *more_fields], target, cost, start, start_note, gr.State(""), selected_job,
    )  # fmt: skip


def _build_technique(context: Context) -> gr.Radio:
    technique_score = read_technique_score()
    technique = gr.Radio(
        radio_choices(context.serving, technique_score),
        value=recommended_technique(context.serving),
        label="How it learns",
        elem_id="train-technique",
    )
    note = scores_note(context.serving, technique_score)
    _static_html(
        (Markup('<p class="muted">{}</p>').format(note) if note else "") + FULL_FINE_TUNING_HTML,
        elem_id="train-technique-note",
    )
    return technique


def _static_html(value: str, *, elem_id: str) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id)
