"""The state that fits a base."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from serve.backends.local.causal import HFCausalRunner
from serve.backends.local.fused import FusedLlama, can_fuse
from serve.backends.local.fused_state import FusedModelRunner, share_model
from serve.backends.local.prefixes import PrefixCache
from serve.backends.local.seq2seq import HFSeq2SeqRunner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from serve.backends.local.state import ModelRunner


def make_runner_factory(model: PreTrainedModel, pad_token: int, prefix_cache: PrefixCache) -> Callable[[], ModelRunner]:
    """Makes fresh states of the kind that fits the model."""
    modules = dict(model.named_modules())
    if model.config.is_encoder_decoder:
        return lambda: HFSeq2SeqRunner(model, pad_token, modules)
    if can_fuse(model):
        base = share_model(FusedLlama(model), modules, prefix_cache)
        return lambda: FusedModelRunner(base)
    return lambda: HFCausalRunner(model, pad_token, modules)
