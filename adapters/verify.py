"""Adapter reports: the output of `list`, `show` and `verify`, and the deep checks of `verify`.

Beyond the store's checks, `verify` reads the weights' values and compares every file that names the base. No base is
loaded here; `train.merge` applies an adapter to one. Not checked: the quality of the adapter, and whether the author of
a manifest has also changed the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters.export import vllm_checks
from adapters.store import AdapterFolder, AdapterStatus, Store, refuse_full_model
from adapters.weights import WEIGHTS_NAME
from common.format import format_bytes, quote_untrusted
from errors import AdapterError

_HEADER = ("NAME", "TECHNIQUE", "BASE", "QUANTIZED", "DATA", "PROMPT", "SOUND")


def format_adapter_list(store: Store) -> str:
    """Format a table of all adapters, then the reasons why some cannot be used, then the whole models."""
    states, models = store.status(), store.full_models()
    if not states and not models:
        return "No adapters in " + " or ".join(str(root) for root in store.roots) + "."
    blocks = [_table([_HEADER, *(_status_row(state) for state in states)])] if states else []
    blocks.append("\n".join(state.reason for state in states if not state.usable))
    if models:
        names = "\n".join(
            f"  {quote_untrusted(name, 64)}  --base {quote_untrusted(str(path), 200)}" for name, path in models.items()
        )
        blocks.append(f"Whole models, no adapters:\n{names}")
    return "\n\n".join(block for block in blocks if block)


def describe_adapter(folder: AdapterFolder) -> str:
    """Format the facts about an adapter, one a line."""
    manifest = folder.manifest
    size = (folder.path / WEIGHTS_NAME).stat().st_size
    pairs = [
        ("name", folder.name),
        ("folder", str(folder.path)),
        ("technique", manifest.technique),
        ("base", f"{manifest.base_id} (revision {manifest.base_revision})"),
        ("quantization in training", manifest.trained_quantization),
        *_config_pairs(folder.config),
        ("data", f"{manifest.dataset} ({manifest.dataset_digest})"),
        ("prompt", f"{manifest.prompt_style} ({manifest.prompt_fingerprint})"),
        ("seed", str(manifest.seed)),
        ("licence", manifest.licence),
        ("created", manifest.created or "not stated"),
        ("weights", f"{format_bytes(size)} ({folder.digest})"),
        *((f"score, {score.get('metric', '?')}", _format_score(score)) for score in manifest.scores),
    ]
    return format_pairs(pairs)


def format_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Format names and values in two columns; values from files are shortened to fit a line."""
    width = max(len(quote_untrusted(name)) for name, _ in pairs)
    return "\n".join(f"{quote_untrusted(name):<{width}}  {quote_untrusted(value, 400)}" for name, value in pairs)


