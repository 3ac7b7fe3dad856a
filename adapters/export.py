"""Exports of adapters for other programs: a folder that vLLM's resolver, or plain PEFT, loads as it is.

vLLM's rules are those of version 0.32.0: plugins/lora_resolvers/filesystem_resolver.py (layout, type and base),
lora/peft_helper.py (ranks, and what changes an adapter's meaning), config/lora.py (the values of --max-lora-rank) and
lora/lora_model.py (tensor names). It takes ranks and alphas of single modules, and modules in any form, because the
names of the tensors decide. The resolver compares base_model_name_or_path, letter for letter, with the model that
`vllm serve` was given, a folder or a Hub id, and not with --served-model-name. Ray Serve LLM runs vLLM. Whether vLLM
implements the base is not checked.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adapters.manifest import CONFIG_NAME, check_name
from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, read_shapes
from common.files import atomic_dir, make_dir
from common.format import quote_untrusted
from errors import AdapterError

ExportTarget = Literal["vllm", "peft"]
EXPORT_TARGETS: tuple[ExportTarget, ...] = ("vllm", "peft")
# The values of vLLM's --max-lora-rank: a server takes every rank up to the one that it was started with.
VLLM_MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Initial values that are those of the adapter alone. The others change the base's weights when PEFT loads the adapter.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_REFUSED_FEATURES = {
    "use_dora": "it is a DoRA (use_dora)",
    "alora_invocation_tokens": "it is an activated LoRA (alora_invocation_tokens)",
    "layer_replication": "it repeats layers (layer_replication)",
    "use_bdlora": "it is block-diagonal (use_bdlora)",
    "use_qalora": "it is a QA-LoRA (use_qalora)",
}
_TENSOR_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_[AB]\.weight")


@dataclass(frozen=True)
class CompatCheck:
    """One condition; where it does not hold, `reason` says what is wrong and what to do, else it is ''."""

    name: str
    passed: bool
    reason: str = ""


def vllm_checks(folder: AdapterFolder, base_name: str | None = None) -> list[CompatCheck]:
    """Check every rule, in the order in which vLLM applies them.

    `base_name` is the base as `vllm serve` is given it; by default the base's id in the manifest.
    """
    if base_name is not None:
        folder = replace(folder, manifest=replace(folder.manifest, base_id=base_name))
    is_lora = folder.config.get("peft_type") == "LORA"
    found = []
    for name, check in _CHECKS.items():
        reason = check(folder) if is_lora or name not in _LORA_CHECKS else ""
        found.append(CompatCheck(name, not reason, reason))
    return found


def needed_max_lora_rank(config: Mapping[str, Any]) -> int | None:
    """Return the smallest --max-lora-rank with which vLLM takes an adapter of this PEFT config; None if none does."""
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        return None
    return next((limit for limit in VLLM_MAX_LORA_RANKS if limit >= max(ranks)), None)


def export_adapter(folder: AdapterFolder, out: Path, target: ExportTarget, base_name: str | None = None) -> Path:
    """Write the folder `out/<name of the adapter>` atomically and return it: PEFT's config, weights and a README.

    `base_name` becomes base_model_name_or_path: the base as `vllm serve` is given it, or as PEFT loads it, a folder or
    a Hub id; by default the base's id. Raises AdapterError for an adapter that vLLM would refuse, with vLLM's reason.
    """
    check_name(folder.name)
    base = base_name or folder.manifest.base_id
    path = out.expanduser() / folder.name
    if path.exists():
        raise AdapterError(f"{path} exists: delete it, or name another folder; an export replaces nothing.")
    config = {**folder.config, "base_model_name_or_path": base}
    config.pop("revision", None)  # a served name has none, and PEFT would ask the Hub for it under that name
    if target == "vllm":
        reasons = [check.reason for check in vllm_checks(replace(folder, config=config), base) if not check.passed]
        if reasons:
            raise AdapterError(
                f"Adapter '{folder.name}' cannot be exported for vLLM: {'; '.join(reasons)}. "
                "--for merged writes the whole model, which any program serves, if this kind can be merged."
            )
    make_dir(path.parent)
    with atomic_dir(path) as building:
        (building / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        shutil.copyfile(folder.path / WEIGHTS_NAME, building / WEIGHTS_NAME)
        (building / "README.md").write_text(_export_card(folder, base), encoding="utf-8")
        for file in building.iterdir():
            file.chmod(0o644)  # the server may run as another user

    return path


def vllm_command(path: Path, config: Mapping[str, Any], base_name: str) -> str:
    """Return the command that serves the base with all adapters beside `path`, each when it is first asked for."""
    variables = (
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True VLLM_PLUGINS=lora_filesystem_resolver "
        f"VLLM_LORA_RESOLVER_CACHE_DIR={shlex.quote(str(path.parent))}"
    )
    return (
        f"{variables} vllm serve {shlex.quote(base_name)} --enable-lora --max-lora-rank {needed_max_lora_rank(config)}"
    )


def _export_card(folder: AdapterFolder, base: str) -> str:
    manifest = folder.manifest
    return f"""---
