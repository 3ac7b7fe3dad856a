"""Values that a browser or a program sends with an event: checked by component before any handler sees them.

A value of a wrong type or size is one sentence, for every event and endpoint alike. What no component describes (the
data of an event, the value of an HTML component) is checked by its handler.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.api_component import Api
from gradio.exceptions import Error
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errors import PromptOrTuneError
from tasks.methods import MAX_INTENT_CHARS

MAX_LINE_CHARS = 500  # of a field of one line
MAX_BODY_CHARS = 1 << 20  # of the tests of a data set's problem; tasks.pasted_tests limits those of a person
MAX_CHOSEN = 500  # of a list of several choices
# Key in the scope of a request whose event was refused with a sentence.
_REFUSED = "prompt_or_tune.refused"
UNREADABLE = "This request has a value of a wrong kind: load the page again, or see the endpoint's description."
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. Nothing you typed is lost."
_log = logging.getLogger(__name__)


class CheckedBlocks(gr.Blocks):
    """Blocks whose events refuse values of a wrong type or size with one sentence, and never answer with a trace."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """Check the values, then convert them as Gradio does.

        Arguments of an endpoint that a program leaves out at the end have their defaults.
        """
        if isinstance(inputs, list):
            left_out = block_fn.inputs[len(inputs) :]
            if all(isinstance(component, Api) and component.value is not None for component in left_out):
                inputs = [*inputs, *(component.value for component in left_out)]
        for component, value in zip(block_fn.inputs, inputs if isinstance(inputs, list) else [], strict=False):
            _check_value(component, value)
        try:
            values = await super().preprocess_data(block_fn, inputs, *arguments, **options)
            return [_checked(component, value) for component, value in zip(block_fn.inputs, values, strict=True)]
        except Exception as error:  # noqa: BLE001 - Gradio raises what its components happen to raise
            _log.warning("The values of an event cannot be read: %.200r", error)
            raise Error(UNREADABLE, print_exception=False) from None

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Run one event; its errors become messages."""
        scope = getattr(getattr(options.get("request"), "request", None), "scope", {})
        try:
            result: dict[str, Any] = await super().process_api(*arguments, **options)
        except Error as error:
            scope[_REFUSED] = True
            error.print_exception = False
            raise
        except PromptOrTuneError as error:
            scope[_REFUSED] = True
            raise Error(str(error), print_exception=False) from error
        except Exception as error:
            _log.exception("An event failed.")
            raise Error(INTERNAL_ERROR, print_exception=False) from error
        return result


class EventErrorMiddleware:
    """ASGI middleware: answers 400 for a refused event, and for a request that Gradio's own routes cannot read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_status(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if message["status"] == 500 and scope.get(_REFUSED):
                    message["status"] = 400
            await send(message)

        try:
            await self._app(scope, receive, send_status)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if started:
                raise
            _log.warning("A request to %s cannot be read: %.200r", scope["path"], error)
            await JSONResponse({"error": UNREADABLE, "detail": UNREADABLE}, 400)(scope, receive, send)


def _check_value(component: Any, value: Any) -> None:
    label = str(getattr(component, "label", None) or "A field")
    if isinstance(component, gr.Textbox):
        limit = _text_limit(component)
        if value is not None and not isinstance(value, str):
            raise Error(f"'{label}' must be text.", print_exception=False)
        if value is not None and len(value) > limit:
            raise Error(f"'{label}' has {len(value):,} characters: write at most {limit:,}.", print_exception=False)
    elif isinstance(component, gr.Checkbox):
        if not isinstance(value, bool):
            raise Error(f"'{label}' must be true or false.", print_exception=False)
    elif isinstance(component, gr.Number | gr.Slider):
        if value is not None and not (isinstance(value, int | float) and abs(value) < 2**63):
            raise Error(f"'{label}' must be a number of at most 18 digits.", print_exception=False)
    elif isinstance(component, gr.Dropdown | gr.Radio | gr.CheckboxGroup):
        chosen = value if isinstance(value, list) else [value]
        several = isinstance(component, gr.CheckboxGroup) or bool(getattr(component, "multiselect", False))
        if isinstance(value, list) != several and value is not None:
            raise Error(f"'{label}' has a value that is not offered: choose from its list.", print_exception=False)
        if len(chosen) > MAX_CHOSEN or not all(_is_choice(each) for each in chosen):
            raise Error(f"'{label}' has a value that is not offered: choose from its list.", print_exception=False)


def _checked(component: Any, value: Any) -> Any:
    """Return the value as handlers expect it: a text or a list that is not given is empty, a file is a file."""
    if value is None and isinstance(component, gr.Textbox):
        return ""
    if value is None and getattr(component, "multiselect", False):
        return []
    if isinstance(component, gr.File):
        files = value if isinstance(value, list) else [value] if value else []
        if not all(Path(str(file)).is_file() for file in files):
            raise ValueError
    return value


def _is_choice(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_INTENT_CHARS
    return value is None or (isinstance(value, int | float) and abs(value) < 2**63)


def _text_limit(component: gr.Textbox) -> int:
    if component.elem_id == "tests":
        return MAX_BODY_CHARS
    return component.max_length or (MAX_LINE_CHARS if component.max_lines == 1 else MAX_INTENT_CHARS)
