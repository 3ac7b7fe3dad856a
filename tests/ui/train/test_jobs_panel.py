"""Jobs panel: state messages, curve, escaped HTML, polls that send only changes, and the rights of visitors."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from adapters.store import LIBRARY
from errors import PromptOrTuneError
from jobs.job import Job, Progress, ServingOptions, Verdict
from serve.engine.llm_engine import EngineLoader
from tests import messages
from tests.fakes import FakeEngine
from tests.ui.train import jobs_on_disk as on_disk
from tests.ui.train.jobs_on_disk import WorkerlessJobService
from ui.access.guard import COOKIE_NAME, VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.access.quota import VisitorLimits
from ui.context import Context
from ui.train import jobs_view
from ui.train.jobs_events import (
    BUSY_SECONDS,
    IDLE_SECONDS,
    JOB_NOT_FOUND,
    WORKER_CHECK_SECONDS,
    JobActions,
    PanelUpdate,
    button_labels,
    panel_update,
)
from ui.train.jobs_view import MAX_POINTS, JobArtifacts, loss_curve

EVIL = "<img src=x onerror=alert(1)>${alert(1)}</pre>"
ADA, BOB = "a" * 32, "b" * 32
JOB = Job("1", "lora-mine", {"technique": "lora"}, ServingOptions(), "mine.csv")


def request(cookie: str = ADA) -> Any:
    """Return a request of the page with the visitor's cookie."""
    headers = [(b"cookie", f"{COOKIE_NAME}={cookie}".encode())]
    return SimpleNamespace(
        request=Request({"type": "http", "headers": headers, "client": ("10.0.0.9", 1)}), username=""
    )


@pytest.fixture
def service(tmp_path: Path) -> WorkerlessJobService:
    return WorkerlessJobService(tmp_path)


def make_actions(service: WorkerlessJobService, policy: AccessPolicy | None = None) -> JobActions:
    context = Context(EngineLoader(lambda _: FakeEngine()), visitors=VisitorRegistry(policy), home=service.home)
    return JobActions(context, service)


def poll(actions: JobActions, selected_job: str = "", cookie: str = ADA, **state: Any) -> PanelUpdate:
    return panel_update(actions, actions.context.visitors.identify(request(cookie)), selected_job, state)


# Texts


@pytest.mark.parametrize(
    ("changes", "artifacts", "message"),
    [
        ({}, JobArtifacts(), "it is next"),
        ({"queue_position": 1}, JobArtifacts(), "one job is ahead"),
        ({"queue_position": 3}, JobArtifacts(), "3 jobs are ahead"),
        ({"state": "running"}, JobArtifacts(), "Starting"),
        ({"state": "running", "stage": "training"}, JobArtifacts(), "Training"),
        ({"state": "running", "stage": "scoring"}, JobArtifacts(), "Trained. Now"),
        ({"state": "stopping"}, JobArtifacts(), "saves a checkpoint"),
        ({"state": "stopped"}, JobArtifacts(step=60), "'Resume' goes on from step 60 of 120"),
        ({"state": "stopped"}, JobArtifacts(), "'Start again' begins anew"),
        ({"state": "stopped"}, JobArtifacts(adapter=True), "'Resume' goes on with the scoring"),
        ({"state": "failed"}, JobArtifacts(step=60), "'Retry' goes on from step 60"),
        ({"state": "done"}, JobArtifacts(adapter=True), "among the methods of the Compare page"),
    ],
)
def test_state_message_describes_the_job(changes: dict[str, Any], artifacts: JobArtifacts, message: str) -> None:
    assert message in jobs_view.state_message(replace(JOB, **changes), artifacts, 120)


def test_labels_of_location_technique_and_base() -> None:
    assert (
        jobs_view.location_label(replace(JOB, where="hub", flavor="a10g-small")) == "on Hugging Face Jobs (a10g-small)"
    )
    assert jobs_view.technique_title(replace(JOB, config={"technique": "new"})) == "new"
    assert jobs_view.job_base_label(JOB) == "the embedded base · NF4"


# The curve


def test_long_curve_is_averaged() -> None:
    losses = tuple((step, 1000.0 / step) for step in range(1, 1001))
    curve = loss_curve(Progress(step=1000, steps=1200, losses=losses, validation=((100, 2.0), (200, 1.5), (300, 1.8))))
    assert curve["mean"] == 5
    assert len(curve["training"]) == 200 <= MAX_POINTS
    assert curve["training"][0] == [5, pytest.approx(sum(1000 / step for step in range(1, 6)) / 5)]
    assert curve["steps"] == 1200
    assert "lowest 1.5 at step 200" in curve["said"]


def test_lowest_of_tiny_losses_is_not_rounded_to_zero() -> None:
    curve = loss_curve(Progress(step=3, steps=3, validation=((1, 0.0003862), (2, 0.0003861), (3, 0.0003863))))
    assert min(curve["validation"], key=lambda point: point[1])[0] == 2
    assert "at step 2" in curve["said"]
    assert "0.000386 (step 2)" in jobs_view.job_header_html(JOB, Progress(3, 3, validation=((2, 0.0003861),)))


