"""A run that ends on the Hub: access is checked before anything is trained, and what arrives is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.hub import pull
from tests.hub_standin import Hub
from train.__main__ import main

REPO = "someone/lora-run"


def _arguments(tiny_base: Path, store: Path, repo: str = REPO) -> list[str]:
    return [
        "--adapter-name", "lora-run", "--dataset-name", "starter", "--model-name-or-path", str(tiny_base),
        "--max-train-samples", "16", "--max-eval-samples", "8", "--num-train-epochs", "1", "--device", "cpu",
        "--max-length", "480", "--output-dir", str(store), "--push-to-hub", "--hub-model-id", repo,
    ]  # fmt: skip


def test_a_run_is_published_read_back_and_can_be_pulled(
    hub: Hub, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(tiny_base, tmp_path / "store")) == 0
    said = capsys.readouterr().out
    assert f"{REPO}@{hub.commit(REPO)} answers as the folder does" in said
    assert f"Published as {hub.url}/{REPO}/tree/{hub.commit(REPO)}." in said
    pulled = pull(REPO, tmp_path / "pulled", lambda _: None)
    for name in ("adapter_model.safetensors", "config.yaml", "log.jsonl", "loss.png", "manifest.json"):
        assert (pulled / name).read_bytes() == (tmp_path / "store" / "lora-run" / name).read_bytes()


@pytest.mark.parametrize(
    ("repo", "token", "sentence"),
    [
        ("another/lora-run", True, "'another/lora-run' is not yours to publish to"),
        (REPO, False, "needs a token of the Hub"),
    ],
)
def test_nothing_is_trained_for_a_repository_that_cannot_be_written(
    hub: Hub, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    repo: str, token: bool, sentence: str,
) -> None:  # fmt: skip
    if not token:
        monkeypatch.delenv("HF_TOKEN")
    assert main(_arguments(tiny_base, tmp_path / "store", repo)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_nothing_is_trained_on_a_base_that_is_gated(
    hub: Hub, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["vendor/gated"] = tiny_base
    hub.gated.add("vendor/gated")
    arguments = _arguments(Path("vendor/gated"), tmp_path / "store")
    assert main(arguments) == 2
    assert "gated" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
