"""Safety checks of an adapter folder, before a tensor of it is loaded.

Only adapter_config.json, manifest.json and adapter_model.safetensors are read. No code of the folder is run, no link is
followed and no stated size is trusted. These checks say nothing about the quality of the weights.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from adapters.manifest import MANIFEST_NAME, Manifest, missing_manifest_message
from adapters.weights import WEIGHTS_NAME, parse_untrusted_json, read_limited
from common.format import format_bytes, quote_untrusted
from errors import AdapterError
from models.identity import BaseIdentity

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 256 << 10
MAX_CONFIG_KEYS = 200
MAX_MANIFEST_BYTES = 8 << 20
MAX_FOLDER_BYTES = 2 << 30
MAX_FILES = 1000
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_METHOD_NAME = re.compile(r"zero-shot|icl-.*|rag-.*")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def check_name(name: str) -> None:
    """Raise AdapterError unless the name is a slug and not the name of another method."""
    if not _NAME.fullmatch(name):
        raise AdapterError(
            f"{quote_untrusted(name)!r} cannot name an adapter: use lowercase letters, digits, '.', '_' and '-', at "
            "most 64, starting with a letter or digit."
        )
    if _METHOD_NAME.fullmatch(name):
        raise AdapterError(f"'{name}' is the name of a method, not of an adapter: give the folder another name.")


def check_files(folder: Path, name: str) -> None:
    """Raise AdapterError for links, pickles, oversized folders, and without both files of an adapter."""
    if folder.is_symlink():
        raise AdapterError(f"Adapter '{name}' is a symbolic link: copy the folder itself to where the link is.")
    entries = _entries(folder, name)
    for entry, status in sorted(entries.items()):
        if stat.S_ISLNK(status.st_mode):
            raise AdapterError(
                f"Adapter '{name}': {quote_untrusted(entry)} is a symbolic link: put the file itself there."
            )
        if entry.lower().endswith(PICKLES):
            advice = "delete it" if WEIGHTS_NAME in entries else f"convert it to safetensors ({WEIGHTS_NAME})"
            raise AdapterError(f"Adapter '{name}': {quote_untrusted(entry)} is a pickle, which can run code: {advice}.")
    for needed in (CONFIG_NAME, WEIGHTS_NAME):
        if needed not in entries or not stat.S_ISREG(entries[needed].st_mode):
            raise AdapterError(f"Adapter '{name}' has no file {needed}: copy it there, or train it again.")
    total = sum(status.st_size for status in entries.values() if stat.S_ISREG(status.st_mode))
    if total > MAX_FOLDER_BYTES:
        raise AdapterError(
            f"Adapter '{name}' has {format_bytes(total)}, the limit is {format_bytes(MAX_FOLDER_BYTES)}: "
            "train one of a smaller rank."
        )


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read PEFT's config, of at most MAX_CONFIG_BYTES and MAX_CONFIG_KEYS."""
    raw = read_limited(folder / CONFIG_NAME, MAX_CONFIG_BYTES, name)
    try:
        config = parse_untrusted_json(raw)
    except ValueError as error:
        raise AdapterError(
            f"Adapter '{name}': {CONFIG_NAME} cannot be read ({quote_untrusted(str(error))}): copy it again."
        ) from error
    if not isinstance(config, dict) or len(config) > MAX_CONFIG_KEYS:
        raise AdapterError(
            f"Adapter '{name}': {CONFIG_NAME} must be a JSON object of at most {MAX_CONFIG_KEYS} settings: "
            "copy it again."
        )
    return config


def read_manifest(folder: Path, name: str) -> Manifest:
    """Read the manifest, of at most MAX_MANIFEST_BYTES, and check the types of its values."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise AdapterError(missing_manifest_message(name))
    raw = read_limited(path, MAX_MANIFEST_BYTES, name)
    try:
        manifest = Manifest.parse(raw, name)
    except AdapterError as error:  # its message may quote the file
        raise AdapterError(quote_untrusted(str(error), 400)) from error
    for field in fields(manifest):
        if not _has_type(getattr(manifest, field.name), str(field.type)):
            raise AdapterError(f"Adapter '{name}': '{field.name}' in {MANIFEST_NAME} is not valid: train it again.")
    return manifest


def check_base(manifest: Manifest, base: BaseIdentity, name: str) -> None:
    """Raise AdapterError unless the adapter was trained for this revision of this base."""
    if (manifest.base_id, manifest.base_revision) == (base.id, base.revision):
        return
    commit = f"@{manifest.base_revision}" if _COMMIT.fullmatch(manifest.base_revision) else ""
    raise AdapterError(
        f"Adapter '{name}' was trained for {quote_untrusted(manifest.base_id)} "
        f"(revision {quote_untrusted(manifest.base_revision)}), the base here is {base.id} (revision {base.revision}): "
        f"start with --base {quote_untrusted(manifest.base_id)}{commit} or train it again."
    )


def check_prompt(manifest: Manifest, fingerprints: Mapping[str, str], name: str) -> None:
    """Raise AdapterError unless this version renders the adapter's prompt style as it was in training."""
    style = manifest.prompt_style
    if style not in fingerprints:
        names = ", ".join(sorted(fingerprints)) or "none"
        raise AdapterError(
            f"Adapter '{name}' was trained with the prompt style '{quote_untrusted(style)}', which is unknown here "
            f"(known are {names}): train it again."
        )
    if manifest.prompt_fingerprint != fingerprints[style]:
        raise AdapterError(
            f"Adapter '{name}' was trained with prompt style '{style}' as it was then "
            f"(fingerprint {quote_untrusted(manifest.prompt_fingerprint)}), it is {fingerprints[style]} here: "
            "train it again."
        )


def _entries(folder: Path, name: str) -> dict[str, os.stat_result]:
    """Status of each entry of the folder; links are not followed."""
    found: dict[str, os.stat_result] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(found) == MAX_FILES:
                    raise AdapterError(
                        f"Adapter '{name}' has more than {MAX_FILES} files: leave only its own files there."
                    )
                found[entry.name] = entry.stat(follow_symlinks=False)
    except OSError as error:
        raise AdapterError(f"Adapter '{name}' cannot be read ({error.strerror or error}).") from error
    return found


def _has_type(value: Any, annotation: str) -> bool:
    if annotation == "str":
        return isinstance(value, str)
    if annotation == "int":
        return type(value) is int
    if annotation.startswith("tuple"):
        return isinstance(value, tuple) and all(isinstance(item, dict) for item in value)
    return isinstance(value, dict)
