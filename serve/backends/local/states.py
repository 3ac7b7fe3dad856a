"""The state that fits a base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serve.backends.local.causal import CausalState, Uniform
from serve.backends.local.prefix import Ahead, Prefix
from serve.backends.local.seq2seq import Seq2SeqState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from serve.backends.local.state import State


def state_for(
    model: PreTrainedModel, pad_token: int, ahead: Sequence[Ahead | None], uniform: Uniform | None = None
) -> State:
    """A fresh state of the kind that fits the model; `ahead[i]` is what stands before prompt i."""
    if model.config.is_encoder_decoder:
        return Seq2SeqState(model, pad_token, ahead)
    return CausalState(model, pad_token, [each if isinstance(each, Prefix) else None for each in ahead], uniform)
