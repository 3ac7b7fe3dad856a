"""Where a job trains: on the machine that serves the page, on Hugging Face Jobs, or by a command to copy."""

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
from jobs.job import ServingOptions
from jobs.remote.command import manual_commands
from jobs.remote.hardware import (
    DEFAULT_HARDWARE,
    MAX_HOURS,
    RemoteHardware,
    check_hardware,
    list_hardware,
    list_hardware_with_prices,
)
from ui import widgets
from ui.context import Context
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
    place = gr.Radio(LOCATION_CHOICES, value="here", label="Where it trains", elem_id="train-where")
    flavor = gr.Dropdown(
        _hardware_choices(list_hardware()),
        value=DEFAULT_HARDWARE,
        label="Machine",
        visible=False,
        elem_id="train-flavor",
    )
    note = widgets.live_region("", elem_id="train-where-note")
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
            hardware_html(machine, prices.cached()) + '<p class="quiet">Asking what the machines cost ...</p>',
        ]
        try:
            found = prices.get()
        except PromptOrTuneError as fault:
            unknown = _error_html(f"Prices are not known: {fault}")
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
    return f'<p class="quiet">{what} {cost}</p>'


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
    return f'<p class="sentence">{escape(text)}</p>' if text else ""
