"""Training target: permission to use Hugging Face Jobs, prices, and commands to copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from jobs.job import ServingOptions
from serve.engine.llm_engine import EngineLoader
from tests.fakes import FakeEngine
from tests.hub.client import log_in, use_hub
from tests.hub_standin import Hub, hub_standin
from ui.access.guard import VisitorRegistry
from ui.access.policy import AccessPolicy, Visitor
from ui.context import Context
from ui.train.form import HardwarePrices, build_training_target, command_updates, denied_reason, hardware_html

OWNER, GUEST = Visitor("1", "boss", owner=True), Visitor("2")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path)
        yield standin


def context(policy: AccessPolicy | None = None, base: str = "embedded") -> Context:
    return Context(
        EngineLoader(lambda _: FakeEngine()),
        visitors=VisitorRegistry(policy),
        serving=ServingOptions(base=base),
        home=Path("unused"),
    )


def test_owner_with_a_login_may_use_hub_jobs(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch)
    assert denied_reason(context(), OWNER, "hub") is None
    assert denied_reason(context(base="Qwen/Qwen2.5-Coder-0.5B@main"), OWNER, "hub") is None
    assert not hub.requests


@pytest.mark.parametrize(
    ("visitor", "policy", "base", "location", "message"),
    [
        (GUEST, None, "embedded", "hub", "costs the owner of this app money"),
        (GUEST, AccessPolicy(training="nobody"), "embedded", "here", "Training is switched off"),
        (OWNER, None, "", "hub", "Another engine answers here"),
        (OWNER, None, "/models/mine", "hub", "is on this machine only"),
        (OWNER, None, "~/mine.gguf", "hub", "is on this machine only"),
        (OWNER, None, "embedded", "<b>moon</b>", "is not a training target"),
    ],
)
def test_denied_target_has_a_reason(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    visitor: Visitor,
    policy: AccessPolicy | None,
    base: str,
    location: str,
    message: str,
) -> None:
    log_in(monkeypatch)
    assert message in str(denied_reason(context(policy, base), visitor, location))


def test_hub_without_a_login_is_denied(hub: Hub) -> None:
    assert "`hf auth login`" in str(denied_reason(context(), OWNER, "hub"))
    assert denied_reason(context(), OWNER, "here") is None


def test_prices_are_requested_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch)
    prices = HardwarePrices()
    assert all(option.price_per_hour is None for option in prices.cached())
    options = {option.name: option for option in prices.get()}
    assert options["a10g-small"].label == "Nvidia A10G - small · 24 GB GPU · $1.00 an hour"
    assert options["cpu-basic"].label == "CPU Basic · 16 GB, no GPU · $0.01 an hour"
    assert prices.cached() == prices.get()
    assert [path for path in hub.requests if "hardware" in path] == ["GET /api/jobs/hardware"]
    assert "$1.00 an hour" in hardware_html("a10g-small", prices.cached())
    assert "<strong>$6.00 at most</strong>" in hardware_html("a10g-small", prices.cached())


def test_unknown_price_is_not_displayed() -> None:
    assert "$" not in hardware_html("a10g-small", HardwarePrices().cached())
    assert "6 hours at the latest" in hardware_html("a10g-small", HardwarePrices().cached())


def test_commands_are_empty_for_invalid_settings() -> None:
    config = {"adapter_name": "lora-mine", "dataset_name": "rows.csv"}
    here, hub = command_updates(config, ServingOptions(), "my rows.csv", "t4-small")
    assert "--dataset-name 'my rows.csv'" in here.value
    assert "--flavor t4-small" in hub.value
    for wrong in ({**config, "lora_r": 0}, {**config, "adapter_name": "A B"}):
        assert [box.value for box in command_updates(wrong, ServingOptions(), "my rows.csv")] == ["", ""]
    assert [box.value for box in command_updates(config, ServingOptions(), "my rows.csv", "; rm -rf ~")] == ["", ""]


def test_building_the_target_sends_no_request(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch)
    with gr.Blocks():
        target = build_training_target(context())
    assert target.location.value == "here"
    assert target.flavor.value == "a10g-small"
    assert not target.flavor.visible
    assert not hub.requests
