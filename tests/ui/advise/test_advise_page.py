"""Advise page: texts, plan, losses, polls that send only changes, the start, uploads, and the rights of visitors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advise.folder import AdviceProgress, AdviseOptions, Curve, StepProgress
from errors import PromptOrTuneError, UnknownNameError
from jobs.job import Job, ServingOptions
from serve.engine.llm_engine import EngineLoader
from tasks.datasets.own import add_own_dataset
from tests import messages
from tests.fakes import FakeEngine
from tests.ui.advise import advice_on_disk as on_disk
from tests.ui.train import jobs_on_disk
from tests.ui.train.jobs_on_disk import WorkerlessJobService
from tests.ui.train.test_jobs_panel import ADA, BOB, EVIL, request
from ui.access.guard import VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.access.quota import VisitorLimits
from ui.advise import events, page, view
from ui.advise.events import (
    ADVICE_NOT_FOUND,
    MAX_SEED,
    UNREADABLE_RESULT,
    AdviceActions,
    advice_endpoint,
    advise_endpoint,
    button_labels,
    panel_update,
    winner,
)
from ui.context import Context
from ui.train.jobs_events import BUSY_SECONDS, IDLE_SECONDS, JobActions, PanelUpdate
from ui.train.jobs_events import panel_update as train_panel_update

# Everybody may train, and nobody owns the app.
NETWORK = AccessPolicy(local=False)
JOB = Job(
    "1", "advice-house", AdviseOptions("house", "advice-house").to_json(), ServingOptions(), "house", kind="advise"
)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerlessJobService:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))
    return WorkerlessJobService(tmp_path)


def make_actions(service: WorkerlessJobService, policy: AccessPolicy | None = None, **options: Any) -> AdviceActions:
    context = Context(
        EngineLoader(lambda _: FakeEngine()), visitors=VisitorRegistry(policy), home=service.home, **options
    )
    return AdviceActions(context, service)


def id_of(actions: AdviceActions, cookie: str) -> str:
    return actions.context.visitors.identify(request(cookie)).id


def poll(actions: AdviceActions, selected: str = "", cookie: str = ADA, **state: Any) -> PanelUpdate:
    return panel_update(actions, actions.context.visitors.identify(request(cookie)), selected, state)


# Texts


@pytest.mark.parametrize(
    ("changes", "steps", "message"),
    [
        ({}, (), "it is next"),
        ({"queue_position": 2}, (), "2 jobs are ahead of it"),
        ({"state": "running", "stage": "advising"}, (), "Planning"),
        ({"state": "running", "stage": "advising"}, ("running",), "You may close this page"),
        ({"state": "stopping"}, ("running",), "Stopping"),
        ({"state": "stopped"}, ("done",), "'Resume' goes on behind the last finished step"),
        ({"state": "stopped"}, ("waiting",), "'Start again' begins anew"),
        ({"state": "failed"}, ("done",), "This advice failed. 'Retry' goes on"),
        ({"state": "done"}, ("done",), "Done."),
    ],
)
def test_state_is_a_message_with_what_comes_next(changes: dict[str, Any], steps: Any, message: str) -> None:
    progress = AdviceProgress([StepProgress("a", "A", state) for state in steps])
    assert message in view.state_message(replace(JOB, **changes), progress, has_result=False)


def test_texts_of_files_and_models_are_escaped() -> None:
    progress = AdviceProgress([StepProgress("a", EVIL, "running", EVIL)], [Curve(EVIL, [(0.5, 1.0)])], EVIL)
    job = replace(JOB, data_name=EVIL, message=EVIL, state="running", stage="advising")
    plan = {"sentence": EVIL, "power": EVIL, "seconds": 1, "steps": [{"id": "a", "title": EVIL, "seconds": 1}]}
    for html in (
        view.header_html(job, progress, 1.0),
        view.message_html(job, progress),
        view.state_html(replace(job, state="failed"), progress, has_result=False),
        view.plan_html(plan, progress, folded=True),
        view.curves_html(progress.curves, folded=False),
        page.delete_text(job, adapter=True),
    ):
        assert "&lt;img" in html
        assert "<img" not in html


def test_plan_has_estimates_states_and_what_is_left_out(service: WorkerlessJobService) -> None:
    job = on_disk.submit(service)
    advice = on_disk.run_to(service, job.id, "search")
    html = view.plan_html(advice.read_plan(), advice.read_progress(), folded=False)
    assert "48 training rows, 12 validation rows and 40 test rows. Estimated: 12 min 51 s of a budget of 15 min" in html
    assert html.index('class="done"') < html.index('class="running"') < html.index('class="left-out"')
    assert html.count('class="waiting"') == 2
    assert "takes about 9 min more than the budget has" in html
    assert "about 6 min 50 s" in html
    assert on_disk.POWER in html
    assert "<details>" in view.plan_html(advice.read_plan(), advice.read_progress(), folded=True)
    assert view.plan_html(None, AdviceProgress(), folded=False) == ""
    assert view.plan_html({"steps": [{"id": 1}]}, AdviceProgress(), folded=False) == "", "of another version"


def test_losses_are_in_one_drawing_and_the_best_are_named() -> None:
    curves = [Curve(f"trial-{number}", [(0.5, 2.0), (1.0, 1.0 + number / 10)], "done") for number in range(10)]
    curves += [Curve("trial-now", [(0.1, 3.0)]), Curve("trial-nan", [(0.1, math.nan)]), Curve("trial-none")]
    html = view.curves_html(curves, folded=False)
    assert html.count("<polyline") == 11
    assert html.count('class="advise-curve other"') == 3
    assert "trial-now: 3.000, running" in html
    assert [f"trial-{number}: " in html for number in (0, 6, 7)] == [True, True, False]
    assert "and 3 more, in grey" in html
    assert "11 trainings; the lowest last loss is 1.000, of trial-0." in html
    assert "nan" not in html.replace("trial-nan", "")
    assert view.curves_html([Curve("none")], folded=False) == ""
    assert view.curves_html([Curve("flat", [(0.5, 1.0), (1.0, 1.0)])], folded=False).count("<polyline") == 1


# Polls


def test_poll_of_a_running_advice(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    job = on_disk.submit(service)
    on_disk.run_to(service, job.id, "search")
    update = poll(actions, log=True)
    assert update.job == job.id
    assert update.poll_state["every"] == BUSY_SECONDS
    assert "1 of 4 steps" in update.changed["head"]
    assert "Time left" in update.changed["head"]
    assert "IA3: step 12/40" in update.changed["message"]
    assert "<h4>The plan</h4>" in update.changed["plan"]
    assert update.changed["curves"].count("<polyline") == 3
    assert update.changed["report"] == ""
    assert update.changed["log"]["lines"] == []
    assert [name for name, label in update.changed["doing"].items() if label] == ["cancel"]
    again = poll(actions, **update.poll_state, log=True)
    assert set(again.changed) <= {"head"}, "only the time goes on"


def test_poll_of_a_finished_advice_has_the_report(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    job = on_disk.submit(service)
    on_disk.finish(service, job.id)
    update = poll(actions)
    assert update.poll_state["every"] == IDLE_SECONDS
    assert on_disk.SENTENCE in update.changed["report"]
    assert "<summary>The plan: 4 steps, 2 left out</summary>" in update.changed["plan"]
    labels = update.changed["doing"]
    assert labels["open"] == "Open the winner in Compare"
    assert labels["page"]
    assert labels["json"]
    assert labels["cancel"] == labels["again"] == ""
    entry = update.changed["list"]["jobs"][0]
    assert (entry["adapter"], entry["word"], entry["about"]) == ("house", "Done", "15 minutes, seed 42")


def test_stopped_advice_shows_what_there_is(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    job = on_disk.submit(service)
    on_disk.finish(service, job.id, finished=False, missing=["the steps after the answers to the test rows"])
    jobs_on_disk.set_state(service, job.id, state="stopped")
    changed = poll(actions).changed
    assert "Not finished. Missing: the steps after" in changed["report"]
    assert "What it found so far is below" in changed["line"]
    assert changed["doing"]["again"] == "Resume"


def test_result_of_another_version_is_a_message(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    job = on_disk.submit(service)
    on_disk.finish(service, job.id, families="none")
    assert UNREADABLE_RESULT in poll(actions).changed["report"]


def test_list_has_advice_alone_and_the_train_page_none(service: WorkerlessJobService) -> None:
    actions = make_actions(service)
    training = jobs_on_disk.submit(service)
    assert poll(actions).job == ""
    assert "No advice yet" in poll(actions).changed["empty"]
    first, second = on_disk.submit(service), on_disk.submit(service, "starter")
    assert [entry["id"] for entry in poll(actions).changed["list"]["jobs"]] == [second.id, first.id]
    assert poll(actions, job=first.id).job == first.id, "found again after a reload"
    assert poll(actions, job="nothing").changed["note"] == ADVICE_NOT_FOUND
    trains = JobActions(actions.context, service)
    visitor = actions.context.visitors.identify(request())
    listed = train_panel_update(trains, visitor, "", {}).changed["list"]["jobs"]
    assert [entry["id"] for entry in listed] == [training.id]
    for wrong, job in ((trains, first), (actions, training)):
        with pytest.raises(UnknownNameError, match=messages.JOB_UNKNOWN):
            wrong.require_job(request(), job.id)


@pytest.mark.parametrize(
    ("found", "method"),
    [
        ({"method": "rag-4", "adapter": None}, "rag-4"),
        ({"method": "zero-shot", "adapter": None}, "zero-shot"),
        ({"method": "advice-house", "adapter": "advice-house"}, "advice-house"),
        ({"method": "advice-house+rag-4", "adapter": "advice-house"}, "advice-house+rag-4"),
        ({"method": "fold-0-trial-3+rag-4", "adapter": None}, None),
        ({"method": None, "adapter": None}, None),
        ({}, None),
    ],
)
def test_winner_is_a_method_that_can_be_asked(found: dict[str, Any], method: str | None) -> None:
    assert winner({"recommendation": found}) == method
    labels = button_labels(replace(JOB, state="done"), AdviceProgress(), {"recommendation": found})
    assert bool(labels["open"]) is (method is not None)


# Start


def test_start_queues_an_advice_of_the_visitor(service: WorkerlessJobService) -> None:
    actions = make_actions(service, NETWORK)
    job = actions.start(request(BOB), "house", 4, 7.0)
    assert (job.kind, job.owner, job.data_name) == ("advise", id_of(actions, BOB), "house")
    assert AdviseOptions.from_json(job.config) == AdviseOptions("house", "house-advised", 4.0, 7)
    assert actions.start(request(BOB), "house", 4, 7).adapter == "house-advised-2"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("house", None, 42), "budget in minutes must be a number"),
        (("house", math.nan, 42), "are no budget"),
        (("house", 1e9, 42), "are no budget"),
        (("house", "15", 42), "must be a number"),
        (("house", 15, 1.5), "whole number"),
        (("house", 15, -1), "whole number"),
        (("house", 15, MAX_SEED + 1), "whole number"),
        (("house", 15, True), "must be a number"),
        ((None, 15, 42), "Choose a data set"),
        ((["house"], 15, 42), "Choose a data set"),
        (("conala", 15, 42), "conala"),
        (("../../etc", 15, 42), "etc"),
    ],
)
def test_start_refuses_what_it_cannot_be_for(service: WorkerlessJobService, values: Any, message: str) -> None:
    actions = make_actions(service)
    with pytest.raises(PromptOrTuneError, match=message):
        actions.start(request(), *values)
    assert service.list_jobs() == []


def test_start_counts_with_the_trainings(service: WorkerlessJobService) -> None:
    actions = make_actions(service, AccessPolicy(limits=VisitorLimits(jobs_at_once=1)))
    jobs_on_disk.submit(service, owner=id_of(actions, ADA))
    with pytest.raises(PromptOrTuneError, match="limit for one person"):
        actions.start(request(), "house", 15, 42)


def test_who_may_not_train_starts_no_advice(service: WorkerlessJobService) -> None:
    for actions in (
        make_actions(service, AccessPolicy(training="nobody")),
        make_actions(service, serving=ServingOptions(base="")),
    ):
        with pytest.raises(PromptOrTuneError):
            actions.start(request(), "house", 15, 42)
    assert service.list_jobs() == []


# Others


def test_advice_of_another_is_not_there(service: WorkerlessJobService) -> None:
    actions = make_actions(service, NETWORK)
    job = on_disk.submit(service, owner=id_of(actions, ADA))
    on_disk.finish(service, job.id)
    assert poll(actions, cookie=ADA).job == job.id
    assert poll(actions, job.id, cookie=BOB).job == ""
    assert "house" not in json.dumps(poll(actions, job.id, cookie=BOB).changed)
    for act in (actions.cancel, actions.resume, actions.result, actions.status):
        with pytest.raises(PromptOrTuneError, match=messages.JOB_OF_OTHER_VISITOR):
            act(request(BOB), job.id)
    with pytest.raises(PromptOrTuneError, match=messages.JOB_OF_OTHER_VISITOR):
        actions.delete(request(BOB), job.id, adapter=True)
    owner = make_actions(service)
    assert poll(owner, cookie=BOB).job == job.id, "the owner of the app sees all"


# Data sets of one's own

ROWS = "intent,code\n" + "".join(f"load record {n} of kind {n * 7},store.get({n})\n" for n in range(30))


def test_own_data_sets_are_the_owners(service: WorkerlessJobService, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(ROWS)
    add_own_dataset(file, "my-rows", embed=lambda texts: np.eye(len(texts), dtype=np.float32))
    owner, visitors = make_actions(service), make_actions(service, NETWORK)
    names = [events.data_names(each.context, each.context.visitors.identify(request())) for each in (owner, visitors)]
    assert names == [["my-rows", "house", "starter"], ["house", "starter"]]
    assert owner.start(request(), "my-rows", 15, 42).adapter == "my-rows-advised"
    with pytest.raises(UnknownNameError) as error:
        visitors.start(request(), "my-rows", 15, 42)
    assert "my-rows" not in str(error.value).replace("'my-rows'", "", 1)


def test_data_sets_of_files_with_training_rows_are_listed(
    service: WorkerlessJobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "available_datasets", lambda _: ["starter", "house", "conala", "humaneval"])
    actions = make_actions(service)
    assert events.data_names(actions.context, actions.context.visitors.identify(request())) == [
        "house", "starter", "conala",
    ]  # fmt: skip
    assert actions.start(request(), "conala", 15, 42).adapter == "conala-advised"


# Endpoints


def test_endpoints_start_and_return_an_advice(service: WorkerlessJobService) -> None:
    actions = make_actions(service, NETWORK)
    id = advise_endpoint(actions)(request(ADA), "starter", 5.0, 3)
    status = advice_endpoint(actions)(request(ADA), id)
    assert (status["state"], status["result"]) == ("queued", None)
    result = on_disk.finish(service, id)
    status = json.loads(json.dumps(advice_endpoint(actions)(request(ADA), id)))
    assert status["state"] == "done"
    assert status["result"] == result
    assert status["progress"]["steps"][0]["state"] == "done"
    with pytest.raises(PromptOrTuneError, match=messages.JOB_OF_OTHER_VISITOR):
        advice_endpoint(actions)(request(BOB), id)
    with pytest.raises(UnknownNameError):
        advice_endpoint(actions)(request(ADA), "../" + id)
