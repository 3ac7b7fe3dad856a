"""Other web sites in a real browser of a person who is logged in, behind a proxy with TLS (cases 1 and 8)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from serve.api.app import Api, ApiSettings
from serve.api.auth import ApiKeys, WebAccess
from serve.engine.llm_engine import EngineLoader
from tests.browser.conftest import browser
from tests.browser.fake_app import make_engine
from tests.browser.page import ComparePage, until
from tests.fakes import FakeEngine
from tests.security.tls_proxy import tls_proxy
from ui.app import build_pages, launch
from ui.context import Context

pytestmark = pytest.mark.browser

NAME, LOGIN = "arena.example", ("alice", "correct horse")
# Requests as a page can send them: readable ones, and those that a browser sends without asking first.
ATTACK = """
const [base, join, names, done] = arguments;
const form = new FormData();
form.append("files", new Blob(["stolen"]), "stolen.csv");
const json = { method: "POST", headers: { "content-type": "application/json" }, body: join };
const attempts = {
  config: ["config", {}],
  join: ["gradio_api/queue/join", json],
  data: ["gradio_api/queue/data?session_hash=stolen", {}],
  upload: ["gradio_api/upload", { method: "POST", body: form }],
  blind_join: ["gradio_api/queue/join", { method: "POST", body: join, mode: "no-cors" }],
  blind_upload: ["gradio_api/upload", { method: "POST", body: form, mode: "no-cors" }],
  models: ["v1/models", {}],
};
const chosen = Object.entries(attempts).filter(([name]) => names.length === 0 || names.includes(name));
const results = chosen.map(async ([name, [path, options]]) => {
  try {
    const answer = await fetch(base + path, { credentials: "include", ...options });
    return [name, answer.type === "opaque" ? "opaque" : answer.status];
  } catch {
    return [name, "blocked"];
  }
});
Promise.all(results).then((pairs) => done(Object.fromEntries(pairs)));
"""


@dataclass(frozen=True)
class Setup:
    app: Any
    engine: FakeEngine
    url: str  # behind the proxy
    port: int
    tls_port: int

    def attack(self, driver: WebDriver, base: str, *names: str) -> dict[str, Any]:
        """Run ATTACK on the open page, all of it or the attempts of these names; return the result of each attempt."""
        each = next(each for each in self.app.get_blocks().config["dependencies"] if each["api_name"] == "compare")
        join = f'{{"fn_index": {each["id"]}, "data": ["x", ["zero-shot"], null, null], "session_hash": "stolen"}}'
        return dict(driver.execute_async_script(ATTACK, base, join, names))

    def state(self) -> tuple[int, int]:
        """Return the number of runs and of uploaded files."""
        return self.engine.runs, sum(len(files) for _, _, files in os.walk(self.app.uploaded_file_dir))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    engine = make_engine()
    loader = EngineLoader(lambda report: engine).start()
    context = Context(loader, home=tmp_path_factory.mktemp("home"))
    pages = build_pages(loader, context=context)
    web = WebAccess(hosts=frozenset({NAME}))
    app, url, _ = launch(
        pages, port=None, prevent_thread_lock=True, accounts=[LOGIN], web=web, runs=context.cancel_registry,
        routes=Api(loader, ApiKeys(), ApiSettings(web=web)).routes(),
    )  # fmt: skip
    port = int(url.rstrip("/").rpartition(":")[2])
    with tls_proxy(port, NAME, tmp_path_factory.mktemp("tls")) as tls_port:
        yield Setup(app, engine, f"https://{NAME}:{tls_port}/", port, tls_port)
    pages.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    names = ("--ignore-certificate-errors", "--host-resolver-rules=MAP * 127.0.0.1")
    with browser(tmp_path_factory.mktemp("chromium"), *names) as running:
        yield running


@pytest.fixture(scope="module")
def alice(driver: WebDriver, setup: Setup) -> WebDriver:
    """The browser of a person who has logged in and run a comparison, behind the proxy."""
    driver.get(setup.url)
    fields = until(lambda: driver.find_elements(By.CSS_SELECTOR, "input"))
    for field, text in zip(fields, LOGIN, strict=False):
        field.send_keys(text)
    fields[1].send_keys(Keys.ENTER)
    page = ComparePage(driver, setup.url)
    until(lambda: page.find("#run").is_displayed(), 60)
    until(lambda: page.find(".model.ready"), 60)
    page.intent("say hello")
    page.run()
    until(lambda: page.all(".card[data-state=done]"), 60)
    return driver


def test_app_works_behind_a_proxy_and_within_its_policy(alice: WebDriver, setup: Setup) -> None:
    cookies = {each["name"]: each for each in alice.get_cookies()}
    login = next(each for name, each in cookies.items() if name.startswith("access-token-"))
    assert (login["sameSite"], login["secure"], login["httpOnly"]) == ("Lax", True, True)
    assert not [entry for entry in alice.get_log("browser") if "Content Security Policy" in entry["message"]]
    # The script itself works. Only what begins nothing: a run would be counted while the tests after this one look.
    assert setup.attack(alice, "/", "config", "models") == {"config": 200, "models": 200}


@pytest.mark.parametrize("site", ["evil.example", f"sibling.{NAME}", f"{NAME}.evil.example"])
def test_pages_of_other_sites_neither_read_nor_act(alice: WebDriver, setup: Setup, site: str) -> None:
    alice.get(f"https://{site}:{setup.tls_port}/")
    before = setup.state()
    results = setup.attack(alice, setup.url)
    blind = {name: results.pop(name) for name in ("blind_join", "blind_upload")}
    assert set(results.values()) == {"blocked"}
    assert set(blind.values()) <= {"opaque", "blocked"}
    assert setup.state() == before
    frame = "const f = document.createElement('iframe'); f.src = arguments[0]; document.body.append(f);"
    alice.execute_script(frame, setup.url)
    until(lambda: [each for each in alice.get_log("browser") if "frame-ancestors" in each["message"]])


def test_a_rebound_name_is_not_answered(alice: WebDriver, setup: Setup) -> None:
    alice.get(f"http://rebind.evil.example:{setup.port}/")
    assert "--allow-host" in alice.page_source
    before = setup.state()
    assert set(setup.attack(alice, "/").values()) <= {421, "opaque"}
    assert setup.state() == before
