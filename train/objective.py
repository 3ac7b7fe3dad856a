"""The loss of every technique: cross-entropy of the learned tokens, without the other tokens' logits.

On a small base the vocabulary's projection costs as much as several layers, and most tokens of a sample are prompt.
"""

from __future__ import annotations

import types
from typing import Any

import torch

from train.encode import IGNORE_INDEX


def patch_loss(model: Any) -> None:
    """Makes `model(**batch)` return {"loss": ...}; the model may be a PeftModel or a bare base.

    The model's own `forward` is replaced, and not the Trainer's loss, because several processes exchange gradients
    in a wrapper around exactly this call.
    """
    model.forward = types.MethodType(_loss_forward, model)


def _loss_forward(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **_: Any,
) -> dict[str, torch.Tensor]:
    """The summed loss over `num_items_in_batch` tokens, or over the batch's own where that is None.

    `input_ids`, `attention_mask` and `labels` are (samples, longest); labels are -100 where nothing is learned.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config.is_encoder_decoder:
        logits, learned = _seq2seq_loss(model, input_ids, attention_mask, labels)
    else:
        logits, learned = _causal_loss(model, base, input_ids, attention_mask, labels)
    total = torch.nn.functional.cross_entropy(logits.float(), learned, reduction="sum")
    return {"loss": total / (num_items_in_batch if num_items_in_batch is not None else learned.numel())}


def _seq2seq_loss(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = type(model).forward(model, input_ids=input_ids, attention_mask=attention_mask, labels=labels).logits
    learned = labels != IGNORE_INDEX
    return logits[:, -labels.shape[1] :][learned], labels[learned]


def _causal_loss(
    model: Any, base: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = base.get_decoder()(**_prepend_virtual_tokens(model, base, input_ids, attention_mask)).last_hidden_state
    hidden = hidden[:, -input_ids.shape[1] :]
    # What stands at one place is learned from what stands before it.
    learned = labels[:, 1:] != IGNORE_INDEX
    return base.get_output_embeddings()(hidden[:, :-1][learned]), labels[:, 1:][learned]


def _prepend_virtual_tokens(
    model: Any, base: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> dict[str, Any]:
    """The decoder's inputs, with the virtual tokens of Prompt and KVPrefix tuning before them, as PEFT puts them."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    samples = input_ids.shape[0]
    ahead = attention_mask.new_ones(samples, config.num_virtual_tokens)
    mask = torch.cat((ahead, attention_mask), dim=1)
    if config.peft_type == "PREFIX_TUNING":
        return {"input_ids": input_ids, "attention_mask": mask, "past_key_values": model.get_prompt(samples)}
    embedded = base.get_input_embeddings()(input_ids)
    prompts = model.get_prompt(batch_size=samples).to(embedded.dtype)
    return {"inputs_embeds": torch.cat((prompts, embedded), dim=1), "attention_mask": mask, "use_cache": False}
