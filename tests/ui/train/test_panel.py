"""The jobs' panel: what it says of each state, what a visitor sees and may do, and that only changes are sent."""

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
from tests.fakes import FakeEngine
from tests.ui.train import jobs_on_disk as on_disk
from tests.ui.train.jobs_on_disk import QuietBoard
from ui.context import Context
from ui.train import jobs_view as views
from ui.train import jobs_view as words
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
from ui.visitors import COOKIE_NAME, AccessPolicy, Limits, VisitorRegistry

EVIL = "<img src=x onerror=alert(1)>${alert(1)}</pre>"
ADA, BOB = "a" * 32, "b" * 32
JOB = Job("1", "lora-mine", {"technique": "lora"}, ServingOptions(), "mine.csv")


def request(cookie: str = ADA) -> Any:
    """What an event of the page gets, as far as visitors are told apart by it."""
    headers = [(b"cookie", f"{COOKIE_NAME}={cookie}".encode())]
    return SimpleNamespace(
        request=Request({"type": "http", "headers": headers, "client": ("10.0.0.9", 1)}), username=""
    )


@pytest.fixture
def board(tmp_path: Path) -> QuietBoard:
    return QuietBoard(tmp_path)


def desk_of(board: QuietBoard, policy: AccessPolicy | None = None) -> JobActions:
    context = Context(EngineLoader(lambda _: FakeEngine()), visitors=VisitorRegistry(policy), home=board.home)
    return JobActions(context, board)


def seen(desk: JobActions, chosen: str = "", cookie: str = ADA, **asked: Any) -> PanelUpdate:
    return panel_update(desk, desk.context.visitors.identify(request(cookie)), chosen, asked)


# Words


@pytest.mark.parametrize(
    ("changes", "left", "says"),
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
def test_every_state_is_told_in_words(changes: dict[str, Any], left: JobArtifacts, says: str) -> None:
    assert says in words.state_message(replace(JOB, **changes), left, 120)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59, "59 s"), (187, "3 min 07 s"), (7500, "2 h 05 min"), (100_000, "1 d 03 h")]
)
def test_durations_have_two_units_at_most(seconds: float, told: str) -> None:
    assert words.format_duration(seconds) == told


def test_a_job_elsewhere_says_where_and_an_unknown_technique_its_own_name() -> None:
    assert words.location_label(replace(JOB, where="hub", flavor="a10g-small")) == "on Hugging Face Jobs (a10g-small)"
    assert words.technique_title(replace(JOB, config={"technique": "new"})) == "new"
    assert words.base_label(JOB) == "the embedded base · NF4"


# The curve


def test_a_long_training_is_thinned_to_means_and_the_best_is_named() -> None:
    losses = tuple((step, 1000.0 / step) for step in range(1, 1001))
    drawn = loss_curve(Progress(step=1000, steps=1200, losses=losses, validation=((100, 2.0), (200, 1.5), (300, 1.8))))
    assert drawn["mean"] == 5
    assert len(drawn["training"]) == 200 <= MAX_POINTS
    assert drawn["training"][0] == [5, pytest.approx(sum(1000 / step for step in range(1, 6)) / 5)]
    assert drawn["steps"] == 1200
    assert "lowest 1.5 at step 200" in drawn["said"]


def test_the_lowest_of_tiny_losses_is_drawn_where_it_is_named() -> None:
    drawn = loss_curve(Progress(step=3, steps=3, validation=((1, 0.0003862), (2, 0.0003861), (3, 0.0003863))))
    assert min(drawn["validation"], key=lambda point: point[1])[0] == 2
    assert "at step 2" in drawn["said"]
    assert "0.000386 (step 2)" in views.job_header_html(JOB, Progress(3, 3, validation=((2, 0.0003861),)))


def test_a_loss_that_is_no_number_has_no_place_and_nothing_is_said_of_nothing() -> None:
    broken = loss_curve(Progress(step=2, steps=4, losses=((1, math.nan), (2, 2.0), (3, math.inf))))
    assert broken["training"] == [[2, 2.0]]
    assert json.dumps(broken, allow_nan=False)
    assert loss_curve(Progress())["said"] == ""


# What is shown


def test_texts_of_people_and_models_are_escaped() -> None:
    job = replace(JOB, adapter=EVIL, data_name=EVIL, message=EVIL, state="failed", flavor=EVIL, where="hub")
    verdict = replace(on_disk.VERDICT, sentence=EVIL, provenance={EVIL: EVIL})
    html = (
        views.job_header_html(job, Progress(1, 2))
        + views.job_state_html(job, JobArtifacts(), 2)
        + views.log_tail_html([EVIL])
    )
    html += views.verdict_html(verdict) + views.job_message_html(replace(job, state="running"), Progress())
    assert "<img" not in html
    assert html.count("&lt;img src=x") >= 7


