"""Publishes a trained folder to the Hugging Face Hub in one commit, and reads it back to see that it is the same.

All files become visible together or not at all: large ones are uploaded first, where nobody sees them, and the commit
names them. A run that was cut off is finished by the same command; what the Hub has already is not sent twice.
"""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.checks import CONFIG_NAME, read_manifest
from adapters.hub import FILES, RemoteFile, checked, download, listing, pull
from adapters.hub_errors import client_errors
from adapters.installing import scratch
from adapters.manifest import MANIFEST_NAME, Manifest
from adapters.weights import digest, shown
from errors import AdapterError, TrainingError
from serve.backends.local.source import resolve
from serve.home import Report
from train.card import write_card
from train.card_load import PLACEHOLDER
from train.publish_access import check_access, check_base_access, find_token
from train.publish_verify import Answering, Transcript, adapter_answers, base_of, check_same, model_answers

__all__ = ["Published", "check_access", "check_base_access", "publish", "verify_published"]

CARD_NAME = "README.md"
# What a whole model brings besides its weights; the last ones of FILES are the run's own records.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
_MODEL_FILES = (
    "config.json", "generation_config.json", "model.safetensors.index.json", *_TOKENIZER_FILES, MANIFEST_NAME,
    CARD_NAME, "config.yaml", "log.jsonl", "loss.png",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Where a folder is on the Hub: its repository, the one commit that holds it, and the page of that state."""

    repo_id: str
    commit: str
    url: str


@dataclass(frozen=True)
class _Contents:
    """What of a folder is published."""

    manifest: Manifest
    files: tuple[Path, ...]
    whole_model: bool
    # Files of the base's folder; no part of the adapter, so neither pulled nor compared.
    tokenizer: tuple[Path, ...] = ()


def publish(
    folder: Path,
    repo_id: str,
    report: Report,
    *,
    private: bool = False,
    token: str | None = None,
    base: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    compare: Answering | None = None,
) -> Published:
    """Uploads the adapter (or fully fine-tuned model) in `folder`, reloads it from the Hub and compares the answers.

    Before anything is sent, the folder and the right to write are checked and the folder answers some intents on its
    own base. That base follows from the manifest; one that came from a folder or file is given as `base`. `private`
    matters for a new repository alone. `compare` gives the answers in place of that base. Raises PeftArenaError in one
    sentence.
    """
    folder = folder.expanduser().absolute()
    contents = _contents(folder)
    check_access(repo_id, token, whole_model=contents.whole_model)
    key = find_token(repo_id, token)
    answering = compare or _answering(contents, base, report, device, trust_remote_code)
    report("Answering as the folder stands here ...")
    expected = answering(folder)
    # An adapter brings its base's tokenizer along, as people expect; a whole model has its own.
    apart = contents.whole_model or compare is not None
    tokenizer = () if apart else _tokenizer(base_of(contents.manifest, base), trust_remote_code)
    published = _upload(replace(contents, tokenizer=tokenizer), folder, repo_id, report, private, key)
    verify_published(folder, published, report, answering=answering, expected=expected, token=key)
    return published


def verify_published(
    folder: Path,
    published: Published,
    report: Report,
    *,
    answering: Answering,
    expected: Sequence[Transcript] | None = None,
    token: str | None = None,
) -> None:
    """Downloads exactly the published commit and has it answer as `folder` does, token by token.

    TrainingError in one sentence where it does not; AdapterError where what arrives is damaged.
    """
    what = f"{published.repo_id}@{published.commit}"
    report(f"Reading {what} back ...")
    contents = _contents(folder)
    with scratch(Path(tempfile.gettempdir()), "published") as aside:
        if contents.whole_model:
            copy = aside / folder.name
            _, there = listing(published.repo_id, published.commit, token)
            wanted = {path.name: there[path.name] for path in contents.files if path.name in there}
            download(published.repo_id, published.commit, wanted, copy, _silent, token=token)
        else:
            copy = pull(what, aside, _silent, name=folder.name, token=token)
        for file in contents.files:
            if not _arrived(file, copy / file.name, published.repo_id):
                raise TrainingError(f"{what} has another {file.name} than {folder}: publish again.")
        found = answering(copy)
    check_same(expected if expected is not None else answering(folder), found, what)
    tokens = sum(each.tokens for each in found)
    report(f"{what} answers as the folder does ({len(found)} intents, {tokens} tokens compared).")


def _contents(folder: Path) -> _Contents:
    """The folder's manifest and files, after the checks that need no base."""
    if not folder.is_dir():
        raise TrainingError(f"There is no folder {folder}: give the folder of an adapter that was trained here.")
    whole_model = not (folder / CONFIG_NAME).is_file() and (folder / "config.json").is_file()
    manifest = read_manifest(folder, folder.name) if whole_model else checked(folder).manifest
    if not (folder / CARD_NAME).is_file():
        write_card(manifest, folder)
    if not whole_model:
        return _Contents(manifest, tuple(folder / name for name in FILES if (folder / name).is_file()), False)
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise AdapterError(f"The folder {folder} has no model.safetensors: train it again.")
    if manifest.weights_digest and manifest.weights_digest != digest(weights[0], folder.name):
        raise AdapterError(f"{weights[0]} is not the file that {MANIFEST_NAME} states: train it again.")
    others = (folder / name for name in _MODEL_FILES)
    return _Contents(manifest, (*weights, *(path for path in others if path.is_file())), True)


def _answering(
    contents: _Contents, base: str | None, report: Report, device: str, trust_remote_code: bool
) -> Answering:
    if contents.whole_model:
        return model_answers(report, device)
    spec = base_of(contents.manifest, base)
    check_base_access(spec)
    return adapter_answers(spec, contents.manifest.trained_quantization, report, device, trust_remote_code)


def _tokenizer(base: str, trust_remote_code: bool) -> tuple[Path, ...]:
    folder = resolve(base, _silent, trust_remote_code).folder
    return tuple(folder / name for name in _TOKENIZER_FILES if (folder / name).is_file())


def _upload(contents: _Contents, folder: Path, repo_id: str, report: Report, private: bool, token: str) -> Published:
    """Creates the repository where it is missing, and makes one commit of all files."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    files = (*contents.files, *contents.tokenizer)
    total = sum(path.stat().st_size for path in files)
    with client_errors(repo_id, "creating", error=TrainingError):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    kept = sorted({path.name for path in folder.iterdir()} - {path.name for path in contents.files})
    if kept:
        report(f"Not published, as no part of an adapter or model: {', '.join(kept)}.")
    report(f"Uploading {len(files)} files ({total / 1e6:.1f} MB) to {repo_id} ...")
    _, there = listing(repo_id, None, token)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path.name, _sent(path, repo_id)) for path in files),
        *(CommitOperationDelete(path_in_repo=path) for path in _stale(contents, there)),
    ]
    with client_errors(repo_id, "uploading to", error=TrainingError), _card_errors():
        made = api.create_commit(repo_id, operations, commit_message=f"Publish {folder.name}")
    report(f"Published {repo_id}@{made.oid}.")
    return Published(repo_id, made.oid, f"{api.endpoint}/{repo_id}/tree/{made.oid}")


def _sent(path: Path, repo_id: str) -> str | bytes:
    """What is uploaded of a file: itself, and of the card a text that names its repository."""
    if path.name != CARD_NAME:
        return str(path)
    return path.read_bytes().replace(PLACEHOLDER.encode(), repo_id.encode())


def _arrived(path: Path, copy: Path, repo_id: str) -> bool:
    """Whether `copy` is what was uploaded of `path`."""
    sent = _sent(path, repo_id)
    if not copy.is_file():
        return False
    return copy.read_bytes() == sent if isinstance(sent, bytes) else filecmp.cmp(path, copy, shallow=False)


def _stale(contents: _Contents, there: Mapping[str, RemoteFile]) -> list[str]:
    """Files of a former version that this one has not, such as its plot; what else lies there is left alone."""
    sent = {path.name for path in contents.files}
    ours = _MODEL_FILES if contents.whole_model else FILES
    return [path for path in there if path not in sent and (path in ours or _is_shard(path, contents.whole_model))]


def _is_shard(path: str, whole_model: bool) -> bool:
    return whole_model and path.startswith("model") and path.endswith(".safetensors")


@contextmanager
def _card_errors() -> Iterator[None]:
    """The Hub reads a card before it takes anything, and its complaint is the person's to mend."""
    try:
        yield
    except ValueError as fault:
        lines = [line.strip("- ") for line in str(fault).splitlines()]
        if not lines or not lines[0].startswith("Invalid metadata"):
            raise
        raise TrainingError(
            f"The Hub does not accept the card ({shown('; '.join(lines[1:]), 200)}): correct the lines between '---' "
            f"at the top of {CARD_NAME} and publish again."
        ) from fault


def _silent(_: str) -> None:
    return
