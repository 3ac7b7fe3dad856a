"""Checks of PEFT's configuration and of the tensor shapes, by technique (LoRA, IA3, prompt tuning, prefix tuning).

A configuration may have the settings that serving applies, within limits, and no others. Tensors must have the names
and shapes that the technique, the configuration and the base require; their values are not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from common.format import quote_untrusted
from errors import AdapterError
from models.source import BaseIdentity

MAX_RANK = 256
MAX_ALPHA = 65_536
MAX_VIRTUAL_TOKENS = 512
# Initialisations that leave the base's weights unchanged; PiSSA, OLoRA, LoftQ and CorDA train a changed base.
_INIT_VALUES = (None, True, False, "gaussian", "orthogonal", "eva")
# Settings that are applied, or that have no effect after training: `fan_in_fan_out` says how the base stores a weight,
# which the base's own layer knows. Any other must be off.
_COMMON_SETTINGS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision",
        "task_type",
    }
)  # fmt: skip
_LORA_SETTINGS = frozenset(
    {
        "bias", "eva_config", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "lora_dropout", "megatron_core",
        "qalora_group_size", "r", "runtime_config", "target_modules", "use_dora", "use_rslora",
    }
)  # fmt: skip
_IA3_SETTINGS = frozenset({"fan_in_fan_out", "feedforward_modules", "init_ia3_weights", "target_modules"})
_VIRTUAL_TOKEN_SETTINGS = frozenset(
    {"num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens", "token_dim"}
)
_PROMPT_SETTINGS = _VIRTUAL_TOKEN_SETTINGS | {
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path",
}  # fmt: skip
# PEFT saves the projection's output, not the projection; a file with the projection has another shape.
_PREFIX_SETTINGS = _VIRTUAL_TOKEN_SETTINGS | {"encoder_hidden_size", "init_weights", "prefix_projection"}


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Raise AdapterError unless it is LoRA, rsLoRA, DoRA, IA3, prompt or prefix tuning with supported settings."""
    technique = config.get("peft_type")
    if not isinstance(technique, str) or technique not in _TECHNIQUES:
        raise AdapterError(
            f"Adapter '{name}' is a {quote_untrusted(technique, 40)} adapter; this version serves LoRA, IA3, "
            "Prompt tuning and Prefix tuning: train one of these instead."
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
            f"Adapter '{name}' starts from {quote_untrusted(config['init_lora_weights'], 40)} (init_lora_weights), "
            "which changes the base's weights: convert it to plain LoRA with PEFT, or train it again."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise AdapterError(
            f"Adapter '{name}' has rank r = {quote_untrusted(rank)}: 1 to {MAX_RANK} is served, train it again."
        )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= MAX_ALPHA:  # NaN: no
        raise AdapterError(
            f"Adapter '{name}' has lora_alpha = {quote_untrusted(alpha)}: it must be a number of at most {MAX_ALPHA}, "
            "train it again."
        )
    for key in ("use_dora", "use_rslora"):
        if not isinstance(config.get(key, False), bool | None):
            raise AdapterError(f"Adapter '{name}': {key} must be true or false in adapter_config.json: train it again.")
    _check_modules(config, "target_modules", name)


def _check_ia3_config(config: Mapping[str, Any], name: str) -> None:
    _check_modules(config, "target_modules", name)
    _check_modules(config, "feedforward_modules", name, may_be_empty=True)
    extra = sorted(set(config["feedforward_modules"]) - set(config["target_modules"]))
    if extra:
        raise AdapterError(
            f"Adapter '{name}': {quote_untrusted(', '.join(extra))} is in feedforward_modules and not in "
            "target_modules: train it again."
        )


def _check_prompt_config(config: Mapping[str, Any], name: str) -> None:
    _check_number(config, "num_virtual_tokens", MAX_VIRTUAL_TOKENS, name)
    if config.get("num_transformer_submodules") not in (1, 2):
        raise AdapterError(
            f"Adapter '{name}' has num_transformer_submodules = "
            f"{quote_untrusted(config.get('num_transformer_submodules'))}: it must be 1 or 2, train it again."
        )


def _check_prefix_config(config: Mapping[str, Any], name: str) -> None:
    _check_prompt_config(config, name)
    for key in ("num_attention_heads", "num_layers", "token_dim"):
        _check_number(config, key, 1 << 20, name)
    if config["token_dim"] % config["num_attention_heads"]:
        raise AdapterError(
            f"Adapter '{name}' has token_dim = {config['token_dim']}, which {config['num_attention_heads']} "
            "attention heads do not divide: train it again."
        )


def _check_modules(config: Mapping[str, Any], key: str, name: str, may_be_empty: bool = False) -> None:
    modules = config.get(key)
    if (
        not isinstance(modules, list)
        or not (modules or may_be_empty)
        or not all(isinstance(module, str) and module for module in modules)
    ):
        raise AdapterError(f"Adapter '{name}': {key} must be a list of module names (patterns are not supported).")


def _check_number(config: Mapping[str, Any], key: str, limit: int, name: str) -> None:
    number = config.get(key)
    if type(number) is not int or not 1 <= number <= limit:
        raise AdapterError(
            f"Adapter '{name}' has {key} = {quote_untrusted(number)}: 1 to {limit} is served, train it again."
        )


_ConfigCheck = Callable[[Mapping[str, Any], str], None]
# By PEFT type: the check of its settings, and the settings that it may have besides the common ones.
_TECHNIQUES: dict[str, tuple[_ConfigCheck, frozenset[str]]] = {
    "LORA": (_check_lora_config, _LORA_SETTINGS),
    "IA3": (_check_ia3_config, _IA3_SETTINGS),
    "PROMPT_TUNING": (_check_prompt_config, _PROMPT_SETTINGS),
    "PREFIX_TUNING": (_check_prefix_config, _PREFIX_SETTINGS),
}


Shape = tuple[int, ...]
_LORA_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)
_IA3_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>ia3_l)")
_EMBEDDINGS_KEY = "prompt_embeddings"


