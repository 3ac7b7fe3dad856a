"""Publishing to the Hugging Face Hub: uploads a trained folder in one commit, downloads it and compares the answers.

All files become visible together: the Hub stores large files first, and the commit refers to them. The same command
completes an interrupted upload, without sending files again that the Hub has. To verify the result, the local and the
published adapter answer a few intents greedily, and the answers are compared token by token.
"""

from __future__ import annotations

import argparse
import filecmp
import gc
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from adapters.install import (
    ADAPTER_FILES,
    RemoteFile,
    download,
    inspect_verified,
    list_repo_files,
    pull,
    staging_folder,
)
from adapters.manifest import CONFIG_NAME, MANIFEST_NAME, Manifest, read_manifest
from adapters.store import LIBRARY, Store
from adapters.weights import digest
from common.command import configure_environment
from common.files import ProgressFn
from common.format import format_bytes, quote_untrusted
from common.hub import hub_errors
from errors import AdapterError, TrainingError, unknown_name_error
from models.source import resolve
from serve.types import PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import STYLES, get_style, render_prompt
from train.config import adapter_store_dir
from train.hub_access import check_access, check_base_access, find_token
from train.model_card import PLACEHOLDER, write_model_card

if TYPE_CHECKING:
    from serve.backends.local.backend import LocalBackend


VERIFY_INTENTS = (
    "sort a list of tuples by the second item",
    "read the file `names.txt` and count its lines",
    "`merge(first, second)` should return a dict with the items of both",
)
VERIFY_MAX_NEW_TOKENS = 32
# Relative. The same file on the same base gives the same number; a wrong tensor is off by far more.
_LOGPROB_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer: the text after each step, the number of tokens, and the sum of their log-probabilities."""

    steps: tuple[str, ...]
    tokens: int
    logprob: float


# Returns the answers of the adapter (or full model) in a folder.
AnswerFn = Callable[[Path], Sequence[GreedyAnswer]]


def base_argument(manifest: Manifest, base: str | None = None) -> str:
    """Return the value of `--base` for this adapter's own base; `base` if that is a folder or file."""
    if manifest.base_id.startswith("embedded/"):
        return "embedded"
    if not manifest.base_revision.startswith("sha256:"):
        return f"{manifest.base_id}@{manifest.base_revision}"
    if base:
        return base
    raise TrainingError(
        f"'{manifest.name}' was trained on {manifest.base_id}, which came from a folder or file: "
        "name that one with --base, so that what is published can be compared."
    )


def adapter_answer_fn(
    base: str, quantization: str, report: ProgressFn, device: str = "auto", trust_remote_code: bool = False
) -> AnswerFn:
    """Load the base once, and return a function that answers with the adapter of a folder."""
    from models.loader import load_base
    from serve.backends.local.backend import LocalBackend

    backend = LocalBackend(load_base(base, quantization, device, report, trust_remote_code))
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}

    def answers(folder: Path) -> list[GreedyAnswer]:
        inspect_verified(folder)
        adapter = replace(
            Store((folder.parent,), fingerprints=fingerprints).open(folder.name, backend.base), name="compared"
        )
        backend.load_adapter(adapter)
        try:
            return greedy_answers(backend, adapter.manifest.prompt_style, adapter.name)
        finally:
            backend.unload_adapter(adapter.name)

    return answers


def model_answer_fn(report: ProgressFn, device: str = "auto") -> AnswerFn:
    """Return a function that answers with the full model of a folder, with one model in memory at a time."""

    def answers(folder: Path) -> list[GreedyAnswer]:
        from models.loader import load_base
        from serve.backends.local.backend import LocalBackend

        backend = LocalBackend(load_base(str(folder), "none", device, report))
        found = greedy_answers(backend, Manifest.read(folder).prompt_style, None)
        del backend
        gc.collect()
        return found

    return answers


def greedy_answers(backend: LocalBackend, style_name: str, adapter: str | None) -> list[GreedyAnswer]:
    """Answer VERIFY_INTENTS greedily, in one batch."""
    style = get_style(style_name)
    chat = backend.apply_chat_template if style.format == "chat" else None
    rows = [Row(render_prompt(intent, (), style, chat), style, adapter) for intent in VERIFY_INTENTS]
    steps: list[list[str]] = [[] for _ in rows]
    ends: dict[int, RowOutput] = {}
    for event in backend.generate(rows, SamplingParams(max_new_tokens=VERIFY_MAX_NEW_TOKENS), Event()):
        if isinstance(event, PartialOutput):
            steps[event.index].append(event.text)
        else:
            ends[event.index] = event
    best = [ends[index].candidates[0] for index in range(len(rows))]
    return [GreedyAnswer((*texts, end.text), end.tokens, end.logprob) for texts, end in zip(steps, best, strict=True)]


