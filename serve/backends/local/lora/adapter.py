"""Loaded adapters: LoRA, DoRA and IA3 layers, prompt and prefix tuning, and the registry that loads them.

LoRA, DoRA and IA3 layers: the change of one linear module's inputs or outputs for some rows of a batch. LoRA adds `s (x
A^T) B^T` (arXiv 2106.09685; s is alpha / r, or alpha / sqrt(r) for rsLoRA, arXiv 2312.03732). DoRA also scales each
output feature by m / ||W + s B A|| (arXiv 2402.09353; the bias is not scaled, as in PEFT). IA3 scales the outputs, or
the inputs of feed-forward layers (arXiv 2205.05638). All work in place on a slice of the rows, so that the other rows
stay bit for bit what the bare base computes.

Prompt learning: prompt tuning and prefix tuning as keys and values in front of a row's prompt. The virtual tokens of
prompt tuning (arXiv 2104.08691) are computed by the bare base when they are first used; prefix tuning (arXiv
2101.00190) stores keys and values. Rows with and without a prefix share a batch.

Registry of loaded adapters, and the loading of an adapter's tensors from its checked folder. Adapters are kept beside
the base: none of them changes its modules or weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from adapters.peft_config import is_feedforward
from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, read_raw_tensors
from errors import AdapterError, PromptOrTuneError
from serve.backends.local.kv_cache import is_plain, new_cache
from serve.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PEFT_PREFIX = "base_model.model."
# Columns of a quantized weight that are dequantized at once for its norm.
_COLUMNS_PER_CHUNK = 512
# By their names in safetensors files; the adapter store refuses other dtypes.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class AdapterLayer:
    """The change of one linear module; `inputs` and `outputs` are the module's, (..., features)."""

    changes_inputs = False

    def scaled(self, factor: float) -> AdapterLayer:
        """Return the layer with its effect multiplied by `factor`. Raises ValueError for layers without a scale."""
        if factor != 1:
            raise ValueError(f"{type(self).__name__} cannot be scaled.")
        return self

    def change_inputs(self, inputs: torch.Tensor) -> None:
        """Change the module's inputs in place, before it computes."""

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Change the module's outputs for `inputs` in place."""


@dataclass(frozen=True)
class LoraLayer(AdapterLayer):
    """A is (r, in), B is (out, r), both in the dtype of the adapter's file: float32 would double its memory."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def scaled(self, factor: float) -> AdapterLayer:
        return replace(self, scale=self.scale * factor)

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        outputs.add_(self.delta(inputs))

    def delta(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the addend to the outputs, (..., out); float32 on a CPU, where small 16-bit products are slower."""
        dtype = torch.float32 if self.a.device.type == "cpu" else self.a.dtype
        low_rank = torch.nn.functional.linear(inputs.to(dtype), self.a.to(dtype))
        return torch.nn.functional.linear(low_rank, self.b.to(dtype)).mul_(self.scale)


@dataclass(frozen=True)
class DoraLayer(AdapterLayer):
    """`ratio` is m / ||W + s B A||, (out,) float32; `offset`, (1 - ratio) * bias, undoes the scaling of the bias."""

    lora: LoraLayer
    ratio: torch.Tensor
    offset: torch.Tensor | None

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        scaled_outputs = (outputs + self.lora.delta(inputs)) * self.ratio
        outputs.copy_(scaled_outputs if self.offset is None else scaled_outputs + self.offset)


@dataclass(frozen=True)
class IA3OutputLayer(AdapterLayer):
    """IA3 outside the feed-forward layers; `scale` is (out,) float32."""

    scale: torch.Tensor

    def scaled(self, factor: float) -> AdapterLayer:
        return IA3OutputLayer(1 + factor * (self.scale - 1))

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:  # noqa: ARG002
        outputs.mul_(self.scale)


@dataclass(frozen=True)
class IA3InputLayer(AdapterLayer):
    """IA3 of a feed-forward layer; `scale` is (in,) float32."""

    scale: torch.Tensor
    changes_inputs = True

    def scaled(self, factor: float) -> AdapterLayer:
        return IA3InputLayer(1 + factor * (self.scale - 1))

    def change_inputs(self, inputs: torch.Tensor) -> None:
        inputs.mul_(self.scale)