def check_shapes(shapes: Mapping[str, Shape], config: Mapping[str, Any], base: BaseIdentity | None, name: str) -> None:
    """Raise AdapterError unless `shapes` (by tensor name) match `config` and, if given, `base`.

    `config` has passed `check_config`. Without a base, or with one whose shapes are not known here, only the folder
    itself is checked; the engine that has the base's weights then checks the rest.
    """
    if base is not None and not base.shapes:
        base = None
    technique = config["peft_type"]
    if technique in ("PROMPT_TUNING", "PREFIX_TUNING"):
        _check_embeddings(shapes, config, name)
        if base is not None:
            (_check_prompt_base if technique == "PROMPT_TUNING" else _check_prefix_base)(shapes, config, base, name)
        return
    pattern, title = (_LORA_KEY, "LoRA") if technique == "LORA" else (_IA3_KEY, "IA3")
    modules = _by_module(shapes, pattern, title, name)
    _check_targets(modules, config["target_modules"], name)
    if technique == "LORA":
        _check_lora_shapes(modules, config, base, name)
    else:
        _check_ia3_shapes(modules, config, base, name)


def is_feedforward(module: str, config: Mapping[str, Any]) -> bool:
    """Whether IA3 scales this module's input, not its output. PEFT compares name endings, also within a word."""
    return any(module.endswith(ending) for ending in config["feedforward_modules"])


def _by_module(
    shapes: Mapping[str, Shape], pattern: re.Pattern[str], title: str, name: str
) -> dict[str, dict[str, Shape]]:
    """Group the shapes by module and then by part of the technique."""
    modules: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        match = pattern.fullmatch(key)
        if match is None:
            raise AdapterError(
                f"Adapter '{name}' has the tensor {quote_untrusted(key)}, which is not part of "
                f"{_article(title)} {title} (peft_type in adapter_config.json): train it again as plain {title}."
            )
        modules.setdefault(match["module"], {})[match["part"].removesuffix(".weight")] = shape
    return modules


def _article(title: str) -> str:
    return "an" if title[0] in "AEIOU" else "a"


def _check_targets(modules: Collection[str], targets: Collection[str], name: str) -> None:
    """Check that the config names every module with weights, matched as PEFT does (by name or dotted ending)."""
    for module in modules:
        if not any(module == target or module.endswith(f".{target}") for target in targets):
            raise AdapterError(
                f"Adapter '{name}' has weights for module {quote_untrusted(module)}, which is not in target_modules "
                f"({quote_untrusted(', '.join(sorted(targets)))}) of adapter_config.json: train it again."
            )


def _check_lora_shapes(
    modules: Mapping[str, Mapping[str, Shape]], config: Mapping[str, Any], base: BaseIdentity | None, name: str
) -> None:
    needed = ("lora_A", "lora_B", "lora_magnitude_vector") if config.get("use_dora") else ("lora_A", "lora_B")
    for module, found in modules.items():
        _check_parts(found, needed, module, name)
        a, b = found["lora_A"], found["lora_B"]
        if len(a) != 2 or len(b) != 2:
            raise AdapterError(
                f"Adapter '{name}': module {quote_untrusted(module)} has shape {list(a)} and {list(b)}, "
                "LoRA weights have two dimensions: train it again."
            )
        if a[0] != config["r"] or b[1] != config["r"]:
            raise AdapterError(
                f"Adapter '{name}': module {quote_untrusted(module)} has A {a} and B {b}, which do not fit "
                f"the rank r = {config['r']} of adapter_config.json: train it again."
            )
        if config.get("use_dora") and found["lora_magnitude_vector"] != (b[0],):
            raise AdapterError(
                f"Adapter '{name}': module {quote_untrusted(module)} has a magnitude vector "
                f"{found['lora_magnitude_vector']} and B {b}: train it again."
            )
        if base is not None:
            features_out, features_in = _linear_features(base, module, name)
            if a[1] != features_in or b[0] != features_out:
                raise AdapterError(
                    f"Adapter '{name}': module {quote_untrusted(module)} has A {a} and B {b}, the base needs "
                    f"A ({a[0]}, {features_in}) and B ({features_out}, {b[1]}): train it again on this base."
                )


