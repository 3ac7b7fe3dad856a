"""Things of other visitors, asked for over HTTP: adapters, jobs, drafts, with logins and with cookies alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.archive import pack
from adapters.manifest import ORIGIN_NAME, read_origin
from jobs.job import Job
from tests.security.policy_app import NETWORK, Pages, Person, access, served, team_app
from tests.ui.adapters.sample_home import SMALL, copy_adapter
from tests.ui.advise import advice_on_disk
from tests.ui.train import jobs_on_disk
from tests.ui.train.jobs_on_disk import WorkerlessJobService
from ui.access.guard import VisitorRegistry
from ui.access.policy import Visitor
from ui.train.publish import Publisher

pytestmark = pytest.mark.slow
SECRET_FILE = "salaries-of-alice.csv"


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """The app with `--auth` alone; carol owns it."""
    with team_app(tmp_path_factory.mktemp("team"), "--owner", "carol") as pages:
        yield pages


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """The app with `--host 0.0.0.0 --train everyone`, without logins."""
    with served(tmp_path_factory.mktemp("network"), access("--train", "everyone", host=NETWORK)) as pages:
        yield pages


def zipped(tmp_path: Path, name: str) -> Path:
    return pack(copy_adapter(SMALL, tmp_path / name, dataset=SECRET_FILE), tmp_path / "up" / f"zip-of-{name}.zip")


def uploaded(person: Person, tmp_path: Path, name: str) -> str:
    return person.send("upload", person.upload(zipped(tmp_path, name)), "", target="adapters-zip")


def act(person: Person, do: str, name: str) -> str:
    return person.send("act", target="adapters-list", data={"do": do, "name": name})


def test_adapter_of_alice_is_hers_alone(team: Pages, tmp_path: Path) -> None:
    """Before: bob deleted and downloaded it, and read the name of her file."""
    alice, bob = team.person("alice"), team.person("bob")
    folder = team.home / "adapters" / "alices-private"
    assert "is added" in uploaded(alice, tmp_path, "alices-private")
    origin = read_origin(folder)
    assert origin is not None
    assert origin.owner.startswith("user-")
    assert origin.owner_name == "alice"
    for action in ("delete", "save", "unload"):
        answer = act(bob, action, "alices-private")
        assert "another person" in answer, action
        assert ".zip" not in answer
    assert folder.is_dir()
    assert "is in memory" in act(bob, "load", "alices-private"), "others may use it"
    assert "is unloaded" in act(alice, "unload", "alices-private")
    listed = act(bob, "page", "")
    assert '"alices-private"' in listed
    assert SECRET_FILE not in listed
    assert "zip-of-alices-private" not in listed
    assert '"alices-private"' not in bob.send("update", SECRET_FILE[:8], "all", target="adapters-words")
    details = bob.ask("adapter_details", "alices-private")
    assert SECRET_FILE not in json.dumps(details)
    assert "another visitor's" in details["error"]
    assert SECRET_FILE in json.dumps(alice.ask("adapter_details", "alices-private"))
    assert "alices-private.zip" in act(alice, "save", "alices-private")
    assert "added by alice" in act(team.person("carol"), "page", "")
    assert "is deleted" in act(alice, "delete", "alices-private")
    assert not folder.exists()


def test_owner_of_the_app_may_delete_what_alice_added(team: Pages, tmp_path: Path) -> None:
    uploaded(team.person("alice"), tmp_path, "alices-other")
    assert "is deleted" in act(team.person("carol"), "delete", "alices-other")


def test_name_of_an_adapter_is_not_taken_by_another(team: Pages, tmp_path: Path) -> None:
    alice, bob = team.person("alice"), team.person("bob")
    uploaded(alice, tmp_path, "taken")
    before = read_origin(team.home / "adapters" / "taken")
    assert "There is an adapter 'taken' already" in uploaded(bob, tmp_path / "bobs", "taken")
    service = WorkerlessJobService(team.home)
    job = jobs_on_disk.submit(service, "lora-promised", owner=str(before and before.owner))
    assert "There is an adapter 'lora-promised' already" in uploaded(bob, tmp_path, "lora-promised")
    jobs_on_disk.set_state(service, job.id, state="stopped")
    service.delete(job.id)
    assert read_origin(team.home / "adapters" / "taken") == before


def test_adapter_without_a_record_is_the_owners(team: Pages) -> None:
    copy_adapter(SMALL, team.home / "adapters" / "of-the-machine")
    bob, carol = team.person("bob"), team.person("carol")
    for action in ("delete", "save"):
        assert "another person" in act(bob, action, "of-the-machine")
    assert "of-the-machine.zip" in act(carol, "save", "of-the-machine")
    assert f"{SMALL}.zip" in act(bob, "save", SMALL), "the library is everybody's"


def test_zip_brings_no_owner_along(team: Pages, tmp_path: Path) -> None:
    folder = copy_adapter(SMALL, tmp_path / "mine")
    (folder / ORIGIN_NAME).write_text('{"kind": "zip", "what": "x", "owner": "user-0"}')
    alice = team.person("alice")
    alice.send("upload", alice.upload(pack(folder, tmp_path / "mine.zip")), "", target="adapters-zip")
    origin = read_origin(team.home / "adapters" / "mine")
    assert origin is not None
    assert origin.owner_name == "alice"


# Jobs


def visitor_of(pages: Pages, name: str) -> Visitor:
    """Return the visitor that `Pages.person` sends the requests of."""
    from tests.security.test_policy import request

    registry = VisitorRegistry(pages.options.policy)
    if pages.options.accounts:
        return registry.identify(request(username=name))
    return registry.identify(request(name * (32 // len(name))))


def job_of(pages: Pages, name: str, adapter: str, *, running: bool = False) -> Job:
    service = WorkerlessJobService(pages.home)
    job = jobs_on_disk.submit(service, adapter, data_name=SECRET_FILE, owner=visitor_of(pages, name).id)
    jobs_on_disk.write_log(service, job.id, f"Reading {SECRET_FILE} ...")
    if running:
        jobs_on_disk.write_training(service, job.id, 20)
    else:
        jobs_on_disk.complete(service, job.id)
    return job


def choose(person: Person, job: Job) -> None:
    person.send("choose", target="train-job-list", data={"id": job.id})


def poll(person: Person, job: Job) -> str:
    return person.send("show", target="train-poller", data={"job": job.id, "seen": {}, "log": True, "number": 1})


def remove(pages: Pages, job: Job) -> None:
    service = WorkerlessJobService(pages.home)
    jobs_on_disk.set_state(service, job.id, state="stopped")
    service.delete(job.id)


def test_job_of_alice_shows_others_only_that_it_runs(team: Pages) -> None:
    """Before: bob read her log, the name of her file, her losses, and the verdict."""
    running, done = job_of(team, "alice", "alices-run", running=True), job_of(team, "alice", "alices-done")
    alice, bob = team.person("alice"), team.person("bob")
    choose(alice, running)
    assert SECRET_FILE in poll(alice, running)
    for job in (running, done):
        choose(bob, job)
        seen = poll(bob, job)
        for secret in (SECRET_FILE, "alices-run", "alices-done", "Reading", "beats RAG-8", "Validation loss"):
            assert secret not in seen, secret
        assert "Another visitor's job" in seen
        assert "20 of 120" in seen
        for published in (bob.send("show", target="train-publish"), bob.send("open_in_compare")):
            assert "alices-" not in published
    for job in (running, done):
        remove(team, job)


JOB_EVENTS = (
    ("click", "train-job-cancel"),
    ("click", "train-job-again"),
    ("click", "train-job-finish"),
    ("click", "train-job-delete"),
    ("click", "train-delete-job"),
    ("click", "train-delete-both"),
    ("download", "train-job-download"),
    ("open_in_compare", "train-job-open"),
    ("start", "train-publish-start"),
    ("stop", "train-publish-stop"),
)


def test_cookie_of_another_changes_no_job(network: Pages) -> None:
    """Before: without logins everybody was the owner, and `train-delete-job` of cookie B deleted the job of A."""
    job, service = job_of(network, "a", "of-a"), WorkerlessJobService(network.home)
    person = network.person("b")
    choose(person, job)
    for handler, target in JOB_EVENTS:
        assert "another person" in person.send(handler, target=target), target
        assert service.get_job(job.id).state == "done"
        assert service.adapter_folder(job.id) is not None
    publisher = Publisher(network.context)
    assert [publisher.may_see(visitor_of(network, name), job.id) for name in "ab"] == [True, False]
    owner = network.person("a")
    choose(owner, job)
    owner.send("click", target="train-delete-both")
    assert service.list_jobs() == []


def test_uploaded_adapter_of_a_cookie_is_safe_from_another(network: Pages, tmp_path: Path) -> None:
    uploaded(network.person("a"), tmp_path, "of-cookie-a")
    other, program = network.person("b"), Person(network, {})
    for person in (other, program):
        for action in ("delete", "save"):
            answer = act(person, action, "of-cookie-a")
            assert "another person" in answer or "cookie" in answer
    assert "cookie" in uploaded(program, tmp_path / "more", "of-nobody")
    assert "is deleted" in act(network.person("a"), "delete", "of-cookie-a")


# Advice

ADVICE_EVENTS = (
    ("click", "advise-job-cancel"),
    ("click", "advise-job-again"),
    ("click", "advise-job-delete"),
    ("click", "advise-delete-job"),
    ("click", "advise-delete-both"),
    ("open_winner", "advise-job-open"),
    ("save_report", "advise-job-page"),
    ("save_result", "advise-job-json"),
)


def call(person: Person, name: str, *values: object) -> str:
    """Call an endpoint as a program does; return its last event."""
    id = person.http.post(f"gradio_api/call/{name}", json={"data": values}).json()["event_id"]
    return person.http.get(f"gradio_api/call/{name}/{id}").text


def test_advice_of_alice_is_hers_and_the_owners(team: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(team.home))
    alice, bob, carol = (team.person(name) for name in ("alice", "bob", "carol"))
    service = WorkerlessJobService(team.home)
    started = alice.send("start", "house", 5, 42, target="advise-start")
    (job,) = service.list_jobs()
    assert (job.kind, job.owner, job.owner_name) == ("advise", visitor_of(team, "alice").id, "alice")
    assert '"success": true' in started
    advice_on_disk.finish(service, job.id)
    for person in (alice, bob, carol):
        person.send("choose", target="advise-job-list", data={"id": job.id})
    for handler, target in ADVICE_EVENTS:
        answer = bob.send(handler, target=target)
        assert "another person" in answer, target
        assert advice_on_disk.SENTENCE not in answer, target
    state = {"job": job.id, "seen": {}, "log": True, "number": 1}
    assert [
        advice_on_disk.SENTENCE in person.send("show", target="advise-poller", data=state)
        for person in (alice, bob, carol)
    ] == [True, False, True]
    assert [
        advice_on_disk.SENTENCE in person.send("save_result", target="advise-job-json")
        for person in (alice, bob, carol)
    ] == [True, False, True]
    assert [advice_on_disk.SENTENCE in call(person, "advice", job.id) for person in (alice, bob, carol)] == [
        True, False, True,
    ]  # fmt: skip
    alice.send("click", target="advise-delete-job")
    assert service.list_jobs() == []


def test_rows_of_the_owner_do_not_exist_for_others(
    team: Pages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(team.home))
    file = tmp_path / SECRET_FILE
    file.write_text("intent,code\n" + "".join(f"load {n} of {n * 7},get({n})\n" for n in range(30)))
    bob, carol = team.person("bob"), team.person("carol")
    assert "Only the owner of this app" in bob.send("upload", bob.upload(file), target="advise-file")
    assert "salaries-of-alice: " in carol.send("upload", carol.upload(file), target="advise-file")
    name = "salaries-of-alice"
    assert name in carol.send("open_page", target="tab-advise")
    assert name not in bob.send("open_page", target="tab-advise")
    service = WorkerlessJobService(team.home)
    assert '"success": false' in bob.send("start", name, 5, 42, target="advise-start")
    assert "event: error" in call(bob, "advise", name, 5, 42)
    assert service.list_jobs() == []
    assert "event: complete" in call(carol, "advise", name, 5, 42)
    (job,) = service.list_jobs()
    assert job.config["data"] == name
    remove(team, job)


def test_program_without_a_cookie_starts_no_advice(network: Pages) -> None:
    assert "event: error" in call(Person(network, {}), "advise", "house", 5, 42)
    assert WorkerlessJobService(network.home).list_jobs() == []


# Votes


def test_all_votes_are_saved_by_the_owner_alone(team: Pages) -> None:
    refused = "Only the owner of this app may save all votes"
    assert refused in team.person("bob").send("save", target="save-votes-csv")
    assert refused not in team.person("carol").send("save", target="save-votes-csv")
