"""State of Spaces on the local Hub: settings, stages and build log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Space:
    """Settings of a Space. Each request for the status returns the next one of `stages`, and then always the last one.

    With `names_commit` the status contains the running commit. `hidden` Spaces cannot be read, but their name is taken.
    `asked` counts the requests for the status.
    """

    sdk: str = "gradio"
    hardware: str | None = None
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    stages: list[str] = field(default_factory=lambda: ["BUILDING", "APP_STARTING", "RUNNING"])
    log: list[str] = field(default_factory=lambda: ["--> FROM docker.io/library/python\n", "Pushing image\n"])
    names_commit: bool = True
    error: str = ""
    hidden: bool = False
    asked: int = 0


@dataclass
class Spaces:
    """All Spaces of the local Hub, its buckets (private or not), and the hardware that requires a payment method."""

    known: dict[str, Space] = field(default_factory=dict)
    buckets: dict[str, bool] = field(default_factory=dict)
    unpaid: set[str] = field(default_factory=set)
    fresh: Callable[[], Space] = Space

    def of(self, name: str) -> Space:
        """Return the Space of that name, which must exist."""
        return self.known[name]