def _config_pairs(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of PEFT's config, by technique; the store has checked it."""
    if config["peft_type"] == "LORA":
        flags = [name for key, name in (("use_rslora", "rsLoRA"), ("use_dora", "DoRA")) if config.get(key)]
        ranks = ", ".join([f"{config['r']}, {config['lora_alpha']}", *flags])
        return [("rank, alpha", ranks), ("modules", _format_modules(config["target_modules"]))]
    if config["peft_type"] == "IA3":
        inputs = set(config["feedforward_modules"])
        outputs = set(config["target_modules"]) - inputs
        return [("rescaled outputs", _format_modules(outputs)), ("rescaled inputs", _format_modules(inputs))]
    return [("virtual tokens", str(config["num_virtual_tokens"]))]


def _format_modules(modules: Any) -> str:
    return ", ".join(sorted(modules)) or "none"


def _table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _status_row(status: AdapterStatus) -> tuple[str, ...]:
    sound = "yes" if status.usable else "no"
    manifest = status.manifest
    if manifest is None:
        return (quote_untrusted(status.name, 64), "-", "-", "-", "-", "-", sound)
    cells = (
        manifest.technique,
        manifest.base_id,
        manifest.trained_quantization,
        manifest.dataset,
        manifest.prompt_style,
    )
    return (quote_untrusted(status.name, 64), *(quote_untrusted(cell, 48) for cell in cells), sound)


def _format_score(score: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in score.items() if key not in ("metric", "value"))
    return f"{score.get('value', '?')} ({rest})" if rest else str(score.get("value", "?"))


_MODEL_CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20
# The bits of the exponent: all of them are set in infinities and NaN.
_EXPONENT_BITS = {"F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


def find_adapter(target: str, store: Store) -> AdapterFolder:
    """Return the adapter of that name in the store, or the one in that folder, after the store's checks."""
    path = Path(target).expanduser()
    if "/" not in target and "\\" not in target and not target.startswith((".", "~")):
        return store.inspect(target)
    if not path.is_dir():
        raise AdapterError(f"There is no folder {path}: give an adapter's folder, or the name of one in the store.")
    refuse_full_model(path.resolve())
    return Store((path.resolve().parent,)).inspect(path.resolve().name)


def verify_adapter(folder: AdapterFolder) -> str:
    """Check digest, values and base; return the results and vLLM's rules, one a line. Raises AdapterError."""
    pairs = [
        ("folder", f"{folder.path}: files, settings and shapes are valid"),
        ("weights", _check_digest(folder)),
        ("values", _check_values(folder)),
        ("base", _check_base(folder)),
    ]
    found = vllm_checks(folder)
    failed = [(f"vLLM: {check.name}", check.reason) for check in found if not check.passed]
    summary = f"{len(found) - len(failed)} of {len(found)} checks passed"
    return format_pairs([*pairs, ("vLLM", summary), *failed])


def _check_digest(folder: AdapterFolder) -> str:
    stated = folder.manifest.weights_digest
    if not stated:
        return f"{folder.digest}; the manifest, older than this check, states no digest"
    if stated != folder.digest:
        raise AdapterError(
            f"Adapter '{folder.name}': {WEIGHTS_NAME} is {folder.digest} and the manifest states "
            f"{quote_untrusted(stated, 40)}: the weights are not those of this manifest, copy both again."
        )
    return f"{folder.digest}, as the manifest states"


def _check_values(folder: AdapterFolder) -> str:
    count = 0
    for key, is_finite in _iter_tensors(folder.path / WEIGHTS_NAME):
        count += 1
        if not is_finite:
            raise AdapterError(
                f"Adapter '{folder.name}': tensor {quote_untrusted(key)} has values that are not finite: "
                "training went wrong, train it again with a lower learning rate."
            )
    return f"all of {count} tensors are finite"


def _iter_tensors(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each tensor's name and whether all its values are finite; the store has checked the file's header."""
    import numpy as np

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for key, tensor in header.items():
            kind, exponent = _EXPONENT_BITS[tensor["dtype"]]
            begin, end = tensor["data_offsets"]
            file.seek(8 + length + begin)
            words = np.frombuffer(file.read(end - begin), dtype=kind)
            yield key, not bool(np.any((words & exponent) == exponent))


def _check_base(folder: AdapterFolder) -> str:
    """Check that the manifest, PEFT's config and the model card name the same base."""
    manifest, name = folder.manifest, folder.name
    configured = folder.config.get("base_model_name_or_path")
    if configured != manifest.base_id:
        raise AdapterError(
            f"Adapter '{name}': adapter_config.json names the base {quote_untrusted(configured)} and the manifest "
            f"{quote_untrusted(manifest.base_id)}: one of them is not of this adapter, copy both again."
        )
    revision = folder.config.get("revision")
    if revision and revision != manifest.base_revision:
        raise AdapterError(
            f"Adapter '{name}': adapter_config.json names the revision {quote_untrusted(revision, 50)} and the "
            f"manifest {quote_untrusted(manifest.base_revision, 50)}: one of them is not of this adapter, copy both "
            "again."
        )
    base = f"{manifest.base_id} (revision {manifest.base_revision}) in the manifest, adapter_config.json"
    cards = _card_base_models(folder)
    if cards is None:
        return f"{base}; there is no card"
    if manifest.base_revision.startswith("sha256:") and manifest.base_id not in cards:
        # A base from a file has no id on the Hub, and a card may only have ids of the Hub.
        return f"{base}; the card names {quote_untrusted(', '.join(cards) or 'none')} for the Hub"
    if manifest.base_id not in cards:
        raise AdapterError(
            f"Adapter '{name}': its card names the base {quote_untrusted(', '.join(cards) or 'none')} and the manifest "
            f"{quote_untrusted(manifest.base_id)}: correct base_model at the top of {_MODEL_CARD}."
        )
    return f"{base} and card"


def _card_base_models(folder: AdapterFolder) -> list[str] | None:
    """Return `base_model` of the card's front matter (a name or a list); None where there is no card."""
    path = folder.path / _MODEL_CARD
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_CARD_BYTES:
        raise AdapterError(f"Adapter '{folder.name}': {_MODEL_CARD} has more than {_MAX_CARD_BYTES} bytes: shorten it.")
    import yaml

    try:
        parts = path.read_text(encoding="utf-8").split("---\n", 2)
        values = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise AdapterError(
            f"Adapter '{folder.name}': the top of {_MODEL_CARD} cannot be read as YAML: correct it, or delete the card."
        ) from error
    found = values.get("base_model") if isinstance(values, dict) else None
    return [name for name in (found if isinstance(found, list) else [found]) if isinstance(name, str)]
