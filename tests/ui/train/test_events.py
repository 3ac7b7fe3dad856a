"""Handlers of the Train form's events: drafts, rights, limits, and the submitted job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from starlette.requests import Request

from jobs.job import ServingOptions
from serve.engine.llm_engine import EngineLoader
from tests.fakes import FakeEngine
from tests.ui.train.jobs_on_disk import WorkerlessJobService, set_state
from ui.access.guard import COOKIE_NAME, VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.access.quota import VisitorLimits
from ui.context import Context
from ui.train.events import NO_ROWS, TrainFormHandlers, Updates
from ui.train.form import NO_LOCAL_BASE, build_form
from ui.train.settings import ALL_SETTINGS

ADA, BOB = "a" * 32, "b" * 32
ROWS = "intent,code\n" + "".join(f"add {n} to x,x + {n}\n" for n in range(24))


def request(cookie: str = ADA) -> Any:
    headers = [(b"cookie", f"{COOKIE_NAME}={cookie}".encode())]
    return SimpleNamespace(
        request=Request({"type": "http", "headers": headers, "client": ("10.0.0.9", 1)}),
        username="",
        session_hash=cookie,
    )


def make(home: Path, policy: AccessPolicy | None = None, serving: ServingOptions | None = None) -> TrainFormHandlers:
    context = Context(
        EngineLoader(lambda report: FakeEngine()).start(),
        visitors=VisitorRegistry(policy),
        serving=serving or ServingOptions(),
        home=home,
    )
    with gr.Blocks():
        form = build_form(context, gr.State(""))
    return TrainFormHandlers(context, form, WorkerlessJobService(home))


@pytest.fixture
def handlers(tmp_path: Path) -> Iterator[TrainFormHandlers]:
    made = make(tmp_path / "home")
    yield made
    made.reporter.preview_client.close()


def form_fields(technique: str = "lora", location: str = "here", **settings: Any) -> list[Any]:
    """Return the values of the form as a browser sends them."""
    values = [settings.get(setting.name, False if setting.is_flag else "") for setting in ALL_SETTINGS]
    return ["", "", technique, location, "cpu-basic", *values]


def upload_rows(
    handlers: TrainFormHandlers, folder: Path, name: str = "mine.csv", text: str = ROWS, cookie: str = ADA
) -> list[Updates]:
    """Upload rows; return the updates before their preview starts."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    updates_seen = []
    for updates in handlers.upload(request(cookie), str(path), *form_fields()):
        updates_seen.append(updates)
        if handlers.form.draft_key in updates and isinstance(updates[handlers.form.draft_key], str):
            break
        if handlers.form.note in updates:
            break
    return updates_seen


def test_start_submits_rows_owner_and_settings(handlers: TrainFormHandlers, tmp_path: Path) -> None:
    upload_rows(handlers, tmp_path)
    visitor = handlers.context.visitors.identify(request())
    updates = handlers.start(request(), *form_fields("ia3", adapter_name="ia3-mine", num_train_epochs="3", lora_r="8"))
    (job,) = handlers.job_service.list_jobs()
    assert updates[handlers.form.selected_job] == job.id
    assert (job.adapter, job.owner, job.data_name, job.where) == ("ia3-mine", visitor.id, "mine.csv", "here")
    assert (job.config["num_train_epochs"], job.config["quantization"]) == (3.0, "nf4")
    assert Path(job.config["dataset_name"]).read_text(encoding="utf-8") == ROWS
    assert handlers.context.home / "jobs" in Path(job.config["dataset_name"]).parents
    # The form suggests an unused name for the next job.
    assert updates[handlers.form.fields[0]]["value"] == "ia3-mine-2"


def test_upload_saves_a_draft_until_it_is_cleared(handlers: TrainFormHandlers, tmp_path: Path) -> None:
    first, second, _ = upload_rows(handlers, tmp_path)
    assert first == handlers._no_change
    assert second[handlers.form.fields[0]]["value"] == "lora-mine"
    visitor = handlers.context.visitors.identify(request()).id
    draft = handlers.drafts.get(visitor)
    assert draft is not None
    assert draft.settings["adapter_name"] == "lora-mine"
    updates = handlers.clear(request())
    assert updates[handlers.form.report] == ""
    assert handlers.drafts.get(visitor) is None


def test_start_without_rows_is_rejected(handlers: TrainFormHandlers) -> None:
    assert NO_ROWS in handlers.start(request(), *form_fields(adapter_name="x"))[handlers.form.start_note]
    assert handlers.job_service.list_jobs() == []


def test_draft_of_another_visitor_cannot_be_started(handlers: TrainFormHandlers, tmp_path: Path) -> None:
    upload_rows(handlers, tmp_path)
    assert NO_ROWS in handlers.start(request(BOB), *form_fields(adapter_name="x"))[handlers.form.start_note]


