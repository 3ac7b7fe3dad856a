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
from adapters.hub import ADAPTER_FILES, RemoteFile, download, inspect_verified, list_repo_files, pull
from adapters.hub_errors import hub_errors
from adapters.installing import staging_folder
from adapters.manifest import MANIFEST_NAME, Manifest
from adapters.weights import digest, quote_untrusted
from errors import AdapterError, TrainingError
from serve.backends.local.source import resolve
from serve.home import ProgressFn
from train.card import write_model_card
from train.card_load import PLACEHOLDER
from train.publish_access import check_access, check_base_access, find_token
from train.publish_verify import (
    AnswerFn,
    GreedyAnswer,
    adapter_answer_fn,
    base_argument,
    check_same_answers,
    model_answer_fn,
)

__all__ = ["PublishedRepo", "check_access", "check_base_access", "publish_folder", "verify_published"]

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
class PublishedRepo:
    """Where a folder is on the Hub: its repository, the one commit that holds it, and the page of that state."""

    repo_id: str
    commit: str
    url: str


@dataclass(frozen=True)
class _UploadFiles:
    """What of a folder is published."""

    manifest: Manifest
    files: tuple[Path, ...]
    is_full_model: bool
    # Files of the base's folder; no part of the adapter, so neither pulled nor compared.
    tokenizer_files: tuple[Path, ...] = ()


def publish_folder(
    folder: Path,
    repo_id: str,
    report: ProgressFn,
    *,
    private: bool = False,
    token: str | None = None,
    base: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    answer_fn: AnswerFn | None = None,
) -> PublishedRepo:
    """Uploads the adapter (or fully fine-tuned model) in `folder`, reloads it from the Hub and compares the answers.

    Before anything is sent, the folder and the right to write are checked and the folder answers some intents on its
    own base. That base follows from the manifest; one that came from a folder or file is given as `base`. `private`
    matters for a new repository alone. `compare` gives the answers in place of that base. Raises PromptOrTuneError in one
    sentence.
    """
    folder = folder.expanduser().absolute()
    contents = _collect_files(folder)
    check_access(repo_id, token, is_full_model=contents.is_full_model)
    key = find_token(repo_id, token)
    answering = answer_fn or _make_answer_fn(contents, base, report, device, trust_remote_code)
    report("Answering as the folder stands here ...")
    expected = answering(folder)
    # An adapter brings its base's tokenizer along, as people expect; a whole model has its own.
    apart = contents.is_full_model or answer_fn is not None
    tokenizer = () if apart else _base_tokenizer_files(base_argument(contents.manifest, base), trust_remote_code)
    published = _upload(replace(contents, tokenizer_files=tokenizer), folder, repo_id, report, private, key)
    verify_published(folder, published, report, answer_fn=answering, expected=expected, token=key)
    return published


def verify_published(
    folder: Path,
    published: PublishedRepo,
    report: ProgressFn,
    *,
    answer_fn: AnswerFn,
    expected: Sequence[GreedyAnswer] | None = None,
    token: str | None = None,
) -> None:
    """Downloads exactly the published commit and has it answer as `folder` does, token by token.

    TrainingError in one sentence where it does not; AdapterError where what arrives is damaged.
    """
    what = f"{published.repo_id}@{published.commit}"
    report(f"Reading {what} back ...")
    contents = _collect_files(folder)
    with staging_folder(Path(tempfile.gettempdir()), "published") as aside:
        if contents.is_full_model:
            copy = aside / folder.name
            _, there = list_repo_files(published.repo_id, published.commit, token)
            wanted = {path.name: there[path.name] for path in contents.files if path.name in there}
            download(published.repo_id, published.commit, wanted, copy, _ignore_progress, token=token)
        else:
            copy = pull(what, aside, _ignore_progress, name=folder.name, token=token)
        for file in contents.files:
            if not _upload_matches(file, copy / file.name, published.repo_id):
                raise TrainingError(f"{what} has another {file.name} than {folder}: publish again.")
        found = answer_fn(copy)
    check_same_answers(expected if expected is not None else answer_fn(folder), found, what)
    tokens = sum(each.tokens for each in found)
    report(f"{what} answers as the folder does ({len(found)} intents, {tokens} tokens compared).")


