"""Loader of base models: quantized transformers model, tokenizer and BaseIdentity; the policy for remote code.

Code that is published with a model runs only with `trust_remote_code`, and only if it is pinned together with the
weights. transformers enforces the first; it does not refuse a model type whose own class in transformers computes
something else, nor code from another repository, and its errors do not name this program's option. Code that runs is
not sandboxed: it may do everything that the user may.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.files import ProgressFn
from common.format import quantization_label
from errors import BaseModelError, unknown_name_error
from models.source import BaseIdentity, Source, check_kind, is_commit, layer_size, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Model types of transformers that are also published with code that computes something else: CodeGen2 has CodeGen's
# type and another layout of queries, keys and values, so that transformers' class would generate nonsense.
_MISNAMED_MODEL_TYPES = ("codegen",)


def auto_map_entries(folder: Path) -> list[str]:
    """Return the entries of `auto_map` of model and tokenizer: file.Class, or repository--file.Class."""
    entries: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        auto_map = _read_json(folder / name).get("auto_map")
        values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
        for value in values:
            entries += [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, str)]
    return entries


def check_remote_code(source: Source, trusted: bool) -> None:
    """Raise BaseModelError if the base needs code that is not trusted, or that is trusted and not pinned."""
    code = auto_map_entries(source.folder)
    if not trusted:
        if code and _read_json(source.folder / "config.json").get("model_type") in _MISNAMED_MODEL_TYPES:
            raise untrusted_error(source)
        return
    other_repositories = [entry for entry in code if "--" in entry]
    if other_repositories:
        raise BaseModelError(
            f"The base '{source.id}' takes its code from another repository ({other_repositories[0][:80]!r}), which no "
            "revision of this one pins: copy model and code into one folder and give that to --base."
        )


def untrusted_error(source: Source) -> BaseModelError:
    """Return the error for a base that needs code of its own without --trust-remote-code."""
    files = sorted({entry.rsplit("--", 1)[-1].split(".")[0] + ".py" for entry in auto_map_entries(source.folder)})
    pinned = f" --base {source.id}@{source.revision}" if is_commit(source.revision) else ""
    return BaseModelError(
        f"The base '{source.id}' needs code of its own ({', '.join(files)[:80]}), which is not run by default: "
        f"read it, and if you trust it start with --trust-remote-code{pinned}."
    )


def smoke_test(source: Source, model: Any) -> None:
    """Run one small forward of a model with code of its own; raises BaseModelError if that code does not work here."""
    import torch

    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    decoder_inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_inputs)
    except Exception as error:
        raise broken_error(source, error) from error


def broken_error(source: Source, error: Exception) -> BaseModelError:
    """Return the error for a model's own code that raised `error`."""
    import transformers

    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return BaseModelError(
        f"The base '{source.id}' does not run with its own code and transformers {transformers.__version__} "
        f"({reason}): look for a newer revision of it."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # transformers reports what is wrong with it
        return {}
    return values if isinstance(values, dict) else {}


Quantization = Literal["nf4", "int8", "none"]
QUANTIZATIONS = ("nf4", "int8", "none")
DEVICES = ("auto", "cpu", "cuda")
# Next to the weights of a fully fine-tuned model (see adapters/manifest.py).
_MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class LoadedBase:
    """A model in memory with its tokenizer and identity."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: BaseIdentity


def load_base(
    base: str,
    quantization: str,
    device: str,
    report: ProgressFn,
    trust_remote_code: bool = False,
    training: bool = False,
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> LoadedBase:
    """Resolve `base` and load it onto `device` ("auto": CUDA if available).

    NF4 has double quantization and computes in bfloat16 (float16 on GPUs without it). With `training` the CPU kernels
    never repack the weights: repacked weights have no gradient and are damaged by `state_dict()`. `dtype` overrides
    the 16-bit float type of the unquantized weights; "auto" takes that of the files. Raises BaseModelError if the base
    cannot be found, is not allowed to run its code, or cannot be loaded.
    """
    if quantization not in QUANTIZATIONS:
        raise unknown_name_error("quantization", quantization, QUANTIZATIONS)
    resolved_device = _resolve_device(device)
    source = resolve(base, report, trust_remote_code)
    check_remote_code(source, trust_remote_code)
    report(f"Loading {source.id} ({quantization_label(quantization)}) on {resolved_device.upper()} ...")
    model, tokenizer = _load(source, quantization, resolved_device, trust_remote_code, dtype)
    if training:
        _disable_repacking(model)
    else:
        _guard_packed_weights(model)
    if trust_remote_code and auto_map_entries(source.folder):
        smoke_test(source, model)
    return LoadedBase(model, tokenizer, _base_identity(source, model, tokenizer, quantization, resolved_device))


def _resolve_device(device: str) -> str:
    import torch

    if device not in DEVICES:
        raise unknown_name_error("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise BaseModelError("torch sees no CUDA GPU for --device cuda: use --device cpu or auto.")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _load(
    source: Source, quantization: str, device: str, trust_remote_code: bool, dtype: torch.dtype | Literal["auto"] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the caller's `report` is the progress
    if dtype is None:
        dtype = torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        check_kind(source, config)
        model_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        model, loading = model_class.from_pretrained(
            source.folder,
            output_loading_info=True,
            dtype=dtype,
            device_map=device,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            quantization_config=_quantization_config(quantization, dtype),
        )
    except torch.cuda.OutOfMemoryError as error:
        raise BaseModelError(
            f"The base '{source.id}' does not fit the GPU's memory: "
            "try --quantization nf4, a smaller base, or --device cpu."
        ) from error
    except BaseModelError:
        raise
    except Exception as error:
        load_error = _load_error(source, error, trust_remote_code)
        if load_error is None:
            raise
        raise load_error from error
    _check_weights(source, model, loading["missing_keys"])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def _check_weights(source: Source, model: PreTrainedModel, missing: Collection[str]) -> None:
    """Raise BaseModelError where the files lack a weight: transformers would fill it with random values."""
    lacking = sorted(name for name, _ in model.named_parameters() if name in missing)
    if lacking:
        raise BaseModelError(
            f"The base '{source.id}' has no {lacking[0]}, which a {type(model).__name__} needs"
            f"{f' ({len(lacking)} weights are missing)' if len(lacking) > 1 else ''}: "
            "give a base that was saved with its output layer."
        )


def _load_error(source: Source, error: Exception, trust_remote_code: bool) -> BaseModelError | None:
    """Return the error for a base that could not be loaded; None for a defect of this program."""
    if trust_remote_code and auto_map_entries(source.folder):
        return broken_error(source, error)
    if not isinstance(error, ValueError | OSError | KeyError | RuntimeError | ImportError):
        return None
    if "trust_remote_code" in str(error):
        return untrusted_error(source)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BaseModelError(f"The base '{source.id}' cannot be loaded: {reason}")


def import_bitsandbytes() -> None:
    """Import bitsandbytes, on a machine without CUDA without torch's compiler; before PEFT, which imports it too.

    It compiles its fallback kernels when they are first used, but imports torch's compiler at once, which takes as
    long as all other imports of a training. On CPUs other kernels, of its native library, take the place of those.
    """
    import torch

    if "bitsandbytes" in sys.modules or torch.cuda.is_available():
        return
    compile_function = torch.compile
    torch.compile = lambda function, **_: function
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_function


def _quantization_config(quantization: str, dtype: torch.dtype | Literal["auto"]) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization != "none":
        import_bitsandbytes()
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantization == "int8" else None


def _four_bit_layers(model: PreTrainedModel) -> list[Any]:
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def _disable_repacking(model: PreTrainedModel) -> None:
    for layer in _four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def _guard_packed_weights(model: PreTrainedModel) -> None:
    """Work around three errors of bitsandbytes 0.50.2 on CPUs with AVX-512 bfloat16.

    The repacking kernel asserts on shapes that are no multiple of its block: those layers are not repacked. The kernel
    of repacked weights reads its input as if it were contiguous, which that of Jamba's Mamba layers is not: it gets a
    copy. `state_dict()` silently unpacks weights without their scales, which damages the base for all later requests:
    it raises RuntimeError instead (docs/bitsandbytes-state-dict.md).
    """
    layers = _four_bit_layers(model)
    for layer in layers:
        if layer.out_features % 32 or layer.in_features % 64:
            layer.support_avx512bf16_for_cpu = False
        if layer.support_avx512bf16_for_cpu:
            layer.register_forward_pre_hook(_make_contiguous)

    def refuse(*_: object) -> None:
        raise RuntimeError("state_dict() must not be called on a base that serves: it damages quantized weights.")

    if layers:
        model.register_state_dict_pre_hook(refuse)


def _make_contiguous(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return inputs[0].contiguous(), *inputs[1:]


def _base_identity(
    source: Source, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, quantization: str, device: str
) -> BaseIdentity:
    config = model.config
    style, fingerprint = _trained_style(source.folder)
    return BaseIdentity(
        id=source.id,
        revision=source.revision,
        architecture=type(model).__name__,
        quantization=quantization,
        device=device,
        context_length=context_length(config),
        has_chat_template=bool(tokenizer.chat_template),
        is_encoder_decoder=bool(config.is_encoder_decoder),
        prompt_style=style,
        prompt_fingerprint=fingerprint,
        shapes=linear_shapes(model),
        **_sizes(config.get_text_config()),
    )


def linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return (out_features, in_features) of every linear layer by its module's name.

    GPT-2's layers are linear too; their weight is stored as (in_features, out_features).
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.nf, module.nx)
    return shapes


def _trained_style(folder: Path) -> tuple[str, str]:
    """Return the prompt style and fingerprint of a model fully fine-tuned by this program; two "" for other bases."""
    values = _read_json(folder / _MANIFEST_NAME)
    return str(values.get("prompt_style") or ""), str(values.get("prompt_fingerprint") or "")


def context_length(config: Any) -> int:
    """Return the most tokens of a prompt and its answer; 2048 where the configuration does not say."""
    return layer_size(config.get_text_config(), "max_position_embeddings", "n_positions") or 2048


def _sizes(config: Any) -> dict[str, int]:
    """Return the sizes of virtual tokens and key/value prefixes; those of the decoder for encoder-decoder bases."""
    hidden, heads = layer_size(config, "hidden_size"), layer_size(config, "num_attention_heads")
    return {
        "hidden_size": hidden,
        "num_layers": layer_size(config, "num_decoder_layers", "num_hidden_layers"),
        "num_key_value_heads": layer_size(config, "num_key_value_heads") or heads,
        "head_dim": layer_size(config, "head_dim") or hidden // max(heads, 1),
    }
