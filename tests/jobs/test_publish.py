"""Publishing in a separate process: its output, its end, and protection of the token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from errors import PromptOrTuneError, TrainingError
from jobs.publish import PublishProcess, PublishRequest, PublishService, full_repo_id
from tests import messages
from tests.hub.child import use_hub_in_children
from tests.hub.client import OWNER, TOKEN
from tests.hub.state import Account
from tests.hub_standin import Hub
from tests.serve.tiny import make_base
from tests.train.hub_folders import ADAPTER_FILES, identity_of, make_adapter, published_files

pytestmark = pytest.mark.slow

REPO = f"{OWNER}/lora-tiny"
OTHER = "hf_anotherPersonsToken9876543210"


@pytest.fixture(scope="module")
def base_and_adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a tiny base and an adapter for it."""
    root = tmp_path_factory.mktemp("base")
    base = make_base("llama", root / "tiny")
    return base, make_adapter(root / "lora-tiny", base, identity_of(str(base)))


@pytest.fixture
def make_request(
    hub: Hub, base_and_adapter: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PublishRequest]:
    """Return a function that makes a PublishRequest for the adapter."""
    use_hub_in_children(hub, monkeypatch, tmp_path)
    base, adapter = base_and_adapter
    shutil.copytree(adapter, tmp_path / "lora-tiny")

    def make(**changes: object) -> PublishRequest:
        values: dict[str, object] = {"folder": tmp_path / "lora-tiny", "repo_id": REPO, "base": str(base)}
        return PublishRequest(**{**values, "device": "cpu", **changes})  # type: ignore[arg-type]

    return make


def test_adapter_is_published_and_token_appears_nowhere(
    hub: Hub, make_request: Callable[..., PublishRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", OTHER)  # the login of the machine, which belongs to another person
    (tmp_path / "jobs" / "1").mkdir(parents=True)
    publications = PublishService(tmp_path / "jobs")
    publishing = publications.start("1", make_request(token=TOKEN))
    assert TOKEN not in " ".join(psutil.Process(publishing._process.pid).cmdline())
    with pytest.raises(PromptOrTuneError, match=messages.ALREADY_PUBLISHING):
        publications.start("2", make_request(token=TOKEN))
    end = publishing.wait(120)
    assert (end.state, end.message) == ("done", f"Published as {REPO}."), end.lines
    assert end.url == f"{hub.url}/{REPO}/tree/{hub.commit(REPO)}"
    assert published_files(hub, REPO) >= ADAPTER_FILES
    assert REPO in hub.private
    record = PublishService(tmp_path / "jobs").record("1")  # as after a restart of the app
    assert record is not None
    assert (record.repo_id, record.url) == (REPO, end.url)
    assert TOKEN not in json.dumps([end.lines, repr(publishing.request)])
    assert not [path for path in (tmp_path / "jobs").rglob("*") if path.is_file() and TOKEN in path.read_text()]


def test_failed_publication_has_an_error_message(hub: Hub, make_request: Callable[..., PublishRequest]) -> None:
    hub.accounts[OTHER] = Account("stranger")
    end = PublishProcess(make_request(token=OTHER)).wait(60)
    assert end.state == "failed"
    assert end.message == (
        "'someone/lora-tiny' is not yours to publish to: the token belongs to 'stranger', so name the repository "
        "stranger/lora-tiny."
    )
    assert REPO not in hub.history


def test_stopped_publication_changes_nothing(hub: Hub, make_request: Callable[..., PublishRequest]) -> None:
    publishing = PublishProcess(make_request(token=TOKEN))
    process = psutil.Process(publishing._process.pid)
    publishing.stop()
    end = publishing.wait(20)
    assert (end.state, end.message) == ("stopped", "Stopped before anything was published.")
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert REPO not in hub.history
    publishing.stop()  # a second call changes nothing


def test_exit_without_a_message_is_an_error(
    make_request: Callable[..., PublishRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PublishRequest, "command", lambda _: ["sh", "-c", f"echo the token is {TOKEN}; exit 3"])
    end = PublishProcess(make_request(token=TOKEN)).wait(20)
    assert (end.state, end.lines) == ("failed", ("the token is [token]",))
    assert "failed (exit status 3)" in end.message


@pytest.mark.parametrize("name", ["-x/y", "--private", "a/b/c", "a b/c", "someone/x@main", "../x", "a/..", ""])
def test_invalid_repository_names_are_refused(make_request: Callable[..., PublishRequest], name: str) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(TrainingError, match=messages.REPOSITORY_NAME_INVALID):
        PublishProcess(make_request(repo_id=name))
    assert set(psutil.Process().children()) <= before


def test_repo_id_without_a_namespace_gets_the_owner_of_the_token(hub: Hub) -> None:
    hub.accounts[OTHER] = Account("stranger")
    assert full_repo_id("lora-mine", OTHER) == "stranger/lora-mine"
    assert full_repo_id(" lora-mine ", None) == f"{OWNER}/lora-mine"
    assert full_repo_id("org/lora-mine", OTHER) == "org/lora-mine"


def test_missing_token_is_reported(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(TrainingError, match=messages.TOKEN_REQUIRED):
        full_repo_id("lora-mine", None)


def test_invalid_token_is_not_in_message(hub: Hub) -> None:
    with pytest.raises(TrainingError) as error:
        full_repo_id("lora-mine", "hf_wrong")
    assert "does not accept your token" in str(error.value)
    assert "hf_wrong" not in str(error.value)
