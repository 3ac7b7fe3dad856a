"""Manifest of an adapter folder, the note of its origin and owner, and the checks before a tensor is loaded.

The manifest says what an adapter was trained on and how. The origin is a hidden file that is written at installation,
or when a job has trained the adapter; archives and repositories cannot bring one along.

Safety checks of an adapter folder, before a tensor of it is loaded. Only adapter_config.json, manifest.json and
adapter_model.safetensors are read. No code of the folder is run, no link is followed and no stated size is trusted.
These checks say nothing about the quality of the weights.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from adapters.weights import WEIGHTS_NAME, parse_untrusted_json, read_limited
from common.format import format_bytes, quote_untrusted
from errors import AdapterError
from models.source import BaseIdentity

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
# A base's revision, architecture or quantization where the engine that serves it does not report them.
UNKNOWN = "unknown"
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


@dataclass(frozen=True)
class Manifest:
    """Provenance of an adapter: base, prompt, data, configuration, loss curve and scores of its training.

    `prompt_style` is the key in tasks.prompt.STYLES of the style in training, and `prompt_fingerprint` its fingerprint
    at that time. `config` is the resolved training configuration, `log` the loss curve as records of {"step", "epoch",
    "loss" or "eval_loss"}, `scores` a list of {"metric", "value", "n", ...}. `weights_digest` is that of
    `adapters.weights.digest` for the weights beside it, '' in manifests older than the field.
    """

    name: str
    technique: str
    base_id: str
    base_revision: str
    trained_quantization: str
    prompt_style: str
    prompt_fingerprint: str
    dataset: str
    dataset_digest: str
    seed: int
    licence: str
    config: Mapping[str, Any] = field(default_factory=dict)
    log: tuple[Mapping[str, Any], ...] = ()
    scores: tuple[Mapping[str, Any], ...] = ()
    created: str = ""
    weights_digest: str = ""
    version: int = MANIFEST_VERSION

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest in `folder`; raises AdapterError when it is missing, broken or of a newer version."""
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise AdapterError(missing_manifest_message(folder.name))
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise AdapterError(
                f"Adapter '{folder.name}': {MANIFEST_NAME} cannot be read ({error.strerror or error}): train it again."
            ) from error
        return cls.parse(raw, folder.name)

    @classmethod
    def parse(cls, raw: bytes, name: str) -> Manifest:
        """Parse the bytes of a manifest file; raises AdapterError with the adapter's name where they are not valid.

        Messages quote values of the file within limits. The names of the values are checked, their types are not.
        """
        values = _parse_object(raw, name)
        if values.get("version") != MANIFEST_VERSION:
            raise AdapterError(
                f"Adapter '{name}': {MANIFEST_NAME} has version {quote_untrusted(values.get('version'), 40)}, "
                f"this program reads version {MANIFEST_VERSION}; update Prompt or Tune or train it again."
            )
        by_name = {field.name: field for field in fields(cls)}
        unknown = [key for key in values if key not in by_name]
        missing = [key for key, field in by_name.items() if key not in values and _is_required(field)]
        if unknown or missing:
            problem = (
                f"has no field '{missing[0]}'" if missing else f"has an unknown field {quote_untrusted(unknown[0], 60)}"
            )
            raise AdapterError(f"Adapter '{name}': {MANIFEST_NAME} {problem}; update Prompt or Tune or train it again.")
        for key in ("log", "scores"):
            if not isinstance(values.get(key, []), list):
                raise AdapterError(f"Adapter '{name}': '{key}' in {MANIFEST_NAME} is not a list: train it again.")
            values[key] = tuple(values.get(key, ()))
        return cls(**values)


def missing_manifest_message(name: str) -> str:
    """Return the message for an adapter without a manifest."""
    return f"Adapter '{name}' has no {MANIFEST_NAME}: train it with `python -m train`."


def _parse_object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        values = parse_untrusted_json(raw)
    except ValueError as error:
        raise AdapterError(
            f"Adapter '{name}': {MANIFEST_NAME} cannot be read ({quote_untrusted(str(error))}): train it again."
        ) from error
    if not isinstance(values, dict):
        raise AdapterError(f"Adapter '{name}': {MANIFEST_NAME} must be a JSON object: train it again.")
    return values


def _is_required(value: Field[Any]) -> bool:
    return value.default is MISSING and value.default_factory is MISSING


# Hidden and not one of adapters.install.ADAPTER_FILES, so that it is never unpacked or downloaded.
ORIGIN_NAME = ".origin.json"
_MAX_ORIGIN_BYTES = 4096


OriginKind = Literal["hub", "zip", "job"]


class Owner(NamedTuple):
    """Whose an adapter is: the id of a visitor, '' for the owner of the machine, and the name of the login, if any."""

    id: str = ""
    name: str = ""


NO_OWNER = Owner()


@dataclass(frozen=True)
class Origin:
    """Source and owner of an adapter.

    `what` is repository@commit, the name of a zip or the id of a job, `added` the time in UTC (ISO 8601). `owner` and
    `owner_name` are the fields of `Owner`.
    """

    kind: OriginKind
    what: str
    added: str = ""
    owner: str = ""
    owner_name: str = ""


def write_origin(folder: Path, kind: OriginKind, what: str, owner: Owner = NO_OWNER) -> None:
    """Write the origin, with the current time, into `folder`."""
    added = datetime.now(UTC).isoformat(timespec="seconds")
    origin = Origin(kind, quote_untrusted(what, 300), added, owner.id, quote_untrusted(owner.name, 100))
    (folder / ORIGIN_NAME).write_text(json.dumps(asdict(origin)) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """Read the origin in `folder`; None without a valid one: the adapter was trained here, or copied by hand."""
    path = folder / ORIGIN_NAME
    if not path.is_file():
        return None
    try:
        values = parse_untrusted_json(read_limited(path, _MAX_ORIGIN_BYTES, folder.name))
        found = Origin(**values)
    except (AdapterError, ValueError, TypeError):
        return None
    are_texts = all(isinstance(text, str) for text in asdict(found).values())
    return found if are_texts and found.kind in get_args(OriginKind) else None


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
    for entry in fields(manifest):
        if not _has_type(getattr(manifest, entry.name), str(entry.type)):
            raise AdapterError(f"Adapter '{name}': '{entry.name}' in {MANIFEST_NAME} is not valid: train it again.")
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