def _collect_files(folder: Path) -> _UploadFiles:
    """The folder's manifest and files, after the checks that need no base."""
    if not folder.is_dir():
        raise TrainingError(f"There is no folder {folder}: give the folder of an adapter that was trained here.")
    whole_model = not (folder / CONFIG_NAME).is_file() and (folder / "config.json").is_file()
    manifest = read_manifest(folder, folder.name) if whole_model else inspect_verified(folder).manifest
    if not (folder / CARD_NAME).is_file():
        write_model_card(manifest, folder)
    if not whole_model:
        return _UploadFiles(
            manifest, tuple(folder / name for name in ADAPTER_FILES if (folder / name).is_file()), False
        )
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise AdapterError(f"The folder {folder} has no model.safetensors: train it again.")
    if manifest.weights_digest and manifest.weights_digest != digest(weights[0], folder.name):
        raise AdapterError(f"{weights[0]} is not the file that {MANIFEST_NAME} states: train it again.")
    others = (folder / name for name in _MODEL_FILES)
    return _UploadFiles(manifest, (*weights, *(path for path in others if path.is_file())), True)


def _make_answer_fn(
    contents: _UploadFiles, base: str | None, report: ProgressFn, device: str, trust_remote_code: bool
) -> AnswerFn:
    if contents.is_full_model:
        return model_answer_fn(report, device)
    spec = base_argument(contents.manifest, base)
    check_base_access(spec)
    return adapter_answer_fn(spec, contents.manifest.trained_quantization, report, device, trust_remote_code)


def _base_tokenizer_files(base: str, trust_remote_code: bool) -> tuple[Path, ...]:
    folder = resolve(base, _ignore_progress, trust_remote_code).folder
    return tuple(folder / name for name in _TOKENIZER_FILES if (folder / name).is_file())


def _upload(
    contents: _UploadFiles, folder: Path, repo_id: str, report: ProgressFn, private: bool, token: str
) -> PublishedRepo:
    """Creates the repository where it is missing, and makes one commit of all files."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    files = (*contents.files, *contents.tokenizer_files)
    total = sum(path.stat().st_size for path in files)
    with hub_errors(repo_id, "creating", error=TrainingError):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    kept = sorted({path.name for path in folder.iterdir()} - {path.name for path in contents.files})
    if kept:
        report(f"Not published, as no part of an adapter or model: {', '.join(kept)}.")
    report(f"Uploading {len(files)} files ({total / 1e6:.1f} MB) to {repo_id} ...")
    _, there = list_repo_files(repo_id, None, token)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path.name, _uploaded_content(path, repo_id)) for path in files),
        *(CommitOperationDelete(path_in_repo=path) for path in _stale_files(contents, there)),
    ]
    with hub_errors(repo_id, "uploading to", error=TrainingError), _model_card_errors():
        made = api.create_commit(repo_id, operations, commit_message=f"Publish {folder.name}")
    report(f"Published {repo_id}@{made.oid}.")
    return PublishedRepo(repo_id, made.oid, f"{api.endpoint}/{repo_id}/tree/{made.oid}")


def _uploaded_content(path: Path, repo_id: str) -> str | bytes:
    """What is uploaded of a file: itself, and of the card a text that names its repository."""
    if path.name != CARD_NAME:
        return str(path)
    return path.read_bytes().replace(PLACEHOLDER.encode(), repo_id.encode())


def _upload_matches(path: Path, copy: Path, repo_id: str) -> bool:
    """Whether `copy` is what was uploaded of `path`."""
    sent = _uploaded_content(path, repo_id)
    if not copy.is_file():
        return False
    return copy.read_bytes() == sent if isinstance(sent, bytes) else filecmp.cmp(path, copy, shallow=False)


def _stale_files(contents: _UploadFiles, remote_files: Mapping[str, RemoteFile]) -> list[str]:
    """Files of a former version that this one has not, such as its plot; what else lies there is left alone."""
    sent = {path.name for path in contents.files}
    ours = _MODEL_FILES if contents.is_full_model else ADAPTER_FILES
    return [
        path
        for path in remote_files
        if path not in sent and (path in ours or _is_weight_shard(path, contents.is_full_model))
    ]


def _is_weight_shard(path: str, is_full_model: bool) -> bool:
    return is_full_model and path.startswith("model") and path.endswith(".safetensors")


@contextmanager
def _model_card_errors() -> Iterator[None]:
    """The Hub reads a card before it takes anything, and its complaint is the person's to mend."""
    try:
        yield
    except ValueError as fault:
        lines = [line.strip("- ") for line in str(fault).splitlines()]
        if not lines or not lines[0].startswith("Invalid metadata"):
            raise
        raise TrainingError(
            f"The Hub does not accept the card ({quote_untrusted('; '.join(lines[1:]), 200)}): correct the lines between '---' "
            f"at the top of {CARD_NAME} and publish again."
        ) from fault


def _ignore_progress(_: str) -> None:
    return
