"""Whether an adapter's tensors are those of its technique, and fit the base: names and shapes, no values."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from adapters.manifest import BaseIdentity
from adapters.weights import quote_untrusted
from errors import AdapterError

Shape = tuple[int, ...]
_LORA_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)
_IA3_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>ia3_l)")
_EMBEDDINGS_KEY = "prompt_embeddings"


def check_shapes(shapes: Mapping[str, Shape], config: Mapping[str, Any], base: BaseIdentity | None, name: str) -> None:
    """AdapterError unless `shapes` (tensor name -> shape) are what `config` promises and `base` needs.

    `config` has passed `configs.check_config`. Without a base only what the folder says of itself is checked, and so
    with a base whose shapes are not known: the engine that holds its weights checks them.
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
    """Whether IA3 scales this module's input instead of its output; PEFT compares the ends of names, dot or not."""
    return any(module.endswith(ending) for ending in config["feedforward_modules"])


def _by_module(
    shapes: Mapping[str, Shape], pattern: re.Pattern[str], title: str, name: str
) -> dict[str, dict[str, Shape]]:
    """Module -> part of the technique -> shape."""
    modules: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        match = pattern.fullmatch(key)
        if match is None:
            raise AdapterError(
                f"Adapter '{name}' holds the tensor {quote_untrusted(key)}, which is not of {_article(title)} {title} "
                f"(peft_type in adapter_config.json): train it again as plain {title}."
            )
        modules.setdefault(match["module"], {})[match["part"].removesuffix(".weight")] = shape
    return modules


def _article(title: str) -> str:
    return "an" if title[0] in "AEIOU" else "a"


def _check_targets(modules: Collection[str], targets: Collection[str], name: str) -> None:
    """Every module with weights must be one that the config names, as PEFT matches them (by name or by ending)."""
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
                "a LoRA's have two dimensions: train it again."
            )
        if a[0] != config["r"] or b[1] != config["r"]:
            raise AdapterError(
                f"Adapter '{name}': module {quote_untrusted(module)} has A {a} and B {b}, which do not fit "
                f"the rank r = {config['r']} of adapter_config.json: train it again."
            )
        if config.get("use_dora") and found["lora_magnitude_vector"] != (b[0],):
            raise AdapterError(
                f"Adapter '{name}': module {quote_untrusted(module)} has a magnitude vector {found['lora_magnitude_vector']} "
                f"and B {b}: train it again."
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
        inwards = is_feedforward(module, config)
        if len(shape) != 2 or shape[0 if inwards else 1] != 1:
            raise AdapterError(
                f"Adapter '{name}': module {quote_untrusted(module)} has an IA3 vector {shape}, which is "
                f"({'1, inputs' if inwards else 'outputs, 1'}) where feedforward_modules is as in adapter_config.json: "
                "train it again."
            )
        if base is not None:
            features_out, features_in = _linear_features(base, module, name)
            expected = (1, features_in) if inwards else (features_out, 1)
            if shape != expected:
                raise AdapterError(
                    f"Adapter '{name}': module {quote_untrusted(module)} has an IA3 vector {shape}, the base needs {expected}: "
                    "train it again on this base."
                )


def _check_parts(found: Mapping[str, Shape], needed: Collection[str], module: str, name: str) -> None:
    for part in needed:
        if part not in found:
            raise AdapterError(f"Adapter '{name}' lacks {part} of module {quote_untrusted(module)}: train it again.")
    for part in found:
        if part not in needed:
            raise AdapterError(
                f"Adapter '{name}' has {part} of module {quote_untrusted(module)} without use_dora in adapter_config.json: "
                "train it again."
            )


def _linear_features(base: BaseIdentity, module: str, name: str) -> tuple[int, int]:
    """(out_features, in_features) of the base's linear layer."""
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
            f"Adapter '{name}' holds {quote_untrusted(other) or 'no tensor'} where virtual tokens are one tensor, {_EMBEDDINGS_KEY}: "
            "train it again."
        )
    shape, wanted = shapes[_EMBEDDINGS_KEY], config["num_virtual_tokens"]
    length = wanted
    if config["peft_type"] == "PROMPT_TUNING":
        # For an encoder-decoder base PEFT may keep a second half, for the decoder, that it never reads.
        length *= config["num_transformer_submodules"]
    if len(shape) != 2 or shape[0] != length:
        raise AdapterError(
            f"Adapter '{name}' has {_EMBEDDINGS_KEY} {shape}, which do not fit num_virtual_tokens = {wanted} of "
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
            "none: train it again on this base."
        )


def _check_prefix_base(shapes: Mapping[str, Shape], config: Mapping[str, Any], base: BaseIdentity, name: str) -> None:
    if config["num_transformer_submodules"] != (2 if base.is_encoder_decoder else 1):
        raise AdapterError(
            f"Adapter '{name}' has num_transformer_submodules = {config['num_transformer_submodules']}, which is 2 for "
            "encoder-decoder bases and 1 for others: train it again on this base."
        )
    found = (config["num_layers"], config["num_attention_heads"], config["token_dim"] // config["num_attention_heads"])
    needed = (base.num_layers, base.num_key_value_heads, base.head_dim)
    width, fitting = shapes[_EMBEDDINGS_KEY][1], base.num_layers * 2 * base.num_key_value_heads * base.head_dim
    if found != needed or width != fitting:
        raise AdapterError(
            f"Adapter '{name}' has a prefix of {width} features for {found[0]} layers, {found[1]} heads of {found[2]}; "
            f"the base has {fitting} for {needed[0]} layers, {needed[1]} heads of {needed[2]}: "
            "train it again on this base."
        )
