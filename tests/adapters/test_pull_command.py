"""`pull` on the command line: into the user's own folder, with one sentence when it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from adapters.__main__ import main
from tests.adapters.folders import write_adapter
from tests.hub_standin import Hub, hub_standin


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


def test_it_goes_into_ones_own_folder(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize(("spec", "says"), [("someone/gone", "someone/gone"), ("good", "user/name@revision")])
def test_what_cannot_be_pulled_is_one_sentence(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, says: str
) -> None:
    assert main(["pull", spec]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "home").glob("adapters/*"))
