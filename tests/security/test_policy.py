"""The table of actions: every handler, server function and route has one, and what each visitor may do in each mode."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.helpers import special_args
from starlette.requests import Request

from serve.api.app import Api
from serve.api.auth import HOSTS_VARIABLE, ApiKey, ApiKeys
from serve.engine.llm_engine import EngineLoader
from tests.conftest import ROOT
from tests.fakes import FakeEngine
from tests.security.policy_app import HERE, LOGINS, NETWORK, access
from ui.access.guard import COOKIE_NAME, VisitorRegistry, action, declare, declared_action, guard, is_of_gradio, protect
from ui.access.policy import API_ACTIONS, RULES, AccessPolicy, Visitor, access_table
from ui.app import build_pages
from ui.context import Context

OTHER = "user-0123456789abcdef"
# Actions that need neither the right to train nor to own something.
ALWAYS = {"view pages", "compare", "vote", "download an adapter", "see an adapter's data", "see the state of the API"}
OWN = {name for name, rule in RULES.items() if rule.audience in ("known", "maker") and rule.training}
OWNERS = {name for name, rule in RULES.items() if rule.audience == "owner"}


@pytest.fixture(scope="module")
def pages() -> gr.Blocks:
    loader = EngineLoader(lambda report: FakeEngine()).start()
    return build_pages(loader, context=Context(loader))


def request(cookie: str = "", username: str = "") -> Any:
    headers = [(b"cookie", f"{COOKIE_NAME}={cookie}".encode())] if cookie else []
    inner = Request({"type": "http", "headers": headers, "client": ("10.0.0.9", 1)})
    return SimpleNamespace(request=inner, username=username)


def test_documented_table_is_the_table_of_the_code() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert f"<!-- access table: begin -->\n{access_table()}\n<!-- access table: end -->" in text


def test_every_handler_of_the_pages_has_a_guard_with_an_action(pages: gr.Blocks) -> None:
    handlers = [event.fn for event in pages.fns.values() if event.fn is not None]
    scripts = [event for event in pages.fns.values() if event.fn is None]
    assert [fn for fn in handlers if declared_action(fn) not in RULES or not fn.is_guarded] == []
    assert all(event.js for event in scripts)
    assert (len(handlers), len(scripts)) == (134, 32)
    assert not any(map(is_of_gradio, handlers))


def test_every_server_function_of_a_component_has_an_action(pages: gr.Blocks) -> None:
    found = {
        name: declared_action(getattr(block, name))
        for block in pages.blocks.values()
        for name in dir(block)
        if getattr(getattr(block, name, None), "_is_server_fn", False)
    }
    assert found == {"difference": "view pages", "adapter_details": "view pages"}


def test_pages_with_a_handler_without_an_action_are_not_built() -> None:
    with gr.Blocks() as blocks:
        gr.Button().click(lambda: None)
    with pytest.raises(TypeError, match="have no action"):
        protect(blocks, VisitorRegistry())


def test_every_action_is_asked_somewhere() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "ui").rglob("*.py") if path.name != "policy.py"]
    adapter_actions = {f"{name} an adapter" for name in ("load", "unload", "download", "delete")}
    asked = {name for name in RULES if any(f'"{name}"' in source for source in sources)}
    assert set(RULES) - asked - adapter_actions - set(API_ACTIONS.values()) == set()


# Routes of the API


def test_every_route_of_the_api_asks_for_its_key() -> None:
    names = {"user": False, "boss": True}
    keys = ApiKeys(
        tuple(ApiKey(name, hashlib.sha256(name.encode()).digest(), admin=admin) for name, admin in names.items())
    )
    api = Api(EngineLoader(lambda report: FakeEngine()), keys)
    assert {route.path for route in api._router.routes} == set(API_ACTIONS)  # type: ignore[attr-defined]
    statuses = asyncio.run(_ask_every_route(api))
    for path, (without, with_key, with_admin_key) in statuses.items():
        audience = RULES[API_ACTIONS[path]].audience
        assert (without == 401) == (audience != "anyone"), path
        assert with_key != 401, path
        assert (with_key == 403) == (audience == "admin key"), path
        assert with_admin_key not in (401, 403), path


async def _ask_every_route(api: Api) -> dict[str, list[int]]:
    statuses: dict[str, list[int]] = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://localhost") as client:
        for route in api._router.routes:
            path, method = route.path, min(route.methods - {"HEAD"})  # type: ignore[attr-defined]
            for key in ("", "user", "boss"):
                headers = {"authorization": f"Bearer {key}"} if key else {}
                answer = await client.request(method, path.replace("{name:path}", "x"), headers=headers, json={})
                statuses.setdefault(path, []).append(answer.status_code)
    return statuses


# Modes


@pytest.fixture
def logins(tmp_path: Path) -> str:
    (tmp_path / "logins.txt").write_text(LOGINS)
    (tmp_path / "logins.txt").chmod(0o600)
    return str(tmp_path / "logins.txt")


def allowed(policy: AccessPolicy, visitor: Visitor, owner: str | None = None) -> set[str]:
    pages_actions = [name for name, rule in RULES.items() if rule.audience not in ("key", "admin key")]
    return {name for name in pages_actions if policy.may(visitor, name, owner=owner)}


def test_person_at_the_machine_owns_the_app() -> None:
    policy = access().policy
    visitor = VisitorRegistry(policy).identify(request("a" * 32))
    assert visitor.owner
    assert allowed(policy, visitor, OTHER) == allowed(policy, visitor) == ALWAYS | OWN | OWNERS | {"see that jobs run"}


@pytest.mark.parametrize("arguments", [["--train", "everyone"], []])
def test_nobody_owns_an_app_of_the_network_without_logins(arguments: list[str]) -> None:
    """Before: `--host 0.0.0.0 --train everyone` made every visitor an owner of everything."""
    options = access(*arguments, host=NETWORK)
    visitor = VisitorRegistry(options.policy).identify(request("a" * 32))
    assert not visitor.owner
    others = allowed(options.policy, visitor, OTHER)
    assert not others & OWNERS
    assert not [name for name in others if RULES[name].audience == "maker"]
    assert not allowed(options.policy, visitor, "") & {"download an adapter", "delete an adapter", "delete a job"}
    own = ALWAYS | OWN | {"see that jobs run"} if arguments else ALWAYS
    assert allowed(options.policy, visitor) == own
    assert "--auth FILE" in options.note
    assert "--train everyone" not in options.note


@pytest.mark.parametrize("variable", ["", "arena.example"])
@pytest.mark.parametrize("arguments", [(), ("--allow-host", "arena.example"), ("--trust-proxy",)])
@pytest.mark.parametrize("host", [HERE, "::1", "localhost", NETWORK, "192.168.1.5"])
def test_local_is_what_no_other_machine_reaches(
    host: str, arguments: tuple[str, ...], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOSTS_VARIABLE, variable)
    options = access(*arguments, host=host)
    reached = host in (NETWORK, "192.168.1.5") or bool(arguments) or bool(variable)
    assert options.policy.local is not reached
    assert options.policy.training == ("nobody" if reached else "everyone")
    assert ("can reach" in options.note) is reached


def test_logins_name_the_owner(logins: str) -> None:
    policy = access("--auth", logins).policy
    registry = VisitorRegistry(policy)
    alice, bob = (registry.identify(request(username=name)) for name in ("alice", "bob"))
    assert (alice.owner, bob.owner) == (True, False)
    assert allowed(policy, bob) == ALWAYS | OWN | {"see that jobs run"}
    assert not allowed(policy, bob, alice.id) & {name for name in RULES if RULES[name].audience in ("maker", "owner")}
    stranger = registry.identify(request("a" * 32))
    assert allowed(policy, stranger) == {"see the state of the API"}


def test_only_the_owner_trains_if_the_option_says_so(logins: str) -> None:
    policy = access("--auth", logins, "--owner", "alice", "--train", "owner").policy
    registry = VisitorRegistry(policy)
    assert allowed(policy, registry.identify(request(username="bob"))) == ALWAYS
    assert allowed(policy, registry.identify(request(username="alice")), OTHER) >= OWN | OWNERS


@pytest.mark.parametrize("host", [HERE, NETWORK])
def test_nobody_trains_if_the_option_says_so(host: str) -> None:
    policy = access("--train", "nobody", host=host).policy
    visitor = VisitorRegistry(policy).identify(request("a" * 32))
    assert not [name for name in allowed(policy, visitor) if RULES[name].training]


def test_address_alone_owns_nothing() -> None:
    policy = access("--train", "everyone", host=NETWORK).policy
    program = VisitorRegistry(policy).identify(request())
    assert not program.identified
    assert allowed(policy, program, program.id) == {
        "view pages", "compare", "see that jobs run", "see the state of the API",
    }  # fmt: skip
    assert "cookie" in str(policy.denied_reason(program, "train"))


def test_keys_of_the_api_are_no_matter_of_visitors() -> None:
    with pytest.raises(ValueError, match="keys of the API"):
        AccessPolicy().may(Visitor("x"), "ask the API")


# Guards


def test_guard_keeps_what_gradio_fills_in() -> None:
    registry, seen = VisitorRegistry(AccessPolicy(owners=frozenset({"ada"}))), []

    def handler(
        first: str, request: gr.Request, event: gr.EventData, login: gr.OAuthToken | None = None
    ) -> Iterator[str]:
        seen.append((first, request, event, login))
        yield first

    for fn in (guard(registry, "view pages", handler), guard(registry, "save all votes", handler, lambda *_: "no")):
        event = SimpleNamespace(target=None, _data={})
        inputs, *_ = special_args(fn, ["x"], gr.Request(), event)
        assert isinstance(inputs[1], gr.Request)
        assert isinstance(inputs[2], gr.EventData)
        inputs[1] = request("a" * 32)
        assert list(fn(*inputs)) == (["x"] if declared_action(fn) == "view pages" else ["no"])
    assert len(seen) == 1


def test_guard_adds_the_request_that_a_handler_does_not_take() -> None:
    registry = VisitorRegistry(AccessPolicy(owners=frozenset({"ada"})))
    refused = guard(registry, "save all votes", lambda number: number)
    inputs, *_ = special_args(refused, [3], gr.Request())
    assert len(inputs) == 2
    with pytest.raises(gr.Error, match="Only the owner"):
        refused(request("a" * 32), 3)
    assert refused(request(username="ada"), 3) == 3
    assert declare("vote", action("view pages")(lambda: None)).access_action == "vote"