def build_lora_layers(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    modules: Mapping[str, torch.nn.Module],
    device: torch.device,
) -> dict[str, AdapterLayer]:
    """Return the layers of a LoRA or DoRA folder, whose shapes have been checked, by module name."""
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    layers: dict[str, AdapterLayer] = {}
    for name in sorted({key.removeprefix(_PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in tensors}):
        a = tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"].to(device)
        b = tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"].to(device)
        lora = LoraLayer(a, b, scale)
        if config.get("use_dora"):
            magnitude = tensors[f"{_PEFT_PREFIX}{name}.lora_magnitude_vector"].float().to(device)
            ratio = magnitude / weight_norm(modules[name], a.float(), b.float() * scale)
            bias = modules[name].bias
            layers[name] = DoraLayer(lora, ratio, None if bias is None else (1 - ratio) * bias.detach().float())
        else:
            layers[name] = lora
    return layers


def build_ia3_layers(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
) -> dict[str, AdapterLayer]:
    """Return the layers of an IA3 folder, whose shapes have been checked, by module name."""
    layers: dict[str, AdapterLayer] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PEFT_PREFIX).removesuffix(".ia3_l")
        scale = tensor.flatten().float().to(device)
        layers[name] = IA3InputLayer(scale) if is_feedforward(name, config) else IA3OutputLayer(scale)
    return layers