def test_start_errors_are_displayed_at_their_fields(handlers: TrainFormHandlers, tmp_path: Path) -> None:
    upload_rows(handlers, tmp_path)
    handlers.start(request(), *form_fields(adapter_name="lora-mine"))
    again = handlers.start(request(), *form_fields(adapter_name="lora-mine"))
    assert "choose another name" in again[handlers.form.start_note]
    assert again[handlers.form.fields[0]]["elem_classes"] == ["wrong"]
    bad = handlers.start(request(), *form_fields(adapter_name="other", learning_rate="<b>"))
    assert "&lt;b&gt;" in bad[handlers.form.start_note]
    assert len(handlers.job_service.list_jobs()) == 1


def test_job_limit_is_per_visitor(tmp_path: Path) -> None:
    handlers = make(tmp_path / "home", AccessPolicy(limits=VisitorLimits(jobs_at_once=1)))
    upload_rows(handlers, tmp_path)
    upload_rows(handlers, tmp_path, cookie=BOB)
    handlers.start(request(), *form_fields(adapter_name="one"))
    refused = handlers.start(request(), *form_fields(adapter_name="two"))
    assert "You have 1 job under way, and 1 is the limit" in refused[handlers.form.start_note]
    handlers.start(request(BOB), *form_fields(adapter_name="bobs"))
    job = next(job for job in handlers.job_service.list_jobs() if job.adapter == "one")
    set_state(handlers.job_service, job.id, state="done")
    handlers.start(request(), *form_fields(adapter_name="two"))
    assert {job.adapter for job in handlers.job_service.list_jobs()} == {"one", "two", "bobs"}


def test_start_without_rights_is_rejected(tmp_path: Path) -> None:
    handlers = make(tmp_path / "home", AccessPolicy("owner", frozenset({"ada"})))
    upload_rows(handlers, tmp_path)
    first = next(handlers.restore_draft(request(), "", *form_fields()))
    assert first[handlers.form.start].interactive is False
    assert "Only ada may train" in first[handlers.form.start_note]
    assert "Only ada may train" in handlers.start(request(), *form_fields(adapter_name="x"))[handlers.form.start_note]
    assert handlers.job_service.list_jobs() == []


def test_remote_engine_cannot_train(tmp_path: Path) -> None:
    handlers = make(tmp_path / "home", serving=ServingOptions(base=""))
    upload_rows(handlers, tmp_path)
    first = next(handlers.restore_draft(request(), "", *form_fields()))
    assert NO_LOCAL_BASE in first[handlers.form.start_note]
    assert NO_LOCAL_BASE in handlers.start(request(), *form_fields(adapter_name="x"))[handlers.form.start_note]


def test_upload_over_the_limit_is_rejected(tmp_path: Path) -> None:
    handlers = make(tmp_path / "home", AccessPolicy(limits=VisitorLimits(upload_bytes=100)))
    last = upload_rows(handlers, tmp_path)[-1]
    assert "is the limit here" in last[handlers.form.note]
    assert handlers.drafts.get(handlers.context.visitors.identify(request()).id) is None


def test_path_is_rejected_as_data_set(handlers: TrainFormHandlers) -> None:
    *_, last = handlers.select_dataset(request(), "/etc/passwd", *form_fields())
    assert "is not a data set" in last[handlers.form.note]


def test_hub_training_is_only_for_the_owner(tmp_path: Path) -> None:
    handlers = make(tmp_path / "home", AccessPolicy(owners=frozenset({"ada"})))
    upload_rows(handlers, tmp_path)
    assert (
        "only the owner" in handlers.change_location(request(), *form_fields(location="hub"))[handlers.form.start_note]
    )
    assert (
        "only the owner"
        in handlers.start(request(), *form_fields(location="hub", adapter_name="x"))[handlers.form.start_note]
    )
    assert "not a training target" in handlers.start(request(), *form_fields(location="moon"))[handlers.form.start_note]


def test_change_of_technique_sets_its_defaults_and_name(handlers: TrainFormHandlers, tmp_path: Path) -> None:
    upload_rows(handlers, tmp_path)
    events = handlers.change_technique(
        request(), *form_fields("prompt-tuning", adapter_name="lora-mine", learning_rate="0.5", seed="7")
    )
    next(events)
    updates = next(events)
    values = {
        setting.name: updates[field].get("value")
        for setting, field in zip(ALL_SETTINGS, handlers.form.fields, strict=True)
    }
    assert (values["adapter_name"], values["learning_rate"], values["seed"]) == ("prompt-mine", "0.03", "7")
    assert updates[handlers.form.fields[3]]["visible"] is False  # LoRA's rank
    named = handlers.change_technique(request(), *form_fields("ia3", adapter_name="my-own"))
    next(named)
    assert next(named)[handlers.form.fields[0]]["value"] == "my-own"


def test_handlers_without_changes_yield_a_no_op(handlers: TrainFormHandlers) -> None:
    for events in (
        handlers.upload(request(), None, *form_fields()),
        handlers.change_columns(request(), *form_fields()),
        handlers.change_setting(request(), *form_fields()),
        handlers.change_technique(request(), *form_fields("full")),
    ):
        assert list(events) == [handlers._no_change]
