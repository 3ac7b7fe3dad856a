"""vLLM compatibility: whether vLLM, and Ray Serve LLM on top of it, loads an adapter folder without changes.

The rules are vLLM's own: plugins/lora_resolvers/filesystem_resolver.py (layout, type and base), lora/peft_helper.py
(bias, DoRA, modules to save), config/lora.py (ranks), lora/lora_model.py (tensor names). Whether vLLM implements the
base is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from adapters.checks import CONFIG_NAME
from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, read_shapes
from common.format import quote_untrusted
from errors import AdapterError

# The values of --max-lora-rank. vLLM would pad a rank between two of them to the next one.
VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_[AB]\.weight")
# The end of a layer's name, without the layer's index.
_MODULE_SUFFIX = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class CompatCheck:
    """One condition; where it does not hold, `reason` says what is wrong and what to do, else it is ''."""

    name: str
    passed: bool
    reason: str = ""


def vllm_checks(folder: AdapterFolder) -> list[CompatCheck]:
    """Check every rule, in the order in which vLLM applies them."""
    found = []
    for name, check in _CHECKS.items():
        reason = check(folder)
        found.append(CompatCheck(name, not reason, reason))
    return found


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
    return f"it is a {quote_untrusted(kind, 40)} adapter and vLLM loads only LoRA: serve it here, or train a LoRA"


def _check_base_name(folder: AdapterFolder) -> str:
    configured, served = folder.config.get("base_model_name_or_path"), folder.manifest.base_id
    if configured == served:
        return ""
    return (
        f"base_model_name_or_path is {quote_untrusted(configured)} and the base is served as "
        f"{quote_untrusted(served)}: vLLM compares the two, make them equal"
    )


def _check_task_type(folder: AdapterFolder) -> str:
    task = folder.config.get("task_type")
    if task == "CAUSAL_LM":
        return ""
    return f"task_type is {quote_untrusted(task, 40)} and vLLM serves causal bases: use a base without an encoder"


def _check_rank(folder: AdapterFolder) -> str:
    rank = folder.config.get("r")
    if type(rank) is int and rank in VLLM_LORA_RANKS:
        return ""
    ranks = ", ".join(map(str, VLLM_LORA_RANKS))
    return f"rank r is {quote_untrusted(rank, 40)} and vLLM's ranks are {ranks}: train with one of them"


def _check_patterns(folder: AdapterFolder) -> str:
    for key in ("rank_pattern", "alpha_pattern"):
        if folder.config.get(key):
            return f"{key} gives modules different ranks or alphas, which vLLM does not read: train without it"
    return ""


def _check_bias(folder: AdapterFolder) -> str:
    bias = folder.config.get("bias", "none")
    if bias == "none" and not folder.config.get("lora_bias"):
        return ""
    return f"it trains biases (bias {quote_untrusted(bias, 40)}), which vLLM ignores: train with bias none"


def _check_dora(folder: AdapterFolder) -> str:
    return (
        "it is a DoRA (use_dora), which vLLM refuses: train without it, or merge it"
        if folder.config.get("use_dora")
        else ""
    )


def _check_modules_to_save(folder: AdapterFolder) -> str:
    if not folder.config.get("modules_to_save"):
        return ""
    return "it has whole layers (modules_to_save), which vLLM refuses: train without them, or merge it"


def _check_target_modules(folder: AdapterFolder) -> str:
    targets = folder.config.get("target_modules")
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        return f"target_modules is {quote_untrusted(targets, 60)}, not a list of names: list the names of the layers"
    paths = [target for target in targets if not _MODULE_SUFFIX.fullmatch(target)]
    if paths:
        path = quote_untrusted(paths[0], 60)
        return f"target_modules has {path}, vLLM matches layers by the end of their name: list those"
    return ""


def _check_tensor_names(folder: AdapterFolder) -> str:
    try:
        keys = read_shapes(folder.path / WEIGHTS_NAME, folder.name)
    except AdapterError as error:
        return str(error).rstrip(".")
    targets = folder.config.get("target_modules")
    for key in keys:
        match = _TENSOR_NAME.fullmatch(key)
        if match is None:
            expected = "base_model.model.<layer>.lora_A.weight or lora_B.weight"
            return f"the tensor {quote_untrusted(key)} is not named {expected}"
        if isinstance(targets, list) and not f".{match['module']}".endswith(tuple(f".{target}" for target in targets)):
            return f"the tensor {quote_untrusted(key)} is of a layer that target_modules does not have: train it again"
    return ""


_CHECKS: dict[str, Callable[[AdapterFolder], str]] = {
    "file layout": _check_layout,
    "peft_type LORA": _check_type,
    "base_model_name_or_path": _check_base_name,
    "task_type CAUSAL_LM": _check_task_type,
    "rank": _check_rank,
    "one rank and alpha": _check_patterns,
    "bias none": _check_bias,
    "no DoRA": _check_dora,
    "no modules_to_save": _check_modules_to_save,
    "target modules": _check_target_modules,
    "tensor names": _check_tensor_names,
}