def check_same_answers(expected: Sequence[GreedyAnswer], actual: Sequence[GreedyAnswer], what: str) -> None:
    """Raise TrainingError with the first intent and token at which `actual`, the answers of `what`, differ."""
    for intent, ours, theirs in zip(VERIFY_INTENTS, expected, actual, strict=True):
        if ours.steps != theirs.steps or ours.tokens != theirs.tokens:
            pairs = list(zip(ours.steps, theirs.steps, strict=False))
            position = next((index for index, (one, two) in enumerate(pairs) if one != two), len(pairs))
            raise TrainingError(
                f"{what} does not answer as the folder does: to {intent!r} it says {_text_around(theirs, position)} "
                f"where the folder says {_text_around(ours, position)} (token {position + 1}), so do not use it and "
                "publish again."
            )
        if not math.isclose(ours.logprob, theirs.logprob, rel_tol=_LOGPROB_TOLERANCE, abs_tol=_LOGPROB_TOLERANCE):
            raise TrainingError(
                f"{what} does not answer as the folder does: to {intent!r} its log-probability is "
                f"{theirs.logprob:.4f} where the folder's is {ours.logprob:.4f}, so do not use it and publish again."
            )


def _text_around(answer: GreedyAnswer, position: int) -> str:
    return repr(quote_untrusted(answer.steps[position] if position < len(answer.steps) else "", 60))


__all__ = ["PublishedRepo", "check_access", "check_base_access", "publish_folder", "verify_published"]

CARD_NAME = "README.md"
# Files of a full model besides its weights, with the records of its run.
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
    """A published folder: its repository, its commit, and the URL of that commit."""

    repo_id: str
    commit: str
    url: str


@dataclass(frozen=True)
class _UploadFiles:
    """The files of a folder to publish."""

    manifest: Manifest
    files: tuple[Path, ...]
    is_full_model: bool
    # Files of the base's folder; not part of the adapter, so neither pulled nor compared.
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
    """Upload the adapter (or fully fine-tuned model) in `folder`, download it again and compare the answers.

    Before the upload, the folder and the permission to write are checked, and the folder answers some intents on its
    own base. The manifest names that base; one from a folder or file has to be given as `base`. `private` applies to
    new repositories only. `answer_fn` replaces the answers of that base. Raises PromptOrTuneError.
    """
    folder = folder.expanduser().absolute()
    contents = _collect_files(folder)
    check_access(repo_id, token, is_full_model=contents.is_full_model)
    key = find_token(repo_id, token)
    answering = answer_fn or _make_answer_fn(contents, base, report, device, trust_remote_code)
    report("Answering with the local folder ...")
    expected = answering(folder)
    # By convention, an adapter's repository also has its base's tokenizer; a full model has its own.
    no_tokenizer = contents.is_full_model or answer_fn is not None
    tokenizer = () if no_tokenizer else _base_tokenizer_files(base_argument(contents.manifest, base), trust_remote_code)
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
    """Download the published commit and compare its answers with those of `folder`, token by token.

    Raises TrainingError when they differ, and AdapterError when the download is damaged.
    """
    what = f"{published.repo_id}@{published.commit}"
    report(f"Reading {what} back ...")
    contents = _collect_files(folder)
    with staging_folder(Path(tempfile.gettempdir()), "published") as staging:
        if contents.is_full_model:
            copy = staging / folder.name
            _, remote = list_repo_files(published.repo_id, published.commit, token)
            wanted = {path.name: remote[path.name] for path in contents.files if path.name in remote}
            download(published.repo_id, published.commit, wanted, copy, _ignore_progress, token=token)
        else:
            copy = pull(what, staging, _ignore_progress, name=folder.name, token=token)
        for file in contents.files:
            if not _upload_matches(file, copy / file.name, published.repo_id):
                raise TrainingError(f"{what} has another {file.name} than {folder}: publish again.")
        found = answer_fn(copy)
    check_same_answers(expected if expected is not None else answer_fn(folder), found, what)
    tokens = sum(answer.tokens for answer in found)
    report(f"{what} answers as the folder does ({len(found)} intents, {tokens} tokens compared).")


