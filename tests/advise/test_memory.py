"""Memory of an advice: the limit, which techniques fit, and the refusal where none does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from advise.plan import CHECKPOINTING, fit_techniques, memory_limit
from errors import PromptOrTuneError

GB = 10**9
SIZES = {"qlora-4bit": 3.9, "ia3": 3.5}


def estimate(technique: str, more: Mapping[str, Any]) -> int | None:
    """Checkpointing takes a gigabyte less."""
    return round((SIZES[technique] - bool(more)) * GB)


def fit(limit_gb: float) -> dict[str, Any]:
    return fit_techniques(list(SIZES), estimate, memory_limit(limit_gb, 8 * GB))


def test_what_fits_is_trained_with_its_own_settings() -> None:
    found = fit(0)
    assert found["settings"] == {"qlora-4bit": {}, "ia3": {}}
    assert found["text"] == "Memory of a training: qlora-4bit about 3.9 GB, ia3 about 3.5 GB; 8 GB are free."


def test_what_is_too_large_gets_checkpointing_or_is_left_out() -> None:
    assert fit(3.0)["settings"] == {"qlora-4bit": CHECKPOINTING, "ia3": CHECKPOINTING}
    assert fit(3.6)["settings"] == {"qlora-4bit": CHECKPOINTING, "ia3": {}}
    found = fit(2.6)
    assert found["settings"] == {"ia3": CHECKPOINTING}
    assert "qlora-4bit more, so it is left out" in found["text"]
    assert found["text"].endswith("the limit is 2.6 GB.")


def test_limit_that_nothing_fits_is_refused_with_what_it_takes() -> None:
    with pytest.raises(PromptOrTuneError, match=r"the limit is 2 GB, and ia3 with gradient checkpointing .* 2.5 GB"):
        fit(2.0)


def test_limit_is_never_more_than_what_is_free() -> None:
    assert memory_limit(0, 8 * GB).bytes == memory_limit(16, 8 * GB).bytes == 8 * GB
    assert memory_limit(4, 8 * GB).bytes == memory_limit(4, None).bytes == 4 * GB
    assert memory_limit(0, None).allows(10**15)


def test_base_without_an_estimate_is_trained() -> None:
    found = fit_techniques(["ia3"], lambda *_: None, memory_limit(1, 8 * GB))
    assert found["settings"] == {"ia3": {}}
    assert "ia3 an unknown size" in found["text"]
