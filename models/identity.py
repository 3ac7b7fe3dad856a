"""Identity of a base model: its id, revision, architecture, quantization and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BaseIdentity:
    """The properties of a base model that adapters, results and pages depend on.

    `shapes` maps each linear module's name to (out_features, in_features). `revision` is a commit hash for a Hub model,
    and `sha256:<16 hex digits>` of the weights for the embedded base, folders and GGUF files. The sizes determine the
    shapes of virtual tokens and key/value prefixes; 0 if unknown.
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
    # The prompt style of a base that this program has fully fine-tuned; "" for other bases.
    prompt_style: str = ""
    prompt_fingerprint: str = ""
