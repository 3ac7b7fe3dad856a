"""A backend's batch with the jobs that are in it."""

from __future__ import annotations

from serve.rows import Batch, PartialOutput, RowOutput
from serve.scheduling.jobs import ScheduledRequest


class RunningBatch:
    """A batch that stays open while its rows come and go. For the thread that runs the model alone."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.requests: dict[int, ScheduledRequest] = {}

    def __len__(self) -> int:
        """How many lines grow, or are about to."""
        return len(self._batch) if self.requests else 0

    @property
    def can_add(self) -> bool:
        """Whether a job may join now."""
        return not self.requests or self._batch.supports_continuous_batching

    def add(self, request: ScheduledRequest) -> None:
        """Takes the job's row in; raises PromptOrTuneError where it cannot be answered."""
        if request.prepared is None:
            raise ValueError("only planned jobs fly")
        self._batch.add(request.key, request.prepared.row, request.request_batch.sampling_params)
        self.requests[request.key] = request

    def step(self) -> list[tuple[ScheduledRequest, PartialOutput | RowOutput]]:
        """One step of all rows. After an exception the batch is not used again."""
        events: list[tuple[ScheduledRequest, PartialOutput | RowOutput]] = []
        for event in self._batch.step():
            events.append((self.requests[event.index], event))
            if isinstance(event, RowOutput):
                del self.requests[event.index]
        return events

    def cancel(self, request: ScheduledRequest) -> RowOutput:
        """Takes the job's row out at once."""
        del self.requests[request.key]
        return self._batch.cancel(request.key)
