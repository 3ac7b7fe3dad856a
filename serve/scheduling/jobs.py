"""A call and its requests on their way from the caller to the model and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Literal

from serve.planning import Plan
from serve.rows import Decoding, Request
from serve.scheduling.mailbox import Mailbox

Mode = Literal["step", "beam"]


@dataclass(eq=False, slots=True)
class Job:
    """One request of a call. Times are of `time.monotonic`, in seconds.

    "waiting" to be planned, in "planning", "planned" and waiting for the batch, "flying" in it, "done".
    """

    call: Call
    index: int
    key: int
    lines: int
    group: Group
    phase: Literal["waiting", "planning", "planned", "flying", "done"] = "waiting"
    plan: Plan | None = None
    began: float = 0.0
    first: float | None = None
    stalled: float | None = None


@dataclass(eq=False, slots=True)
class Group:
    """Jobs of one call that fit the batch together, so they start together: once none of them is `unplanned`.

    A `scattered` group starts job by job: its adapters did not all fit in memory at once.
    """

    jobs: list[Job]
    unplanned: int = 0
    started: bool = False
    scattered: bool = False


class Call:
    """What one caller asked for at once. `open` jobs have no answer yet; a `fault` while planning ends them all."""

    def __init__(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        owner: str | int,
        cancel: Event,
        mailbox: Mailbox,
        asked: float,
    ) -> None:
        self.requests = tuple(requests)
        self.decoding = decoding
        self.owner = owner
        self.mode: Mode = "beam" if decoding.mode == "beam" else "step"
        self.cancel = cancel
        self.mailbox = mailbox
        self.asked = asked
        self.jobs: list[Job] = []
        self.open = len(self.requests)
        self.deserted = False
        self.fault: Exception | None = None

    @property
    def stopped(self) -> bool:
        """Whether nobody waits for the rest."""
        return self.deserted or self.cancel.is_set()

    def split(self, keys: Iterator[int], most: int) -> list[Group]:
        """Makes the call's jobs, in groups of at most `most` lines (or of one job that has more)."""
        each = self.decoding.candidates
        size = max(1, most // each)
        groups = []
        for start in range(0, len(self.requests), size):
            group = Group([])
            for index in range(start, min(start + size, len(self.requests))):
                group.jobs.append(Job(self, index, next(keys), each, group))
            group.unplanned = len(group.jobs)
            self.jobs.extend(group.jobs)
            groups.append(group)
        return groups
