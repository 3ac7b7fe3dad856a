"""From what a person wrote after --base to a folder with the model, and the name and revision it goes by.

`embedded` (the default), a Hub id with optional @revision, a folder, or a .gguf file. A GGUF file is converted
once to safetensors in the user's cache.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from errors import BaseModelError
from serve.backends.local.embedded import embedded_file
from serve.backends.local.hub import download
from serve.home import ProgressFn, cache_dir

EMBEDDED = "embedded"
EMBEDDED_ID = "embedded/SmolLM2-135M-Instruct-Q4_1"
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A base that is ready to be loaded: its public name, its exact revision, and its folder."""

    id: str
    revision: str
    folder: Path


def resolve(base: str, report: ProgressFn, trust_remote_code: bool = False) -> Source:
    """Finds, and where needed downloads or converts, the base; BaseModelError in one sentence otherwise."""
    if base in (EMBEDDED, EMBEDDED_ID):
        return _from_gguf(embedded_file(report), EMBEDDED_ID, report)
    path = Path(base).expanduser()
    if base.endswith(".gguf"):
        if not path.is_file():
            raise BaseModelError(f"There is no GGUF file {path}: check the path given to --base.")
        return _from_gguf(path, path.stem, report)
    if path.is_dir():
        return _from_folder(path)
    name, _, revision = base.partition("@")
    if base.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise BaseModelError(
            f"There is no base '{base}': give 'embedded', a Hub id such as Qwen/Qwen2.5-Coder-0.5B-Instruct, "
            "a model's folder, or a .gguf file."
        )
    if trust_remote_code and not is_commit(revision):
        raise BaseModelError(
            f"--trust-remote-code runs code from '{name}', so it needs a pinned commit: --base {name}@<40 hex digits>."
        )
    folder, commit = download(name, revision or None, report)
    if trust_remote_code and commit != revision:
        raise BaseModelError(f"The Hub gave commit {commit} of '{name}' instead of {revision}: its code is not run.")
    return Source(name, commit, folder)


def is_commit(revision: str) -> bool:
    """Whether it is a whole commit hash, which alone pins what a repository holds."""
    return _COMMIT.fullmatch(revision) is not None


def file_digest(path: Path) -> str:
    """`sha256:` and the first 16 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _from_gguf(path: Path, name: str, report: ProgressFn) -> Source:
    from serve.backends.local.gguf import convert

    digest = file_digest(path)
    folder = cache_dir() / "bases" / f"{path.stem}-{digest.removeprefix('sha256:')}"
    if not (folder / "config.json").is_file():
        report(f"Converting {path.name} to safetensors, once (under a minute for small models) ...")
        convert(path, folder, report)
    return Source(name, digest, folder)


def _from_folder(path: Path) -> Source:
    if not (path / "config.json").is_file():
        raise BaseModelError(f"The folder {path} holds no model: it has no config.json.")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise BaseModelError(
            f"The folder {path} has no .safetensors weights: save the model with save_pretrained(), "
            "pickled weights from a folder are not loaded."
        )
    whole = hashlib.sha256("".join(file_digest(file) for file in weights).encode()).hexdigest()
    return Source(path.resolve().name, f"sha256:{whole[:16]}", path)
