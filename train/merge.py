"""Writes a base with an adapter merged into its weights: a whole model, for programs that know no adapters."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters import checks
from adapters.manifest import Manifest
from adapters.shapes import check_shapes
from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, quote_untrusted, read_shapes
from errors import AdapterError, DiskSpaceError
from serve.backends.local.loading import LoadedBase, load_base
from serve.backends.local.source import EMBEDDED_ID
from serve.home import ProgressFn, atomic_dir, make_dir
from serve.quiet import configure_environment

# PEFT's types that change weights; virtual tokens stand in the input.
_MERGEABLE_PEFT_TYPES = ("LORA", "IA3")
_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")
# Beside the weights: the tokenizer and the configuration.
_EXTRA_FILE_BYTES = 64 << 20


def merge_adapter(
    folder: AdapterFolder,
    out: Path,
    report: ProgressFn,
    *,
    base: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Path:
    """Writes the model folder `out`, whole or not at all: 16-bit safetensors, tokenizer, manifest, and a
    README with the caveat.

    `base` says where the adapter's base is; without it, the manifest's id and revision are looked up. It is loaded
    unquantized whatever the adapter was trained on. Raises AdapterError, BaseModelError or DiskSpaceError.
    """
    out = out.expanduser()
    if folder.config["peft_type"] not in _MERGEABLE_PEFT_TYPES:
        raise AdapterError(
            f"Adapter '{folder.name}' is a {folder.manifest.technique} adapter: its virtual tokens stand before the "
            "prompt and change no weights, so it cannot be merged; serve it as it is."
        )
    if out.exists():
        raise AdapterError(f"{out} exists: name a folder that does not, a merged model replaces nothing.")
    configure_environment()
    # In the floats of its files, so that the product is rounded once; LoRA's own stay in 32 bits.
    loaded = load_base(
        base or _base_for(folder.manifest, folder.name),
        "none",
        device,
        report,
        trust_remote_code,
        training=True,
        dtype="auto",
    )
    _check_compatible(folder, loaded)
    _require_disk_space(out, loaded.model)
    note = quantization_caveat(folder.manifest)
    if note:
        report(note)
    from safetensors import SafetensorError

    report(f"Merging '{folder.name}' into {loaded.identity.id} ...")
    model = _merge_weights(folder, loaded.model)
    report(f"Writing {out} ...")
    try:
        with atomic_dir(out) as building:
            model.save_pretrained(building)
            loaded.tokenizer.save_pretrained(building)
            (building / "README.md").write_text(_merged_model_card(folder.manifest, note), encoding="utf-8")
            for path in building.iterdir():
                path.chmod(0o644)  # safetensors keeps its files to their owner
            # The model is asked in the style that the adapter learned, wherever it serves as a base.
            replace(folder.manifest, technique=f"{folder.manifest.technique}, merged", weights_digest="").write(
                building
            )
    except SafetensorError as fault:  # safetensors' own, also for a full disk
        raise DiskSpaceError(
            f"The merged model cannot be written under {out.parent} ({quote_untrusted(str(fault))}): "
            "free some room, or name an OUT on another disk."
        ) from fault
    return out


def quantization_caveat(manifest: Manifest) -> str:
    """What merging changes about an adapter that was trained on quantized weights; '' where it changes nothing."""
    if manifest.trained_quantization == "none":
        return ""
    return (
        f"'{quote_untrusted(manifest.name, 64)}' was trained against the {quote_untrusted(manifest.trained_quantization, 20)} weights of "
        "its base and is merged into the 16-bit ones, which differ by what quantization rounded away: answers are not "
        "bit for bit those of the adapter on the quantized base, and scores must be measured again."
    )


def _base_for(manifest: Manifest, name: str) -> str:
    """What to give --base for the adapter's own base."""
    if manifest.base_id == EMBEDDED_ID:
        return EMBEDDED_ID
    if _COMMIT_SHA.fullmatch(manifest.base_revision):
        return f"{manifest.base_id}@{manifest.base_revision}"
    raise AdapterError(
        f"Adapter '{name}' was trained on a folder or file called {quote_untrusted(manifest.base_id)}: "
        "say where it is with --base."
    )


def _check_compatible(folder: AdapterFolder, loaded: LoadedBase) -> None:
    """The base must be the adapter's own, and its layers must be there to be changed one by one."""
    checks.check_base(folder.manifest, loaded.identity, folder.name)
    shapes = read_shapes(folder.path / WEIGHTS_NAME, folder.name)
    check_shapes(shapes, folder.config, loaded.identity, folder.name)
    if loaded.model.config.tie_word_embeddings and any(".lm_head." in key for key in shapes):
        raise AdapterError(
            f"Adapter '{folder.name}' changes lm_head, which this base shares with its input embeddings: "
            "merging would change both, serve it as it is."
        )


def _require_disk_space(out: Path, model: Any) -> None:
    needed = _EXTRA_FILE_BYTES + 2 * sum(parameter.numel() for parameter in model.parameters())
    free = shutil.disk_usage(make_dir(out.parent)).free
    if free < needed:
        raise DiskSpaceError(
            f"{out.parent} has {free / 1e6:.0f} MB free and the merged model needs {needed / 1e6:.0f} MB: "
            "free some room, or name an OUT on a larger disk."
        )


def _merge_weights(folder: AdapterFolder, model: Any) -> Any:
    """The base itself with changed weights, in 16-bit floats."""
    import torch
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(model, str(folder.path)).merge_and_unload(safe_merge=True)
    except ValueError as fault:
        if "NaN" not in str(fault):
            raise
        raise AdapterError(
            f"Adapter '{folder.name}' gives weights that are not finite when merged: train it again."
        ) from fault
    return merged.to(merged.dtype if merged.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16)


def _merged_model_card(manifest: Manifest, caveat: str) -> str:
    base = manifest.base_id
    caveat = f"**Caveat.** {caveat}" if caveat else "It was trained on the unquantized base, so only rounding differs."
    return f"""---
library_name: transformers
base_model: {base}
license: {manifest.licence}
tags: [peft-arena, merged, {manifest.technique}]
---
# {manifest.name}, merged

`{base}` (revision `{manifest.base_revision}`) with the {manifest.technique} adapter `{manifest.name}` merged into its
weights. The adapter was trained on `{manifest.dataset}` (digest `{manifest.dataset_digest}`) with prompt style
`{manifest.prompt_style}` (fingerprint `{manifest.prompt_fingerprint}`): ask it in that style.

{caveat}
"""
