"""Errors of Gradio's events and routes as sentences: for values of the wrong kind, and for unexpected errors.

Gradio prints a traceback for both, shows an empty error, and answers 500.
"""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errors import PromptOrTuneError

INTERNAL_ERROR = "Something went wrong on our side; the log has the details. Nothing you typed is lost."
WRONG_VALUES = "A field of this request has a value of the wrong kind: reload the page and try again."
# Key in the scope of a request whose event was refused with a sentence.
_REFUSED = "prompt_or_tune.refused"
_log = logging.getLogger(__name__)


class PageBlocks(gr.Blocks):
    """The pages. Every error of an event becomes a `gr.Error` with one sentence."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Check and convert the values that a browser sent; raises gr.Error for one that its field cannot have."""
        block_fn = args[0]
        try:
            values: list[Any] = await super().preprocess_data(*args, **kwargs)
            return [_checked(block, value) for block, value in zip(block_fn.inputs, values, strict=True)]
        except Exception as error:
            _log.info("An event has values of the wrong kind (%s).", type(error).__name__)
            raise gr.Error(WRONG_VALUES, print_exception=False) from error

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run one event. An error that no handler expected is logged with its traceback."""
        scope = getattr(getattr(kwargs.get("request"), "request", None), "scope", {})
        try:
            result: dict[str, Any] = await super().process_api(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            scope[_REFUSED] = True
            raise
        except PromptOrTuneError as error:
            scope[_REFUSED] = True
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            _log.exception("An event failed.")
            raise gr.Error(INTERNAL_ERROR, print_exception=False) from error
        return result


def _checked(field: Any, value: Any) -> Any:
    """Return the value of a field, an empty one for None; raises TypeError for a type that the field cannot have.

    Gradio checks the values of fields with fixed choices alone.
    """
    if isinstance(field, (gr.Textbox, gr.Code)):
        return _require(value or "", str)
    if isinstance(field, gr.Checkbox):
        return _require(value, bool)
    if isinstance(field, (gr.Number, gr.Slider)):
        return _require(value, int, float, type(None))
    if isinstance(field, (gr.Dropdown, gr.Radio, gr.CheckboxGroup)):
        types: list[type] = [str, *(type(choice) for _, choice in field.choices)]
        if isinstance(field, gr.CheckboxGroup) or getattr(field, "multiselect", False):
            return [_require(choice, *types) for choice in _require(value or [], list)]
        return _require(value, *types, type(None))
    return value


def _require(value: Any, *types: type) -> Any:
    if not isinstance(value, types):
        raise TypeError(f"{type(value).__name__} in a field of {types[0].__name__}")
    return value


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
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            if started:
                raise
            _log.info("%s cannot be read (%s).", scope["path"], type(error).__name__, exc_info=error)
            await JSONResponse({"error": WRONG_VALUES, "detail": WRONG_VALUES}, 400)(scope, receive, send)
