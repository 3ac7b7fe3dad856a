"""The layers that work on this machine, and a mark by which every process of a test's sandbox can be found."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from evaluate.sandbox import probe, spec
from evaluate.sandbox.spec import SANDBOX_LAYERS


@pytest.fixture(scope="module", params=SANDBOX_LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    """Each layer in turn; skipped where it does not work. That one of them works is the `sandbox` fixture's matter."""
    name = str(request.param)
    found = probe.probe_layer(name)
    if not found.works:
        pytest.skip(f"The sandbox layer '{name}' does not work here: {found.reason}.")
    return name


@pytest.fixture(scope="module")
def marker() -> Iterator[str]:
    """Stands in the command line of every process of the sandbox, and of its forks."""
    text = f"marker-{secrets.token_hex(8)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "BOOTSTRAP", f"{spec.BOOTSTRAP}#{text}")
        yield text
