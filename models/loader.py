"""Load_base(): quantized transformers model + BaseIdentity, remote-code policy.

Loads a base with its weights quantized, and says what exactly was loaded.

Models published with code of their own: run only when asked to, and only code that is pinned with the weights.

transformers itself runs nothing of it without `trust_remote_code`. What it does not do: refuse a class of its own that
has the same name and computes something else, refuse code that lies in yet another repository, or say which option of
this program to give. Code that runs may do all that its user may; it is not confined.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.paths import ProgressFn
from errors import BaseModelError, unknown_name_error
from models.identity import BaseIdentity
from models.source import Source, is_commit, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Types of models that transformers knows, published with code that computes something else: CodeGen2 says it is a
# CodeGen and arranges queries, keys and values otherwise, so that CodeGen's class would answer nonsense.
_MISNAMED_MODEL_TYPES = ("codegen",)


def auto_map_entries(folder: Path) -> list[str]:
    """What `auto_map` in the model's and the tokenizer's configuration names: file.Class, or repository--file.Class."""
    found: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        mapped = _read_json(folder / name).get("auto_map")
        values = mapped.values() if isinstance(mapped, dict) else [mapped]
        for value in values:
            found += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    return found


def check_remote_code(source: Source, trusted: bool) -> None:
    """BaseModelError where the base's code would be needed and is not trusted, or is trusted and cannot be pinned."""
    code = auto_map_entries(source.folder)
    if not trusted:
        if code and _read_json(source.folder / "config.json").get("model_type") in _MISNAMED_MODEL_TYPES:
            raise untrusted_error(source)
        return
    elsewhere = [each for each in code if "--" in each]
    if elsewhere:
        raise BaseModelError(
            f"The base '{source.id}' takes its code from another repository ({elsewhere[0][:80]!r}), which no revision "
            "of this one pins: copy model and code into one folder and give that to --base."
        )


def untrusted_error(source: Source) -> BaseModelError:
    """The refusal of a base whose code was not asked to run."""
    files = sorted({each.rsplit("--", 1)[-1].split(".")[0] + ".py" for each in auto_map_entries(source.folder)})
    pinned = f" --base {source.id}@{source.revision}" if is_commit(source.revision) else ""
    return BaseModelError(
        f"The base '{source.id}' runs only with code of its own ({', '.join(files)[:80]}), which is not run unasked: "
        f"read it, and if you trust it start with --trust-remote-code{pinned}."
    )


def smoke_test(source: Source, model: Any) -> None:
    """One small step through a model that brought its code; BaseModelError where it was written for other libraries."""
    import torch

    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    start = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **start)
    except Exception as error:
        raise broken_error(source, error) from error


