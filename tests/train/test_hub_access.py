"""Tests of train/hub_access.py: token, write permission, repository and base are checked before a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from errors import BaseModelError, PromptOrTuneError, TrainingError
from models.source import resolve
from tests import messages
from tests.hub.client import OWNER, TOKEN, log_in, use_hub
from tests.hub.state import Account, Blob
from tests.hub_standin import Hub, hub_standin
from tests.serve.tiny import make_base
from train.hub_access import check_access, check_base_access

REPO = f"{OWNER}/lora-tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path / "client")
        yield standin


def _error_message(repo: str, token: str | None = TOKEN) -> str:
    with pytest.raises(TrainingError) as caught:
        check_access(repo, token)
    message = str(caught.value)
    assert "\n" not in message
    assert TOKEN not in message
    return message


def test_access_check_changes_nothing_on_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    check_access(REPO, TOKEN)
    hub.append(REPO, {"adapter_model.safetensors": Blob(b"x", 1, "0" * 64)})
    check_access(REPO, TOKEN)
    log_in(monkeypatch)
    check_access(REPO)
    assert all(request.startswith("GET") for request in hub.requests)
    assert len(hub.history[REPO]) == 1


def test_token_file_of_the_client_is_used(hub: Hub, tmp_path: Path) -> None:
    Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True)
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    check_access(REPO)


def test_missing_token_is_an_error(hub: Hub) -> None:
    message = _error_message(REPO, None)
    assert message.startswith("Publishing to 'someone/lora-tiny' needs a token of the Hub: run `hf auth login`")
    assert not hub.requests


def test_unknown_token_is_an_error(hub: Hub) -> None:
    assert "does not accept your token (HTTP 401)" in _error_message(REPO, "hf_other")


@pytest.mark.parametrize("token", [f"{TOKEN} {TOKEN}", f"{TOKEN}\nX: y", "hf_é" + TOKEN])
def test_token_with_invalid_characters_is_an_error(hub: Hub, token: str) -> None:
    assert "characters that no token has" in _error_message(REPO, token)
    assert not hub.requests


@pytest.mark.parametrize(
    ("account", "repo", "expected"),
    [
        (Account(OWNER, role="read"), REPO, "The token may only read"),
        (Account("else"), REPO, "belongs to 'else', so name the repository else/lora-tiny"),
        (Account(OWNER, orgs={"lab": "read"}), "lab/x", "'someone' may only read in 'lab'"),
        (Account(OWNER, role="fineGrained", scopes=("lab",)), REPO, "fine-grained token may not create 'someone/lora-"),
    ],
)
def test_token_without_write_permission_is_an_error(hub: Hub, account: Account, repo: str, expected: str) -> None:
    hub.accounts[TOKEN] = account
    assert expected in _error_message(repo)


@pytest.mark.parametrize(
    ("account", "repo"),
    [
        (Account(OWNER, orgs={"lab": "write"}), "lab/x"),
        (Account(OWNER, orgs={"lab": "contributor"}), "LAB/x"),
        (Account(OWNER, role="fineGrained", scopes=(OWNER,)), REPO),
    ],
)
def test_token_with_write_permission_is_accepted(hub: Hub, account: Account, repo: str) -> None:
    hub.accounts[TOKEN] = account
    check_access(repo, TOKEN)


def test_own_repository_without_write_permission_is_an_error(hub: Hub) -> None:
    hub.append(REPO, {})
    hub.accounts[TOKEN] = Account(OWNER, role="fineGrained", scopes=("lab",))
    assert "does not allow it to your token (HTTP 403)" in _error_message(REPO)


def test_gated_repository_of_an_organisation_is_an_error(hub: Hub) -> None:
    hub.append("lab/x", {})
    hub.gated.add("lab/x")
    hub.accounts[TOKEN] = Account(OWNER, orgs={"lab": "write"}, role="fineGrained")
    assert "is gated: accept its terms" in _error_message("lab/x")


@pytest.mark.parametrize(
    ("path", "full_model", "is_error"),
    [
        ("model.safetensors", False, True),
        ("adapter_model.bin", False, True),
        ("model-00001-of-00002.safetensors", True, False),
        ("adapter_model.safetensors", True, True),
        ("notes.md", False, False),
    ],
)
def test_repository_with_other_weights_is_an_error(hub: Hub, path: str, full_model: bool, is_error: bool) -> None:
    hub.append(REPO, {path: Blob(b"x", 1)})
    if is_error:
        with pytest.raises(TrainingError, match=messages.REPOSITORY_HAS_OTHER_WEIGHTS.format(path=path)):
            check_access(REPO, TOKEN, is_full_model=full_model)
    else:
        check_access(REPO, TOKEN, is_full_model=full_model)


@pytest.mark.parametrize("repo", ["lora-tiny", "a/b@main", "a--b/c", "a/b/c", "", "a/.b"])
def test_invalid_repository_name_is_an_error(hub: Hub, repo: str) -> None:
    assert "cannot name a repository on the Hub: write user/name" in _error_message(repo)
    assert not hub.requests


def test_unreachable_hub_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "connection to the Hub broke while checking access to 'someone/lora-tiny' (Connect" in _error_message(REPO)


def test_access_to_the_base_is_checked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["other/tiny"] = make_base("llama", tmp_path / "tiny")
    check_base_access("other/tiny")
    check_base_access(f"other/tiny@{hub.commit('other/tiny')}")
    for local in ("embedded", str(tmp_path / "tiny"), "some/file.gguf"):
        check_base_access(local)
    assert not any("/resolve/" in request for request in hub.requests), "nothing is downloaded for it"
    for base, expected in (
        ("other/none", "There is no repository 'other/none' on the Hub that you may read"),
        ("other/tiny@v9", "'other/tiny' has no revision 'v9'"),
    ):
        with pytest.raises(BaseModelError, match=expected):
            check_base_access(base)
    hub.gated.add("other/tiny")
    with pytest.raises(BaseModelError, match=messages.TRAINING_BASE_GATED):
        check_base_access("other/tiny")


def test_cached_base_needs_no_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["other/tiny"] = make_base("llama", tmp_path / "tiny")
    resolve("other/tiny", lambda _: None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    check_base_access("other/tiny")
    with pytest.raises(PromptOrTuneError, match=messages.BASE_LOOKUP_BROKE_OFF):
        check_base_access("other/else")
