"""Manifest of an adapter folder, and the note of where an adapter came from and to whom it belongs.

The manifest says what an adapter was trained on and how. The origin is a hidden file that is written at installation,
or when a job has trained the adapter; archives and repositories cannot bring one along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from adapters.weights import parse_untrusted_json, read_limited
from common.format import quote_untrusted
from errors import AdapterError

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
# A base's revision, architecture or quantization where the engine that serves it does not report them.
UNKNOWN = "unknown"


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


# Hidden and not one of adapters.hub.ADAPTER_FILES, so that it is never unpacked or downloaded.
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
