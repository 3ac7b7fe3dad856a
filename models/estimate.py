"""Memory estimate: bytes of a model's weights by quantization. Needs no torch, so that planning stays light."""

from __future__ import annotations

from collections.abc import Mapping

# Bytes of a weight. NF4 has blocks of 64 with an 8-bit scale each, and a 32-bit scale for 256 of these scales (QLoRA,
# arXiv 2305.14314, section 3); int8 has one scale a row, which is negligible; "none" are 16-bit floats.
WEIGHT_BYTES: Mapping[str, float] = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "none": 2.0}


def weight_bytes(linear: int, other: int, quantization: str) -> int:
    """Return the bytes of `linear` quantized parameters and `other` parameters, which stay in 16 bits."""
    return round(linear * WEIGHT_BYTES[quantization] + other * WEIGHT_BYTES["none"])
