"""Actions on adapters with a real engine and real folders: rights of visitors, search, and installation."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.archive import pack
from adapters.store import LIBRARY
from errors import AdapterError, PromptOrTuneError, UnknownNameError
from serve.types import Request, SamplingParams
from tasks.methods import Method, NoExamples
from tasks.problem import Problem
from tests import messages
from tests.ui.adapters.sample_home import SMALL, copy_adapter, fill_home, loading_context, ready_context
from ui.access.policy import AccessPolicy, Visitor
from ui.access.quota import VisitorLimits
from ui.adapters.catalog import (
    MAX_CACHED_ZIPS,
    AdapterActions,
    AdapterCatalog,
    InstallProgress,
    checks_html,
    install_from_zip,
)
from ui.adapters.view import PAGE_SIZE, adapter_list_value, page_start
from ui.context import Context

OWNER, STRANGER = Visitor("o", "ada", owner=True), Visitor("s", "", owner=False)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with ready_context(fill_home(tmp_path / "home"), AccessPolicy(training="owner", owners=frozenset({"ada"}))) as made:
        yield made


@pytest.fixture
def catalog(context: Context) -> AdapterCatalog:
    return AdapterCatalog(context)


@pytest.fixture
def actions(context: Context, catalog: AdapterCatalog, tmp_path: Path) -> AdapterActions:
    return AdapterActions(context, catalog, tmp_path / "zips")


def memory(context: Context) -> list[str]:
    return [item.name for item in context.engine_loader.engine().adapter_cache.status().adapters]


def test_adapter_is_loaded_and_unloaded(context: Context, actions: AdapterActions) -> None:
    assert actions.load(OWNER, "ia3-conala") == "'ia3-conala' is in memory."
    assert memory(context) == ["ia3-conala"]
    assert "is unloaded" in actions.unload(OWNER, "ia3-conala")
    assert memory(context) == []
    with pytest.raises(AdapterError, match=messages.TRAINED_FOR_TINY_BASE):
        actions.load(OWNER, "other-base")
    with pytest.raises(UnknownNameError):
        actions.load(OWNER, "lora-conal")


def test_adapter_in_use_is_unloaded_after_its_last_lease(context: Context, actions: AdapterActions) -> None:
    with context.engine_loader.engine().adapter_cache.acquire("ia3-conala"):
        assert "is in use: it is unloaded" in actions.unload(OWNER, "ia3-conala")
    assert memory(context) == []


def test_delete_removes_folder_and_memory(context: Context, actions: AdapterActions, catalog: AdapterCatalog) -> None:
    actions.load(OWNER, "prompt-mine")
    assert actions.delete(OWNER, "prompt-mine") == "'prompt-mine' is deleted."
    assert memory(context) == []
    assert not (catalog.install_dir / "prompt-mine").exists()
    assert "prompt-mine" not in context.engine_loader.engine().adapters()
    assert actions.delete(OWNER, "broken"), "broken adapters can be deleted"


def test_running_answer_completes_after_the_adapter_is_deleted(context: Context, actions: AdapterActions) -> None:
    engine = context.engine_loader.engine()
    request = Request(Problem("p", "count 60"), Method("prompt-mine", NoExamples(), "prompt-mine"))
    answers = engine.stream([request], SamplingParams(max_new_tokens=100), threading.Event())
    next(iter(answers))
    actions.delete(OWNER, "prompt-mine")
    last = list(answers)[-1]
    assert getattr(last, "error", "?") is None


@pytest.mark.parametrize("name", ["lora-conala", "../lora-conala", "/etc", "tuned", "nothing", "", "a\nb"])
def test_delete_rejects_names_outside_the_install_folder(actions: AdapterActions, name: str) -> None:
    before = sorted(LIBRARY.rglob("*"))
    with pytest.raises(PromptOrTuneError):
        actions.delete(OWNER, name)
    assert sorted(LIBRARY.rglob("*")) == before


@pytest.mark.parametrize("action", ["load", "unload", "delete"])
def test_actions_without_rights_are_rejected(
    context: Context, actions: AdapterActions, catalog: AdapterCatalog, action: str
) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.ADAPTER_CHANGE_DENIED):
        actions.handlers[action](STRANGER, "prompt-mine")
    assert (catalog.install_dir / "prompt-mine").is_dir()
    assert memory(context) == []


def test_require_usable_raises_for_unusable_adapters(actions: AdapterActions, tmp_path: Path) -> None:
    assert "lora-conala" in actions.require_usable("lora-conala").adapters()
    with pytest.raises(PromptOrTuneError, match=messages.TRAINED_FOR_TINY_BASE):
        actions.require_usable("other-base")
    waiting = loading_context(tmp_path / "home")
    with pytest.raises(PromptOrTuneError, match=messages.MODEL_NOT_READY):
        AdapterActions(waiting, AdapterCatalog(waiting), tmp_path / "zips").require_usable("lora-conala")


def test_download_packs_the_adapter_and_limits_cached_zips(actions: AdapterActions, tmp_path: Path) -> None:
    path = actions.pack_zip(OWNER, SMALL)
    assert path.name == f"{SMALL}.zip"
    assert path.read_bytes() == pack(LIBRARY / SMALL, tmp_path / "own.zip").read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for turn in range(MAX_CACHED_ZIPS + 3):
        os.utime(actions.pack_zip(OWNER, SMALL).parent, (turn, turn))
    assert len(list((tmp_path / "zips").iterdir())) == MAX_CACHED_ZIPS
    for name in ("../home/adapters/prompt-mine", "/etc", "none", ""):
        with pytest.raises(PromptOrTuneError):
            actions.pack_zip(OWNER, name)


def names(context: Context, visitor: Visitor = OWNER, **options: str) -> list[str]:
    listed = adapter_list_value(context, AdapterCatalog(context), visitor, **options)  # type: ignore[arg-type]
    return [item["name"] for item in listed["cards"]]


def test_list_is_searched_and_filtered(context: Context, actions: AdapterActions) -> None:
    assert len(names(context)) == 14
    assert set(names(context)[:4]) == {"prompt-mine", "other-base", "broken", "evil"}, "added adapters are listed first"
    assert names(context, query="prompt MY.CSV") == ["prompt-mine"]
    assert names(context, query="qlora mbpp") == ["qlora-4bit-mbpp"]
    assert names(context, query="nothing like it") == []
    assert set(names(context, show="own")) == {"prompt-mine", "other-base", "broken", "evil"}
    assert set(names(context, show="unusable")) == {"other-base", "broken"}
    assert len(names(context, show="library")) == 10
    assert len(names(context, show="usable")) == 12
    actions.load(OWNER, SMALL)
    assert names(context, show="memory") == [SMALL]
    assert len(names(context, show="no such choice")) == 14


def test_paths_of_full_models_are_visible_to_the_owner_only(context: Context) -> None:
    catalog = AdapterCatalog(context)
    assert adapter_list_value(context, catalog, OWNER)["models"] == [
        {"name": "tuned", "command": f"python app.py --base {catalog.install_dir / 'tuned'}"}
    ]
    stranger_list = adapter_list_value(context, catalog, STRANGER)
    assert stranger_list["models"] == []
    assert stranger_list["may"] is False


def test_list_is_paginated(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number in range(60):
        copy_adapter(SMALL, home / "adapters" / f"made-{number:02}")
    with ready_context(home) as context:
        catalog = AdapterCatalog(context)
        first = adapter_list_value(context, catalog, OWNER)
        assert (len(first["cards"]), first["total"], first["head"]) == (PAGE_SIZE, 70, "70 adapters")
        last = adapter_list_value(context, catalog, OWNER, start=10**8)
        assert (last["from"], len(last["cards"])) == (48, 22)
        value = adapter_list_value(context, catalog, OWNER, query="made-1", start=48)
        assert (value["from"], value["head"]) == (0, "10 of 70 adapters")
    assert [page_start({"from": value}) for value in (24, -1, True, "24", None, 10**12)] == [24, 0, 0, 0, 0, 0]


def added(
    catalog: AdapterCatalog, path: Path, name: str = "", limit: int = VisitorLimits().archive_bytes
) -> list[InstallProgress]:
    return list(install_from_zip(catalog, path, name, limit, OWNER))


def test_installed_zip_is_usable_and_the_upload_is_deleted(
    context: Context, catalog: AdapterCatalog, tmp_path: Path
) -> None:
    path = pack(copy_adapter(SMALL, tmp_path / "from-mail"), tmp_path / "up" / "mail.zip")
    steps = added(catalog, path)
    assert steps[0].passed == 0
    assert steps[-1].installed == catalog.install_dir / "from-mail"
    assert steps[-1].passed == len(steps[-1].steps)
    assert checks_html(steps[-1]).count('class="passed"') == len(steps[-1].steps)
    assert not path.exists()
    assert context.engine_loader.engine().unsupported_reason(Method("from-mail", NoExamples(), "from-mail")) is None


def test_failed_install_names_the_check_and_the_error(catalog: AdapterCatalog, tmp_path: Path) -> None:
    path = pack(copy_adapter(SMALL, tmp_path / "lora-conala"), tmp_path / "up" / "mail.zip")
    last = added(catalog, path)[-1]
    assert last.error == "There is an adapter 'lora-conala' already: give this one another name, or delete that one."
    html = checks_html(last)
    assert html.count('class="passed"') == 5
    assert 'class="failed"' in html
    assert "The name is free" in html.split('class="failed"')[1]
    assert not (catalog.install_dir / "lora-conala").exists(), "the bundled adapter is not hidden"
    path = pack(copy_adapter(SMALL, tmp_path / "big"), tmp_path / "up" / "mail.zip")
    assert "is the limit here" in added(catalog, path, limit=1000)[-1].error
    assert not path.exists()


def test_unexpected_error_shows_a_general_message(
    catalog: AdapterCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Path:
        raise RuntimeError("secret internals")

    monkeypatch.setattr("adapters.archive.unpack", broken)
    path = pack(copy_adapter(SMALL, tmp_path / "mine"), tmp_path / "up" / "mail.zip")
    assert (
        added(catalog, path)[-1].error
        == "Something went wrong on our side; the log has the details. Nothing was added."
    )
