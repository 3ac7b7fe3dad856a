"""The upper half of the Train page as components: rows, their report, technique, settings, place, start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ui import widgets
from ui.context import Context
from ui.train import cards, settings_form
from ui.train.where import TrainingTarget, build_training_target

HEADER_HTML = (
    "<h1>Can it learn your kind of code?</h1>"
    '<ol class="lead"><li><strong>Show it pairs</strong> of what you ask and the code you want: some hundred rows, or '
    "sixty to try.</li><li><strong>It learns a small file</strong> (an adapter, a few MB) that bends the model towards "
    "your rows; the model itself stays as it is.</li><li><strong>It is scored on rows it never saw</strong>, so you "
    "know whether it was worth it.</li></ol>"
    '<p class="lead-on"><a href="#train-jobs">To the jobs that run or ended</a></p>'
)
FULL_FINE_TUNING_HTML = (
    "<details><summary>Full fine-tuning</summary><p>It changes every weight, and gives a whole model as large as the "
    "base instead of an adapter, so it is no job here. On a machine with memory for it: "
    "<code>python -m train --technique full</code>, then start Peft Arena with its folder as <code>--base</code>."
    "</p></details>"
)
NO_LOCAL_BASE = (
    "Another engine answers here, and training needs the base itself: start Peft Arena without --backend, or with "
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
    gr.HTML(HEADER_HTML, apply_default_css=False, js_on_load=widgets.load_script("radios"), elem_id="train-head")
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
    note = widgets.live_region("", elem_id="train-note", role="alert")
    report = _static_html("", elem_id="train-report")
    with gr.Row(elem_id="train-mapping"):
        intent = gr.Dropdown(
            [], value=None, label="Column with what to do", min_width=170, elem_id="train-intent-column"
        )
        code = gr.Dropdown([], value=None, label="Column with the code", min_width=170, elem_id="train-code-column")
        forget = gr.Button("Remove these rows", size="md", scale=0, min_width=150, elem_id="train-forget")
    busy = widgets.live_region("", elem_id="train-busy")
    examples = _static_html("", elem_id="train-examples")
    technique = _build_technique(context)
    with gr.Row(elem_id="train-main"):
        main = settings_form.build_main_fields(cards.recommended_technique(context.serving))
    with gr.Accordion("More settings", open=False, elem_id="train-more"):
        more = settings_form.build_more_fields(cards.recommended_technique(context.serving))
    with gr.Column(elem_id="train-place"):
        where = build_training_target(context)
    cost = _static_html("", elem_id="train-cost")
    with gr.Row(elem_id="train-begin"):
        start = gr.Button("Start training", variant="primary", size="lg", scale=0, min_width=200, elem_id="train-start")
        start_note = widgets.live_region("", elem_id="train-start-note", role="alert")
    return TrainForm(
        file, named, use, example, note, busy, report, intent, code, forget, examples, technique,
        [*main, *more], where, cost, start, start_note, gr.State(""), selected_job,
    )  # fmt: skip


def _build_technique(context: Context) -> gr.Radio:
    measured = cards.read_technique_score()
    technique = gr.Radio(
        cards.radio_choices(context.serving, measured),
        value=cards.recommended_technique(context.serving),
        label="How it learns",
        elem_id="train-technique",
    )
    about = cards.scores_note(context.serving, measured)
    _static_html(
        (f'<p class="quiet">{escape(about)}</p>' if about else "") + FULL_FINE_TUNING_HTML,
        elem_id="train-technique-note",
    )
    return technique


def _static_html(value: str, *, elem_id: str) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id)
