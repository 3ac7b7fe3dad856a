"""What the Hub stand-in knows of Spaces: their settings, how far they are, the lines of their build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Space:
    """One Space's settings. `stages` are what it goes through, one each time somebody asks; the last one stays.

    `names_commit` says whether its runtime tells the commit that runs; `hidden` Spaces are seen by nobody, and their
    name is taken all the same.
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
    """All Spaces of a stand-in, its buckets (private or not), and the hardware that nobody pays for."""

    known: dict[str, Space] = field(default_factory=dict)
    buckets: dict[str, bool] = field(default_factory=dict)
    unpaid: set[str] = field(default_factory=set)
    fresh: Callable[[], Space] = Space

    def of(self, name: str) -> Space:
        """The Space of that name, which must be there."""
        return self.known[name]
