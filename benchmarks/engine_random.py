"""A base of Llama's shape with random weights, for devices on which a larger model is wanted than one at hand.

Its tokenizer, and with it the size of its vocabulary, is the embedded base's: what a step costs does not depend on
the weights' values, and the prompts stay the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.paths import ProgressFn, atomic_dir, cache_dir, check_disk_space
from errors import BaseModelError
from models.source import EMBEDDED, resolve

# Hidden size, feed-forward size, layers, heads: Llama-2-7B's (arXiv 2307.09288), and one for tests.
MODEL_SIZES = {"7b": (4096, 11008, 32, 32), "tiny": (128, 256, 2, 4)}
CONTEXT_LENGTH = 4096


def make_random_llama(size: str, device: str, report: ProgressFn) -> Path:
    """The folder of that base in the user's cache, made when it is not there; 14 GB for "7b"."""
    folder = cache_dir() / "bases" / f"random-llama-{size}"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve(EMBEDDED, report).folder)
    hidden, inner, layers, heads = MODEL_SIZES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    weights = _num_parameters(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_disk_space(folder.parent, int(2.1 * weights))
    report(f"Making a Llama of {weights / 1e9:.2f} billion random weights, once ...")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        torch.manual_seed(0)
        with torch.device(place):
            model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        with atomic_dir(folder) as building:
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
    except torch.cuda.OutOfMemoryError as error:
        raise BaseModelError(
            f"A Llama of {weights / 1e9:.0f} billion weights does not fit the GPU's memory: use a larger one."
        ) from error
    return folder


def _num_parameters(config: Any) -> int:
    """How many weights such a model has."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return int(LlamaForCausalLM(config).num_parameters())
