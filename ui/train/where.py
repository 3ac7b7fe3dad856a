"""Where a job trains: on the machine that serves the page, on Hugging Face Jobs, or by a command to copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from errors import PeftArenaError
from jobs.job import Serving
from jobs.remote.command import commands
from jobs.remote.hardware import DEFAULT_FLAVOR, known
from ui.context import Context
from ui.visitors import Visitor

__all__ = ["Where", "build_where", "commands", "refusal", "shown"]

PLACES = [("This machine", "here"), ("Hugging Face Jobs", "hub")]


@dataclass(frozen=True)
class Where:
    """The components. `place` is a jobs.job.Where, `flavor` a machine of Hugging Face Jobs (used with "hub" alone).

    `commands` are what `shown` gives updates for.
    """

    place: gr.Radio
    flavor: gr.Dropdown
    commands: tuple[gr.Textbox, gr.Textbox]


def build_where(context: Context) -> Where:  # noqa: ARG001
    """Draws the choice inside the current Blocks and wires it."""
    place = gr.Radio(PLACES, value="here", label="Where it trains", elem_id="train-where")
    flavor = gr.Dropdown(
        [(each.label, each.name) for each in known()],
        value=DEFAULT_FLAVOR,
        label="Machine",
        visible=False,
        elem_id="train-flavor",
    )
    with gr.Accordion("As a command to copy", open=False, elem_id="train-commands"):
        boxes = [
            gr.Textbox(
                label=label,
                lines=3,
                interactive=False,
                buttons=["copy"],
                elem_id=f"train-command-{name}",
                elem_classes="command",
            )
            for name, label in (("here", "On a machine of your own"), ("hub", "On Hugging Face Jobs"))
        ]
    place.change(
        lambda chosen: gr.Dropdown(visible=chosen == "hub"),
        place,
        flavor,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return Where(place, flavor, (boxes[0], boxes[1]))


def shown(config: Mapping[str, Any], serving: Serving, upload_name: str = "", flavor: str = "") -> list[Any]:
    """Updates for `Where.commands`; settings that cannot train leave them empty."""
    try:
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
        return f"'{place}' is no place to train: choose this machine or Hugging Face Jobs."
    if not visitor.owner:
        return (
            "Hugging Face Jobs costs the owner of this app money, so only the owner may use it: train on this machine."
        )
    return None
