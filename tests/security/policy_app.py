"""The pages in the modes of the access options, and people who send events to them over HTTP."""

from __future__ import annotations

import json
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gradio as gr
import httpx

from jobs.api import JobService
from serve.api.auth import add_web_options, read_web_access
from tests.ui.adapters.sample_home import ready_context
from ui.access.guard import COOKIE_NAME
from ui.access.policy import AccessOptions, add_access_options, parse_access_options
from ui.app import build_pages, launch
from ui.context import Context

LOGINS = "alice:alices password\nbob:bobs password\ncarol:carols password\n"
HERE, NETWORK = "127.0.0.1", "0.0.0.0"


def access(*arguments: str, host: str = HERE) -> AccessOptions:
    """Return the access options of the app's command line."""
    parser = ArgumentParser()
    add_access_options(parser)
    add_web_options(parser)
    args = parser.parse_args(arguments)
    return parse_access_options(args, read_web_access(args, host))


class Pages:
    """A served app."""

    def __init__(self, blocks: gr.Blocks, address: str, context: Context, options: AccessOptions) -> None:
        self.blocks, self.address, self.context, self.options = blocks, address, context, options
        self.home = context.home

    def person(self, name: str) -> Person:
        """Return somebody with a login where there are logins, else with a cookie."""
        if not self.options.accounts:
            return Person(self, {COOKIE_NAME: name * (32 // len(name))})
        _, password = next(account for account in self.options.accounts if account[0] == name)
        answer = httpx.post(self.address + "login", data={"username": name, "password": password})
        assert answer.status_code == 200, answer.text
        return Person(self, dict(answer.cookies.items()))


class Person:
    """A browser with cookies and a window."""

    def __init__(self, pages: Pages, cookies: dict[str, str]) -> None:
        self.pages, self.session = pages, uuid.uuid4().hex
        cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
        headers = {"cookie": cookie, "origin": pages.address.rstrip("/")}
        self.http = httpx.Client(base_url=pages.address, headers=headers, timeout=30)

    def upload(self, file: Path) -> dict[str, Any]:
        """Upload a file as the browser does; return the value of the file component."""
        with file.open("rb") as content:
            (path,) = self.http.post("gradio_api/upload", files={"files": (file.name, content)}).json()
        return {"path": path, "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}

    def send(self, name: str, *values: Any, target: str = "", data: Any = None) -> str:
        """Send an event by the name of its handler and the elem_id of its `target`; return all answers as text.

        Inputs without a value are those of an untouched page.
        """
        index, event = find_event(self.pages.blocks, name, target)
        inputs = [None if isinstance(block, gr.State) else block.value for block in event.inputs]
        inputs[: len(values)] = values
        body = {"data": inputs, "fn_index": index, "session_hash": self.session, "event_data": data}
        joined = self.http.post("gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        lines = self.http.get("gradio_api/queue/data", params={"session_hash": self.session}).text.splitlines()
        messages = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        return unescape(json.dumps([message for message in messages if message["msg"].startswith("process_")]))

    def ask(self, name: str, value: Any) -> Any:
        """Call a server function of a component."""
        blocks = self.pages.blocks.blocks
        id = next(id for id, block in blocks.items() if any(fn.__name__ == name for fn in _server_functions(block)))
        body = {"component_id": id, "fn_name": name, "session_hash": self.session, "data": value}
        return self.http.post("gradio_api/component_server", json=body).json()


def find_event(blocks: gr.Blocks, name: str, target: str = "") -> tuple[int, Any]:
    """Return index and event of the handler of this name."""
    for index, event in blocks.fns.items():
        targets = {getattr(blocks.blocks.get(id), "elem_id", None) for id, _ in event.targets}
        if event.fn is not None and event.fn.__name__ == name and (not target or target in targets):
            return index, event
    raise LookupError(name)


def _server_functions(block: Any) -> Sequence[Any]:
    return getattr(block, "server_fns", ())


@contextmanager
def team_app(folder: Path, *arguments: str) -> Iterator[Pages]:
    """Serve the pages with `--auth FILE` and further arguments, with a home in `folder`."""
    file = folder / "logins.txt"
    file.write_text(LOGINS)
    file.chmod(0o600)
    with served(folder / "home", access("--auth", str(file), *arguments)) as pages:
        yield pages


@contextmanager
def served(home: Path, options: AccessOptions) -> Iterator[Pages]:
    """Serve the pages with these options on a real engine and this home, without a worker for jobs."""
    with ready_context(home, options.policy) as context, patch.object(JobService, "ensure_worker"):
        blocks = build_pages(context.engine_loader, context=context)
        _, address, _ = launch(blocks, port=None, accounts=options.accounts, prevent_thread_lock=True)
        try:
            yield Pages(blocks, address, context, options)
        finally:
            blocks.close()
