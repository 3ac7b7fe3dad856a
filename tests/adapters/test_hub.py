"""Adapters pulled with the Hub's real client from a local server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapters.install import parse_repo_spec, pull
from adapters.manifest import ORIGIN_NAME, Manifest, read_origin
from adapters.weights import digest
from common.format import format_bytes
from errors import AdapterError, DiskSpaceError, PromptOrTuneError
from tests import messages
from tests.adapters.folders import MANIFEST, store, tensors, write_adapter
from tests.hub.client import TOKEN, log_in, use_hub, use_xet
from tests.hub.state import Blob
from tests.hub_standin import Hub, hub_standin

REPO = "someone/good"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path / "client")
        yield standin


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def _silent(_: str) -> None:
    return


def _refused(spec: str, root: Path, error: type[PromptOrTuneError] = AdapterError) -> str:
    """Check that the pull fails and leaves no files; return its message."""
    before = sorted(root.iterdir()) if root.is_dir() else []
    with pytest.raises(error) as caught:
        pull(spec, root, _silent)
    assert (sorted(root.iterdir()) if root.is_dir() else []) == before
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def _downloads(hub: Hub) -> list[str]:
    return [request for request in hub.requests if "/resolve/" in request]


def test_pulled_adapter_equals_the_published_one(hub: Hub, good: Path, root: Path) -> None:
    (good / "README.md").write_text("# good\n")
    (good / "training_args.json").write_text("{}")
    commit = hub.add(REPO, good)
    lines: list[str] = []
    folder = pull(REPO, root, lines.append)
    assert folder == root / "good"
    assert sorted(path.name for path in folder.iterdir()) == [
        ORIGIN_NAME,
        "README.md",
        "adapter_config.json",
        WEIGHTS,
        "manifest.json",
    ]
    same = [path.name for path in folder.iterdir() if path.name != ORIGIN_NAME]
    assert all((folder / name).read_bytes() == (good / name).read_bytes() for name in same)
    origin = read_origin(folder)
    assert origin is not None
    assert (origin.kind, origin.what) == ("hub", f"{REPO}@{commit}")
    assert store(root).inspect("good").digest == digest(good / WEIGHTS, "good")
    assert f"{REPO}@{commit}" in lines[-1]
    assert [path.name for path in root.iterdir()] == ["good"], "the staging folder is removed"
    assert not any("training_args" in request for request in hub.requests)
    assert all(f"/resolve/{commit}/" in request for request in _downloads(hub)), "all files come from one commit"


def test_older_commit_is_pulled_by_its_hash(hub: Hub, good: Path, tmp_path: Path, root: Path) -> None:
    first = hub.add(REPO, good)
    write_adapter(tmp_path / "next" / "good", weights=tensors(4), manifest=replace(MANIFEST, seed=7))
    second = hub.add(REPO, tmp_path / "next" / "good")
    assert Manifest.read(pull(f"{REPO}@{first}", root, _silent, name="old")).seed == MANIFEST.seed
    assert Manifest.read(pull(f"{REPO}@{second}", root, _silent, name="new")).seed == 7
    assert Manifest.read(pull(f"{REPO}@main", root, _silent, name="newest")).seed == 7


def test_weights_are_downloaded_by_xet(
    hub: Hub, good: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    use_xet(hub, monkeypatch, tmp_path)
    HfApi().create_repo(REPO, token=TOKEN)
    HfApi().upload_folder(repo_id=REPO, folder_path=good, token=TOKEN)
    blob = hub.history[REPO][-1].files[WEIGHTS]
    assert blob.xet
    assert not blob.content, "the weights were not sent to the stand-in"
    folder = pull(REPO, root, _silent)
    assert (folder / WEIGHTS).read_bytes() == (good / WEIGHTS).read_bytes()


def test_pickle_is_refused_before_anything_is_downloaded(hub: Hub, good: Path, root: Path) -> None:
    (good / "training_args.bin").write_bytes(b"\x80\x04.")
    hub.add(REPO, good)
    assert "training_args.bin, a pickle, which can run code" in _refused(REPO, root)
    assert not _downloads(hub)


@pytest.mark.parametrize(("name", "size"), [(WEIGHTS, 3 << 30), ("manifest.json", 9 << 20), ("loss.png", 64 << 20)])
def test_file_that_is_too_large_is_not_downloaded(hub: Hub, good: Path, root: Path, name: str, size: int) -> None:
    hub.add(REPO, good)
    hub.append(REPO, {**hub.history[REPO][-1].files, name: Blob(b"", size, "0" * 64)})
    assert f"{name} has {format_bytes(size)}, the limit is" in _refused(REPO, root)
    assert not _downloads(hub)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS, "manifest.json"])
def test_repository_without_a_required_file_is_refused(hub: Hub, good: Path, root: Path, name: str) -> None:
    (good / name).unlink()
    hub.add(REPO, good)
    assert f"has no {name}, so it is no adapter of Prompt or Tune" in _refused(REPO, root)
    assert not _downloads(hub)


def test_whole_model_is_refused(hub: Hub, good: Path, root: Path) -> None:
    (good / "adapter_config.json").rename(good / "config.json")
    hub.add(REPO, good)
    assert "is a whole model, not an adapter: use it as a base, with --base someone/good" in _refused(REPO, root)


def test_weights_with_another_digest_than_the_manifest_are_refused(hub: Hub, good: Path, root: Path) -> None:
    replace(MANIFEST, weights_digest="sha256:0123456789abcdef").write(good)
    hub.add(REPO, good)
    assert "the weights are not those that were trained" in _refused(REPO, root)
    replace(MANIFEST, weights_digest=digest(good / WEIGHTS, "good")).write(good)
    hub.add(REPO, good)
    assert pull(REPO, root, _silent).is_dir()


def test_adapter_that_the_store_refuses_is_not_installed(hub: Hub, good: Path, root: Path) -> None:
    config = json.loads((good / "adapter_config.json").read_text())
    (good / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    hub.add(REPO, good)
    _refused(REPO, root)
    assert _downloads(hub)


def test_file_damaged_in_transfer_is_refused(hub: Hub, good: Path, root: Path) -> None:
    hub.add(REPO, good)
    files = dict(hub.history[REPO][-1].files)
    weights = files[WEIGHTS]
    files[WEIGHTS] = replace(weights, content=weights.content[:-1] + b"\x01")
    hub.append(REPO, files)
    assert "arrived damaged" in _refused(REPO, root)


def test_broken_download_is_resumed(hub: Hub, good: Path, root: Path) -> None:
    hub.add(REPO, good)
    hub.cuts["download"] = 2
    folder = pull(REPO, root, _silent)
    assert (folder / WEIGHTS).read_bytes() == (good / WEIGHTS).read_bytes()


def test_broken_connection_leaves_no_files_and_a_retry_succeeds(hub: Hub, good: Path, root: Path) -> None:
    hub.add(REPO, good)
    hub.cuts["answer"] = 1000
    assert "connection to the Hub broke while downloading 'someone/good'" in _refused(REPO, root)
    hub.cuts.clear()
    assert pull(REPO, root, _silent).is_dir()


def test_existing_adapter_is_replaced_only_with_overwrite(hub: Hub, good: Path, root: Path) -> None:
    hub.add(REPO, good)
    pull(REPO, root, _silent)
    before = len(hub.requests)
    assert "There is an adapter 'good'" in _refused(REPO, root)
    assert len(hub.requests) == before
    replace(MANIFEST, seed=9).write(good)
    hub.add(REPO, good)
    assert Manifest.read(pull(REPO, root, _silent, overwrite=True)).seed == 9
    assert [path.name for path in root.iterdir()] == ["good"]
    (good / WEIGHTS).write_bytes(b"broken")
    hub.add(REPO, good)
    with pytest.raises(AdapterError):
        pull(REPO, root, _silent, overwrite=True)
    assert Manifest.read(root / "good").seed == 9, "a broken version must not replace a valid one"
    assert store(root).inspect("good").digest.startswith("sha256:")


def test_reserved_name_is_refused_without_a_request(hub: Hub, good: Path, root: Path) -> None:
    hub.add(REPO, good)
    with pytest.raises(AdapterError, match=messages.ADAPTER_NAME_TAKEN):
        pull(REPO, root, _silent, reserved=["good"])
    assert not hub.requests
    assert pull(REPO, root, _silent, name="mine", reserved=["good"]).is_dir()


def test_staging_folders_of_killed_processes_are_removed(hub: Hub, good: Path, root: Path) -> None:
    old, fresh = root / ".good-pull-old", root / ".good-pull-fresh"
    for folder in (old, fresh):
        (folder / "good").mkdir(parents=True)
    os.utime(old, (0, 0))
    hub.add(REPO, good)
    pull(REPO, root, _silent)
    assert sorted(path.name for path in root.iterdir()) == [fresh.name, "good"]


@pytest.mark.parametrize(
    "spec", ["lora", "a/b/c", "a/b@", "a--b/c", "a/b.git", "../up", "a/b@x y", "https://hf.co/a/b", "a/b@x\n"]
)
def test_invalid_repository_name_is_refused(hub: Hub, root: Path, spec: str) -> None:
    with pytest.raises(AdapterError, match=messages.HUB_REPOSITORY_NAME_INVALID):
        pull(spec, root, _silent)
    assert not hub.requests
    assert not root.exists()


def test_revision_can_be_a_branch_with_slashes() -> None:
    assert parse_repo_spec("someone/lora.v2@refs/pr/1") == ("someone/lora.v2", "refs/pr/1")


def test_errors_of_the_hub_give_messages(hub: Hub, good: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, good)
    assert "no repository 'someone/else'" in _refused("someone/else", root)
    assert "has no revision 'v9'" in _refused(f"{REPO}@v9", root)
    hub.gated.add(REPO)
    assert "is gated: accept its terms" in _refused(REPO, root)
    log_in(monkeypatch)
    assert pull(REPO, root, _silent, name="mine").is_dir(), "its owner may read it"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in _refused(REPO, root)


def test_private_repository_needs_the_token(hub: Hub, good: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, good)
    hub.private.add(REPO)
    assert "that you may read" in _refused(REPO, root)
    log_in(monkeypatch)
    assert pull(REPO, root, _silent).is_dir()


def test_full_disk_is_reported_before_the_download(
    hub: Hub, good: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, good)
    full = SimpleNamespace(total=1, used=1, free=10)
    with monkeypatch.context() as patch:
        patch.setattr("adapters.install.shutil.disk_usage", lambda _: full)
        assert "free some space" in _refused(REPO, root, DiskSpaceError)
    assert not _downloads(hub)
    assert shutil.disk_usage(root).free > 10


def test_store_that_cannot_be_written_is_reported(hub: Hub, good: Path, tmp_path: Path) -> None:
    hub.add(REPO, good)
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match=messages.CANNOT_WRITE_TO):
        pull(REPO, tmp_path / "file" / "store", _silent)
