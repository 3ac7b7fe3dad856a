"""A call and its requests on their way from the caller to the model and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Literal

from serve.planning import PreparedRequest
from serve.rows import Request, SamplingParams
from serve.scheduling.mailbox import OutputQueue

BatchMode = Literal["step", "beam"]


@dataclass(eq=False, slots=True)
class ScheduledRequest:
    """One request of a call. Times are of `time.monotonic`, in seconds.

    "waiting" to be planned, in "planning", "planned" and waiting for the batch, "flying" in it, "done".
    """

    request_batch: RequestBatch
    index: int
    key: int
    num_seqs: int
    group: StartGroup
    status: Literal["waiting", "planning", "planned", "flying", "done"] = "waiting"
    prepared: PreparedRequest | None = None
    start_time: float = 0.0
    first_token_time: float | None = None
    deferred_since: float | None = None


@dataclass(eq=False, slots=True)
class StartGroup:
    """Jobs of one call that fit the batch together, so they start together: once none of them is `unplanned`.

    A `scattered` group starts job by job: its adapters did not all fit in memory at once.
    """

    requests: list[ScheduledRequest]
    num_unprepared: int = 0
    started: bool = False
    split: bool = False


class RequestBatch:
    """What one caller asked for at once. `open` jobs have no answer yet; a `fault` while planning ends them all."""

    def __init__(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        owner: str | int,
        cancel: Event,
        output_queue: OutputQueue,
        arrival_time: float,
    ) -> None:
        self.requests = tuple(requests)
        self.sampling_params = sampling_params
        self.owner = owner
        self.mode: BatchMode = "beam" if sampling_params.mode == "beam" else "step"
        self.cancel = cancel
        self.output_queue = output_queue
        self.arrival_time = arrival_time
        self.scheduled: list[ScheduledRequest] = []
        self.num_unfinished = len(self.requests)
        self.abandoned = False
        self.exception: Exception | None = None

    @property
    def is_aborted(self) -> bool:
        """Whether nobody waits for the rest."""
        return self.abandoned or self.cancel.is_set()

    def make_start_groups(self, keys: Iterator[int], max_seqs: int) -> list[StartGroup]:
        """Makes the call's jobs, in groups of at most `most` lines (or of one job that has more)."""
        each = self.sampling_params.candidates
        size = max(1, max_seqs // each)
        groups = []
        for start in range(0, len(self.requests), size):
            group = StartGroup([])
            for index in range(start, min(start + size, len(self.requests))):
                group.requests.append(ScheduledRequest(self, index, next(keys), each, group))
            group.num_unprepared = len(group.requests)
            self.scheduled.extend(group.requests)
            groups.append(group)
        return groups
