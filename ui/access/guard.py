"""Guards of event handlers: who the visitor is, what the policy allows, checked values, and usable data sets.

Identity of visitors. A visitor is identified by the name of the login, else by a random cookie of the browser, else (a
program without cookies) by the address. A cookie can be deleted to get a new identity, so training on a public Space
needs a login.

Gradio fills the parameters of a handler by their annotations, so a guard keeps them, and adds a parameter for the
request where the handler has none.

Data sets that a visitor may use on the pages: those that everybody has, and to the owner of the app the own ones. A
name of the owner's is to everybody else a name that does not exist: it is neither listed nor confirmed.

Values that a browser or a program sends with an event: checked by component before any handler sees them. A value of a
wrong type or size is one sentence, for every event and endpoint alike. What no component describes (the data of an
event, the value of an HTML component) is checked by its handler.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.components.api_component import Api
from gradio.exceptions import Error
from gradio.utils import get_type_hints
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errors import PromptOrTuneError, unknown_name_error
from serve.api.auth import client_network
from tasks.datasets.own import list_own_datasets
from tasks.datasets.registry import (
    DATASETS,
    TRAINING_DATASETS,
    available_datasets,
    dataset_version,
    is_dataset,
    load_problems,
)
from tasks.methods import MAX_INTENT_CHARS
from tasks.problem import Problem
from ui.access.policy import RULES, AccessPolicy, Visitor
from ui.access.quota import VisitorQuota

if TYPE_CHECKING:
    from ui.access.policy import Visitor
    from ui.context import Context

COOKIE_NAME = "prompt_or_tune_visitor"
# The cookie of earlier versions, with the same kind of value.
OLD_COOKIE_NAME = "peft_arena_visitor"
TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{22,64}")
# Makes the updates that tell a visitor why an event was refused, from the reason and the values of the inputs.
RefuseFn = Callable[[str, Sequence[Any]], Any]
# Of these only the ones on this machine are listed: their files are large, and mostly for `evaluate`.
_LOCAL_DATASETS = ("humaneval", "humanevalplus", "mbppplus", "leetcode")
Choices = list[tuple[str, str]]
MAX_LINE_CHARS = 500  # of a field of one line
MAX_BODY_CHARS = 1 << 20  # of the tests of a data set's problem; tasks.pasted_tests limits those of a person
MAX_CHOSEN = 500  # of a list of several choices
# Key in the scope of a request whose event was refused with a sentence.
_REFUSED = "prompt_or_tune.refused"
UNREADABLE = "This request has a value of a wrong kind: load the page again, or see the endpoint's description."
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. Nothing you typed is lost."
_log = logging.getLogger(__name__)


class VisitorRegistry:
    """Identifies visitors and holds their quota. Thread-safe."""

    def __init__(self, policy: AccessPolicy | None = None) -> None:
        self.policy = policy or AccessPolicy()
        self.quota = VisitorQuota(self.policy.limits)

    def identify(self, request: Any) -> Visitor:
        """Return the visitor of a `gr.Request` or of a request of the web framework: by login, cookie or address."""
        name = _login_name(request)
        owner = self.policy.is_owner(name)
        if name:
            return Visitor(_hashed_id("user", name.casefold()), name, owner)
        address = _hashed_id("network", client_network(_client_address(request)))
        token = read_visitor_token(_cookies(request))
        if token:
            return Visitor(_hashed_id("browser", token), "", owner, address=address)
        return Visitor(_hashed_id("address", _client_address(request)), "", owner, identified=False, address=address)


def login_token(request: Any) -> str | None:
    """Return the Hub token of the visitor's login with the Hub; None without a login."""
    return str(_hub_login(request).get("access_token") or "") or None


def read_visitor_token(cookies: Mapping[str, str]) -> str:
    """Return the value of the visitor cookie, or of the one of earlier versions; '' if neither is valid."""
    tokens = (str(cookies.get(name) or "") for name in (COOKIE_NAME, OLD_COOKIE_NAME))
    return next((token for token in tokens if TOKEN_PATTERN.fullmatch(token)), "")


def _login_name(request: Any) -> str:
    """Return the name of the login (of --auth, or of the Hub on a Space); '' without one."""
    username = getattr(request, "username", None) or _name_of_gradio_login(request)
    if username:
        return str(username)
    return str((_hub_login(request).get("userinfo") or {}).get("preferred_username") or "")


