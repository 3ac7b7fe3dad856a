"""Labels of methods, the base model, decoding and points in time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from adapters.manifest import UNKNOWN
from common.format import quantization_label
from models.identity import BaseIdentity

_SELECTION_LABELS = {"icl": "fixed", "rag": "nearest"}
_DEVICE_LABELS = {"cpu": "CPU", "cuda": "GPU"}


def method_label(name: str) -> str:
    """Return the label of a method name: 'lora-conala + RAG 8' for `lora-conala+rag-8`."""
    return " + ".join(re.sub(r"^(icl|rag)-(\d+)", lambda m: f"{m[1].upper()} {m[2]}", part) for part in name.split("+"))


def method_hint(name: str) -> str:
    """Describe a method in a short phrase: 'no examples, no training', 'trained adapter · 8 nearest examples'."""
    phrases = []
    for part in name.split("+"):
        match = re.match(r"(icl|rag)-(\d+)", part)
        if match:
            count = int(match[2])
            phrases.append(f"{count} {_SELECTION_LABELS[match[1]]} example{'' if count == 1 else 's'}")
        else:
            phrases.append("no examples, no training" if part == "zero-shot" else "trained adapter")
    return " · ".join(phrases)


def base_label(base: BaseIdentity) -> str:
    """Return 'SmolLM2-135M-Instruct · NF4 · CPU', 'base · vLLM at 127.0.0.1:8000'."""
    return model_label(base.id, base.quantization, base.device)


def model_label(base_id: str, quantization: str, device: str) -> str:
    """Return the same from the fields of a record; unknown ones are left out."""
    name = base_id.rstrip("/").rsplit("/", 1)[-1] or base_id
    kind = device.split(":", 1)[0]
    labels = (name, quantization_label(quantization), _DEVICE_LABELS.get(kind, device))
    return " · ".join(part for part in labels if part != UNKNOWN)


def decoding_label(decoding: Mapping[str, Any]) -> str:
    """Return 'greedy', 'beam search, 10 candidates', 'sampling, 3 candidates, temperature 0.6, top-p 0.95, seed 0'."""
    mode, count = decoding["mode"], decoding["candidates"]
    if mode == "greedy":
        return "greedy"
    candidates = f"{count} candidate{'' if count == 1 else 's'}"
    if mode == "beam":
        return f"beam search, {candidates}"
    sampling = f"temperature {decoding['temperature']:g}, top-p {decoding['top_p']:g}, seed {decoding['seed']}"
    return f"sampling, {candidates}, {sampling}"


def format_date(created: str) -> str:
    """Return '22 November 2025' for an ISO time."""
    when = datetime.fromisoformat(created)
    return f"{when.day} {when:%B %Y}"


def format_time(created: str) -> str:
    """Return '14:05' for an ISO time, in the server's time zone."""
    return f"{datetime.fromisoformat(created).astimezone():%H:%M}"