def test_a_verdict_shows_its_table_and_an_honest_one_without_scores_none() -> None:
    html = views.verdict_html(on_disk.VERDICT)
    assert "12.5 points" in html
    assert "+12.5 <span>[+5.0, +20.0]</span>" in html
    assert "prompt fingerprint" in html
    short = views.verdict_html(Verdict("Too few rows were held out to score it.", 2, ()))
    assert "<table" not in short
    assert "Too few rows" in short


def test_nothing_yet_is_told_and_asked_for_rarely(board: QuietBoard) -> None:
    found = seen(desk_of(board))
    assert views.NO_JOBS_TITLE in found.changed["empty"]
    assert found.job == ""
    assert found.poll_state["every"] == IDLE_SECONDS


def test_a_look_sends_only_what_changed_since_the_last_one(board: QuietBoard) -> None:
    job = on_disk.begin(board)
    on_disk.train(board, job.id, 20)
    desk = desk_of(board)
    first = seen(desk)
    assert {"list", "head", "curve", "line", "doing"} <= set(first.changed)
    assert first.poll_state["every"] == BUSY_SECONDS
    again = seen(desk, job.id, **{**first.poll_state, "number": 7})
    assert again.changed == {}
    # An answer in which nothing changed is told from none by the number of its look.
    assert again.poll_state == {**first.poll_state, "number": 7}
    on_disk.train(board, job.id, 21, since=20)
    assert set(seen(desk, job.id, **first.poll_state).changed) == {"head", "curve"}
    # What a browser says of itself may be anything.
    assert set(seen(desk, job.id, seen=["strange"]).changed) == set(first.changed)


def test_the_log_comes_when_it_is_open(board: QuietBoard) -> None:
    job = on_disk.begin(board)
    on_disk.write_log(board, job.id, "one", "two")
    assert seen(desk_of(board)).changed["log"]["lines"] is None
    assert seen(desk_of(board), log=True).changed["log"]["lines"][-2:] == ["one", "two"]


def test_the_shown_job_is_the_chosen_else_the_addressed_else_the_running_one(board: QuietBoard) -> None:
    old, running, new = (on_disk.begin(board, f"lora-{n}") for n in range(3))
    on_disk.train(board, running.id, 3)
    desk = desk_of(board)
    assert seen(desk).job == running.id
    assert seen(desk, job=old.id).job == old.id
    assert seen(desk, new.id, job=old.id).job == new.id
    gone = seen(desk, job="20200101-000000-000000-abcdef")
    assert (gone.job, gone.changed["note"]) == (running.id, JOB_NOT_FOUND)
    assert seen(desk, job="../../etc/passwd").job == running.id


