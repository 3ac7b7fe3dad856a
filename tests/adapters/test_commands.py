"""The commands `list`, `show`, `delete` and `pull` of `python -m adapters`."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from adapters.__main__ import main
from adapters.store import LIBRARY
from tests.adapters.folders import CONFIG, IN, LAYERS, MANIFEST, OUT, write_adapter
from tests.hub_standin import Hub, hub_standin

IA3 = {
    "peft_type": "IA3",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny/base",
    "target_modules": ["q_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
}
PROMPT = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny/base",
    "num_virtual_tokens": 3,
    "num_transformer_submodules": 1,
    "token_dim": IN,
}


def _every_technique(root: Path) -> None:
    write_adapter(root / "lora", {**CONFIG, "use_rslora": True})
    rescaled = {f"base_model.model.{LAYERS[0]}.ia3_l": np.ones((OUT, 1), np.float32)}
    write_adapter(root / "ia3", IA3, replace(MANIFEST, name="ia3", technique="ia3"), rescaled)
    virtual = {"prompt_embeddings": np.ones((3, IN), np.float32)}
    write_adapter(root / "prompt", PROMPT, replace(MANIFEST, name="prompt", technique="prompt-tuning"), virtual)


def _model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def test_list_shows_adapters_and_whole_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _every_technique(tmp_path)
    _model(tmp_path / "tuned")
    assert main(["--root", str(tmp_path), "list"]) == 0
    table, models = capsys.readouterr().out.split("\n\n")
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        ["ia3", "ia3"],
        ["lora", "lora"],
        ["prompt", "prompt-tuning"],
    ]
    assert all(line.endswith("yes") for line in table.splitlines()[1:])
    assert models == f"Whole models, no adapters:\n  tuned  --base {tmp_path / 'tuned'}\n"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("lora", ["rank, alpha               4, 8, rsLoRA", "modules                   q_proj"]),
        ("ia3", ["rescaled outputs          q_proj", "rescaled inputs           down_proj"]),
        ("prompt", ["virtual tokens            3"]),
    ],
)
def test_show_describes_each_technique_by_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, lines: list[str]
) -> None:
    _every_technique(tmp_path)
    assert main(["--root", str(tmp_path), "show", name]) == 0
    output = capsys.readouterr().out.splitlines()
    assert set(lines) <= set(output)
    assert any(line.startswith("rank") for line in output) is (name == "lora")


def test_control_characters_of_a_file_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = "\x1b[2J" + "x" * 10_000
    scores: list[dict[str, Any]] = [{"metric": strange, "value": strange, strange: strange}]
    folder = write_adapter(tmp_path / "good")
    changed = {**asdict(MANIFEST), "licence": strange, "technique": strange, "scores": scores}
    (folder / "manifest.json").write_text(json.dumps(changed))
    for command in (["show", "good"], ["list"]):
        assert main(["--root", str(tmp_path), *command]) == 0
        output = capsys.readouterr().out
        assert "\x1b" not in output
        assert max(map(len, output.splitlines())) < 600


def test_delete_asks_for_the_name_as_confirmation(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--root", str(good.parent), "delete", "good"]
    for typed in ("", "y\n", "yes\n", "goo\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert main(command) == 2
        assert "was not deleted: type its name to confirm, or add --yes." in capsys.readouterr().err
        assert good.is_dir()
    monkeypatch.setattr("sys.stdin", io.StringIO("good\n"))
    assert main(command) == 0
    assert list(good.parent.iterdir()) == []


def test_delete_with_yes_removes_broken_adapters(good: Path) -> None:
    (good / "manifest.json").write_text("[")
    assert main(["--root", str(good.parent), "delete", "good", "--yes"]) == 0
    assert list(good.parent.iterdir()) == []


def test_adapters_of_the_library_are_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = sorted(path.name for path in LIBRARY.iterdir())
    name = shipped[-1]
    link = tmp_path / "link"
    link.symlink_to(LIBRARY, target_is_directory=True)
    for root in (LIBRARY, LIBRARY / ".." / "library", link):
        assert main(["--root", str(root), "delete", name, "--yes"]) == 2
        assert f"'{name}' comes with the program and is not deleted" in capsys.readouterr().err
    assert sorted(path.name for path in LIBRARY.iterdir()) == shipped


def test_users_adapter_that_hides_one_of_the_library_is_deleted(tmp_path: Path) -> None:
    name = min(path.name for path in LIBRARY.iterdir())
    mine = write_adapter(tmp_path / "mine" / name)
    assert main(["--root", str(LIBRARY), "--root", str(tmp_path / "mine"), "delete", name, "--yes"]) == 0
    assert not mine.exists()
    assert (LIBRARY / name).is_dir()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("goood", "did you mean 'good'"),
        ("../good", "cannot name an adapter"),
        (".", "cannot name an adapter"),
        ("tuned", "is a whole model, not an adapter: delete the folder"),
        ("plain-folder", "Unknown adapter"),
    ],
)
def test_folder_that_is_not_an_adapter_is_not_deleted(
    good: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    _model(good.parent / "tuned")
    (good.parent / "plain-folder").mkdir()
    before = sorted(good.parent.iterdir())
    assert main(["--root", str(good.parent), "delete", name, "--yes"]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(good.parent.iterdir()) == before


def test_deleting_a_linked_adapter_deletes_only_the_link(good: Path, tmp_path: Path) -> None:
    elsewhere = write_adapter(tmp_path / "elsewhere" / "good")
    shutil.rmtree(good)
    good.symlink_to(elsewhere, target_is_directory=True)
    assert main(["--root", str(good.parent), "delete", "good", "--yes"]) == 0
    assert not good.is_symlink()
    assert (elsewhere / "manifest.json").is_file()


def test_interrupted_deletion_leaves_no_partial_adapter(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    command = ["--root", str(good.parent)]
    assert main([*command, "delete", "good", "--yes"]) == 2
    assert "cannot be deleted (Permission denied): check the permissions" in capsys.readouterr().err
    assert main([*command, "list"]) == 0
    assert capsys.readouterr().out.startswith("No adapters in")


def test_ctrl_c_prints_no_traceback(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert main(["--root", str(good.parent), "delete", "good"]) == 130
    assert capsys.readouterr().err == "Stopped; no adapter was left incomplete.\n"
    assert good.is_dir()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        monkeypatch.setattr(constants, "ENDPOINT", standin.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", standin.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
        standin.repositories["someone/good"] = write_adapter(tmp_path / "published" / "good")
        yield standin


def test_pull_installs_into_the_users_folder(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", f"someone/good@{hub.commit('someone/good')}", "--name", "lora-theirs"]) == 0
    folder = tmp_path / "home" / "adapters" / "lora-theirs"
    captured = capsys.readouterr()
    assert captured.out == f"The adapter is ready in {folder}.\n"
    assert "Looking up someone/good" in captured.err
    assert main(["show", "lora-theirs"]) == 0
    assert f"folder                    {folder}" in capsys.readouterr().out
    assert main(["pull", "someone/good", "--name", "lora-theirs"]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["pull", "someone/good", "--name", "lora-theirs", "--overwrite"]) == 0


@pytest.mark.parametrize(("spec", "expected"), [("someone/gone", "someone/gone"), ("good", "user/name@revision")])
def test_failed_pull_prints_one_line(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, expected: str
) -> None:
    assert main(["pull", spec]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "home").glob("adapters/*"))
