"""Merging an adapter into its base, and the smoke test of an adapter.

`merge_adapter` writes a full model, for programs that cannot load adapters. `smoke_test_adapter` compares the answers
of the base with and without the adapter: the last step of `python -m adapters verify`.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from adapters.manifest import Manifest, check_base
from adapters.peft_config import check_shapes
from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME, read_shapes
from common.command import configure_environment
from common.files import ProgressFn, atomic_dir, make_dir
from common.format import format_bytes, quantization_label, quote_untrusted
from errors import AdapterError, DiskSpaceError
from models.loader import LoadedBase, load_base
from models.source import EMBEDDED_ID
from serve.backends.local.backend import LocalBackend
from serve.types import Candidate, Row, RowOutput, SamplingParams
from tasks.prompt import STYLES, get_style, render_prompt

# PEFT's types that change weights; virtual tokens are part of the input.
_MERGEABLE_PEFT_TYPES = ("LORA", "IA3")
_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")
# Disk space for the tokenizer and the configuration.
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
    """Write the model folder `out` atomically: 16-bit safetensors, tokenizer, manifest, and a README with the caveat.

    `base` locates the adapter's base; by default it is the id and revision of the manifest. It is always loaded
    unquantized. Raises AdapterError, BaseModelError or DiskSpaceError.
    """
    out = out.expanduser()
    if folder.config["peft_type"] not in _MERGEABLE_PEFT_TYPES:
        raise AdapterError(
            f"Adapter '{folder.name}' is a {folder.manifest.technique} adapter: its virtual tokens precede the "
            "prompt and change no weights, so it cannot be merged; serve it as it is."
        )
    if out.exists():
        raise AdapterError(f"{out} exists: name a folder that does not, a merged model replaces nothing.")
    configure_environment()
    # In the dtype of its files, so that the product is rounded once; LoRA's own weights stay in 32 bits.
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
            # The manifest makes the model use the adapter's prompt style when it is served as a base.
            replace(folder.manifest, technique=f"{folder.manifest.technique}, merged", weights_digest="").write(
                building
            )
            for path in building.iterdir():
                path.chmod(0o644)  # safetensors and the folder under construction are private
    except SafetensorError as error:  # safetensors raises it for a full disk as well
        raise DiskSpaceError(
            f"The merged model cannot be written under {out.parent} ({quote_untrusted(str(error))}): "
            "free some room, or name an OUT on another disk."
        ) from error
    return out


def quantization_caveat(manifest: Manifest) -> str:
    """Describe what merging changes about an adapter trained on quantized weights; '' for unquantized ones."""
    if manifest.trained_quantization == "none":
        return ""
    return (
        f"'{quote_untrusted(manifest.name, 64)}' was trained against the "
        f"{quote_untrusted(manifest.trained_quantization, 20)} weights of its base and is merged "
        "into the 16-bit ones, which differ by what quantization rounded away: answers are not bit for bit those of "
        "the adapter on the quantized base, and scores must be measured again."
    )


def _base_for(manifest: Manifest, name: str) -> str:
    """Return the value of --base for the adapter's own base."""
    if manifest.base_id == EMBEDDED_ID:
        return EMBEDDED_ID
    if _COMMIT_SHA.fullmatch(manifest.base_revision):
        return f"{manifest.base_id}@{manifest.base_revision}"
    raise AdapterError(
        f"Adapter '{name}' was trained on a folder or file called {quote_untrusted(manifest.base_id)}: "
        "say where it is with --base."
    )


def _check_compatible(folder: AdapterFolder, loaded: LoadedBase) -> None:
    """Raise AdapterError unless the base is the adapter's own and each of its layers can be changed separately."""
    check_base(folder.manifest, loaded.identity, folder.name)
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
            f"{out.parent} has {format_bytes(free)} free and the merged model needs {format_bytes(needed)}: "
            "free some room, or name an OUT on a larger disk."
        )


def _merge_weights(folder: AdapterFolder, model: Any) -> Any:
    """Merge the adapter into the model; the result has 16-bit floats."""
    import torch
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(model, str(folder.path)).merge_and_unload(safe_merge=True)
    except ValueError as error:
        if "NaN" not in str(error):
            raise
        raise AdapterError(
            f"Adapter '{folder.name}' gives weights that are not finite when merged: train it again."
        ) from error
    return merged.to(merged.dtype if merged.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16)


