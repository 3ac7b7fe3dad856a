"""Publish form of the Train page: rights, tokens, status HTML, and the real login flow of a Space."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import httpx
import pytest
from gradio import oauth

from adapters.manifest import Manifest
from adapters.store import LIBRARY
from errors import PromptOrTuneError
from jobs.job import Job, job_config
from jobs.publish import PublishProgress, PublishRequest
from serve.engine.llm_engine import EngineLoader
from tests import messages as expected
from tests.fakes import FakeEngine
from tests.hub import openid
from tests.hub.client import OWNER, TOKEN, log_in, use_hub
from tests.hub.state import Account
from tests.hub_standin import Hub, hub_standin
from tests.ui.train import jobs_on_disk as on_disk
from tests.ui.train.jobs_on_disk import WorkerlessJobService
from ui.access.guard import VisitorRegistry
from ui.access.logins import build_login, is_login_available, resolve_token
from ui.access.policy import AccessPolicy, Visitor
from ui.context import Context
from ui.train.publish import Publisher, build_publish, status_html

EVIL = "<img src=x onerror=alert(1)>${alert(1)}</pre>"
ADA, BOB, BOSS = Visitor("ada"), Visitor("bob"), Visitor("boss", "boss", owner=True)
# Environment of a Space; `hub.url` is the OpenID provider.
SPACE = {
    "SYSTEM": "spaces", "SPACE_ID": "someone/arena", "SPACE_HOST": "testserver", "OAUTH_CLIENT_ID": openid.CLIENT,
    "OAUTH_CLIENT_SECRET": openid.SECRET, "OAUTH_SCOPES": "openid profile write-repos",
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path / "client")
        yield standin


@pytest.fixture
def service(tmp_path: Path) -> WorkerlessJobService:
    return WorkerlessJobService(tmp_path / "home")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[PublishRequest]:
    """Return the list of publish requests; their command is replaced by one that succeeds immediately."""
    requests_seen: list[PublishRequest] = []

    def command(request: PublishRequest) -> list[str]:
        requests_seen.append(request)
        return ["echo", f"Published as https://huggingface.co/{request.repo_id}/tree/{'a' * 40}."]

    monkeypatch.setattr(PublishRequest, "command", command)
    return requests_seen


def context_of(service: WorkerlessJobService, policy: AccessPolicy | None = None) -> Context:
    return Context(EngineLoader(lambda _: FakeEngine()), visitors=VisitorRegistry(policy), home=service.home)


def finished(service: WorkerlessJobService, owner: str = "ada") -> Job:
    """Return a finished job with an adapter."""
    job = on_disk.submit(service, owner=owner)
    adapter = service.home / "one"
    shutil.copytree(LIBRARY / "lora-starter", adapter)
    # A job identifies its adapter by the settings in the manifest.
    replace(Manifest.read(adapter), config=job_config(job, service.home).to_public_dict()).write(adapter)
    on_disk.complete(service, job.id, adapter)
    return service.get_job(job.id)


def test_adapter_is_published_under_its_name_to_a_private_repository(
    hub: Hub, service: WorkerlessJobService, requests: list[PublishRequest]
) -> None:
    job = finished(service)
    publisher = Publisher(context_of(service))
    assert publisher.progress(job.id) is None
    assert publisher.suggest_repo_name(job.id) == "lora-mine"
    publisher.start(ADA, job.id, "lora-mine", True, TOKEN)
    (request,) = requests
    assert request.folder == service.home / "adapters" / "lora-mine"
    assert (request.repo_id, request.private) == (f"{OWNER}/lora-mine", True)
    assert (request.base, request.device, request.token) == ("embedded", "auto", TOKEN)
    publisher._publications.get(job.id).wait(10)  # type: ignore[union-attr]
    for asked in (publisher, Publisher(context_of(service))):  # also after a restart of the app
        progress = asked.progress(job.id)
        assert progress is not None
        assert (progress.state, progress.message) == ("done", f"Published as {OWNER}/lora-mine.")
        assert progress.url.startswith("https://huggingface.co/someone/lora-mine/tree/")


@pytest.mark.parametrize(
    ("visitor", "policy", "token", "message"),
    [
        (BOB, None, TOKEN, "another person's"),
        (ADA, AccessPolicy(training="nobody"), TOKEN, "Training is switched off here"),
        (ADA, AccessPolicy(training="owner", owners=frozenset({"boss"})), TOKEN, "Only boss may train"),
        (ADA, None, None, "Publishing needs a token of your own"),
    ],
)
def test_publish_without_rights_is_rejected(
    hub: Hub, service: WorkerlessJobService, requests: list[PublishRequest], monkeypatch: pytest.MonkeyPatch,
    visitor: Visitor, policy: AccessPolicy | None, token: str | None, message: str,
) -> None:  # fmt: skip
    log_in(monkeypatch)  # the login of the machine belongs to its owner
    job = finished(service)
    with pytest.raises(PromptOrTuneError, match=message):
        Publisher(context_of(service, policy)).start(visitor, job.id, "lora-mine", True, token)
    assert not requests


def test_owner_may_use_the_login_of_the_machine(
    hub: Hub, service: WorkerlessJobService, requests: list[PublishRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch)
    job = finished(service)
    Publisher(context_of(service)).start(BOSS, job.id, "", False, None)
    assert [(request.repo_id, request.private, request.token) for request in requests] == [
        (f"{OWNER}/lora-mine", False, None)
    ]


@pytest.mark.parametrize("id", ["", "../..", "20300101-000000-000000-aaaaaa"])
def test_unknown_job_id_is_rejected(
    hub: Hub, service: WorkerlessJobService, requests: list[PublishRequest], id: str
) -> None:
    publisher = Publisher(context_of(service))
    with pytest.raises(PromptOrTuneError):
        publisher.start(BOSS, id, "lora-mine", True, TOKEN)
    assert publisher.progress(id) is None
    assert publisher.suggest_repo_name(id) == ""
    assert not requests


def test_publish_without_an_adapter_is_rejected(
    hub: Hub, service: WorkerlessJobService, requests: list[PublishRequest]
) -> None:
    job = on_disk.submit(service, owner="ada")
    with pytest.raises(PromptOrTuneError, match=expected.NO_ADAPTER_YET):
        Publisher(context_of(service)).start(ADA, job.id, "lora-mine", True, TOKEN)
    assert not requests


def test_status_is_escaped() -> None:
    html = status_html(PublishProgress("failed", EVIL, (EVIL,), f"https://x/{EVIL}"), EVIL)
    assert "<img" not in html
    assert status_html(PublishProgress("done", "Published.", (), "javascript:alert(1)")) == "<p>Published.</p>"


def test_log_is_displayed_after_the_end_only() -> None:
    assert "<details>" not in status_html(PublishProgress("running", "Uploading ...", ("Uploading ...",)))
    assert "<details>" in status_html(PublishProgress("failed", "No.", ("train: No.",)))
    assert status_html(None) == ""


def test_no_login_button_outside_a_space(
    hub: Hub, service: WorkerlessJobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch)
    monkeypatch.setenv("OAUTH_CLIENT_ID", "of another program")
    with gr.Blocks() as pages:
        build_publish(context_of(service), gr.State(""))
        assert build_login() is None
    assert not is_login_available()
    assert not pages.expects_oauth
    assert not hub.requests


def test_token_of_the_login_has_precedence() -> None:
    login = gr.OAuthToken(token="hf_login", scope="", expires_at=0)
    assert resolve_token(login, "hf_typed") == "hf_login"
    assert resolve_token(None, "  hf_typed ") == "hf_typed"
    assert resolve_token(None, "  ") is None


class Page:
    """The form on its own page as a Space serves it, with a client that stores cookies."""

    def __init__(self, context: Context, id: str) -> None:
        with gr.Blocks() as self.blocks:
            build_publish(context, gr.State(id))
        _, self.address, _ = self.blocks.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
        self._cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request with all cookies, including those for the HTTPS proxy in front of a Space."""
        cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        answer = httpx.request(method, self.address + path, headers={"Cookie": cookies}, timeout=20, **options)
        for line in answer.headers.get_list("set-cookie"):
            self._cookies |= {name: cookie.value for name, cookie in SimpleCookie(line).items()}
        return answer

    def log_in(self) -> None:
        """Log in through Gradio's and the provider's routes, as a browser does."""
        there = self.ask("GET", "login/huggingface").headers["location"]
        back = urlsplit(httpx.get(there).headers["location"])
        assert back.netloc == SPACE["SPACE_HOST"]
        assert self.ask("GET", f"{back.path[1:]}?{back.query}").is_redirect

    def click(self, name: str, *values: Any) -> list[Any]:
        """Send the event of a button and return its outputs. The selected job is state of the server."""
        (index,) = [number for number, event in self.blocks.fns.items() if event.fn and event.fn.__name__ == name]
        body = {"data": [None, *values], "fn_index": index, "session_hash": "one"}
        assert self.ask("POST", "gradio_api/queue/join", json=body).status_code == 200
        lines = self.ask("GET", "gradio_api/queue/data?session_hash=one").text.splitlines()
        messages = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        (done,) = [message for message in messages if message["msg"] == "process_completed"]
        assert done["success"], done
        answers: list[Any] = done["output"]["data"]
        return answers