def _collect_files(folder: Path) -> _UploadFiles:
    """Collect the folder's manifest and files, after the checks that need no base."""
    if not folder.is_dir():
        raise TrainingError(f"There is no folder {folder}: give the folder of an adapter that was trained here.")
    is_full_model = not (folder / CONFIG_NAME).is_file() and (folder / "config.json").is_file()
    manifest = read_manifest(folder, folder.name) if is_full_model else inspect_verified(folder).manifest
    if not (folder / CARD_NAME).is_file():
        write_model_card(manifest, folder)
    if not is_full_model:
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
    """Create the repository if necessary, and make one commit of all files."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    files = (*contents.files, *contents.tokenizer_files)
    total = sum(path.stat().st_size for path in files)
    with hub_errors(repo_id, "creating", error=TrainingError):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    others = sorted({path.name for path in folder.iterdir()} - {path.name for path in contents.files})
    if others:
        report(f"Not published, as no part of an adapter or model: {', '.join(others)}.")
    report(f"Uploading {len(files)} files ({format_bytes(total)}) to {repo_id} ...")
    _, remote = list_repo_files(repo_id, None, token)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path.name, _uploaded_content(path, repo_id)) for path in files),
        *(CommitOperationDelete(path_in_repo=path) for path in _stale_files(contents, remote)),
    ]
    with hub_errors(repo_id, "uploading to", error=TrainingError), _model_card_errors():
        commit = api.create_commit(repo_id, operations, commit_message=f"Publish {folder.name}").oid
    report(f"Published {repo_id}@{commit}.")
    return PublishedRepo(repo_id, commit, f"{api.endpoint}/{repo_id}/tree/{commit}")


def _uploaded_content(path: Path, repo_id: str) -> str | bytes:
    """Return the path of a file to upload, or the content of the card with the name of its repository."""
    if path.name != CARD_NAME:
        return str(path)
    return path.read_bytes().replace(PLACEHOLDER.encode(), repo_id.encode())


def _upload_matches(path: Path, copy: Path, repo_id: str) -> bool:
    """Return whether `copy` is what was uploaded of `path`."""
    content = _uploaded_content(path, repo_id)
    if not copy.is_file():
        return False
    return copy.read_bytes() == content if isinstance(content, bytes) else filecmp.cmp(path, copy, shallow=False)


def _stale_files(contents: _UploadFiles, remote_files: Mapping[str, RemoteFile]) -> list[str]:
    """List files of a previous version that this one does not have, such as its plot; other files stay."""
    uploaded = {path.name for path in contents.files}
    ours = _MODEL_FILES if contents.is_full_model else ADAPTER_FILES
    return [
        path
        for path in remote_files
        if path not in uploaded and (path in ours or _is_weight_shard(path, contents.is_full_model))
    ]


def _is_weight_shard(path: str, is_full_model: bool) -> bool:
    return is_full_model and path.startswith("model") and path.endswith(".safetensors")


@contextmanager
def _model_card_errors() -> Iterator[None]:
    """Turn the Hub's ValueError about an invalid card into a TrainingError."""
    try:
        yield
    except ValueError as error:
        lines = [line.strip("- ") for line in str(error).splitlines()]
        if not lines or not lines[0].startswith("Invalid metadata"):
            raise
        raise TrainingError(
            f"The Hub does not accept the card ({quote_untrusted('; '.join(lines[1:]), 200)}): correct the lines "
            f"between '---' at the top of {CARD_NAME} and publish again."
        ) from error


def _ignore_progress(_: str) -> None:
    return


def publish_command(arguments: Sequence[str]) -> int:
    """Run `python -m train publish` and return 0. Raises PromptOrTuneError."""
    parser = argparse.ArgumentParser(
        prog="python -m train publish",
        description="Publishes a finished adapter (or fully fine-tuned model) to the Hugging Face Hub in one commit, "
        "reads it back, and compares both token by token. The token is the one of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("folder", metavar="NAME|FOLDER", help="an adapter's name in your store, or its folder")
    parser.add_argument("repo_id", metavar="user/name", help="the repository; it is created where it does not exist")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--base", help="the base, where it came from a folder or file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust-remote-code", action="store_true", help="the base brings code of its own")
    options = parser.parse_args(arguments)
    configure_environment()

    published = publish_folder(
        _resolve_folder(options.folder),
        options.repo_id,
        lambda line: print(line, flush=True),
        private=options.private,
        base=options.base,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    print(f"Published as {published.url}.")
    return 0


def _resolve_folder(name: str) -> Path:
    """Find a folder by its path, or by its name in the user's store or the library."""
    if "/" in name or Path(name).is_dir():
        return Path(name)
    for root in (adapter_store_dir(None), LIBRARY):
        if (root / name).is_dir():
            return root / name
    known = [folder.name for root in (adapter_store_dir(None), LIBRARY) if root.is_dir() for folder in root.iterdir()
             if folder.is_dir() and not folder.name.startswith(".")]  # fmt: skip
    raise unknown_name_error("adapter", name, known)
