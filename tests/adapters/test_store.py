"""The adapter store: names, roots, opening, and the status of adapters that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.__main__ import main
from adapters.store import LIBRARY, Store, user_root
from errors import AdapterError, UnknownNameError
from tests import messages
from tests.adapters.folders import (
    BASE,
    CONFIG,
    FINGERPRINTS,
    IN,
    LAYERS,
    MANIFEST,
    OUT,
    RANK,
    refused,
    store,
    write_adapter,
)

ROOT = Path(__file__).resolve().parents[2]


def test_valid_adapter_opens(good: Path) -> None:
    folder = store(good.parent).open("good", BASE)
    assert (folder.name, folder.path, folder.manifest) == ("good", good, MANIFEST)
    assert folder.config["r"] == RANK
    assert folder.digest.startswith("sha256:")
    assert len(folder.digest) == len("sha256:") + 16


@pytest.mark.parametrize(
    "change",
    [
        {"use_rslora": True},
        {"lora_alpha": 2.5},
        {"init_lora_weights": "gaussian"},
        {"auto_mapping": {"base_model_class": "x", "parent_library": "os"}},
        {"some_future_setting": None},
        {"target_modules": list(LAYERS)},
    ],
)
def test_supported_settings_are_accepted(tmp_path: Path, change: dict[str, Any]) -> None:
    write_adapter(tmp_path / "good", {**CONFIG, **change})
    assert store(tmp_path).open("good", BASE).config == {**CONFIG, **change}


def test_folder_written_by_peft_opens(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")

    class Attention(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(IN, OUT)

    model = peft.get_peft_model(Attention(), peft.LoraConfig(r=RANK, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "good")
    MANIFEST.write(tmp_path / "good")
    base = replace(BASE, shapes={"q_proj": (OUT, IN)})
    assert store(tmp_path).open("good", base).config["target_modules"] == ["q_proj"]


def test_later_root_has_precedence_for_the_same_name(tmp_path: Path) -> None:
    write_adapter(tmp_path / "library" / "good")
    write_adapter(tmp_path / "library" / "other")
    mine = write_adapter(tmp_path / "mine" / "good", manifest=replace(MANIFEST, seed=1))
    write_adapter(tmp_path / "mine" / ".good-being-written")
    (tmp_path / "mine" / "no-adapter").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    both = Store(
        (tmp_path / "library", tmp_path / "mine", tmp_path / "gone", tmp_path / "mine" / "file"),
        fingerprints=FINGERPRINTS,
    )
    assert both.names() == ["good", "other"]
    assert both.open("good", BASE).path == mine
    assert both.open("good", BASE).manifest.seed == 1
    assert Store((tmp_path / "gone",)).names() == []


def test_error_of_an_unknown_name_suggests_the_nearest(good: Path) -> None:
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_ADAPTER_SUGGESTS_GOOD):
        store(good.parent).open("goood", BASE)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../good",
        "a/b",
        "/etc",
        "a\\b",
        "Good",
        "-x",
        ".x",
        "a b",
        "x" * 65,
        "good\n",
        "gut\u00e9",
        "\0",
        "a/../good",
        "/",
        "good/",
        "good\0",
        "con\u2024",
        "%2e%2e",
        "~",
        "*",
    ],
)
def test_paths_are_refused_as_names(good: Path, name: str) -> None:
    with pytest.raises(AdapterError, match=messages.ADAPTER_NAME_MUST_BE_LOWERCASE):
        store(good.parent).open(name, BASE)


@pytest.mark.parametrize("name", ["zero-shot", "icl-8", "rag-x"])
def test_names_of_methods_are_refused(tmp_path: Path, name: str) -> None:
    assert "give the folder another name" in refused(write_adapter(tmp_path / name))


def test_status_lists_every_adapter_with_the_reason_if_unusable(good: Path) -> None:
    root = good.parent
    write_adapter(root / "foreign", manifest=replace(MANIFEST, base_id="other/base"))
    write_adapter(root / "bare", manifest=None)
    write_adapter(root / "Not A Slug")
    found = {status.name: status for status in store(root).status(BASE)}
    assert sorted(found) == ["Not A Slug", "bare", "foreign", "good"]
    assert (found["good"].usable, found["good"].reason, found["good"].manifest) == (True, "", MANIFEST)
    assert not found["foreign"].usable
    assert "was trained for other/base" in found["foreign"].reason
    assert found["foreign"].manifest is not None
    assert found["bare"].manifest is None
    assert "cannot name an adapter" in found["Not A Slug"].reason
    usable = {status.name for status in store(root).status() if status.usable}
    assert usable == {"good", "foreign"}  # without a base, an adapter of another base is usable


def test_command_lists_and_shows_adapters(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter(good.parent / "broken", {**CONFIG, "peft_type": "VERA"})
    assert main(["--root", str(good.parent), "list"]) == 0
    output = capsys.readouterr().out
    assert "good    lora       tiny/base  nf4        starter  plain   yes" in output
    assert "is a VERA adapter" in output
    assert main(["--root", str(good.parent), "show", "good"]) == 0
    output = capsys.readouterr().out
    assert f"tiny/base (revision {'a' * 40})" in output
    assert "score, em@1" in output
    assert "0.5 (n 80)" in output


@pytest.mark.parametrize(("name", "expected"), [("goood", "did you mean 'good'"), ("../x", "cannot name an adapter")])
def test_command_prints_one_line_for_an_error(
    good: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    assert main(["--root", str(good.parent), "show", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err
    assert captured.err.count("\n") == 1


def test_command_without_adapters_imports_no_torch(tmp_path: Path) -> None:
    script = """
import sys
from adapters.__main__ import main
code = main(["--root", sys.argv[1], "list"])
assert not {"torch", "safetensors", "numpy"} & set(sys.modules)
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"No adapters in {tmp_path / 'none'}.\n"
    assert done.stderr == ""


def test_user_root_is_below_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))
    assert user_root() == tmp_path / "adapters"
    monkeypatch.delenv("PROMPT_OR_TUNE_HOME")
    assert user_root() == Path.home() / ".cache" / "prompt-or-tune" / "adapters"


def test_every_adapter_of_the_library_is_valid() -> None:
    assert [status.reason for status in Store((LIBRARY,)).status() if not status.usable] == []