@contextmanager
def opened(context: Context, id: str) -> Iterator[Page]:
    """Serve the page during the block."""
    page = Page(context, id)
    try:
        yield page
    finally:
        page.blocks.close()


@pytest.fixture
def on_a_space(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub.login = TOKEN
    monkeypatch.setattr(
        "gradio.http_server.watchfn_spaces", lambda _: None
    )  # do not watch files for reloading, as development Spaces do
    for name, value in {**SPACE, "OPENID_PROVIDER_URL": hub.url}.items():
        monkeypatch.setenv(name, value)
        # Gradio reads these when it is imported.
        if hasattr(oauth, name):
            monkeypatch.setattr(oauth, name, value)
    return hub


def test_space_publishes_with_the_visitors_login(
    on_a_space: Hub, service: WorkerlessJobService, requests: list[PublishRequest]
) -> None:
    on_a_space.accounts[TOKEN] = Account("visitor")
    visitors = AccessPolicy(training="owner", owners=frozenset({"visitor"}))
    job = finished(service, owner="nobody")
    with opened(context_of(service, visitors), job.id) as page:
        token, *_, status, _ = page.click("start", "lora-mine", True, "")
        assert "Only visitor may train and change adapters here: log in as the owner" in status
        page.log_in()
        token, *_, status, _ = page.click("start", "lora-mine", True, "")
    assert "visitor/lora-mine" in status or "Checking what would be sent" in status
    assert token == ""
    (request,) = requests
    assert (request.repo_id, request.token) == ("visitor/lora-mine", TOKEN)


def test_space_requires_a_login_to_publish(
    on_a_space: Hub, service: WorkerlessJobService, requests: list[PublishRequest]
) -> None:
    job = finished(service, owner="nobody")
    with opened(context_of(service), job.id) as page:
        *_, status, _ = page.click("start", "lora-mine", True, "")
    assert "Log in with Hugging Face first" in status
    assert not requests