def _merged_model_card(manifest: Manifest, caveat: str) -> str:
    base = manifest.base_id
    caveat = f"**Caveat.** {caveat}" if caveat else "It was trained on the unquantized base, so only rounding differs."
    return f"""---
library_name: transformers
base_model: {base}
license: {manifest.licence}
tags: [prompt-or-tune, merged, {manifest.technique}]
---
# {manifest.name}, merged

`{base}` (revision `{manifest.base_revision}`) with the {manifest.technique} adapter `{manifest.name}` merged into its
weights. The adapter was trained on `{manifest.dataset}` (digest `{manifest.dataset_digest}`) with prompt style
`{manifest.prompt_style}` (fingerprint `{manifest.prompt_fingerprint}`): ask it in that style.

{caveat}
"""


_SMOKE_TEST_INTENTS = ("sort list `x` in descending order", "read the lines of file 'a.txt' into a list")
_SMOKE_TEST_SAMPLING = SamplingParams(max_new_tokens=24)
# Smaller differences between sums of log-probabilities are rounding errors.
_MIN_LOGPROB_CHANGE = 1e-4


@dataclass(frozen=True)
class SmokeTestTarget:
    """The base of a smoke test, in the form of --base; `quantization` is by default that of training."""

    base: str
    quantization: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False


def smoke_test_adapter(folder: AdapterFolder, target: SmokeTestTarget, report: ProgressFn) -> str:
    """Answer two prompts without and with the adapter, and return both answers as text.

    Raises AdapterError when the adapter does not fit the base, gives log-probabilities that are not finite, or changes
    nothing.
    """
    configure_environment()
    quantization = target.quantization or folder.manifest.trained_quantization
    loaded = load_base(target.base, quantization, target.device, report, target.trust_remote_code)
    store = Store((folder.path.parent,), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    folder = store.open(folder.name, loaded.identity)
    backend = LocalBackend(loaded)
    backend.load_adapter(folder)
    style = get_style(folder.manifest.prompt_style)
    prompts = [render_prompt(intent, (), style, backend.apply_chat_template) for intent in _SMOKE_TEST_INTENTS]
    report(f"Decoding {len(prompts)} prompts, without and with '{folder.name}' ...")
    answers = _generate(backend, [Row(prompt, style, adapter) for adapter in (None, folder.name) for prompt in prompts])
    base_answers, adapter_answers = answers[: len(prompts)], answers[len(prompts) :]
    if not all(math.isfinite(answer.logprob) for answer in adapter_answers):
        raise AdapterError(
            f"Adapter '{folder.name}' gives log-probabilities that are not finite on {loaded.identity.id}: "
            "training went wrong, train it again with a lower learning rate."
        )
    if all(_is_unchanged(*pair) for pair in zip(base_answers, adapter_answers, strict=True)):
        raise AdapterError(
            f"Adapter '{folder.name}' answers exactly as {loaded.identity.id} does without it: it has learned nothing."
        )
    lines = [f"on {loaded.identity.id} ({quantization_label(quantization)}): finite, and different from the base alone"]
    for intent, base, adapted in zip(_SMOKE_TEST_INTENTS, base_answers, adapter_answers, strict=True):
        lines.append(f"  {intent}\n    without  {_format_answer(base)}\n    with     {_format_answer(adapted)}")
    return "\n".join(lines)


def _generate(backend: LocalBackend, rows: Sequence[Row]) -> list[Candidate]:
    candidates: dict[int, Candidate] = {}
    for event in backend.generate(rows, _SMOKE_TEST_SAMPLING, Event()):
        if isinstance(event, RowOutput):
            candidates[event.index] = event.candidates[0]
    return [candidates[index] for index in range(len(rows))]


def _is_unchanged(one: Candidate, other: Candidate) -> bool:
    return one.text == other.text and abs(one.logprob - other.logprob) < _MIN_LOGPROB_CHANGE


def _format_answer(answer: Candidate) -> str:
    """Format the answer on one line, with its log-probability; quote it if it is not printable."""
    text = answer.text.strip()
    return f"{(text if text.isprintable() else repr(text))[:100]}  ({answer.logprob:.2f})"
