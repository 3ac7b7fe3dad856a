"""Publishing to the Hub and reading it back, with the real client against a stand-in over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.hub import pull
from adapters.manifest import Manifest
from errors import AdapterError, PeftArenaError, TrainingError
from tests.hub.client import TOKEN, log_in, use_hub, use_xet
from tests.hub_standin import Hub, hub_standin
from tests.serve.tiny import make_base
from tests.train.hub_folders import identity_of, make_adapter, make_whole_model
from train.publish import publish
from train.publish_verify import Answering, Transcript, adapter_answers, check_same

REPO = "someone/lora-tiny"
ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.yaml",
    "log.jsonl",
    "loss.png",
    "manifest.json",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("trained") / "lora-tiny", base, identity_of(str(base)))


@pytest.fixture(scope="module")
def answering(base: Path) -> Answering:
    """The adapter's own base, loaded once for all tests."""
    return adapter_answers(str(base), "none", _silent, "cpu")


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "lora-tiny")
    return tmp_path / "lora-tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        use_hub(standin, monkeypatch, tmp_path / "client")
        log_in(monkeypatch)
        yield standin


def _silent(_: str) -> None:
    return


def _shown(hub: Hub, repo: str = REPO) -> set[str]:
    """What anybody can see of the repository, beside the file with which every repository begins."""
    return set(hub.history[repo][-1].files) - {".gitattributes"} if repo in hub.history else set()


def _puts(hub: Hub) -> int:
    return sum(request.startswith("PUT") for request in hub.requests)


