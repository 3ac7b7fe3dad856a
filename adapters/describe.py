"""What `list` and `show` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapters.store import AdapterFolder, AdapterStatus, Store
from adapters.weights import WEIGHTS_NAME, quote_untrusted

_HEADER = ("NAME", "TECHNIQUE", "BASE", "QUANTIZED", "DATA", "PROMPT", "SOUND")


def format_adapter_list(store: Store) -> str:
    """A table of all adapters; below it why the unsound ones are not, and which folders are whole models."""
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
    """Everything that a person asks of an adapter, one a line."""
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
        ("created", manifest.created or "not said"),
        ("weights", f"{size / 1e6:.1f} MB ({folder.digest})"),
        *((f"score, {score.get('metric', '?')}", _format_score(score)) for score in manifest.scores),
    ]
    return format_pairs(pairs)


def format_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, the values below one another; whatever a file says is cut to what fits a line."""
    width = max(len(quote_untrusted(name)) for name, _ in pairs)
    return "\n".join(f"{quote_untrusted(name):<{width}}  {quote_untrusted(value, 400)}" for name, value in pairs)


def _config_pairs(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What PEFT's config says, by technique; the store has checked it."""
    if config["peft_type"] == "LORA":
        flags = [name for key, name in (("use_rslora", "rsLoRA"), ("use_dora", "DoRA")) if config.get(key)]
        ranks = ", ".join([f"{config['r']}, {config['lora_alpha']}", *flags])
        return [("rank, alpha", ranks), ("modules", _format_modules(config["target_modules"]))]
    if config["peft_type"] == "IA3":
        inner = set(config["feedforward_modules"])
        outer = set(config["target_modules"]) - inner
        return [("rescaled outputs", _format_modules(outer)), ("rescaled inputs", _format_modules(inner))]
    return [("virtual tokens", str(config["num_virtual_tokens"]))]


def _format_modules(modules: Any) -> str:
    return ", ".join(sorted(modules)) or "none"


def _table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(row.rstrip() for row in rows)


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
