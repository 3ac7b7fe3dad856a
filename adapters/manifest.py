"""BaseIdentity, Manifest, install origin.

The identity of a base model, and the manifest that lies in every adapter folder.

Where an installed adapter came from: a note in its folder that no archive and no repository can bring along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from adapters.weights import parse_json, read_limited
from common.format import quote_untrusted
from errors import AdapterError

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
# A base's revision, architecture or quantization where the engine that serves it does not tell.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Manifest:
    """Everything that is needed to trust an adapter and to train it again.

    `prompt_style` names the entry of tasks.prompt.STYLES that trained it and `prompt_fingerprint` is that
    style's fingerprint then. `config` is the resolved training configuration, `log` the loss curve as
    {"step", "epoch", "loss" or "eval_loss"} records, `scores` lists {"metric", "value", "n", ...}. `weights_digest` is
    what `adapters.weights.digest` says of the weights beside it, '' in manifests older than the field.
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
        """Writes manifest.json into `folder`."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in `folder`; AdapterError when it is missing, broken, or from a newer version."""
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
        """The manifest that the bytes of a file hold; AdapterError, naming the adapter, where they hold none.

        What the file says is quoted within limits, whoever wrote it. Of its values only the names are checked here.
        """
        values = _parse_object(raw, name)
        if values.get("version") != MANIFEST_VERSION:
            raise AdapterError(
                f"Adapter '{name}': {MANIFEST_NAME} has version {quote_untrusted(values.get('version'), 40)}, "
                f"this program reads version {MANIFEST_VERSION}; update Prompt or Tune or train it again."
            )
        known = {each.name: each for each in fields(cls)}
        strange = [key for key in values if key not in known]
        lacking = [key for key, each in known.items() if key not in values and _is_required(each)]
        if strange or lacking:
            error = (
                f"has no field '{lacking[0]}'" if lacking else f"has an unknown field {quote_untrusted(strange[0], 60)}"
            )
            raise AdapterError(f"Adapter '{name}': {MANIFEST_NAME} {error}; update Prompt or Tune or train it again.")
        for key in ("log", "scores"):
            if not isinstance(values.get(key, []), list):
                raise AdapterError(f"Adapter '{name}': '{key}' in {MANIFEST_NAME} is no list: train it again.")
            values[key] = tuple(values.get(key, ()))
        return cls(**values)


def missing_manifest_message(name: str) -> str:
    """The sentence for an adapter without a manifest."""
    return f"Adapter '{name}' has no {MANIFEST_NAME}: train it with `python -m train`."


def _parse_object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        values = parse_json(raw)
    except ValueError as error:
        raise AdapterError(
            f"Adapter '{name}': {MANIFEST_NAME} cannot be read ({quote_untrusted(str(error))}): train it again."
        ) from error
    if not isinstance(values, dict):
        raise AdapterError(f"Adapter '{name}': {MANIFEST_NAME} must be a JSON object: train it again.")
    return values


def _is_required(value: Field[Any]) -> bool:
    return value.default is MISSING and value.default_factory is MISSING


# Hidden, and not among adapters.hub.FILES: what is unpacked or downloaded never has it.
ORIGIN_NAME = ".origin.json"
_MAX_ORIGIN_BYTES = 4096


@dataclass(frozen=True)
class Origin:
    """`what` is a repository with its commit, or the name of a zip; `added` the time in UTC, as ISO 8601."""

    kind: Literal["hub", "zip"]
    what: str
    added: str = ""


def write_origin(folder: Path, kind: Literal["hub", "zip"], what: str) -> None:
    """Notes in `folder` where it came from, now."""
    note = Origin(kind, quote_untrusted(what, 300), datetime.now(UTC).isoformat(timespec="seconds"))
    (folder / ORIGIN_NAME).write_text(json.dumps(asdict(note)) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """The note in `folder`; None where there is none that makes sense: trained here, or put there by hand."""
    path = folder / ORIGIN_NAME
    if not path.is_file():
        return None
    try:
        values = parse_json(read_limited(path, _MAX_ORIGIN_BYTES, folder.name))
        found = Origin(**values)
    except (AdapterError, ValueError, TypeError):
        return None
    texts = all(isinstance(each, str) for each in (found.kind, found.what, found.added))
    return found if texts and found.kind in ("hub", "zip") else None