@pytest.mark.parametrize(
    ("state", "left", "stands"),
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
def test_buttons_stand_where_they_can_do_something(state: Any, left: JobArtifacts, stands: set[str]) -> None:
    labels = button_labels(replace(JOB, state=state), left, may_change=True)
    assert {name for name, label in labels.items() if label} == stands
    others = button_labels(replace(JOB, state=state), left, may_change=False)
    assert {name for name, label in others.items() if label} == stands & {"open"}


# Who may do what


def test_whoever_may_not_train_sees_no_job_and_moves_none(board: QuietBoard) -> None:
    job = on_disk.begin(board)
    desk = desk_of(board, AccessPolicy("owner", frozenset({"ada"})))
    found = seen(desk, job.id)
    assert set(found.changed) == {"note", "empty"}
    assert "lora-mine" not in str(found)
    for act in (desk.cancel, desk.resume, desk.finish, desk.pack_zip):
        with pytest.raises(PromptOrTuneError, match="Only ada may train"):
            act(request(), job.id)
    assert board.get_job(job.id).state == "queued"


def test_a_visitor_sees_all_jobs_and_changes_their_own(board: QuietBoard) -> None:
    desk = desk_of(board, AccessPolicy("everyone", frozenset({"ada"})))
    mine = on_disk.begin(board, "lora-a", owner=desk.context.visitors.identify(request(ADA)).id)
    others = on_disk.begin(board, "lora-b", owner=desk.context.visitors.identify(request(BOB)).id)
    listed = {each["id"]: each["mine"] for each in seen(desk).changed["list"]["jobs"]}
    assert listed == {mine.id: True, others.id: False}
    with pytest.raises(PromptOrTuneError, match="another visitor's"):
        desk.cancel(request(ADA), others.id)
    desk.cancel(request(ADA), mine.id)
    assert [board.get_job(job.id).state for job in (mine, others)] == ["stopped", "queued"]
    with pytest.raises(PromptOrTuneError, match="no job"):
        desk.cancel(request(ADA), "../../etc")
    with pytest.raises(PromptOrTuneError, match="Choose a job"):
        desk.cancel(request(ADA), "")


def test_a_stopped_job_goes_on_or_becomes_an_adapter(board: QuietBoard) -> None:
    desk = desk_of(board)
    job = on_disk.begin(board)
    on_disk.stop(board, job.id, 60)
    assert desk.artifacts(board.get_job(job.id)) == JobArtifacts(60)
    desk.resume(request(), job.id)
    assert (board.get_job(job.id).state, on_disk.standing(board, job.id).finish) == ("queued", False)
    on_disk.stand(board, job.id, state="stopped")
    desk.finish(request(), job.id)
    assert (board.get_job(job.id).state, on_disk.standing(board, job.id).finish) == ("queued", True)


def test_resuming_counts_against_the_limit_of_one_person(board: QuietBoard) -> None:
    desk = desk_of(board, AccessPolicy(limits=Limits(jobs_at_once=1)))
    me = desk.context.visitors.identify(request()).id
    stopped = on_disk.begin(board, "lora-a", owner=me)
    desk.cancel(request(), stopped.id)
    on_disk.begin(board, "lora-b", owner=me)
    with pytest.raises(PromptOrTuneError, match="1 is the limit"):
        desk.resume(request(), stopped.id)


def test_a_job_is_deleted_with_its_adapter_or_without(board: QuietBoard) -> None:
    desk = desk_of(board)
    first, second = on_disk.begin(board, "lora-a"), on_disk.begin(board, "lora-b")
    for job in (first, second):
        on_disk.complete(board, job.id)
    desk.delete(request(), first.id, adapter=False)
    desk.delete(request(), second.id, adapter=True)
    assert board.list_jobs() == []
    assert sorted(path.name for path in (board.home / "adapters").iterdir()) == ["lora-a"]


def test_an_adapter_that_a_later_job_made_is_not_deleted_with_an_old_one(board: QuietBoard) -> None:
    desk = desk_of(board)
    old = on_disk.begin(board, where="hub")
    on_disk.complete(board, old.id)
    shutil.rmtree(board.home / "adapters" / old.adapter)
    new = on_disk.begin(board)
    on_disk.complete(board, new.id)
    with pytest.raises(PromptOrTuneError, match="later job"):
        desk.delete(request(), old.id, adapter=True)
    assert board.adapter_folder(new.id) is not None


def test_a_running_job_keeps_its_adapter_and_itself(board: QuietBoard) -> None:
    desk = desk_of(board)
    job = on_disk.begin(board)
    on_disk.train(board, job.id, 5)
    with pytest.raises(PromptOrTuneError, match="stop it before"):
        desk.delete(request(), job.id, adapter=True)
    assert board.get_job(job.id).state == "running"


def test_an_adapter_is_packed_for_who_made_it(board: QuietBoard, lora_folder: Path) -> None:
    desk = desk_of(board)
    job = on_disk.begin(board)
    on_disk.complete(board, job.id, lora_folder)
    zipped = desk.pack_zip(request(), job.id)
    assert zipped.name == "lora-mine.zip"
    assert "lora-mine/adapter_model.safetensors" in zipfile.ZipFile(zipped).namelist()


@pytest.fixture
def lora_folder(tmp_path: Path) -> Path:
    """A real adapter's folder, copied from the library."""
    return Path(shutil.copytree(LIBRARY / "lora-starter", tmp_path / "copied"))


def test_a_worker_is_looked_after_while_something_waits_and_not_at_every_look(board: QuietBoard) -> None:
    clock = SimpleNamespace(now=0.0)
    desk = desk_of(board)
    desk.clock = lambda: clock.now
    seen(desk)
    assert board.woken == 0
    job = on_disk.begin(board)
    begun = board.woken
    for _ in range(5):
        seen(desk)
    assert board.woken == begun + 1
    clock.now += WORKER_CHECK_SECONDS
    seen(desk)
    assert board.woken == begun + 2
    desk.cancel(request(), job.id)
    begun = board.woken
    clock.now += WORKER_CHECK_SECONDS
    seen(desk)
    assert board.woken == begun
