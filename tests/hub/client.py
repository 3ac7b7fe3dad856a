"""Settings that make the real huggingface_hub client use the local Hub."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download, hf_api
from huggingface_hub.utils import _http, _xet

from tests.hub.state import Account, Hub

TOKEN = "hf_standinRecognisable0123456789"
OWNER = "someone"


def use_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the client use `hub`, with its cache under `folder`, without a token, with LFS, and with immediate retries.

    Adds the account OWNER with the token TOKEN to `hub`; `log_in` sets the token.
    """
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    # The functions of the module, such as huggingface_hub.file_exists, are methods of this one.
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    no_wait = SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(_http, "time", no_wait)
    monkeypatch.setattr(file_download, "time", no_wait)
    hub.accounts[TOKEN] = Account(OWNER)


def log_in(monkeypatch: pytest.MonkeyPatch, token: str = TOKEN) -> None:
    """Set the token in the environment."""
    monkeypatch.setenv("HF_TOKEN", token)


def use_xet(hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Transfer large files by Xet, as with hf_xet installed."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CACHE", str(folder / "xet-cache"))
    # The settings are read when a session begins, so sessions of earlier tests are dropped.
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    hub.xet = folder / "xet-store"
    hub.xet.mkdir()
