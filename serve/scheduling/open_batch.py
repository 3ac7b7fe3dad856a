"""A backend's batch with the jobs that are in it."""

from __future__ import annotations

from serve.rows import Batch, Finished, Partial
from serve.scheduling.jobs import Job


class OpenBatch:
    """A batch that stays open while its rows come and go. For the thread that runs the model alone."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        """How many lines grow, or are about to."""
        return len(self._batch) if self.jobs else 0

    @property
    def joins(self) -> bool:
        """Whether a job may join now."""
        return not self.jobs or self._batch.joins

    def add(self, job: Job) -> None:
        """Takes the job's row in; raises PeftArenaError where it cannot be answered."""
        if job.plan is None:
            raise ValueError("only planned jobs fly")
        self._batch.add(job.key, job.plan.row, job.call.decoding)
        self.jobs[job.key] = job

    def step(self) -> list[tuple[Job, Partial | Finished]]:
        """One step of all rows. After an exception the batch is not used again."""
        events: list[tuple[Job, Partial | Finished]] = []
        for event in self._batch.step():
            events.append((self.jobs[event.index], event))
            if isinstance(event, Finished):
                del self.jobs[event.index]
        return events

    def cancel(self, job: Job) -> Finished:
        """Takes the job's row out at once."""
        del self.jobs[job.key]
        return self._batch.cancel(job.key)