@torch.inference_mode()
def weight_norm(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return ||W + B A|| of every output feature, (out,) float32; `b` includes the LoRA scale.

    The columns of a quantized weight are computed by the module itself, from unit vectors and without its bias: this
    gives the values that are used for serving, in whichever layout bitsandbytes has packed them.
    """
    squares = torch.zeros(b.shape[0], device=b.device)
    for begin in range(0, a.shape[1], _COLUMNS_PER_CHUNK):
        end = min(begin + _COLUMNS_PER_CHUNK, a.shape[1])
        squares += (_weight_columns(layer, begin, end, a) + b @ a[:, begin:end]).square().sum(-1)
    return squares.sqrt()


def _weight_columns(layer: Any, begin: int, end: int, example: torch.Tensor) -> torch.Tensor:
    """Return W[:, begin:end] in float32."""
    if type(layer) is torch.nn.Linear:
        return layer.weight[:, begin:end].float()
    if isinstance(layer, Conv1D):  # (in, out)
        return layer.weight[begin:end].T.float()
    unit_vectors = torch.zeros((end - begin, example.shape[1]), device=example.device)
    unit_vectors[torch.arange(end - begin), torch.arange(begin, end)] = 1
    return torch.as_tensor(_without_bias_and_hooks(layer)(unit_vectors.to(_compute_dtype(layer)))).float().T


def _without_bias_and_hooks(layer: Any) -> Any:
    """Return a copy of the module that shares its weight, without bias and hooks.

    The module itself must not change: the engine's thread may be running it, with hooks for other rows.
    """
    copy = object.__new__(type(layer))
    copy.__dict__.update(layer.__dict__)
    copy.__dict__["_parameters"] = {**layer._parameters, "bias": None}
    copy.__dict__["_forward_hooks"], copy.__dict__["_forward_pre_hooks"] = OrderedDict(), OrderedDict()
    return copy


def _compute_dtype(layer: Any) -> torch.dtype:
    """Return the dtype in which a bitsandbytes module computes."""
    return getattr(layer, "compute_dtype", None) or torch.bfloat16


@dataclass(frozen=True)
class KVPrefix:
    """Keys and values of every layer, each (heads, positions, head size), at positions 0, 1, ... of the row."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1]


@dataclass(frozen=True)
class SoftPrompt:
    """Embeddings of virtual tokens, (tokens, hidden size), in front of the input of the base or of its encoder."""

    embeddings: torch.Tensor


PromptPrefix = KVPrefix | SoftPrompt


def prompt_tuning(model: PreTrainedModel, config: Any, embeddings: torch.Tensor, name: str) -> PromptPrefix:
    """Return the prefix of a prompt tuning adapter from `embeddings`, (tokens, hidden size) as PEFT saves them."""
    # For encoder-decoder bases PEFT saves a second half for the decoder and does not use it.
    embeddings = embeddings[: config["num_virtual_tokens"]]
    embedding_weight = model.get_input_embeddings().weight
    _check_cache(model, name)
    return SoftPrompt(embeddings.to(embedding_weight.device, embedding_weight.dtype))


def prefix_tuning(model: PreTrainedModel, config: Any, flat: torch.Tensor, name: str) -> KVPrefix:
    """Return the prefix in `flat`, (tokens, layers * 2 * heads * head size), with the layout of `PeftModel.get_prompt`.

    On encoder-decoder bases it is in front of the decoder's own tokens. Raises AdapterError where the base cannot use
    it.
    """
    layers, layer_order = config["num_layers"], list(range(config["num_layers"]))
    if model.config.is_encoder_decoder:
        if not hasattr(model.config, "relative_attention_num_buckets"):
            raise AdapterError(
                f"Adapter '{name}' is a Prefix tuning adapter of an encoder-decoder base with absolute positions, and "
                "only bases like T5 are served with one: train a LoRA, IA3 or Prompt tuning adapter instead."
            )
        # For encoder-decoder bases PEFT splits the saved layers into groups for self-attention and cross-attention and
        # drops the second ones. So layer i uses the keys that are saved as layer 2 i modulo the number of layers.
        layer_order = [2 * layer % layers for layer in layer_order]
    _check_cache(model, name)
    heads = config["num_attention_heads"]
    pairs = flat.view(len(flat), layers, 2, heads, -1).permute(1, 2, 3, 0, 4)[layer_order]
    keys, values = (tuple(pair[side].to(model.device, model.dtype).contiguous() for pair in pairs) for side in (0, 1))
    base_shape = _kv_heads(model.config.get_text_config())
    if (heads, keys[0].shape[2]) != base_shape:
        raise AdapterError(
            f"Adapter '{name}' has a prefix of {heads} heads of size {keys[0].shape[2]} and the base has "
            f"{base_shape[0]} heads of size {base_shape[1]}: train it again on this base."
        )
    return KVPrefix(keys, values)


def _kv_heads(config: Any) -> tuple[int, int]:
    """Return the number of key/value heads of a base and their size."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, size


def _check_cache(model: Any, name: str) -> None:
    if not model.config.is_encoder_decoder and not is_plain(new_cache(model.config)):
        raise AdapterError(
            f"Adapter '{name}' puts virtual tokens before the prompt, and this base does not keep the keys and values "
            "of tokens far back (it has a sliding window, or states): train a LoRA or IA3 adapter instead."
        )


@torch.inference_mode()
def to_kv_prefix(model: Any, prompt_prefix: PromptPrefix) -> KVPrefix:
    """Return the prefix as keys and values; those of virtual tokens are computed by the bare decoder-only base."""
    if isinstance(prompt_prefix, KVPrefix):
        return prompt_prefix
    cache = new_cache(model.config)
    model(inputs_embeds=prompt_prefix.embeddings[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return KVPrefix(
        tuple(layer.keys[0].clone() for layer in cache.layers), tuple(layer.values[0].clone() for layer in cache.layers)
    )


def init_cache_with_prefixes(cache: Any, prefixes: Sequence[KVPrefix | None], device: torch.device) -> torch.Tensor:
    """Put each row's prefix into an empty cache and return the mask of its columns, (rows, columns).

    Prefixes end at the same column; rows with a shorter one, or none, have masked columns in front.
    """
    columns = max((len(prefix) for prefix in prefixes if prefix is not None), default=0)
    mask = torch.zeros((len(prefixes), columns), dtype=torch.long, device=device)
    example = next((prefix for prefix in prefixes if prefix is not None), None)
    if example is None:
        return mask
    for number, (key, value) in enumerate(zip(example.keys, example.values, strict=True)):
        keys = key.new_zeros((len(prefixes), key.shape[0], columns, key.shape[2]))
        values = value.new_zeros((len(prefixes), value.shape[0], columns, value.shape[2]))
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                keys[row, :, columns - len(prefix) :] = prefix.keys[number]
                values[row, :, columns - len(prefix) :] = prefix.values[number]
                mask[row, columns - len(prefix) :] = 1
        cache.update(keys, values, number)
    return mask


def load_tensors(folder: AdapterFolder) -> dict[str, torch.Tensor]:
    """Load the tensors of a checked folder by name, in the dtypes of its file. Callable from any thread.

    The file is read once, and its digest must be that of the file that the store has checked. The tensors are views of
    the bytes that were read, so an adapter takes as much memory as its file. Raises AdapterError when the file has
    changed since the checks, or when a value is NaN or infinite.
    """
    raw = read_raw_tensors(folder.path / WEIGHTS_NAME, folder.sha256, folder.name)
    tensors = {}
    for name, entry in raw.tensors.items():
        count = math.prod(entry.shape)
        tensor = torch.frombuffer(raw.data, dtype=_DTYPES[entry.dtype], count=count, offset=entry.begin)
        # Tensors in a file need not be aligned, and unaligned views are slow or fail: copy those.
        tensors[name] = (tensor if entry.begin % tensor.itemsize == 0 else tensor.clone()).view(entry.shape)
    for name, tensor in tensors.items():
        # Both bounds are NaN when any value is; `isfinite` of each value takes ten times as long.
        if not all(math.isfinite(bound) for bound in torch.aminmax(tensor)):
            raise AdapterError(f"Adapter '{folder.name}' has NaN or infinite values in {name}: train it again.")
    return tensors


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter in memory: its layers by module name or its prompt prefix, and its size in bytes.

    Adapters are compared by identity: a folder that is loaded again is another adapter.
    """

    layers: Mapping[str, AdapterLayer] = field(default_factory=dict)
    prompt_prefix: PromptPrefix | None = None
    size: int = 0

    @cached_property
    def lora_layers(self) -> Mapping[str, LoraLayer]:
        """The LoRA layers, without DoRA ones."""
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, LoraLayer)}