def _check_ia3_shapes(
    modules: Mapping[str, Mapping[str, Shape]], config: Mapping[str, Any], base: BaseIdentity | None, name: str
) -> None:
    for module, found in modules.items():
        shape = found["ia3_l"]
        scales_input = is_feedforward(module, config)
        if len(shape) != 2 or shape[0 if scales_input else 1] != 1:
            raise AdapterError(
                f"Adapter '{name}': module {quote_untrusted(module)} has an IA3 vector {shape}; with the "
                f"feedforward_modules of adapter_config.json it must be "
                f"({'1, inputs' if scales_input else 'outputs, 1'}): train it again."
            )
        if base is not None:
            features_out, features_in = _linear_features(base, module, name)
            expected = (1, features_in) if scales_input else (features_out, 1)
            if shape != expected:
                raise AdapterError(
                    f"Adapter '{name}': module {quote_untrusted(module)} has an IA3 vector {shape}, the base needs "
                    f"{expected}: train it again on this base."
                )


def _check_parts(found: Mapping[str, Shape], needed: Collection[str], module: str, name: str) -> None:
    for part in needed:
        if part not in found:
            raise AdapterError(f"Adapter '{name}' lacks {part} of module {quote_untrusted(module)}: train it again.")
    for part in found:
        if part not in needed:
            raise AdapterError(
                f"Adapter '{name}' has {part} of module {quote_untrusted(module)} without use_dora in "
                "adapter_config.json: train it again."
            )


def _linear_features(base: BaseIdentity, module: str, name: str) -> tuple[int, int]:
    """Return (out_features, in_features) of the base's linear layer."""
    if module not in base.shapes:
        raise AdapterError(
            f"Adapter '{name}' has weights for module {quote_untrusted(module)}, which the base does not have: "
            "train it again on this base."
        )
    return base.shapes[module]


def _check_embeddings(shapes: Mapping[str, Shape], config: Mapping[str, Any], name: str) -> None:
    if set(shapes) != {_EMBEDDINGS_KEY}:
        other = next(iter(set(shapes) - {_EMBEDDINGS_KEY}), "")
        raise AdapterError(
            f"Adapter '{name}' has {quote_untrusted(other) or 'no tensor'} where virtual tokens are one tensor, "
            f"{_EMBEDDINGS_KEY}: train it again."
        )
    shape, num_tokens = shapes[_EMBEDDINGS_KEY], config["num_virtual_tokens"]
    length = num_tokens
    if config["peft_type"] == "PROMPT_TUNING":
        # For an encoder-decoder base PEFT saves a second half, for the decoder, that it never reads.
        length *= config["num_transformer_submodules"]
    if len(shape) != 2 or shape[0] != length:
        raise AdapterError(
            f"Adapter '{name}' has {_EMBEDDINGS_KEY} {shape}, which do not fit num_virtual_tokens = {num_tokens} of "
            "adapter_config.json: train it again."
        )


def _check_prompt_base(shapes: Mapping[str, Shape], config: Mapping[str, Any], base: BaseIdentity, name: str) -> None:
    width = shapes[_EMBEDDINGS_KEY][1]
    if width != base.hidden_size:
        raise AdapterError(
            f"Adapter '{name}' has virtual tokens of {width} features, the base has {base.hidden_size}: "
            "train it again on this base."
        )
    if config["num_transformer_submodules"] == 2 and not base.is_encoder_decoder:
        raise AdapterError(
            f"Adapter '{name}' was trained for an encoder-decoder base (num_transformer_submodules 2), this base is "
            "not one: train it again on this base."
        )


def _check_prefix_base(shapes: Mapping[str, Shape], config: Mapping[str, Any], base: BaseIdentity, name: str) -> None:
    if config["num_transformer_submodules"] != (2 if base.is_encoder_decoder else 1):
        raise AdapterError(
            f"Adapter '{name}' has num_transformer_submodules = {config['num_transformer_submodules']}, which is 2 for "
            "encoder-decoder bases and 1 for others: train it again on this base."
        )
    found = (config["num_layers"], config["num_attention_heads"], config["token_dim"] // config["num_attention_heads"])
    needed = (base.num_layers, base.num_key_value_heads, base.head_dim)
    width, base_width = shapes[_EMBEDDINGS_KEY][1], base.num_layers * 2 * base.num_key_value_heads * base.head_dim
    if found != needed or width != base_width:
        raise AdapterError(
            f"Adapter '{name}' has a prefix of {width} features for {found[0]} layers, {found[1]} heads of {found[2]}; "
            f"the base has {base_width} for {needed[0]} layers, {needed[1]} heads of {needed[2]}: "
            "train it again on this base."
        )
