"""The state that fits a base."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from serve.backends.local.causal import CausalState
from serve.backends.local.fused import FusedModel, can_fuse
from serve.backends.local.fused_state import FusedState, share_base
from serve.backends.local.prefixes import Prefixes
from serve.backends.local.seq2seq import Seq2SeqState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from serve.backends.local.state import State


def state_maker(model: PreTrainedModel, pad_token: int, prefixes: Prefixes) -> Callable[[], State]:
    """Makes fresh states of the kind that fits the model."""
    modules = dict(model.named_modules())
    if model.config.is_encoder_decoder:
        return lambda: Seq2SeqState(model, pad_token, modules)
    if can_fuse(model):
        base = share_base(FusedModel(model), modules, prefixes)
        return lambda: FusedState(base)
    return lambda: CausalState(model, pad_token, modules)
