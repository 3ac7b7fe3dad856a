"""What PEFT's config may say, technique by technique: settings that serving applies, within limits, and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adapters.weights import quote_untrusted
from errors import AdapterError

MAX_RANK = 256
MAX_ALPHA = 65_536
MAX_VIRTUAL_TOKENS = 512
# Start values that leave the base's weights alone; PiSSA, OLoRA, LoftQ and CorDA train against a changed base.
_INIT_VALUES = (None, True, False, "gaussian", "orthogonal", "eva")
# Settings that are applied, or that change nothing once an adapter is trained. Any other must be off.
_COMMON_SETTINGS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision",
        "task_type",
    }
)  # fmt: skip
_LORA_SETTINGS = frozenset(
    {
        "bias", "eva_config", "init_lora_weights", "lora_alpha", "lora_dropout", "megatron_core", "qalora_group_size",
        "r", "runtime_config", "target_modules", "use_dora", "use_rslora",
    }
)  # fmt: skip
_IA3_SETTINGS = frozenset({"feedforward_modules", "init_ia3_weights", "target_modules"})
_VIRTUAL_TOKEN_SETTINGS = frozenset(
    {"num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens", "token_dim"}
)
_PROMPT_SETTINGS = _VIRTUAL_TOKEN_SETTINGS | {
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path",
}  # fmt: skip
# PEFT saves what the projection gives, not the projection: a file that does otherwise has another shape.
_PREFIX_SETTINGS = _VIRTUAL_TOKEN_SETTINGS | {"encoder_hidden_size", "init_weights", "prefix_projection"}


def check_config(config: Mapping[str, Any], name: str) -> None:
    """LoRA (rsLoRA and DoRA too), IA3, Prompt or KVPrefix tuning, with nothing that serving would have to ignore."""
    technique = config.get("peft_type")
    if not isinstance(technique, str) or technique not in _TECHNIQUES:
        raise AdapterError(
            f"Adapter '{name}' is a {quote_untrusted(technique, 40)} adapter; this version serves LoRA, IA3, Prompt tuning and "
            "Prefix tuning: train one of these instead."
        )
    check, applied = _TECHNIQUES[technique]
    check(config, name)
    for key, value in config.items():
        if key not in _COMMON_SETTINGS and key not in applied and value:
            raise AdapterError(
                f"Adapter '{name}' sets {quote_untrusted(key)}, which this version does not apply: train without."
            )


def _check_lora_config(config: Mapping[str, Any], name: str) -> None:
    if config.get("bias", "none") != "none":
        raise AdapterError(f"Adapter '{name}' trains biases (bias), which are not served: train it with bias 'none'.")
    if config.get("init_lora_weights", True) not in _INIT_VALUES:
        raise AdapterError(
            f"Adapter '{name}' starts from {quote_untrusted(config['init_lora_weights'], 40)} (init_lora_weights), which changes "
            "the base's weights: convert it to plain LoRA with PEFT, or train it again."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise AdapterError(
            f"Adapter '{name}' has rank r = {quote_untrusted(rank)}: 1 to {MAX_RANK} is served, train it again."
        )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= MAX_ALPHA:  # NaN: no
        raise AdapterError(
            f"Adapter '{name}' has lora_alpha = {quote_untrusted(alpha)}: it must be a number of common size, train again."
        )
    for key in ("use_dora", "use_rslora"):
        if not isinstance(config.get(key, False), bool | None):
            raise AdapterError(f"Adapter '{name}': {key} must be true or false in adapter_config.json: train it again.")
    _check_modules(config, "target_modules", name)


def _check_ia3_config(config: Mapping[str, Any], name: str) -> None:
    _check_modules(config, "target_modules", name)
    _check_modules(config, "feedforward_modules", name, may_be_empty=True)
    strange = sorted(set(config["feedforward_modules"]) - set(config["target_modules"]))
    if strange:
        raise AdapterError(
            f"Adapter '{name}': {quote_untrusted(', '.join(strange))} is in feedforward_modules and not in target_modules: "
            "train it again."
        )


def _check_prompt_config(config: Mapping[str, Any], name: str) -> None:
    _check_number(config, "num_virtual_tokens", MAX_VIRTUAL_TOKENS, name)
    if config.get("num_transformer_submodules") not in (1, 2):
        raise AdapterError(
            f"Adapter '{name}' has num_transformer_submodules = {quote_untrusted(config.get('num_transformer_submodules'))}: "
            "it must be 1 or 2, train it again."
        )


def _check_prefix_config(config: Mapping[str, Any], name: str) -> None:
    _check_prompt_config(config, name)
    for key in ("num_attention_heads", "num_layers", "token_dim"):
        _check_number(config, key, 1 << 20, name)
    if config["token_dim"] % config["num_attention_heads"]:
        raise AdapterError(
            f"Adapter '{name}' has token_dim = {config['token_dim']}, which {config['num_attention_heads']} "
            "attention heads cannot share: train it again."
        )


def _check_modules(config: Mapping[str, Any], key: str, name: str, may_be_empty: bool = False) -> None:
    modules = config.get(key)
    if (
        not isinstance(modules, list)
        or not (modules or may_be_empty)
        or not all(isinstance(module, str) and module for module in modules)
    ):
        raise AdapterError(f"Adapter '{name}': {key} must be a list of module names (a pattern is not taken).")


def _check_number(config: Mapping[str, Any], key: str, limit: int, name: str) -> None:
    number = config.get(key)
    if type(number) is not int or not 1 <= number <= limit:
        raise AdapterError(
            f"Adapter '{name}' has {key} = {quote_untrusted(number)}: 1 to {limit} is served, train it again."
        )


_ConfigCheck = Callable[[Mapping[str, Any], str], None]
# What each of PEFT's types must pass, and the settings that it may have beside those of all types.
_TECHNIQUES: dict[str, tuple[_ConfigCheck, frozenset[str]]] = {
    "LORA": (_check_lora_config, _LORA_SETTINGS),
    "IA3": (_check_ia3_config, _IA3_SETTINGS),
    "PROMPT_TUNING": (_check_prompt_config, _PROMPT_SETTINGS),
    "PREFIX_TUNING": (_check_prefix_config, _PREFIX_SETTINGS),
}