def test_a_folder_is_published_in_one_commit_and_answers_as_here(
    hub: Hub, folder: Path, base: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    published = publish(folder, REPO, lines.append, base=str(base), device="cpu")
    assert published.repo_id == REPO
    assert published.commit == hub.commit(REPO)
    assert published.url == f"{hub.url}/{REPO}/tree/{published.commit}"
    assert len(hub.history[REPO]) == 2, "the empty beginning, and one commit"
    assert _shown(hub) == ADAPTER_FILES
    assert "answers as the folder does (3 intents," in lines[-1]
    assert any(line.startswith("Uploading 7 files") for line in lines)
    copy = pull(f"{REPO}@{published.commit}", tmp_path / "elsewhere", _silent)
    assert all((copy / name).read_bytes() == (folder / name).read_bytes() for name in ADAPTER_FILES)


def test_the_base_of_a_hub_id_follows_from_the_manifest(hub: Hub, base: Path, tmp_path: Path) -> None:
    hub.repositories["someone/tiny"] = base
    folder = make_adapter(tmp_path / "lora-hub", base, identity_of("someone/tiny"))
    assert Manifest.read(folder).base_revision == hub.commit("someone/tiny")
    assert publish(folder, "someone/lora-hub", _silent, device="cpu").commit == hub.commit("someone/lora-hub")


def test_publishing_again_changes_nothing_and_a_new_version_is_a_new_commit(
    hub: Hub, folder: Path, base: Path, answering: Answering, tmp_path: Path
) -> None:
    first = publish(folder, REPO, _silent, compare=answering)
    assert publish(folder, REPO, _silent, compare=answering) == first
    (tmp_path / "next").mkdir()
    later = make_adapter(tmp_path / "next" / "lora-tiny", base, identity_of(str(base)), seed=2)
    (later / "loss.png").unlink()
    second = publish(later, REPO, _silent, compare=answering)
    assert second.commit != first.commit
    assert _shown(hub) == ADAPTER_FILES - {"loss.png"}, "the plot of the former version would be a false one"
    old = pull(f"{REPO}@{first.commit}", tmp_path / "pulled", _silent)
    assert (old / "loss.png").is_file()
    assert Manifest.read(old).seed == 1


@pytest.mark.parametrize("what", ["upload", "commit", "reply"])
def test_a_cut_line_publishes_nothing_by_halves_and_the_retry_finishes(
    hub: Hub, folder: Path, answering: Answering, what: str
) -> None:
    hub.cuts[what] = 1000
    with pytest.raises(TrainingError, match=r"broke while uploading to 'someone/lora-tiny'.*same command again"):
        publish(folder, REPO, _silent, compare=answering)
    assert _shown(hub) == (ADAPTER_FILES if what == "reply" else set()), "all of it or nothing"
    hub.cuts.clear()
    sent = _puts(hub)
    published = publish(folder, REPO, _silent, compare=answering)
    assert published.commit == hub.commit(REPO)
    assert _shown(hub) == ADAPTER_FILES
    assert len(hub.history[REPO]) == 2
    assert _puts(hub) - sent == (2 if what == "upload" else 0), "what the Hub has is not sent twice"


def test_a_line_that_breaks_once_is_taken_up_again(hub: Hub, folder: Path, answering: Answering) -> None:
    hub.cuts["upload"] = 1
    publish(folder, REPO, _silent, compare=answering)
    assert _shown(hub) == ADAPTER_FILES


def test_by_xet_as_where_hf_xet_is_installed(
    hub: Hub, folder: Path, answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_xet(hub, monkeypatch, tmp_path)
    publish(folder, REPO, _silent, compare=answering)
    assert hub.history[REPO][-1].files["adapter_model.safetensors"].xet
    assert not _puts(hub)


def test_the_token_shows_nowhere(
    hub: Hub,
    folder: Path,
    answering: Answering,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    lines: list[str] = []
    publish(folder, REPO, lines.append, compare=answering)
    for what in ("upload", "commit", "answer"):
        hub.cuts[what] = 1000
        (folder / "log.jsonl").write_text(f"{what}\n")
        shutil.copy(folder / "log.jsonl", folder / "loss.png")
        with pytest.raises(PeftArenaError) as caught:
            publish(folder, REPO, lines.append, compare=answering)
        lines.append(str(caught.value))
        hub.cuts.clear()
    lines.extend(path.read_text(errors="replace") for path in folder.iterdir())
    written = capfd.readouterr()
    everything = "\n".join([*lines, written.out, written.err, caplog.text])
    assert "Published someone/lora-tiny" in everything
    assert TOKEN not in everything
    assert TOKEN[3:] not in everything


def test_other_answers_are_noticed(base: Path, trained: Path, answering: Answering, tmp_path: Path) -> None:
    ours = answering(trained)
    check_same(ours, answering(trained), "the same")
    other = make_adapter(tmp_path / "lora-tiny", base, identity_of(str(base)), seed=2)
    with pytest.raises(TrainingError, match=r"someone/x@1 does not answer .* folder says .* \(token \d+\)"):
        check_same(ours, answering(other), "someone/x@1")
    first = ours[0]
    for changed, words in (
        (Transcript(first.steps, first.tokens + 1, first.logprob), "does not answer"),
        (Transcript(first.steps, first.tokens, first.logprob - 1), "log-probability"),
        (Transcript(first.steps[:-1], first.tokens, first.logprob), "does not answer"),
    ):
        with pytest.raises(TrainingError, match=words):
            check_same(ours, [changed, *ours[1:]], "x")


def test_what_arrives_otherwise_is_noticed(hub: Hub, folder: Path, base: Path, tmp_path: Path) -> None:
    """Somebody commits other weights between our commit and our reading: ours is read all the same."""
    calls: list[Path] = []

    def answering(where: Path) -> list[Transcript]:
        calls.append(where)
        return [Transcript((str(len(calls)),), 1, -1.0)] * 3

    with pytest.raises(TrainingError, match=f"{REPO}@.* says '2' where the folder says '1' .token 1."):
        publish(folder, REPO, _silent, compare=answering)
    assert calls[0] == folder
    assert calls[1] != folder
    assert not calls[1].exists(), "what was read back is gone"


def test_a_whole_model_is_published_and_compared_too(hub: Hub, tmp_path: Path) -> None:
    folder = make_whole_model(make_base("llama", tmp_path / "full-tiny", seed=3))
    published = publish(folder, "someone/full-tiny", _silent, device="cpu")
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json", "README.md"} <= _shown(
        hub, "someone/full-tiny"
    )
    with pytest.raises(AdapterError, match="is a whole model, not an adapter"):
        pull(f"someone/full-tiny@{published.commit}", tmp_path / "store", _silent)


def test_nothing_is_asked_of_the_hub_for_a_folder_that_is_none(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="There is no folder"):
        publish(tmp_path / "nowhere", REPO, _silent)
    (folder / "manifest.json").unlink()
    with pytest.raises(AdapterError, match=r"has no manifest\.json"):
        publish(folder, REPO, _silent)
    assert not hub.requests


def test_a_base_out_of_a_folder_must_be_named_before_anything_is_sent(hub: Hub, folder: Path) -> None:
    with pytest.raises(TrainingError, match="name that one with --base"):
        publish(folder, REPO, _silent)
    assert REPO not in hub.history


def test_an_adapter_that_does_not_fit_its_base_is_not_published(hub: Hub, folder: Path, tmp_path: Path) -> None:
    other = make_base("llama", tmp_path / "other", seed=5)
    with pytest.raises(AdapterError, match="was trained for tiny"):
        publish(folder, REPO, _silent, base=str(other), device="cpu")
    assert REPO not in hub.history


def test_a_card_that_the_hub_refuses_is_named(hub: Hub, folder: Path, answering: Answering) -> None:
    card = (folder / "README.md").read_text()
    card = card.replace("language: en", "base_model: no model at all")
    (folder / "README.md").write_text(card)
    with pytest.raises(TrainingError, match=r'does not accept the card .*"no model at all" is not valid'):
        publish(folder, REPO, _silent, compare=answering)
    assert not _shown(hub)


def test_a_private_repository_shows_to_its_owner_alone(
    hub: Hub, folder: Path, answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder, REPO, _silent, private=True, compare=answering)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AdapterError, match="that you may read"):
        pull(REPO, tmp_path / "store", _silent)
    assert pull(REPO, tmp_path / "store", _silent, token=TOKEN).is_dir()
