"""What the form's events do on the server: who may begin what, how much of it, and what is kept."""

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
from tests.ui.train.jobs_on_disk import QuietBoard, stand
from ui.context import Context
from ui.train.events import NO_ROWS, TrainFormHandlers, Updates
from ui.train.form import NO_LOCAL_BASE, build_form
from ui.train.settings import ALL_SETTINGS
from ui.visitors import COOKIE_NAME, AccessPolicy, Limits, VisitorRegistry

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
    return TrainFormHandlers(context, form, QuietBoard(home))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[TrainFormHandlers]:
    made = make(tmp_path / "home")
    yield made
    made.reporter.preview_client.close()


def filled(technique: str = "lora", place: str = "here", **settings: Any) -> list[Any]:
    """The fields as a browser sends them."""
    values = [settings.get(each.name, False if each.is_flag else "") for each in ALL_SETTINGS]
    return ["", "", technique, place, "cpu-basic", *values]


def take(
    desk: TrainFormHandlers, folder: Path, name: str = "mine.csv", text: str = ROWS, cookie: str = ADA
) -> list[Updates]:
    """Uploads rows; the updates until the look at them begins."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    found = []
    for updates in desk.upload(request(cookie), str(path), *filled()):
        found.append(updates)
        if desk.form.draft_key in updates and isinstance(updates[desk.form.draft_key], str):
            break
        if desk.form.note in updates:
            break
    return found


def test_a_job_begins_with_the_rows_the_visitor_and_the_settings(desk: TrainFormHandlers, tmp_path: Path) -> None:
    take(desk, tmp_path)
    visitor = desk.context.visitors.identify(request())
    updates = desk.start(request(), *filled("ia3", adapter_name="ia3-mine", num_train_epochs="3", lora_r="8"))
    (job,) = desk.job_service.list_jobs()
    assert updates[desk.form.selected_job] == job.id
    assert (job.adapter, job.owner, job.data_name, job.where) == ("ia3-mine", visitor.id, "mine.csv", "here")
    assert (job.config["num_train_epochs"], job.config["quantization"]) == (3.0, "nf4")
    assert Path(job.config["dataset_name"]).read_text(encoding="utf-8") == ROWS
    assert desk.context.home / "jobs" in Path(job.config["dataset_name"]).parents
    # The next one has a name that is free.
    assert updates[desk.form.fields[0]]["value"] == "ia3-mine-2"


def test_rows_are_named_and_kept_until_they_are_forgotten(desk: TrainFormHandlers, tmp_path: Path) -> None:
    first, second, _ = take(desk, tmp_path)
    assert first == desk._no_change
    assert second[desk.form.fields[0]]["value"] == "lora-mine"
    visitor = desk.context.visitors.identify(request()).id
    draft = desk.drafts.get(visitor)
    assert draft is not None
    assert draft.settings["adapter_name"] == "lora-mine"
    updates = desk.clear(request())
    assert updates[desk.form.report] == ""
    assert desk.drafts.get(visitor) is None


def test_without_rows_nothing_begins(desk: TrainFormHandlers) -> None:
    assert NO_ROWS in desk.start(request(), *filled(adapter_name="x"))[desk.form.start_note]
    assert desk.job_service.list_jobs() == []


def test_bobs_rows_are_not_adas(desk: TrainFormHandlers, tmp_path: Path) -> None:
    take(desk, tmp_path)
    assert NO_ROWS in desk.start(request(BOB), *filled(adapter_name="x"))[desk.form.start_note]


def test_a_taken_name_and_a_bad_setting_are_sentences_at_their_fields(desk: TrainFormHandlers, tmp_path: Path) -> None:
    take(desk, tmp_path)
    desk.start(request(), *filled(adapter_name="lora-mine"))
    again = desk.start(request(), *filled(adapter_name="lora-mine"))
    assert "choose another name" in again[desk.form.start_note]
    assert again[desk.form.fields[0]]["elem_classes"] == ["wrong"]
    bad = desk.start(request(), *filled(adapter_name="other", learning_rate="<b>"))
    assert "&lt;b&gt;" in bad[desk.form.start_note]
    assert len(desk.job_service.list_jobs()) == 1


def test_jobs_at_once_are_counted_for_each_visitor(tmp_path: Path) -> None:
    desk = make(tmp_path / "home", AccessPolicy(limits=Limits(jobs_at_once=1)))
    take(desk, tmp_path)
    take(desk, tmp_path, cookie=BOB)
    desk.start(request(), *filled(adapter_name="one"))
    refused = desk.start(request(), *filled(adapter_name="two"))
    assert "You have 1 job under way, and 1 is the limit" in refused[desk.form.start_note]
    desk.start(request(BOB), *filled(adapter_name="bobs"))
    job = next(each for each in desk.job_service.list_jobs() if each.adapter == "one")
    stand(desk.job_service, job.id, state="done")
    desk.start(request(), *filled(adapter_name="two"))
    assert {each.adapter for each in desk.job_service.list_jobs()} == {"one", "two", "bobs"}


def test_who_may_not_train_sees_why_and_cannot_begin(tmp_path: Path) -> None:
    desk = make(tmp_path / "home", AccessPolicy("owner", frozenset({"ada"})))
    take(desk, tmp_path)
    first = next(desk.restore_draft(request(), "", *filled()))
    assert first[desk.form.start].interactive is False
    assert "Only ada may train" in first[desk.form.start_note]
    assert "Only ada may train" in desk.start(request(), *filled(adapter_name="x"))[desk.form.start_note]
    assert desk.job_service.list_jobs() == []


def test_where_another_engine_answers_there_is_nothing_to_train(tmp_path: Path) -> None:
    desk = make(tmp_path / "home", serving=ServingOptions(base=""))
    take(desk, tmp_path)
    first = next(desk.restore_draft(request(), "", *filled()))
    assert NO_LOCAL_BASE in first[desk.form.start_note]
    assert NO_LOCAL_BASE in desk.start(request(), *filled(adapter_name="x"))[desk.form.start_note]


def test_a_file_over_the_limit_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    desk = make(tmp_path / "home", AccessPolicy(limits=Limits(upload_bytes=100)))
    last = take(desk, tmp_path)[-1]
    assert "is the limit here" in last[desk.form.note]
    assert desk.drafts.get(desk.context.visitors.identify(request()).id) is None


def test_a_path_is_no_data_set(desk: TrainFormHandlers) -> None:
    *_, last = desk.select_dataset(request(), "/etc/passwd", *filled())
    assert "is not a data set" in last[desk.form.note]


def test_a_place_that_costs_the_owner_is_refused_to_others(tmp_path: Path) -> None:
    desk = make(tmp_path / "home", AccessPolicy(owners=frozenset({"ada"})))
    take(desk, tmp_path)
    assert "only the owner" in desk.change_location(request(), *filled(place="hub"))[desk.form.start_note]
    assert "only the owner" in desk.start(request(), *filled(place="hub", adapter_name="x"))[desk.form.start_note]
    assert "not a training target" in desk.start(request(), *filled(place="moon"))[desk.form.start_note]


def test_another_technique_brings_its_own_settings_and_name(desk: TrainFormHandlers, tmp_path: Path) -> None:
    take(desk, tmp_path)
    events = desk.change_technique(
        request(), *filled("prompt-tuning", adapter_name="lora-mine", learning_rate="0.5", seed="7")
    )
    next(events)
    updates = next(events)
    values = {
        each.name: updates[field].get("value") for each, field in zip(ALL_SETTINGS, desk.form.fields, strict=True)
    }
    assert (values["adapter_name"], values["learning_rate"], values["seed"]) == ("prompt-mine", "0.03", "7")
    assert updates[desk.form.fields[3]]["visible"] is False  # LoRA's rank
    named = desk.change_technique(request(), *filled("ia3", adapter_name="my-own"))
    next(named)
    assert next(named)[desk.form.fields[0]]["value"] == "my-own"


def test_what_a_generator_of_an_event_says_first_changes_nothing(desk: TrainFormHandlers) -> None:
    for events in (
        desk.upload(request(), None, *filled()),
        desk.change_columns(request(), *filled()),
        desk.change_setting(request(), *filled()),
        desk.change_technique(request(), *filled("full")),
    ):
        assert list(events) == [desk._no_change]
