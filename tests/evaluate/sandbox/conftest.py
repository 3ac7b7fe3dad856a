"""Fixtures: the available layers, and a marker in the command line of every sandbox process."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from evaluate.sandbox import sandbox, spec
from evaluate.sandbox.spec import SANDBOX_LAYERS


@pytest.fixture(scope="module", params=SANDBOX_LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    """Return each layer in turn; skip those that are not available."""
    name = str(request.param)
    found = sandbox.probe_layer(name)
    if not found.works:
        pytest.skip(f"The sandbox layer '{name}' does not work here: {found.reason}.")
    return name


@pytest.fixture(scope="module")
def marker() -> Iterator[str]:
    """Add a marker to the command line of every process of the sandbox, which forks inherit; yield it."""
    text = f"marker-{secrets.token_hex(8)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "BOOTSTRAP", f"{spec.BOOTSTRAP}#{text}")
        yield text
