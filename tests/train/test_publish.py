"""Tests of train/publish.py with the Hub's client and a local server: publishing, lost connections, --push-to-hub."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

import pytest
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig

from adapters.install import pull
from adapters.manifest import Manifest
from adapters.store import LIBRARY
from errors import AdapterError, PromptOrTuneError, TrainingError
from tests import messages
from tests.hub.client import TOKEN, use_xet
from tests.hub_standin import Hub
from tests.serve.tiny import make_base
from tests.train.hub_folders import ADAPTER_FILES, identity_of, make_adapter, make_full_model, published_files
from train.__main__ import main
from train.publish import AnswerFn, GreedyAnswer, check_same_answers, publish_folder

pytestmark = pytest.mark.slow

REPO = "someone/lora-tiny"


def _silent(_: str) -> None:
    return


def test_folder_is_published_in_one_commit_and_gives_the_same_answers(
    hub: Hub, folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    (folder / "notes.txt").write_text("mine\n")
    published = publish_folder(folder, REPO, lines.append, base=str(tiny_base), device="cpu")
    assert "Not published, as no part of an adapter or model: notes.txt." in lines
    assert published.repo_id == REPO
    assert published.commit == hub.commit(REPO)
    assert published.url == f"{hub.url}/{REPO}/tree/{published.commit}"
    assert len(hub.history[REPO]) == 2, "the initial commit and one more"
    assert published_files(hub, REPO) == ADAPTER_FILES | {"tokenizer.json", "tokenizer_config.json"}
    assert "answers as the folder does (3 intents," in lines[-1]
    assert any(line.startswith("Uploading 9 files") for line in lines)
    copy = pull(f"{REPO}@{published.commit}", tmp_path / "elsewhere", _silent)
    for name in ADAPTER_FILES - {"README.md"}:
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    card = (copy / "README.md").read_text()
    assert f"python -m adapters pull {REPO}" in card
    assert card == (folder / "README.md").read_text().replace("USER/NAME", REPO)


def test_published_manifest_names_the_base_on_the_hub(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    hub.repositories["someone/tiny"] = tiny_base
    folder = make_adapter(tmp_path / "lora-hub", tiny_base, identity_of("someone/tiny"))
    assert Manifest.read(folder).base_revision == hub.commit("someone/tiny")
    assert publish_folder(folder, "someone/lora-hub", _silent, device="cpu").commit == hub.commit("someone/lora-hub")


def test_unchanged_folder_makes_no_commit_and_a_new_version_makes_one(
    hub: Hub, folder: Path, tiny_base: Path, answering: AnswerFn, tmp_path: Path
) -> None:
    first = publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert publish_folder(folder, REPO, _silent, answer_fn=answering) == first
    (tmp_path / "next").mkdir()
    later = make_adapter(tmp_path / "next" / "lora-tiny", tiny_base, identity_of(str(tiny_base)), seed=2)
    (later / "loss.png").unlink()
    second = publish_folder(later, REPO, _silent, answer_fn=answering)
    assert second.commit != first.commit
    assert published_files(hub, REPO) == ADAPTER_FILES - {"loss.png"}, "the plot of the previous version is removed"
    old = pull(f"{REPO}@{first.commit}", tmp_path / "pulled", _silent)
    assert (old / "loss.png").is_file()
    assert Manifest.read(old).seed == 1


def test_different_answers_are_an_error(tiny_base: Path, tiny_run: Path, answering: AnswerFn, tmp_path: Path) -> None:
    ours = answering(tiny_run)
    check_same_answers(ours, answering(tiny_run), "the same")
    other = make_adapter(tmp_path / "lora-tiny", tiny_base, identity_of(str(tiny_base)), seed=2)
    with pytest.raises(TrainingError, match=messages.PUBLISHED_ANSWERS_DIFFER):
        check_same_answers(ours, answering(other), "someone/x@1")
    first = ours[0]
    for changed, words in (
        (GreedyAnswer(first.steps, first.tokens + 1, first.logprob), "does not answer"),
        (GreedyAnswer(first.steps, first.tokens, first.logprob - 1), "log-probability"),
        (GreedyAnswer(first.steps[:-1], first.tokens, first.logprob), "does not answer"),
    ):
        with pytest.raises(TrainingError, match=words):
            check_same_answers(ours, [changed, *ours[1:]], "x")


def test_download_with_different_answers_is_an_error(hub: Hub, folder: Path) -> None:
    calls: list[Path] = []

    def answering(where: Path) -> list[GreedyAnswer]:
        calls.append(where)
        return [GreedyAnswer((str(len(calls)),), 1, -1.0)] * 3

    with pytest.raises(TrainingError, match=messages.DOWNLOADED_ANSWERS_DIFFER.format(repo=REPO)):
        publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert calls[0] == folder
    assert calls[1] != folder
    assert not calls[1].exists(), "the download is removed"


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=8, use_dora=True, target_modules=["q_proj"], init_lora_weights=False),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        PromptTuningConfig(num_virtual_tokens=4),
        PrefixTuningConfig(num_virtual_tokens=4),
    ],
    ids=["dora", "ia3", "prompt-tuning", "prefix-tuning"],
)
def test_every_technique_is_published_and_compared(
    hub: Hub, tiny_base: Path, answering: AnswerFn, tmp_path: Path, config: PeftConfig
) -> None:
    folder = make_adapter(tmp_path / "any-tiny", tiny_base, identity_of(str(tiny_base)), config=config)
    publish_folder(folder, "someone/any-tiny", _silent, answer_fn=answering)
    assert published_files(hub, "someone/any-tiny") == ADAPTER_FILES


def test_full_model_is_published_and_compared(hub: Hub, tmp_path: Path) -> None:
    folder = make_full_model(make_base("llama", tmp_path / "full-tiny", seed=3))
    published = publish_folder(folder, "someone/full-tiny", _silent, device="cpu")
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json", "README.md"} <= published_files(
        hub, "someone/full-tiny"
    )
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    with pytest.raises(AdapterError, match=messages.WEIGHTS_DIFFER_FROM_MANIFEST):
        publish_folder(folder, "someone/full-tiny", _silent, device="cpu")
    with pytest.raises(AdapterError, match=messages.IS_MODEL_NOT_ADAPTER):
        pull(f"someone/full-tiny@{published.commit}", tmp_path / "store", _silent)


def test_invalid_folder_causes_no_requests(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=messages.NO_SUCH_FOLDER):
        publish_folder(tmp_path / "nowhere", REPO, _silent)
    (folder / "manifest.json").unlink()
    with pytest.raises(AdapterError, match=messages.FOLDER_WITHOUT_MANIFEST):
        publish_folder(folder, REPO, _silent)
    assert not hub.requests


def test_base_from_a_folder_requires_the_base_option(hub: Hub, folder: Path) -> None:
    with pytest.raises(TrainingError, match=messages.BASE_OF_FOLDER_UNNAMED):
        publish_folder(folder, REPO, _silent)
    assert REPO not in hub.history


def test_adapter_that_does_not_fit_its_base_is_not_published(hub: Hub, folder: Path, tmp_path: Path) -> None:
    other = make_base("llama", tmp_path / "other", seed=5)
    with pytest.raises(AdapterError, match=messages.TRAINED_FOR_TINY):
        publish_folder(folder, REPO, _silent, base=str(other), device="cpu")
    assert REPO not in hub.history


def test_invalid_card_is_an_error(hub: Hub, folder: Path, answering: AnswerFn) -> None:
    card = (folder / "README.md").read_text()
    card = card.replace("language: en", "base_model: no model at all")
    (folder / "README.md").write_text(card)
    with pytest.raises(TrainingError, match=messages.CARD_REJECTED):
        publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert not published_files(hub, REPO)


def test_private_repository_is_visible_to_its_owner_only(
    hub: Hub, folder: Path, answering: AnswerFn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_folder(folder, REPO, _silent, private=True, answer_fn=answering)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AdapterError, match=messages.REPOSITORY_NOT_READABLE):
        pull(REPO, tmp_path / "store", _silent)
    assert pull(REPO, tmp_path / "store", _silent, token=TOKEN).is_dir()


@pytest.mark.model
def test_adapter_of_the_embedded_base_is_published(hub: Hub, home: Path, tmp_path: Path) -> None:
    """The manifest names the embedded base in NF4."""
    folder = Path(shutil.copytree(LIBRARY / "lora-starter", tmp_path / "lora-starter"))
    lines: list[str] = []
    published = publish_folder(folder, "someone/lora-starter", lines.append, device="cpu")
    assert f"someone/lora-starter@{published.commit} answers as the folder does" in lines[-1]


def _puts(hub: Hub) -> int:
    return sum(request.startswith("PUT") for request in hub.requests)


@pytest.mark.parametrize("what", ["upload", "commit", "reply"])
def test_lost_connection_publishes_all_or_nothing_and_a_retry_completes(
    hub: Hub, folder: Path, answering: AnswerFn, what: str
) -> None:
    hub.cuts[what] = 1000
    with pytest.raises(TrainingError, match=messages.UPLOAD_BROKE_OFF):
        publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert published_files(hub, REPO) == (ADAPTER_FILES if what == "reply" else set()), "complete or empty"
    hub.cuts.clear()
    uploads = _puts(hub)
    published = publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert published.commit == hub.commit(REPO)
    assert published_files(hub, REPO) == ADAPTER_FILES
    assert len(hub.history[REPO]) == 2
    assert _puts(hub) - uploads == (2 if what == "upload" else 0), "files that the Hub has are not uploads again"


def test_upload_is_retried_after_a_lost_connection(hub: Hub, folder: Path, answering: AnswerFn) -> None:
    hub.cuts["upload"] = 1
    publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert published_files(hub, REPO) == ADAPTER_FILES


def test_weights_are_uploaded_by_xet(
    hub: Hub, folder: Path, answering: AnswerFn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_xet(hub, monkeypatch, tmp_path)
    publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert hub.history[REPO][-1].files["adapter_model.safetensors"].xet
    assert not _puts(hub)


def test_failed_upload_by_xet_is_reported_and_a_retry_completes(
    hub: Hub, folder: Path, answering: AnswerFn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_xet(hub, monkeypatch, tmp_path)
    hub.cuts["xet"] = 1000
    with pytest.raises(TrainingError, match=messages.DURING_UPLOAD):
        publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert not published_files(hub, REPO)
    hub.cuts.clear()
    publish_folder(folder, REPO, _silent, answer_fn=answering)
    assert published_files(hub, REPO) == ADAPTER_FILES


def test_token_appears_in_no_output(
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
    assert "Request" in everything, "the client's log is included"
    assert TOKEN not in everything
    assert TOKEN[3:] not in everything


RUN_REPO = "someone/lora-run"


def _arguments(tiny_base: Path, store: Path, repo: str = RUN_REPO) -> list[str]:
    return [
        "--adapter-name", "lora-run", "--dataset-name", "starter", "--model-name-or-path", str(tiny_base),
        "--max-train-samples", "16", "--max-eval-samples", "8", "--num-train-epochs", "1", "--device", "cpu",
        "--max-length", "480", "--output-dir", str(store), "--push-to-hub", "--hub-model-id", repo,
    ]  # fmt: skip


def test_run_is_published_verified_and_can_be_pulled(
    hub: Hub, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(tiny_base, tmp_path / "store")) == 0
    output = capsys.readouterr().out
    assert f"{RUN_REPO}@{hub.commit(RUN_REPO)} answers as the folder does" in output
    assert f"Published as {hub.url}/{RUN_REPO}/tree/{hub.commit(RUN_REPO)}." in output
    pulled = pull(RUN_REPO, tmp_path / "pulled", lambda _: None)
    for name in ("adapter_model.safetensors", "config.yaml", "log.jsonl", "loss.png", "manifest.json"):
        assert (pulled / name).read_bytes() == (tmp_path / "store" / "lora-run" / name).read_bytes()


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("another/lora-run", True, "'another/lora-run' is not yours to publish to"),
        (RUN_REPO, False, "needs a token of the Hub"),
    ],
)
def test_training_is_refused_if_the_repository_cannot_be_written(
    hub: Hub, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    repo: str, token: bool, message: str,
) -> None:  # fmt: skip
    if not token:
        monkeypatch.delenv("HF_TOKEN")
    assert main(_arguments(tiny_base, tmp_path / "store", repo)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_training_on_a_gated_base_is_refused(
    hub: Hub, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["vendor/gated"] = tiny_base
    hub.gated.add("vendor/gated")
    arguments = _arguments(Path("vendor/gated"), tmp_path / "store")
    assert main(arguments) == 2
    assert "gated" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