def broken_error(source: Source, error: Exception) -> BaseModelError:
    """What is said of code that does not run here, whatever it raised."""
    import transformers

    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return BaseModelError(
        f"The base '{source.id}' does not run with the code that it brings and transformers {transformers.__version__} "
        f"({reason}): look for a newer revision of it."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # what is wrong with it is for whoever loads it to say
        return {}
    return values if isinstance(values, dict) else {}


Quantization = Literal["nf4", "int8", "none"]
QUANTIZATIONS = ("nf4", "int8", "none")
DEVICES = ("auto", "cpu", "cuda")
# Beside the weights of a fully fine-tuned model (adapters/manifest.py).
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
    """Resolves `base` and loads it onto `device` ("auto": CUDA where there is one).

    NF4 has double quantization and computes in bfloat16 (float16 on GPUs without it). With `training` the CPU
    kernels never repack the weights: repacked weights have no gradient and are ruined by `state_dict()`.
    `dtype` overrides the 16-bit float that the rest of the model has; "auto" takes that of the files.
    """
    if quantization not in QUANTIZATIONS:
        raise unknown_name_error("quantization", quantization, QUANTIZATIONS)
    place = _resolve_device(device)
    source = resolve(base, report, trust_remote_code)
    check_remote_code(source, trust_remote_code)
    report(f"Loading {source.id} ({quantization_label(quantization)}) on {place.upper()} ...")
    model, tokenizer = _load(source, quantization, place, trust_remote_code, dtype)
    if training:
        _disable_repacking(model)
    else:
        _guard_state_dict(model)
    if trust_remote_code and auto_map_entries(source.folder):
        smoke_test(source, model)
    return LoadedBase(model, tokenizer, _base_identity(source, model, tokenizer, quantization, place))


def quantization_label(quantization: str) -> str:
    """How people write it: NF4, INT8, unquantized."""
    return "unquantized" if quantization == "none" else quantization.upper()


def _resolve_device(device: str) -> str:
    import torch

    if device not in DEVICES:
        raise unknown_name_error("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise BaseModelError("--device cuda was asked for and torch sees no CUDA GPU: use --device cpu or auto.")
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
        family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        model = family.from_pretrained(
            source.folder,
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
    except Exception as error:
        refusal = _load_error(source, error, trust_remote_code)
        if refusal is None:
            raise
        raise refusal from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def _load_error(source: Source, error: Exception, trust_remote_code: bool) -> BaseModelError | None:
    """What a person is told of a base that could not be loaded; None for a defect of ours."""
    if trust_remote_code and auto_map_entries(source.folder):
        return broken_error(source, error)
    if not isinstance(error, ValueError | OSError | KeyError | RuntimeError | ImportError):
        return None
    if "trust_remote_code" in str(error):
        return untrusted_error(source)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BaseModelError(f"The base '{source.id}' cannot be loaded: {reason}")


def _quantization_config(quantization: str, dtype: torch.dtype | Literal["auto"]) -> Any:
    from transformers import BitsAndBytesConfig

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


def _guard_state_dict(model: PreTrainedModel) -> None:
    """Turns two silent faults of bitsandbytes 0.50.2 on CPUs with AVX-512 bfloat16 into none and a loud one.

    The repacking kernel asserts on shapes that are no multiple of its block, and `state_dict()` unpacks weights
    without their scales, which ruins the base for everybody who comes after (docs/bitsandbytes-state-dict.md).
    """
    layers = _four_bit_layers(model)
    for layer in layers:
        if layer.out_features % 32 or layer.in_features % 64:
            layer.support_avx512bf16_for_cpu = False

    def refuse(*_: object) -> None:
        raise RuntimeError("The weights of a base that serves must not pass through state_dict().")

    if layers:
        model.register_state_dict_pre_hook(refuse)


def _base_identity(
    source: Source, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, quantization: str, device: str
) -> BaseIdentity:
    import torch

    config = model.config
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    style, fingerprint = _trained_style(source.folder)
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048
    return BaseIdentity(
        id=source.id,
        revision=source.revision,
        architecture=type(model).__name__,
        quantization=quantization,
        device=device,
        context_length=int(context),
        has_chat_template=bool(tokenizer.chat_template),
        is_encoder_decoder=bool(config.is_encoder_decoder),
        prompt_style=style,
        prompt_fingerprint=fingerprint,
        shapes=shapes,
        **_sizes(config.get_text_config()),
    )


def _trained_style(folder: Path) -> tuple[str, str]:
    """Prompt style and its fingerprint as a model of our own full fine-tuning states them; two "" for other bases."""
    values = _read_json(folder / _MANIFEST_NAME)
    return str(values.get("prompt_style") or ""), str(values.get("prompt_fingerprint") or "")


def _sizes(config: Any) -> dict[str, int]:
    """How wide virtual tokens and key/value prefixes are on this base; those of the decoder where there are two."""

    def size(*names: str) -> int:
        return next((int(found) for name in names if (found := getattr(config, name, None))), 0)

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    return {
        "hidden_size": hidden,
        "num_layers": size("num_decoder_layers", "num_hidden_layers"),
        "num_key_value_heads": size("num_key_value_heads") or heads,
        "head_dim": size("head_dim") or hidden // max(heads, 1),
    }
