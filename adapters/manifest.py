"""The identity of a base model, and the manifest that lies in every adapter folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from adapters.weights import shown
from errors import AdapterError

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class BaseIdentity:
    """What a base model is, as far as an adapter, a result or a page must know.

    `shapes` maps each linear module's name to (out_features, in_features). `revision` is a commit hash for a
    Hub model, and `sha256:<16 hex digits>` of the weights for the embedded base, folders and GGUF files.
    The sizes say how wide a virtual token and a key/value prefix must be; 0 where it is not known.
    """

    id: str
    revision: str
    architecture: str
    quantization: str
    device: str
    context_length: int
    has_chat_template: bool
    is_encoder_decoder: bool = False
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    hidden_size: int = 0
    num_layers: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    # The style that the base itself was fine-tuned with; "" where it was not ours to train.
    prompt_style: str = ""


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
        """The manifest in `folder`; AdapterError when it is missing, broken, or from a newer version.

        What the file says is quoted within limits, whoever wrote it. Of its values only the names are checked here.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise AdapterError(f"Adapter '{folder.name}' has no {MANIFEST_NAME}: train it with `python -m train`.")
        values = _json(path)
        if values.get("version") != MANIFEST_VERSION:
            raise AdapterError(
                f"Adapter '{folder.name}': {MANIFEST_NAME} has version {shown(values.get('version'), 40)}, "
                f"this program reads version {MANIFEST_VERSION}; update Peft Arena or train it again."
            )
        known = {each.name: each for each in fields(cls)}
        strange = [name for name in values if name not in known]
        missing = [name for name, each in known.items() if name not in values and _is_needed(each)]
        if strange or missing:
            fault = f"has no field '{missing[0]}'" if missing else f"has an unknown field {shown(strange[0], 60)}"
            raise AdapterError(
                f"Adapter '{folder.name}': {MANIFEST_NAME} {fault}; update Peft Arena or train it again."
            )
        for name in ("log", "scores"):
            if not isinstance(values.get(name, []), list):
                raise AdapterError(f"Adapter '{folder.name}': '{name}' in {MANIFEST_NAME} is no list: train it again.")
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


def _json(path: Path) -> dict[str, Any]:
    name = path.parent.name
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as fault:
        raise AdapterError(f"Adapter '{name}': {MANIFEST_NAME} is nested without end: train it again.") from fault
    except (ValueError, OSError) as fault:
        reason = shown((isinstance(fault, OSError) and fault.strerror) or str(fault))
        raise AdapterError(f"Adapter '{name}': {MANIFEST_NAME} cannot be read ({reason}): train it again.") from fault
    if not isinstance(values, dict):
        raise AdapterError(f"Adapter '{name}': {MANIFEST_NAME} must be a JSON object: train it again.")
    return values


def _is_needed(value: Field[Any]) -> bool:
    return value.default is MISSING and value.default_factory is MISSING