def test_curve_skips_losses_that_are_not_finite() -> None:
    broken = loss_curve(Progress(step=2, steps=4, losses=((1, math.nan), (2, 2.0), (3, math.inf))))
    assert broken["training"] == [[2, 2.0]]
    assert json.dumps(broken, allow_nan=False)
    assert loss_curve(Progress())["said"] == ""


# HTML and polls


def test_texts_are_escaped() -> None:
    job = replace(JOB, adapter=EVIL, data_name=EVIL, message=EVIL, state="failed", flavor=EVIL, where="hub")
    verdict = replace(on_disk.VERDICT, sentence=EVIL, provenance={EVIL: EVIL})
    html = (
        jobs_view.job_header_html(job, Progress(1, 2))
        + jobs_view.job_state_html(job, JobArtifacts(), 2)
        + jobs_view.log_tail_html([EVIL])
    )
    html += jobs_view.verdict_html(verdict) + jobs_view.job_message_html(replace(job, state="running"), Progress())
    assert "<img" not in html
    assert html.count("&lt;img src=x") >= 7


def test_verdict_is_displayed_with_and_without_scores() -> None:
    html = jobs_view.verdict_html(on_disk.VERDICT)
    assert "12.5 points" in html
    assert "+12.5 <span>[+5.0, +20.0]</span>" in html
    assert "prompt fingerprint" in html
    short = jobs_view.verdict_html(Verdict("Too few rows were held out to score it.", 2, ()))
    assert "<table" not in short
    assert "Too few rows" in short


def test_panel_without_jobs_has_a_note(service: WorkerlessJobService) -> None:
    update = poll(make_actions(service))
    assert jobs_view.NO_JOBS_TITLE in update.changed["empty"]
    assert update.job == ""
    assert update.poll_state["every"] == IDLE_SECONDS


def test_poll_returns_only_changed_parts(service: WorkerlessJobService) -> None:
    job = on_disk.submit(service)
    on_disk.write_training(service, job.id, 20)
    actions = make_actions(service)
    first = poll(actions)
    assert {"list", "head", "curve", "line", "doing"} <= set(first.changed)
    assert first.poll_state["every"] == BUSY_SECONDS
    again = poll(actions, job.id, **{**first.poll_state, "number": 7})
    assert again.changed == {}
    # The number distinguishes an update without changes from a missing update.
    assert again.poll_state == {**first.poll_state, "number": 7}
    on_disk.write_training(service, job.id, 21, since=20)
    assert set(poll(actions, job.id, **first.poll_state).changed) == {"head", "curve"}
    # The browser can send any values.
    assert set(poll(actions, job.id, poll=["strange"]).changed) == set(first.changed)


def test_log_is_sent_when_open(service: WorkerlessJobService) -> None:
    job = on_disk.submit(service)
    on_disk.write_log(service, job.id, "one", "two")
    assert poll(make_actions(service)).changed["log"]["lines"] is None
    assert poll(make_actions(service), log=True).changed["log"]["lines"][-2:] == ["one", "two"]


def test_running_job_is_selected_before_newer_jobs(service: WorkerlessJobService) -> None:
    old, running, new = (on_disk.submit(service, f"lora-{n}") for n in range(3))
    on_disk.write_training(service, running.id, 3)
    actions = make_actions(service)
    assert poll(actions).job == running.id
    assert poll(actions, job=old.id).job == old.id
    assert poll(actions, new.id, job=old.id).job == new.id
    gone = poll(actions, job="20200101-000000-000000-abcdef")
    assert (gone.job, gone.changed["note"]) == (running.id, JOB_NOT_FOUND)
    assert poll(actions, job="../../etc/passwd").job == running.id


@pytest.mark.parametrize(
    ("state", "artifacts", "visible"),
    [
        ("queued", JobArtifacts(), {"cancel"}),
        ("running", JobArtifacts(), {"cancel"}),
        ("stopping", JobArtifacts(), set()),
        ("stopped", JobArtifacts(step=6), {"again", "finish", "delete"}),
        ("stopped", JobArtifacts(), {"again", "delete"}),
        ("failed", JobArtifacts(step=6), {"again", "delete"}),
        ("done", JobArtifacts(adapter=True), {"open", "download", "delete"}),
        ("done", JobArtifacts(), {"delete"}),
    ],
)
def test_buttons_depend_on_state_and_rights(state: Any, artifacts: JobArtifacts, visible: set[str]) -> None:
    labels = button_labels(replace(JOB, state=state), artifacts, may_change=True)
    assert {name for name, label in labels.items() if label} == visible
    others = button_labels(replace(JOB, state=state), artifacts, may_change=False)
    assert {name for name, label in others.items() if label} == visible & {"open"}


# Rights and actions


def test_panel_without_rights_shows_no_jobs(service: WorkerlessJobService) -> None:
    job = on_disk.submit(service)
    actions = make_actions(service, AccessPolicy("owner", frozenset({"ada"})))
    update = poll(actions, job.id)
    assert set(update.changed) == {"note", "empty"}
    assert "lora-mine" not in str(update)
    for act in (actions.cancel, actions.resume, actions.finish, actions.pack_zip):
        with pytest.raises(PromptOrTuneError, match=messages.TRAINING_DENIED):
            act(request(), job.id)
    assert service.get_job(job.id).state == "queued"


