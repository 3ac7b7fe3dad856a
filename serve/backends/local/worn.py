"""What a line of the batch wears: an adapter in memory, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.backends.local.deltas import Delta
from serve.backends.local.prefix import Ahead


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory: its deltas by module name, or what it puts before the prompt.

    Two adapters are the same only if they are the same object: a folder that was loaded anew is another adapter.
    """

    deltas: Mapping[str, Delta] = field(default_factory=dict)
    ahead: Ahead | None = None


@dataclass(frozen=True)
class Worn:
    """An adapter with the factor on what it changes; 1 is the adapter as it was trained."""

    adapter: Adapter
    scale: float = 1.0
