"""Guards of event handlers: each function that Gradio calls on the server has an action of ui/access/policy.py.

Gradio fills the parameters of a handler by their annotations, so a guard keeps them, and adds a parameter for the
request where the handler has none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Any

import gradio as gr
from gradio.utils import get_type_hints

from ui.access.policy import RULES
from ui.access.visitors import VisitorRegistry

# Makes the updates that tell a visitor why an event was refused, from the reason and the values of the inputs.
RefuseFn = Callable[[str, Sequence[Any]], Any]


def guard(visitors: VisitorRegistry, name: str, fn: Callable[..., Any], refuse: RefuseFn | None = None) -> Any:
    """Return the handler `fn` for visitors who may do the action `name`.

    Others get the updates of `refuse`, without it an error with the reason. The guard does not know which thing an
    event is about: the handler checks that with `AccessPolicy.check`. Raises KeyError for an unknown action.
    """
    parameters = list(inspect.signature(fn).parameters.values())
    hints = {} if isinstance(fn, partial) else get_type_hints(fn)
    position = next((index for index, given in enumerate(parameters) if hints.get(given.name) is gr.Request), None)
    if position is None:
        added = inspect.Parameter("gradio_request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
        parameters = [added, *parameters]
        hints = {"gradio_request": gr.Request, **hints}
    index, is_added = position or 0, position is None

    def refusal(values: Sequence[Any]) -> str | None:
        return visitors.policy.denied_reason(visitors.identify(values[index]), name)

    def refused(reason: str, values: Sequence[Any]) -> Any:
        if refuse is None:
            raise gr.Error(reason, print_exception=False)
        return refuse(reason, [*values[:index], *values[index + 1 :]])

    def stream(*values: Any) -> Iterator[Any]:
        if (reason := refusal(values)) is not None:
            yield refused(reason, values)
            return
        yield from fn(*(values[1:] if is_added else values))

    def call(*values: Any) -> Any:
        if (reason := refusal(values)) is not None:
            return refused(reason, values)
        return fn(*(values[1:] if is_added else values))

    function: Any = wraps(fn)(stream if inspect.isgeneratorfunction(fn) else call)
    function.__name__ = getattr(fn, "__name__", "guarded")
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = hints
    # Without it Gradio reads the annotations of the handler, in which the added parameter is missing.
    function.__dict__.pop("__wrapped__", None)
    function.is_guarded = True
    return declare(name, function)


def declare(action: str, fn: Callable[..., Any]) -> Any:
    """Note the action of a handler, which `protect` guards, or of a server function for all; return the function."""
    function: Any = fn
    function.access_action = RULES[action].action
    return function


def action(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator of handlers that does what `declare` does."""
    return partial(declare, name)


def declared_action(fn: Any) -> str | None:
    """Return the action that `fn` was declared or guarded with; None for a function without one."""
    return getattr(fn, "access_action", None)


def protect(pages: gr.Blocks, visitors: VisitorRegistry) -> None:
    """Guard all declared handlers of the pages that have no guard yet.

    Raises TypeError for a handler or a server function without an action, so that no page is served with one.
    """
    functions = [event for event in pages.fns.values() if event.fn is not None]
    undeclared = [event.fn for event in functions if declared_action(event.fn) is None and not is_of_gradio(event.fn)]
    for block in pages.blocks.values():
        undeclared += [fn for fn in getattr(block, "server_fns", ()) if declared_action(fn) is None]
    if undeclared:
        raise TypeError(f"These functions have no action of ui/access/policy.py: {undeclared}")
    for event in functions:
        name = declared_action(event.fn)
        if name is not None and not getattr(event.fn, "is_guarded", False):
            event.fn = guard(visitors, name, event.fn)


def is_of_gradio(fn: Any) -> bool:
    """Return whether the function is one of Gradio's own, such as the state of its login button."""
    return str(getattr(fn, "__module__", "")).split(".")[0] == "gradio"
