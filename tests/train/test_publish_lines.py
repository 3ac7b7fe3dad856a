"""Lines that break while something is published, by LFS and by Xet, and that the token shows nowhere."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

import pytest

from errors import PromptOrTuneError, TrainingError
from tests.hub.client import TOKEN, use_xet
from tests.hub_standin import Hub
from tests.train.hub_folders import ADAPTER_FILES, shown
from train.publish import AnswerFn, publish_folder

REPO = "someone/lora-tiny"


def _silent(_: str) -> None:
    return


def _puts(hub: Hub) -> int:
    return sum(request.startswith("PUT") for request in hub.requests)


@pytest.mark.parametrize("what", ["upload", "commit", "reply"])
def test_a_cut_line_publishes_nothing_by_halves_and_the_retry_finishes(
    hub: Hub, folder: Path, answering: AnswerFn, what: str
) -> None:
    hub.cuts[what] = 1000
    with pytest.raises(TrainingError, match=r"broke while uploading to 'someone/lora-tiny'.*same command again"):
        publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert shown(hub, REPO) == (ADAPTER_FILES if what == "reply" else set()), "all of it or nothing"
    hub.cuts.clear()
    sent = _puts(hub)
    published = publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert published.commit == hub.commit(REPO)
    assert shown(hub, REPO) == ADAPTER_FILES
    assert len(hub.history[REPO]) == 2
    assert _puts(hub) - sent == (2 if what == "upload" else 0), "what the Hub has is not sent twice"


def test_a_line_that_breaks_once_is_taken_up_again(hub: Hub, folder: Path, answering: AnswerFn) -> None:
    hub.cuts["upload"] = 1
    publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert shown(hub, REPO) == ADAPTER_FILES


def test_by_xet_as_where_hf_xet_is_installed(
    hub: Hub, folder: Path, answering: AnswerFn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_xet(hub, monkeypatch, tmp_path)
    publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert hub.history[REPO][-1].files["adapter_model.safetensors"].xet
    assert not _puts(hub)


def test_a_cut_line_by_xet(
    hub: Hub, folder: Path, answering: AnswerFn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_xet(hub, monkeypatch, tmp_path)
    hub.cuts["xet"] = 1000
    with pytest.raises(TrainingError, match="while uploading to 'someone/lora-tiny'"):
        publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert not shown(hub, REPO)
    hub.cuts.clear()
    publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert shown(hub, REPO) == ADAPTER_FILES


def test_the_token_shows_nowhere(
    hub: Hub,
    folder: Path,
    answering: AnswerFn,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    caplog.set_level("DEBUG", logger="huggingface_hub")
    lines: list[str] = []
    publish_folder(folder, REPO, lines.append, answer_fn=answering)
    for what in ("upload", "commit", "answer"):
        hub.cuts[what] = 1000
        (folder / "log.jsonl").write_text(f"{what}\n")
        shutil.copy(folder / "log.jsonl", folder / "loss.png")
        with pytest.raises(PromptOrTuneError) as caught:
            publish_folder(folder, REPO, lines.append, answer_fn=answering)
        lines.extend(traceback.format_exception(caught.value))
        hub.cuts.clear()
    lines.extend(path.read_text(errors="replace") for path in folder.iterdir())
    written = capfd.readouterr()
    everything = "\n".join([*lines, written.out, written.err, caplog.text])
    assert "Published someone/lora-tiny" in everything
    assert "Request" in everything, "the client's own log is read too"
    assert TOKEN not in everything
    assert TOKEN[3:] not in everything
