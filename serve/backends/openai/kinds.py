"""The engines that this program knows by what they say of themselves, and how their dialects differ.

Sources: the manuals and servers of vLLM (docs/features/lora.md, /v1/models), LoRAX (router/src/lib.rs), llama.cpp
(tools/server/README.md) and llama-cpp-python (llama_cpp/server).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ServerType:
    """One engine's dialect.

    `takes_n`: several samples come from one call. `greedy`: what asks for the likeliest token. `neutral`: what switches
    off the samplers and penalties that the server would add by itself (vLLM takes those of the model's
    generation_config.json), so that all engines decode alike. `counting`: what makes a stream tell its tokens as they
    come, which an answer that we cut would never tell. `every_technique`: not LoRA alone. `loads`: it may have
    /v1/load_lora_adapter. `scales`: an adapter's strength can be chosen. `at_once`: how many streams it may be sent.
    """

    name: str
    supports_n: bool = False
    greedy: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    neutral: Mapping[str, Any] = field(default_factory=dict)
    usage_options: Mapping[str, Any] = field(default_factory=dict)
    supports_all_techniques: bool = False
    may_load_adapters: bool = False
    supports_scale: bool = False
    max_streams: int = 64


_USAGE_OPTIONS = {"continuous_usage_stats": True}
OURS = ServerType(
    "Peft Arena",
    supports_n=True,
    usage_options=_USAGE_OPTIONS,
    supports_all_techniques=True,
    may_load_adapters=True,
    supports_scale=True,
)
VLLM = ServerType(
    "vLLM",
    supports_n=True,
    usage_options=_USAGE_OPTIONS,
    neutral={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    may_load_adapters=True,
)
# LoRAX refuses a temperature of 0, and samples as soon as there is an `n`.
LORAX = ServerType("LoRAX", greedy={})
_LLAMA_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
LLAMA_CPP = ServerType("llama.cpp", neutral=_LLAMA_NEUTRAL, supports_scale=True)
# It answers one request at a time and, by default, breaks off a stream when the next one comes.
LLAMA_CPP_PYTHON = ServerType("llama-cpp-python", neutral=_LLAMA_NEUTRAL, max_streams=1)
OTHER = ServerType("OpenAI-compatible server")

# `owned_by` of the entries of /v1/models.
SERVER_TYPE_BY_OWNER: Mapping[str, ServerType] = {
    "peft-arena": OURS,
    "vllm": VLLM,
    "llamacpp": LLAMA_CPP,
    "me": LLAMA_CPP_PYTHON,
}
