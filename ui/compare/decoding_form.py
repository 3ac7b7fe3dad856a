"""Decoding form: reference, tests, decoding parameters and the pool of examples, in one accordion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from serve.types import MAX_CANDIDATES, SamplingParams
from ui.access.guard import action, pool_choices
from ui.components import EVENT_OPTIONS, decoding_label
from ui.form_fields import SUGGESTED_DATA

DECODING_MODES = [("Greedy", "greedy"), ("Sampling", "sample"), ("Beam search", "beam")]
DEFAULT_CANDIDATES = 5
MAX_NEW_TOKENS = 1024
TESTS_HINT = (
    "Optional. Asserts, test functions, doctests, or inputs and outputs:\n"
    "assert merge(['a'], [1]) == {'a': 1}\n>>> merge([], [])\n{}\nInput: keys = [], values = []\nOutput: {}"
)


@dataclass(frozen=True)
class DecodingForm:
    """The components; those of decoding are in the order of `make_sampling_params`."""

    reference: gr.Textbox
    tests: gr.Textbox
    pool: gr.Dropdown
    mode: gr.Radio
    candidates: gr.Slider
    max_new_tokens: gr.Slider
    temperature: gr.Slider
    top_p: gr.Slider
    seed: gr.Number

    @property
    def decoding_components(self) -> list[gr.components.Component]:
        return [self.mode, self.candidates, self.max_new_tokens, self.temperature, self.top_p, self.seed]


def read_sampling_params(
    mode: str, candidates: float, max_new_tokens: float, temperature: float, top_p: float, seed: float | None
) -> SamplingParams:
    """Build SamplingParams from the fields that `mode` uses. Raises PromptOrTuneError for a bad value."""
    try:
        length = int(max_new_tokens)
        if length > MAX_NEW_TOKENS:
            raise PromptOrTuneError(f"{length} tokens are too many: choose at most {MAX_NEW_TOKENS}.")
        if mode == "greedy":
            return SamplingParams("greedy", length)
        if mode == "beam":
            return SamplingParams("beam", length, int(candidates))
        seed = int(seed or 0) % 2**63
        return SamplingParams("sample", length, int(candidates), float(temperature), float(top_p), seed)
    except (TypeError, ValueError, OverflowError):
        raise PromptOrTuneError("A field of the decoding has no number: fill it in.") from None


def decoding_values(values: dict[str, Any]) -> list[Any]:
    """Return the values of a record's decoding in the order of `DecodingForm.decoding_components`."""
    names = ("mode", "candidates", "max_new_tokens", "temperature", "top_p", "seed")
    return [values[name] for name in names]


def build_options(data_dir: Path | None) -> DecodingForm:
    """Add the accordion and its fields to the current Blocks; its title summarises them."""
    with gr.Accordion(
        _title(SUGGESTED_DATA, *_params_values(SamplingParams())), open=False, elem_id="options"
    ) as accordion:
        with gr.Row():
            reference = gr.Textbox(
                label="Reference code (the answers are scored against it)",
                lines=6, max_lines=14, scale=3, min_width=280, elem_id="reference",
                placeholder="Optional. A test problem brings its own.",
            )  # fmt: skip
            tests = gr.Textbox(
                label="Tests (the answers run against them, in a sandbox)",
                lines=6, max_lines=14, scale=3, min_width=280, elem_id="tests", placeholder=TESTS_HINT,
            )  # fmt: skip
            with gr.Column(scale=2, min_width=260):
                pool = gr.Dropdown(
                    pool_choices(data_dir),
                    value=SUGGESTED_DATA,
                    label="Examples for ICL and RAG come from",
                    elem_id="pool",
                )
                mode = gr.Radio(DECODING_MODES, value="greedy", label="Decoding", elem_id="mode")
        with gr.Row():
            tokens = gr.Slider(
                16,
                MAX_NEW_TOKENS,
                256,
                step=16,
                label="Longest answer in tokens",
                min_width=200,
                elem_id="max-new-tokens",
            )
            candidates = gr.Slider(
                1, MAX_CANDIDATES, DEFAULT_CANDIDATES, step=1, label="Candidates", visible=False, min_width=200,
                elem_id="candidates",
            )  # fmt: skip
            temperature = gr.Slider(0.05, 2, 0.6, step=0.05, label="Temperature", visible=False, min_width=200)
            top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p", visible=False, min_width=200)
            seed = gr.Number(0, label="Seed", precision=0, visible=False, min_width=120)
    options = DecodingForm(reference, tests, pool, mode, candidates, tokens, temperature, top_p, seed)
    mode.change(_field_visibility, mode, [candidates, temperature, top_p, seed], **EVENT_OPTIONS)
    changes = [component.change for component in [pool, *options.decoding_components]]
    gr.on(changes, _title_update, [pool, *options.decoding_components], accordion, **EVENT_OPTIONS)
    return options


@action("view pages")
def _field_visibility(mode: str) -> list[Any]:
    samples = mode == "sample"
    return [gr.update(visible=mode != "greedy"), *(gr.update(visible=samples) for _ in range(3))]


def _params_values(params: SamplingParams) -> Sequence[Any]:
    return decoding_values(asdict(params))


@action("view pages")
def _title_update(pool: str, *values: Any) -> Any:
    try:
        return gr.Accordion(label=_title(pool, *values))
    except PromptOrTuneError:  # a field is being filled in
        return gr.skip()


def _title(pool: str, *values: Any) -> str:
    decoding = asdict(read_sampling_params(*values))
    summary = f"{decoding_label(decoding)}, up to {decoding['max_new_tokens']} tokens, examples from {pool}"
    return f"Reference, tests and options: {summary}"