def _hub_login(request: Any) -> Mapping[str, Any]:
    """Return what Gradio stores of a login with the Hub that is still valid; {} without one."""
    info = _scope(request).get("session", {}).get("oauth_info")
    is_valid = isinstance(info, Mapping) and float(info.get("expires_at") or math.inf) > time.time()
    return info if is_valid else {}


def _name_of_gradio_login(request: Any) -> str:
    """Return the name of the login behind a request of the web framework, which components' server functions get."""
    app = _scope(request).get("app")
    cookie_id, tokens, cookies = getattr(app, "cookie_id", None), getattr(app, "tokens", None) or {}, _cookies(request)
    names = (f"access-token-{cookie_id}", f"access-token-unsecure-{cookie_id}")
    return str(next((tokens[cookies[name]] for name in names if cookies.get(name) in tokens), "") or "")


def _cookies(request: Any) -> Mapping[str, str]:
    # gr.Request wraps the mappings of the web framework in objects of its own.
    return getattr(_inner(request), "cookies", None) or {}


def _client_address(request: Any) -> str:
    headers = dict(_scope(request).get("headers") or ())
    forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1") if os.environ.get("SPACE_ID") else ""
    # On a Space requests come from the proxy of the Hub, which appends the address of its client.
    return forwarded.rpartition(",")[2].strip() or str((_scope(request).get("client") or ("",))[0])


def _scope(request: Any) -> Mapping[str, Any]:
    return getattr(_inner(request), "scope", None) or {}


def _inner(request: Any) -> Any:
    """Return the request of the web framework in a `gr.Request`, or the request itself."""
    return getattr(request, "request", None) or request


def _hashed_id(kind: str, value: str) -> str:
    return f"{kind}-{hashlib.sha256(f'{kind}:{value}'.encode()).hexdigest()[:16]}"


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


def may_use_own(context: Context, visitor: Visitor) -> bool:
    """Return whether the visitor may use the data sets of the owner of the app."""
    return context.visitors.policy.may(visitor, "use own data sets")


def own_allowed(context: Context, request: Any) -> bool:
    """Return the same for the visitor of a request."""
    return may_use_own(context, context.visitors.identify(request))


def own_names(*, own: bool) -> list[str]:
    """Return the names of the owner's data sets, if `own` says that the visitor may use them."""
    return [info.name for info in list_own_datasets() if info.name not in DATASETS] if own else []


def check_dataset(name: object, *, own: bool, examples: bool = False) -> str:
    """Return the name of a data set that the visitor may use, with `examples` one that examples come from.

    Raises UnknownNameError for any other, also for those of the owner unless `own`.
    """
    known = TRAINING_DATASETS if examples else DATASETS
    name = str(name)
    if name in known or (own and name not in DATASETS and is_dataset(name)):
        return name
    raise unknown_name_error("data set for examples" if examples else "data set", name, [*known, *own_names(own=own)])


def load_split_problems(name: str, data_dir: Path | None, *, own: bool = False) -> tuple[Problem, ...]:
    """Return the test split of a data set, read once for each version of its rows.

    Raises UnknownNameError as `check_dataset` does, and DataError if it cannot be read.
    """
    return _load_version(check_dataset(name, own=own), data_dir, dataset_version(name))


@lru_cache(maxsize=16)
def _load_version(name: str, data_dir: Path | None, version: str) -> tuple[Problem, ...]:
    del version  # of the rows: replaced ones are read again
    return tuple(load_problems(name, "test", data_dir=data_dir))


def data_choices(data_dir: Path | None, *, own: bool = False) -> Choices:
    """Return the data sets as dropdown choices, own ones first; those that are not on this machine name the Hub."""
    available = available_datasets(data_dir)
    listed = [name for name in DATASETS if name in available or name not in _LOCAL_DATASETS]
    return [
        *((name, name) for name in own_names(own=own)),
        *((name if name in available else f"{name} (from the Hub)", name) for name in listed),
    ]


def pool_choices(data_dir: Path | None, *, own: bool = False) -> Choices:
    """Return the data sets that examples can come from, as dropdown choices."""
    return [choice for choice in data_choices(data_dir, own=own) if has_examples(choice[1])]


def has_examples(name: str) -> bool:
    """Return whether examples can come from the data set."""
    return name in TRAINING_DATASETS or name not in DATASETS


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
