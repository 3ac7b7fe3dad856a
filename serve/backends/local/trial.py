"""Trial of a base before it serves: one small batch, compared with one of its rows alone.

The configuration shows most kinds of bases that cannot be served (models/identity.py). The trial finds the others: a
forward that takes other arguments, a cache of the model's own, positions that do not follow the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from errors import BaseModelError
from models.identity import kind_error
from models.loader import LoadedBase
from serve.backends.local.hf_runner import HFSeq2SeqRunner
from serve.backends.local.model_runner import ModelRunner, PromptInput

# Lengths that are prefilled together (hf_runner.py), so that the second prompt is padded.
_LENGTHS = (5, 3)
# The largest difference of logits, as a share of their spread. Rounding differs with the shape of a batch: in 16 bits
# by a few percent.
_MAX_DIFFERENCE = {torch.float32: 0.01}
_MAX_DIFFERENCE_16_BIT = 0.2


@torch.inference_mode()
def check_batch(loaded: LoadedBase, make_runner: Callable[[], ModelRunner]) -> None:
    """Raise BaseModelError unless the base runs in a batch, and answers there as it does alone."""
    model: Any = loaded.model
    vocabulary = model.get_input_embeddings().num_embeddings
    prompts = [tuple((7 * step + 31 * length) % vocabulary for step in range(length)) for length in _LENGTHS]
    try:
        difference = _difference(model, make_runner(), prompts)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise _trial_error(loaded, f"does not run in a batch here ({detail.rstrip('.:')})") from error
    if not difference <= _MAX_DIFFERENCE.get(model.dtype, _MAX_DIFFERENCE_16_BIT):  # NaN: no
        raise _trial_error(loaded, "gives other answers in a batch than alone")


def _trial_error(loaded: LoadedBase, reason: str) -> BaseModelError:
    base = loaded.identity
    return kind_error(base.id, loaded.model.config.model_type, reason, quantized=base.quantization != "none")


def _difference(model: Any, runner: ModelRunner, prompts: list[tuple[int, ...]]) -> float:
    """Return the difference of the padded prompt's second logits from those of the prompt alone."""
    first_logits = list(runner.prefill([PromptInput(prompt) for prompt in prompts]))[-1]
    if first_logits is None:
        raise ValueError("A prefill ended without logits.")
    tokens = first_logits.argmax(-1)
    in_batch = runner.decode(tokens)[1].float()
    prompt, token = list(prompts[1]), int(tokens[1])
    if isinstance(runner, HFSeq2SeqRunner):
        inputs = {"input_ids": prompt, "decoder_input_ids": [runner.decoder_start_token, token]}
    else:
        inputs = {"input_ids": [*prompt, token]}
    ids = {name: torch.tensor([values], device=model.device) for name, values in inputs.items()}
    alone = model(**ids, attention_mask=torch.ones_like(ids["input_ids"]), use_cache=False).logits[0, -1].float()
    return float((in_batch - alone).norm() / (alone - alone.mean()).norm())