@dataclass(frozen=True)
class AppliedAdapter:
    """An adapter and its scale (1.0 = as trained)."""

    adapter: LoadedAdapter
    scale: float = 1.0


def load_adapter(
    folder: AdapterFolder, model: PreTrainedModel, modules: Mapping[str, torch.nn.Module]
) -> LoadedAdapter:
    """Load a checked folder for `model`. Callable from any thread.

    Raises AdapterError for NaN or infinite values, for a changed file, or for a prefix that the base cannot use.
    """
    tensors = load_tensors(folder)
    config, technique = folder.config, folder.config["peft_type"]
    size = sum(tensor.nbytes for tensor in tensors.values())
    if technique == "LORA":
        return LoadedAdapter(build_lora_layers(config, tensors, modules, model.device), size=size)
    if technique == "IA3":
        return LoadedAdapter(build_ia3_layers(config, tensors, model.device), size=size)
    build_prefix = prompt_tuning if technique == "PROMPT_TUNING" else prefix_tuning
    return LoadedAdapter(
        prompt_prefix=build_prefix(model, config, tensors["prompt_embeddings"], folder.name), size=size
    )


def cannot_scale_message(name: str) -> str:
    """Return the message for an adapter that is requested at a scale and has none."""
    return (
        f"Adapter '{name}' cannot be scaled: leave the number after '*' out (only LoRA without DoRA and IA3 can be "
        "scaled)."
    )


class AdapterRegistry:
    """The loaded adapters of one base by name. Thread-safe; running rows keep the adapter that they started with."""

    def __init__(self) -> None:
        self._adapters: dict[str, LoadedAdapter] = {}
        self._lock = Lock()

    def add(self, name: str, adapter: LoadedAdapter) -> LoadedAdapter | None:
        """Add the adapter; return the one of the same name that it replaces, or None."""
        with self._lock:
            old = self._adapters.get(name)
            self._adapters[name] = adapter
            return old

    def remove(self, name: str) -> LoadedAdapter | None:
        """Remove and return the adapter; None if there is none of that name."""
        with self._lock:
            return self._adapters.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def __getitem__(self, name: str) -> LoadedAdapter:
        return self._adapters[name]

    def resolve(self, row: Row) -> AppliedAdapter | None:
        """Return the row's adapter and scale; raises PromptOrTuneError if it is not loaded or cannot be scaled."""
        if row.adapter is None:
            return None
        adapter = self._adapters.get(row.adapter)
        if adapter is None:
            raise AdapterError(f"Adapter '{row.adapter}' is not in memory any more: try again.")
        if row.scale != 1 and (
            adapter.prompt_prefix is not None or any(isinstance(layer, DoraLayer) for layer in adapter.layers.values())
        ):
            raise PromptOrTuneError(cannot_scale_message(row.adapter))
        return AppliedAdapter(adapter, row.scale)