def test_visitor_changes_only_own_jobs(service: WorkerlessJobService) -> None:
    actions = make_actions(service, AccessPolicy("everyone", frozenset({"ada"})))
    mine = on_disk.submit(service, "lora-a", owner=actions.context.visitors.identify(request(ADA)).id)
    others = on_disk.submit(service, "lora-b", owner=actions.context.visitors.identify(request(BOB)).id)
    is_own = {job["id"]: job["mine"] for job in poll(actions).changed["list"]["jobs"]}
    assert is_own == {mine.id: True, others.id: False}
    with pytest.raises(PromptOrTuneError, match=messages.JOB_OF_OTHER_VISITOR):
        actions.cancel(request(ADA), others.id)
    actions.cancel(request(ADA), mine.id)
    assert [service.get_job(job.id).state for job in (mine, others)] == ["stopped", "queued"]
    with pytest.raises(PromptOrTuneError, match=messages.JOB_UNKNOWN):
        actions.cancel(request(ADA), "../../etc")
    with pytest.raises(PromptOrTuneError, match=messages.NO_JOB_CHOSEN):
        actions.cancel(request(ADA), "")


def test_stopped_job_is_resumed_or_finished(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    job = on_disk.submit(service)
    on_disk.stop(service, job.id, 60)
    assert actions.artifacts(service.get_job(job.id)) == JobArtifacts(60)
    actions.resume(request(), job.id)
    assert (service.get_job(job.id).state, on_disk.read_state(service, job.id).finish) == ("queued", False)
    on_disk.set_state(service, job.id, state="stopped")
    actions.finish(request(), job.id)
    assert (service.get_job(job.id).state, on_disk.read_state(service, job.id).finish) == ("queued", True)


def test_resume_checks_the_job_limit(service: WorkerlessJobService) -> None:
    actions = make_actions(service, AccessPolicy(limits=VisitorLimits(jobs_at_once=1)))
    me = actions.context.visitors.identify(request()).id
    stopped = on_disk.submit(service, "lora-a", owner=me)
    actions.cancel(request(), stopped.id)
    on_disk.submit(service, "lora-b", owner=me)
    with pytest.raises(PromptOrTuneError, match=messages.ONE_IS_THE_LIMIT):
        actions.resume(request(), stopped.id)


def test_job_is_deleted_with_or_without_its_adapter(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    first, second = on_disk.submit(service, "lora-a"), on_disk.submit(service, "lora-b")
    for job in (first, second):
        on_disk.complete(service, job.id)
    actions.delete(request(), first.id, adapter=False)
    actions.delete(request(), second.id, adapter=True)
    assert service.list_jobs() == []
    assert sorted(path.name for path in (service.home / "adapters").iterdir()) == ["lora-a"]


def test_adapter_of_a_later_job_is_not_deleted_with_an_old_job(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    old = on_disk.submit(service, where="hub")
    on_disk.complete(service, old.id)
    shutil.rmtree(service.home / "adapters" / old.adapter)
    new = on_disk.submit(service)
    on_disk.complete(service, new.id)
    with pytest.raises(PromptOrTuneError, match=messages.ADAPTER_OF_LATER_JOB):
        actions.delete(request(), old.id, adapter=True)
    assert service.adapter_folder(new.id) is not None


def test_running_job_cannot_be_deleted(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    job = on_disk.submit(service)
    on_disk.write_training(service, job.id, 5)
    with pytest.raises(PromptOrTuneError, match=messages.STOP_JOB_FIRST):
        actions.delete(request(), job.id, adapter=True)
    assert service.get_job(job.id).state == "running"


def test_adapter_of_a_finished_job_is_packed(service: WorkerlessJobService, lora_folder: Path) -> None:
    actions = make_actions(service)
    job = on_disk.submit(service)
    on_disk.complete(service, job.id, lora_folder)
    zipped = actions.pack_zip(request(), job.id)
    assert zipped.name == "lora-mine.zip"
    assert "lora-mine/adapter_model.safetensors" in zipfile.ZipFile(zipped).namelist()


@pytest.fixture
def lora_folder(tmp_path: Path) -> Path:
    """Return a copy of a bundled adapter's folder."""
    return Path(shutil.copytree(LIBRARY / "lora-starter", tmp_path / "copied"))


def test_worker_is_checked_at_intervals_while_jobs_wait(service: WorkerlessJobService) -> None:
    clock = SimpleNamespace(now=0.0)
    actions = make_actions(service)
    actions.clock = lambda: clock.now
    poll(actions)
    assert service.wake_count == 0
    job = on_disk.submit(service)
    before = service.wake_count
    for _ in range(5):
        poll(actions)
    assert service.wake_count == before + 1
    clock.now += WORKER_CHECK_SECONDS
    poll(actions)
    assert service.wake_count == before + 2
    actions.cancel(request(), job.id)
    before = service.wake_count
    clock.now += WORKER_CHECK_SECONDS
    poll(actions)
    assert service.wake_count == before
