"""The sizes of the study's models, and what follows from sizes alone: how many parameters there are, how many learn.

Sizes are those of each model's published config.json. What is derived from them reproduces the study's own Table 3:
2.7M for LoRA on CodeT5+-220M, 12.5M on CodeLlama-7B, 0.16M for IA3 on CodeGen-350M, 2.6M for KVPrefix tuning on
CodeGen2-7B (arXiv 2308.10462).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ModelFamily = Literal["llama", "codegen", "t5"]
MODEL_FAMILIES: tuple[ModelFamily, ...] = ("llama", "codegen", "t5")


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model. `layers` are those of the decoder; only encoder-decoders have `encoder_layers`.

    "llama" stands for all bases with separate query, key and value projections and a gated feed-forward block (Llama,
    CodeLlama, Qwen2, Mistral, SmolLM2), "codegen" for CodeGen and CodeGen2, "t5" for T5 and CodeT5+.
    """

    family: ModelFamily
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    head_dim: int = 0
    encoder_layers: int = 0
    tied: bool = False

    @property
    def head_size(self) -> int:
        """Numbers in one head's key."""
        return self.head_dim or self.hidden // self.heads

    @property
    def q_size(self) -> int:
        """Numbers in all queries of one token."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Numbers in all keys of one token, and as many in all values."""
        return self.key_value_heads * self.head_size

    def num_linear_parameters(self) -> int:
        """Parameters in the linear layers of the body: those that quantization shrinks."""
        attention = 2 * self.hidden * (self.q_size + self.kv_size)
        matrices = 3 if self.family == "llama" else 2
        feedforward = matrices * self.hidden * self.intermediate
        decoder = self.layers * (attention * (2 if self.encoder_layers else 1) + feedforward)
        return decoder + self.encoder_layers * (attention + feedforward)

    def num_parameters(self) -> int:
        """All parameters but for norms and biases, which are under a thousandth."""
        return self.num_linear_parameters() + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in the key/value cache, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_size

    def trainable_parameters(
        self, technique: str, rank: int = 16, virtual_tokens: int = 20, output: bool = False
    ) -> int:
        """Parameters that a technique learns on this base, with the modules that train/targets.py chooses.

        `output` says whether LoRA also changes the projection out of the attention (the project's default does, the
        study's setting does not).
        """
        if technique == "full":
            return self.num_parameters()
        attentions = self.layers * (2 if self.encoder_layers else 1) + self.encoder_layers
        if technique.endswith(("lora", "bit")):
            inputs = self._lora_qkv_parameters(rank)
            return attentions * (inputs + (rank * (self.q_size + self.hidden) if output else 0))
        if technique == "ia3":
            rescaled = self.q_size + 2 * self.kv_size + self.hidden
            return attentions * rescaled + (self.layers + self.encoder_layers) * self.intermediate
        if technique == "prompt-tuning":
            return virtual_tokens * self.hidden
        return virtual_tokens * self.layers * 2 * self.kv_size

    def _lora_qkv_parameters(self, rank: int) -> int:
        """LoRA's two matrices on queries, keys and values, which CodeGen has in one projection."""
        outputs = self.q_size + 2 * self.kv_size
        return rank * (outputs + self.hidden * (1 if self.family == "codegen" else 3))


def _codellama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> Architecture:
    return Architecture("llama", hidden, intermediate, layers, heads, kv_heads, vocabulary)


def _codegen(hidden: int, layers: int) -> Architecture:
    return Architecture("codegen", hidden, 4 * hidden, layers, 16, 16, 51200)


def _t5(hidden: int, layers: int, heads: int) -> Architecture:
    return Architecture("t5", hidden, 4 * hidden, layers, heads, heads, 32100, 64, layers, tied=True)


KNOWN_ARCHITECTURES: dict[str, Architecture] = {
    "SmolLM2-135M": Architecture("llama", 576, 1536, 30, 9, 3, 49152, tied=True),
    "CodeT5+-220M": _t5(768, 12, 12),
    "CodeT5+-770M": _t5(1024, 24, 16),
    "CodeGen-350M-mono": _codegen(1024, 20),
    "CodeGen2-1B": _codegen(2048, 16),
    "CodeGen2-3.7B": _codegen(4096, 16),
    "CodeGen2-7B": _codegen(4096, 32),
    "CodeLlama-7B": _codellama(4096, 11008, 32, 32, 32, 32016),
    "CodeLlama-7B-Instruct": _codellama(4096, 11008, 32, 32, 32, 32016),
    "CodeLlama-7B-Python": _codellama(4096, 11008, 32, 32, 32, 32000),
    "CodeLlama-13B-Python": _codellama(5120, 13824, 40, 40, 40, 32000),
    "CodeLlama-34B-Python": _codellama(8192, 22016, 48, 64, 8, 32000),
}
