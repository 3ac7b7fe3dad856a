"""Requests to the Hub for visitors: no token and no cache of the machine; no token of anybody in files or answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from adapters.manifest import Owner, read_origin
from common.hub import HubAccess, trim_visitor_cache, visitor_hub_access
from errors import DataError
from jobs import runner
from jobs.job import Job, ServingOptions, job_config
from jobs.runner import EXIT_DONE, EXIT_FAILED, run_job
from tasks.datasets.hub import fetch_tables, use_hub_access
from tests.conftest import ROOT
from tests.hub.client import TOKEN, log_in, use_hub
from tests.hub_standin import hub_standin
from tests.jobs.service import ServiceWithoutWorker
from tests.security.policy_app import NETWORK, Pages, access, served, team_app
from tests.tasks.dataset_hub import DatasetHub, dataset_hub
from tests.ui.adapters.sample_home import SMALL, copy_adapter
from train.data import load_training_data
from ui.access.policy import Visitor
from ui.context import hub_access
from ui.train import preview as preview_module
from ui.train.preview import PreviewClient
from ui.train.preview_process import preview

MACHINE_TOKEN, VISITOR_TOKEN = "hf_OWNERSECRETTOKEN123456", "hf_visitorsOwnToken9876"
SECRET = "SECRET salary of employee"
PRIVATE, PUBLIC = "alice/private-payroll", "someone/rows"
SETTINGS = {"adapter_name": "mine", "technique": "lora", "model_name_or_path": ""}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    """A Hub with a private data set, which is also in the cache of the machine, whose owner is logged in."""
    for name, cell in ((PRIVATE, SECRET), (PUBLIC, "add one")):
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        rows = "".join(f"{cell} {number},x + {number}\n" for number in range(30))
        (folder / "train.csv").write_text(f"intent,code\n{rows}")
    monkeypatch.setenv("HF_TOKEN", MACHINE_TOKEN)
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    with dataset_hub(tmp_path / "machine-cache", monkeypatch) as standin:
        standin.repositories |= {name: tmp_path / "hub" / name for name in (PRIVATE, PUBLIC)}
        standin.private[PRIVATE] = MACHINE_TOKEN
        fetch_tables(PRIVATE)
        assert f"Bearer {MACHINE_TOKEN}" in standin.tokens, "the owner's own requests are as before"
        standin.tokens.clear()
        standin.requests.clear()
        yield standin


def look(name: str, access: HubAccess | None) -> str:
    """Return what the looking process answers to a data set's name."""
    values: dict[str, Any] = {**SETTINGS, "dataset_name": name}
    if access is not None:
        values["hub_access"] = {"token": access.token, "cache": str(access.cache) if access.cache else None}
    return json.dumps(list(preview(values, lambda line: None)))


@pytest.mark.parametrize("is_default", [True, False])
def test_visitor_without_a_token_sends_none(hub: DatasetHub, tmp_path: Path, is_default: bool) -> None:
    """Before: the request had `Authorization: Bearer` with the token of the machine."""
    access = None if is_default else visitor_hub_access(tmp_path / "home")
    answer = look(PRIVATE, access)
    assert hub.requests
    assert set(hub.tokens) == {""}
    assert "There is no data set" in answer
    assert SECRET not in answer
    assert '"usable": 30' in look(PUBLIC, access)
    assert set(hub.tokens) == {""}
    assert not (tmp_path / "machine-cache" / f"datasets--{PUBLIC.replace('/', '--')}").exists()
    assert list((tmp_path / "home" / "visitor-hub" / "public").glob("datasets--*"))


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", ""])
def test_private_set_in_the_cache_of_the_machine_is_not_read(
    hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """Before: with and without a connection a stranger got the rows from the cache."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint or hub.url)
    for spec in (PRIVATE, f"{PRIVATE}@main", f"{PRIVATE}@{hub.commit(PRIVATE)}", f"{PRIVATE}:train.csv"):
        answer = look(spec, visitor_hub_access(tmp_path / "home"))
        assert '"error"' in answer, spec
        assert SECRET not in answer


def test_visitor_uses_their_own_token_and_shares_no_cache(
    hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private[PRIVATE] = VISITOR_TOKEN
    own = visitor_hub_access(tmp_path / "home", VISITOR_TOKEN)
    assert '"usable": 30' in look(PRIVATE, own)
    assert set(hub.tokens) == {f"Bearer {VISITOR_TOKEN}"}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for other in (None, visitor_hub_access(tmp_path / "home", "hf_another")):
        assert SECRET not in look(PRIVATE, other)
    assert VISITOR_TOKEN not in repr(own)
    assert not [path for path in (tmp_path / "home").rglob("*") if VISITOR_TOKEN in path.name]


def test_looking_process_sends_no_token_by_default(hub: DatasetHub, tmp_path: Path) -> None:
    """The command of the trial: a line with a name on the standard input of the process."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ui.train.preview_process"],
        cwd=ROOT, env=environment, input=json.dumps({**SETTINGS, "dataset_name": PRIVATE}) + "\n",
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "There is no data set" in done.stdout
    assert hub.tokens
    assert set(hub.tokens) == {""}