library_name: peft
base_model: {json.dumps(manifest.base_id)}
license: {json.dumps(manifest.licence)}
---
# {folder.name}

A {manifest.technique} adapter for `{manifest.base_id}` (revision `{manifest.base_revision}`), exported for the base
`{base}`. It was trained on `{manifest.dataset}` with the base quantized as {manifest.trained_quantization}: on
other weights of that base, unquantized ones too, its scores must be measured again.

Ask it in the prompt style `{manifest.prompt_style}` (fingerprint `{manifest.prompt_fingerprint}`) of Prompt or Tune, in
which it was trained.
"""


def _check_layout(folder: AdapterFolder) -> str:
    for needed in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder.path / needed).is_file():
            return f"vLLM looks for <root>/{folder.name}/{needed}, which does not exist: copy the folder again"
    if folder.path.name != folder.name:
        return f"the folder is called {folder.path.name}, vLLM would look for {folder.name}: rename it"
    return ""


def _check_type(folder: AdapterFolder) -> str:
    kind = folder.config.get("peft_type")
    if kind == "LORA":
        return ""
    return f"its type is {quote_untrusted(kind, 40)} and vLLM loads only LoRA: serve it here, or train a LoRA"


def _check_base_name(folder: AdapterFolder) -> str:
    configured, served = folder.config.get("base_model_name_or_path"), folder.manifest.base_id
    if configured == served:
        return ""
    return (
        f"base_model_name_or_path is {quote_untrusted(configured)} and the base is {quote_untrusted(served)}: vLLM "
        "compares the two, make them equal (`python -m adapters export --for vllm --base-name`)"
    )


def _check_task_type(folder: AdapterFolder) -> str:
    task = folder.config.get("task_type")
    if task == "CAUSAL_LM":
        return ""
    return f"task_type is {quote_untrusted(task, 40)} and vLLM serves causal bases: use a base without an encoder"


def _check_ranks(folder: AdapterFolder) -> str:
    if needed_max_lora_rank(folder.config) is not None:
        return ""
    rank, pattern = folder.config.get("r"), folder.config.get("rank_pattern")
    stated = f"{quote_untrusted(rank, 40)}" + (f" with rank_pattern {quote_untrusted(pattern, 60)}" if pattern else "")
    return f"rank r is {stated} and vLLM's ranks are 1 to {VLLM_MAX_LORA_RANKS[-1]}: train with one of them"


def _check_bias(folder: AdapterFolder) -> str:
    bias = folder.config.get("bias", "none")
    if bias == "none" and not folder.config.get("lora_bias"):
        return ""
    return f"it trains biases (bias {quote_untrusted(bias, 40)}), which vLLM refuses: train with bias none"


def _check_features(folder: AdapterFolder) -> str:
    found = [text for key, text in _REFUSED_FEATURES.items() if folder.config.get(key)]
    return f"{found[0]}, which vLLM refuses: train without it, or merge it" if found else ""


def _check_initial_values(folder: AdapterFolder) -> str:
    init = folder.config.get("init_lora_weights", True)
    if not isinstance(init, str) or init.lower() in _PLAIN_INITS:
        return ""
    return (
        f"init_lora_weights is {quote_untrusted(init, 40)}, with which PEFT changes the base's weights and vLLM does "
        "not: train without it, or merge it"
    )


def _check_modules_to_save(folder: AdapterFolder) -> str:
    if not folder.config.get("modules_to_save"):
        return ""
    return "it has whole layers (modules_to_save), which vLLM refuses: train without them, or merge it"


def _check_tensor_names(folder: AdapterFolder) -> str:
    try:
        keys = read_shapes(folder.path / WEIGHTS_NAME, folder.name)
    except AdapterError as error:
        return str(error).rstrip(".")
    for key in keys:
        if _TENSOR_NAME.fullmatch(key) is None:
            expected = "base_model.model.<layer>.lora_A.weight or lora_B.weight"
            return f"the tensor {quote_untrusted(key)} is not named {expected}"
    return ""


_CHECKS: dict[str, Callable[[AdapterFolder], str]] = {
    "file layout": _check_layout,
    "peft_type LORA": _check_type,
    "base_model_name_or_path": _check_base_name,
    "task_type CAUSAL_LM": _check_task_type,
    "ranks": _check_ranks,
    "bias none": _check_bias,
    "no DoRA or other variant": _check_features,
    "initial values": _check_initial_values,
    "no modules_to_save": _check_modules_to_save,
    "tensor names": _check_tensor_names,
}
# Another type of adapter has no ranks and other tensors: that its type is refused says enough.
_LORA_CHECKS = ("ranks", "tensor names")
