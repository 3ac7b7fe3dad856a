"""`python app.py` as a process of its own, on a scripted engine and without a worker for jobs.

    python -m tests.security.command_app [options of app.py]

`running` starts it, and `Person` sends events by the configuration that the app gives its page.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from tests.browser.page import until
from tests.conftest import ROOT
from ui.access.guard import COOKIE_NAME

LOGINS = {"alice": "alices password", "bob": "bobs password"}


@dataclass(frozen=True)
class Running:
    """A running app: its address, and the folder with its home, its log and its file of logins."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    logins: bool

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self) -> None:
        until(lambda: "Ready:" in self.log or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.log

    def stranger(self, **headers: str) -> Person:
        """Return a client without cookies."""
        return Person(self, httpx.Client(base_url=self.url, timeout=30, headers=headers))

    def person(self, name: str, **headers: str) -> Person:
        """Return somebody with a login where there are logins, else with a cookie."""
        person = self.stranger(**headers)
        if self.logins:
            answer = person.http.post("login", data={"username": name, "password": LOGINS[name]})
            assert answer.status_code == 200, answer.text
        else:
            person.http.cookies.set(COOKIE_NAME, (name * 32)[:32])
        return person


@dataclass(frozen=True)
class Person:
    """A browser."""

    app: Running
    http: httpx.Client

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(self.http.get("config").json())

    def body(self, name: str, *values: Any, target: str = "", data: Any = None, **fields: Any) -> dict[str, Any]:
        """Return the body with which a page begins the event of this name, as for an untouched page but for `values`.

        `target` and `fields` are elem_ids, of the event's component and of inputs, with _ for -.
        """
        components = {each["id"]: each["props"] for each in self.config["components"]}
        named = {props.get("elem_id"): id for id, props in components.items()}
        event = next(
            each
            for each in self.config["dependencies"]
            if re.fullmatch(rf"{name}(_\d+)?", str(each["api_name"]))
            and (not target or named[target] in {id for id, _ in each["targets"]})
        )
        given = {named[field.replace("_", "-")]: value for field, value in fields.items()}
        inputs = [given.get(id, components[id].get("value")) for id in event["inputs"]]
        inputs[: len(values)] = values
        return {"fn_index": event["id"], "data": inputs, "session_hash": uuid.uuid4().hex, "event_data": data}

    def send(self, name: str, *values: Any, stop_at: str = "", **options: Any) -> str:
        """Send an event (see `body`) and return all answers as text; the refusal if it did not begin.

        With `stop_at` the answers after the first one with this text are not waited for.
        """
        body = self.body(name, *values, **options)
        joined = self.http.post("gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            return joined.text
        answers = []
        parameters = {"session_hash": body["session_hash"]}
        with self.http.stream("GET", "gradio_api/queue/data", params=parameters) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: ") and '"process_' in line:
                    answers.append(json.loads(line.removeprefix("data: ")))
                    if stop_at and stop_at in line:
                        break
        return unescape(json.dumps(answers))

    def upload(self, file: Path) -> dict[str, Any]:
        """Upload a file as the browser does; return the value of the file component."""
        with file.open("rb") as content:
            (path,) = self.http.post("gradio_api/upload", files={"files": (file.name, content)}).json()
        return {"path": path, "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}


@contextmanager
def running(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run the app until the block ends; see `Running.wait_until_ready`.

    `{logins}` and `{keys}` in the arguments stand for files with LOGINS and with API keys.
    """
    files = {"logins": folder / "logins.txt", "keys": folder / "keys.txt"}
    files["logins"].write_text("".join(f"{name}:{password}\n" for name, password in LOGINS.items()))
    files["keys"].write_text("program:program-key-0123456789\nadmin:admin-key-0123456789:60:admin\n")
    for file in files.values():
        file.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = [argument.format(**files) for argument in arguments]
    command = [sys.executable, "-m", "tests.security.command_app", "--port", str(port), *given]
    base = {name: value for name, value in os.environ.items() if not name.startswith(("SPACE_", "HF_", "GRADIO_"))}
    variables = {"PROMPT_OR_TUNE_HOME": str(folder / "home"), "HF_HOME": str(folder / "hf"), **(environment or {})}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=base | variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield Running(f"http://127.0.0.1:{port}/", folder, process, "--auth" in arguments)
        finally:
            process.terminate()
            process.wait(20)


def main() -> None:
    """Run the app on a scripted engine."""
    import app
    from common.command import exit_now
    from common.files import cache_dir
    from jobs.api import JobService
    from serve.engine.llm_engine import EngineLoader
    from tests.ui.adapters.sample_home import make_engine

    def start_engine_loader(*_: Any) -> EngineLoader:
        return EngineLoader(lambda report: make_engine(cache_dir())).start()

    with patch.object(app, "_start_engine_loader", start_engine_loader), patch.object(JobService, "ensure_worker"):
        exit_now(app.main())


if __name__ == "__main__":
    main()