def test_answer_for_the_owner_is_not_given_to_a_visitor(hub: DatasetHub, tmp_path: Path) -> None:
    """The client remembers answers: those of another access are not found."""
    client, asked = PreviewClient(tmp_path / "home"), []

    def answer(request: Any, line: str, ticket: Any) -> Iterator[dict[str, Any]]:
        asked.append(json.loads(line)["hub_access"])
        yield {"facts": {"rows": len(asked)}}

    client._stream_events = answer  # type: ignore[method-assign]
    values = {**SETTINGS, "dataset_name": PRIVATE}
    for given in (HubAccess(), None, visitor_hub_access(tmp_path / "home", VISITOR_TOKEN), HubAccess(), None):
        list(client.preview(client.new_request("a"), values, given))
    assert [values["token"] for values in asked] == [None, False, VISITOR_TOKEN]
    assert VISITOR_TOKEN not in json.dumps(list(client._cache))


def test_cache_of_visitors_is_bounded(tmp_path: Path) -> None:
    access = visitor_hub_access(tmp_path)
    assert access.cache is not None
    for number in range(4):
        folder = access.cache / f"datasets--a--{number}"
        folder.mkdir(parents=True)
        (folder / "rows").write_bytes(b"x" * 100)
        os.utime(folder, (number, number))
    trim_visitor_cache(access, limit=250)
    assert sorted(path.name for path in access.cache.iterdir()) == ["datasets--a--2", "datasets--a--3"]
    trim_visitor_cache(HubAccess(), limit=0)


# Who gets which access


def test_access_depends_on_the_visitor(tmp_path: Path) -> None:
    with served(tmp_path / "home", access("--train", "everyone", host=NETWORK)) as pages:
        context = pages.context
        visitor = Visitor("browser-0")
        assert hub_access(context, visitor).token is False
        assert hub_access(context, visitor, VISITOR_TOKEN).token == VISITOR_TOKEN
        assert hub_access(context, visitor).cache is not None
        assert hub_access(context, Visitor("user-0", "ada", owner=True)) == HubAccess()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[HubAccess | None]:
    """Replace the looking process; return the accesses that it is asked with."""
    accesses: list[HubAccess | None] = []

    def preview_events(self: Any, request: Any, values: Any, access: HubAccess | None = None) -> Iterator[Any]:
        accesses.append(access)
        yield {"error": "looked"}

    monkeypatch.setattr(preview_module.PreviewClient, "preview", preview_events)
    return accesses


def test_looking_needs_the_right_to_train(tmp_path: Path, asked: list[HubAccess | None]) -> None:
    """Before: with `--train nobody` a stranger had the rows of any name and any file read."""
    (tmp_path / "rows.csv").write_text("intent,code\na,b\n")
    with served(tmp_path / "home", access("--train", "nobody")) as pages:
        person = pages.person("a")
        file = person.upload(tmp_path / "rows.csv")
        for answer in (
            person.send("select_dataset", PRIVATE, target="train-use-named"),
            person.send("upload", file, target="train-file"),
            person.send("load_example"),
            person.send("change_setting"),
        ):
            assert "Training is switched off here" in answer
        assert person.send("restore_draft")
    assert asked == []
    assert not (tmp_path / "home" / "uploads").exists()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """The app with `--auth` alone: alice, the first login, owns it."""
    with team_app(tmp_path_factory.mktemp("team")) as pages:
        yield pages


