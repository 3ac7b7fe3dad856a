"""How fast this machine learns right now: a few steps of a small stand-in, timed.

One large product says little: on a CPU with fast 16-bit products most of a step goes into norms, dropout, casts and
small products, and elsewhere it does not. So the stand-in is two real Llama layers as wide as the base, with LoRA.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_MAX_ROUNDS, _MAX_SECONDS = 9, 1.0
# Wider layers are as fast, and a stand-in must not fill the memory.
_MAX_HIDDEN_SIZE = 2048


def measure_flops_per_second(hidden: int, intermediate: int, rows: int, tokens: int, device: str) -> float:
    """Floating-point operations a second, forward and backward, of `rows` rows of `tokens` tokens.

    The median of up to nine steps within a second; the state of random generators stays as it was.
    """
    with torch.random.fork_rng():
        model = _build_proxy_layer(hidden, intermediate, device)
        hidden_states = torch.randn(rows, tokens, model.config.hidden_size, dtype=torch.bfloat16, device=device)
        with FlopCounterMode(display=False) as flops:  # and kernels are loaded
            _training_step(model, hidden_states, device)
        times: list[float] = []
        while len(times) < _MAX_ROUNDS and sum(times) < _MAX_SECONDS:
            start = time.perf_counter()
            _training_step(model, hidden_states, device)
            times.append(time.perf_counter() - start)
    return flops.get_total_flops() / statistics.median(times)


def _training_step(model: Any, hidden_states: torch.Tensor, device: str) -> None:
    model(inputs_embeds=hidden_states, use_cache=False).last_hidden_state.sum().backward()
    model.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()


def _build_proxy_layer(hidden: int, intermediate: int, device: str) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaModel

    width = min(hidden, _MAX_HIDDEN_SIZE)
    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=round(intermediate * width / hidden),
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
    )
    with torch.device(device):
        model = LlamaModel(config).to(torch.bfloat16)
    lora = LoraConfig(r=16, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    return get_peft_model(model, lora).train()
