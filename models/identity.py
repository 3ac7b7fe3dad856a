"""What a base model is: its revision, architecture, quantization and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BaseIdentity:
    """What a base model is, as far as an adapter, a result or a page must know.

    `shapes` maps each linear module's name to (out_features, in_features). `revision` is a commit hash for a
    Hub model, and `sha256:<16 hex digits>` of the weights for the embedded base, folders and GGUF files.
    The sizes say how wide a virtual token and a key/value prefix must be; 0 where it is not known.
    """

    id: str
    revision: str
    architecture: str
    quantization: str
    device: str
    context_length: int
    has_chat_template: bool
    is_encoder_decoder: bool = False
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    hidden_size: int = 0
    num_layers: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    # The style that the base itself was fine-tuned with; "" where it was not ours to train.
    prompt_style: str = ""
    prompt_fingerprint: str = ""