def test_visitors_look_and_train_without_the_token_of_the_machine(
    team: Pages, asked: list[HubAccess | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.api.JobService.ensure_worker", lambda _: None)
    for name in ("bob", "alice"):
        person = team.person(name)
        person.send("select_dataset", PRIVATE, target="train-use-named")
        person.send("start", None, None, "lora", "here", "cpu-basic", f"lora-{name}", target="train-start")
    assert [given and given.token for given in asked] == [False, None]
    assert [given and given.cache is None for given in asked] == [False, True]
    jobs = ServiceWithoutWorker(team.home).list_jobs()
    assert {(job.adapter, job.visitor_data, job.owner_name) for job in jobs} == {
        ("lora-bob", True, "bob"),
        ("lora-alice", False, "alice"),
    }


def test_private_adapter_is_pulled_by_its_owner_alone(
    team: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: bob pulled it with the token of the machine."""
    name = "someone/private-adapter"
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path)
        log_in(monkeypatch)
        standin.add(name, copy_adapter(SMALL, tmp_path / "private-adapter"))
        standin.private.add(name)
        answer = team.person("bob").send("pull", name, "", target="adapters-pull")
        assert f"There is no repository '{name}' on the Hub" in answer
        assert TOKEN not in answer
        assert "is added" in team.person("alice").send("pull", name, "", target="adapters-pull")


# Jobs


def read_rows(job: Job, _folder: Any, home: Path, _report: Any, *, finish: bool) -> Path:
    """Read the rows as a training does, in place of the training."""
    load_training_data(job_config(job, home))
    return copy_adapter(SMALL, home / "adapters" / job.adapter)


def test_job_of_a_visitor_reads_no_private_set_and_stores_no_token(
    hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_train_locally", read_rows)
    monkeypatch.setattr(runner._JobRunner, "_score", lambda *_: (None, []))
    service = ServiceWithoutWorker(tmp_path / "home")

    def job_on(name: str, adapter: str, *, visitor_data: bool) -> Any:
        config = {"adapter_name": adapter, "dataset_name": name}
        owner = Owner("user-0", "bob")
        return service.submit(config, ServingOptions(), owner=owner, visitor_data=visitor_data)

    denied, allowed = job_on(PRIVATE, "denied", visitor_data=True), job_on(PUBLIC, "allowed", visitor_data=True)
    assert run_job(service.home, denied.id) == EXIT_FAILED
    assert "There is no data set" in service.get_job(denied.id).message
    assert run_job(service.home, allowed.id) == EXIT_DONE
    assert hub.tokens
    assert set(hub.tokens) == {""}
    origin = read_origin(service.home / "adapters" / "allowed")
    assert origin is not None
    assert (origin.kind, origin.owner, origin.owner_name) == ("job", "user-0", "bob")
    owners = job_on(PRIVATE, "owners", visitor_data=False)
    assert run_job(service.home, owners.id) == EXIT_DONE
    files = [path for path in service.home.rglob("*") if path.is_file()]
    assert not [path for path in files if MACHINE_TOKEN.encode() in path.read_bytes()]


def test_access_ends_with_its_block(hub: DatasetHub, tmp_path: Path) -> None:
    with pytest.raises(DataError), use_hub_access(visitor_hub_access(tmp_path / "home")):
        fetch_tables(PRIVATE)
    assert fetch_tables(PRIVATE).train


def test_job_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    service = ServiceWithoutWorker(tmp_path)
    job = service.submit({"adapter_name": "old", "dataset_name": "starter"}, ServingOptions())
    path = service.root / job.id / "job.json"
    values = json.loads(path.read_text())
    del values["owner_name"], values["visitor_data"]
    path.write_text(json.dumps(values))
    assert service.get_job(job.id) == job
