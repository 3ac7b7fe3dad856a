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

from errors import PeftArenaError
from jobs.job import Serving
from jobs.remote.command import commands
from jobs.remote.hardware import DEFAULT_FLAVOR, MOST_HOURS, Hardware, check_flavor, known, priced
from ui import widgets
from ui.context import Context
from ui.visitors import Visitor

__all__ = ["Where", "build_where", "commands", "refusal", "shown"]

PLACES = [("This machine", "here"), ("Hugging Face Jobs", "hub")]
_KEPT_SECONDS = 3600.0
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Where:
    """The components. `place` is a jobs.job.Where, `flavor` a machine of Hugging Face Jobs (used with "hub" alone).

    `commands` are what `shown` gives updates for.
    """

    place: gr.Radio
    flavor: gr.Dropdown
    commands: tuple[gr.Textbox, gr.Textbox]


class Prices:
    """The machines as the Hub lists them, asked for once an hour. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._found: list[Hardware] = []

    def get(self) -> list[Hardware]:
        """All machines with prices; PeftArenaError in one sentence where the Hub does not answer."""
        from huggingface_hub import get_token

        with self._lock:
            if time.monotonic() - self._asked >= _KEPT_SECONDS:
                self._found = priced(get_token() or "")
                self._asked = time.monotonic()
            return self._found

    def have(self) -> list[Hardware]:
        """Those that are known already; asks nobody."""
        return self._found or known()


def build_where(context: Context) -> Where:
    """Draws the choice inside the current Blocks and wires it."""
    prices = Prices()
    place = gr.Radio(PLACES, value="here", label="Where it trains", elem_id="train-where")
    flavor = gr.Dropdown(
        _choices(known()), value=DEFAULT_FLAVOR, label="Machine", visible=False, elem_id="train-flavor"
    )
    note = widgets.live("", elem_id="train-where-note")
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
        refused = refusal(context, context.visitors.of(request), chosen) if chosen != "here" else None
        if chosen == "here" or refused:
            yield [gr.Dropdown(visible=False), _sentence(refused)]
            return
        yield [
            gr.Dropdown(visible=True),
            about(machine, prices.have()) + '<p class="quiet">Asking what the machines cost ...</p>',
        ]
        try:
            found = prices.get()
        except PeftArenaError as fault:
            unknown = _sentence(f"Prices are not known: {fault}")
            yield [gr.Dropdown(visible=True), about(machine, prices.have()) + unknown]
            return
        value = machine if machine in [each.name for each in found] else None
        # Of updates that follow one another quickly a browser may see the last alone, so each is whole.
        yield [gr.Dropdown(_choices(found), value=value, visible=True), about(machine, found)]

    place.change(choose, [place, flavor], [flavor, note], **_QUIET)
    flavor.input(lambda machine: about(machine, prices.have()), flavor, note, queue=False, **_QUIET)
    return Where(place, flavor, (boxes[0], boxes[1]))


def shown(config: Mapping[str, Any], serving: Serving, upload_name: str = "", flavor: str = "") -> list[Any]:
    """Updates for `Where.commands`; settings that cannot train leave them empty."""
    try:
        check_flavor(flavor or DEFAULT_FLAVOR)
        found = commands(config, serving, upload_name, flavor or DEFAULT_FLAVOR)
    except PeftArenaError:
        return [gr.Textbox(""), gr.Textbox("")]
    return [gr.Textbox(command, label=label) for label, command in found]


def refusal(context: Context, visitor: Visitor, place: str) -> str | None:
    """Why this visitor may not train there, in one sentence; None where they may. To be asked on the server."""
    refused = context.visitors.may_train(visitor)
    if refused or place == "here":
        return refused
    if place != "hub":
        return f"'{place[:40]}' is no place to train: choose this machine or Hugging Face Jobs."
    if not visitor.owner:
        return "Hugging Face Jobs costs the owner of this app money, so only the owner may use it: train here instead."
    return _not_sendable(context.serving.base)


def about(machine: str, machines: Sequence[Hardware]) -> str:
    """What choosing Hugging Face Jobs means and costs, as HTML."""
    found = next((each for each in machines if each.name == machine), None)
    price = found.dollars_an_hour if found else None
    cost = f"A job ends after {MOST_HOURS} hours at the latest."
    if price is not None:
        cost = (
            f"You pay the Hub for the time it takes, ${price:.2f} an hour, and a job ends after {MOST_HOURS} hours: "
            f"<strong>${price * MOST_HOURS:.2f} at most</strong>."
        )
    what = (
        "Your rows, the settings and the program go to a private data set of this machine's account on the Hub. The "
        "adapter comes back by itself and is scored here."
    )
    return f'<p class="quiet">{what} {cost}</p>'


def _not_sendable(base: str) -> str | None:
    """Why nothing can be sent from here, in one sentence."""
    from huggingface_hub import get_token

    if not base:
        return "Another engine answers here, so there is no base to train for: start the app with --base."
    if base.endswith(".gguf") or base.startswith((".", "/", "~")) or Path(base).is_dir():
        return "The base lies on this machine alone and is not sent: start the app with a base of the Hub."
    if not get_token():
        return "This machine is not logged in to the Hub: run `hf auth login` on it, or set HF_TOKEN, and choose again."
    return None


def _choices(machines: Sequence[Hardware]) -> list[tuple[str, str]]:
    return [(each.label, each.name) for each in machines]


def _sentence(text: str | None) -> str:
    return f'<p class="sentence">{escape(text)}</p>' if text else ""
